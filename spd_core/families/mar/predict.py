"""Seconds of a batch by `spd_core.decode.predict`: plain decoding with and without windows, CSpD as released."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from spd_core.decode.ceilings import Ceilings, Pass
from spd_core.decode.work import Effort, blocks_pass, effort_of, head_pass, path_s
from spd_core.families.mar.cspd import prefill_iterations
from spd_core.families.mar.iterations import left_after, mask_lengths
from spd_core.families.mar.model import Mar, MarConfig
from spd_core.law import Choice, Cspd, Plain, Precision, SamplerLaw

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard


@dataclass(frozen=True)
class _Work:
    """The passes of a model."""

    encoder: Pass
    decoder: Pass
    head: Pass


@lru_cache(maxsize=16)
def _work(config: MarConfig, precision: Precision) -> _Work:
    with torch.device("meta"):
        model = Mar(config)
    return _Work(
        blocks_pass(model.encoder_blocks, config.encoder_depth, precision),
        blocks_pass(model.decoder_blocks, config.decoder_depth, precision),
        head_pass(model.head, precision),
    )


def batch_seconds(card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
    """Seconds of a batch; None: it cannot be predicted. Arguments as of `Family.batch_seconds`."""
    method, target, draft = choice.method, card.target, card.draft
    if not isinstance(method, Plain | Cspd) or not isinstance(target, MarConfig):
        return None
    effort = effort_of(card, method.head_window)
    if effort is None:
        return None
    if isinstance(method, Plain):
        return _plain_s(target, law, effort, choice.batch, at)
    if method.variant != "released" or not isinstance(draft, MarConfig):
        return None
    return _cspd_s((target, draft), law, method, effort, choice.batch, at)


def _context_s(config: MarConfig, work: _Work, masked: int, sequences: int, at: Ceilings) -> float:
    """A masked model's transformer over ``sequences`` sequences with ``masked`` tokens hidden."""
    seen = config.buffer_size + config.seq_len - masked
    every = config.buffer_size + config.seq_len
    return work.encoder.seconds(sequences * seen, at) + work.decoder.seconds(sequences * every, at)


def _iterations(config: MarConfig, law: SamplerLaw) -> list[tuple[int, int, int, int]]:
    """Number, tokens masked before, tokens made and head steps of every iteration that makes any."""
    found, masked = [], config.seq_len
    for step, left in enumerate(left_after(mask_lengths(config.seq_len, law.num_iter))):
        if left < masked:
            found.append((step, masked, masked - left, law.steps_at(step, law.num_iter)))
        masked = left
    return found


def _plain_s(config: MarConfig, law: SamplerLaw, effort: Effort, batch: int, at: Ceilings) -> float:
    work, copies = _work(config, law.dtype), 1 + (law.cfg != 1.0)
    return sum(
        _context_s(config, work, masked, batch * copies, at)
        + path_s(work.head, steps, effort, batch * copies * made, at)
        for _, masked, made, steps in _iterations(config, law)
    )


def _cspd_s(
    models: tuple[MarConfig, MarConfig], law: SamplerLaw, method: Cspd, effort: Effort, batch: int, at: Ceilings
) -> float:
    target, draft = models
    works, sequences = (_work(target, law.dtype), _work(draft, law.dtype)), batch * (1 + (law.cfg != 1.0))
    seconds, hidden, block, in_block = 0.0, target.seq_len, set[int](), 0
    prefill = prefill_iterations(method, law.num_iter)
    iterations = _iterations(target, law)
    for step, masked, made, steps in iterations:
        by_target = step < prefill
        config, work = (target, works[0]) if by_target else (draft, works[1])
        seconds += _context_s(config, work, masked, sequences, at)
        seconds += path_s(work.head, steps, effort, sequences * made, at)
        if by_target:
            hidden = masked - made
            continue
        block, in_block = block | {steps}, in_block + made
        if (step % method.gamma == 0 and step > 0) or step == iterations[-1][0]:
            seconds += _context_s(target, works[0], hidden, sequences, at)
            rows = sequences * in_block / len(block)
            seconds += sum(path_s(works[0].head, count, effort, rows, at) for count in block)
            hidden, block, in_block = masked - made, set(), 0
    return seconds
