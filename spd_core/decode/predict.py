"""Images per second before anything is measured: counted work of a pair's passes over the ceilings of a device.

What it is for: to leave out what cannot be fastest, to size windows of head self-speculation to a batch, and to say in
a plan about how long a job takes. It is a bound from below on the time of what it counts: attention's own products,
random numbers, the tests of windows and the host are left out, and a kernel is taken to cost what it costs in a
captured function.

Predicted are plain decoding with and without windows, CSpD as released, and of codes speculation by chains of the small
draft as far as the pair's card says how often its drafts stand. Of the other methods only a measurement tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from spd_core.decode.ceilings import WEIGHT_BYTES, Ceilings, Pass
from spd_core.families.causal.model import Causal, CausalConfig
from spd_core.families.causal.tokens import PathLaw
from spd_core.families.llamagen.model import LlamaGenConfig
from spd_core.families.llamagen.predict import plain_s, speculative_s
from spd_core.families.mar.cspd import prefill_iterations
from spd_core.families.mar.iterations import left_after, mask_lengths
from spd_core.families.mar.model import Mar, MarConfig
from spd_core.law import Choice, Cspd, Plain, Precision, SamplerLaw, Speculative
from spd_core.pairs.pair import PairCard, TunedWindows

#: Kernels of a transformer block and of a head's residual block, and of the rest of a head call (counted, MAR-B and H).
BLOCK_KERNELS, HEAD_BLOCK_KERNELS, HEAD_KERNELS = 17.0, 7.5, 8.0


@dataclass(frozen=True)
class _Work:
    """The passes of a model; a transformer's second part is MAR's decoder, or nothing."""

    first: Pass
    second: Pass
    head: Pass


@lru_cache(maxsize=16)
def _work(config: MarConfig | CausalConfig, precision: Precision) -> _Work:
    with torch.device("meta"):
        model = Mar(config) if isinstance(config, MarConfig) else Causal(config)
    size = WEIGHT_BYTES[precision]

    def of(blocks: nn.Module, depth: int) -> Pass:
        return Pass(sum(p.numel() for p in blocks.parameters()), size, BLOCK_KERNELS * depth)

    head_weights = sum(p.numel() for p in model.head.parameters())
    head = Pass(head_weights, size, HEAD_BLOCK_KERNELS * len(model.head.res_blocks) + HEAD_KERNELS)
    if isinstance(model, Mar):
        c = model.config
        return _Work(of(model.encoder_blocks, c.encoder_depth), of(model.decoder_blocks, c.decoder_depth), head)
    return _Work(of(model.blocks, model.config.depth), Pass(0.0, size, 0.0), head)


@dataclass(frozen=True)
class Effort:
    """Head calls and rows of a path, as shares of its steps."""

    calls: float
    rows: float


_ONE_CALL_A_STEP = Effort(1.0, 1.0)


def effort_of(card: PairCard, windows: tuple[int, ...]) -> Effort | None:
    """Of windows that were tuned for the pair; None: nothing is known of them."""
    if not windows:
        return _ONE_CALL_A_STEP
    tuned = next((tuned for tuned in card.tuned_windows if tuned.windows == windows), None)
    return Effort(tuned.calls / tuned.steps, tuned.rows / tuned.steps) if tuned else None


def _path_s(head: Pass, steps: int, effort: Effort, rows: float, at: Ceilings) -> float:
    """Seconds of ``steps`` steps of ``rows`` paths together."""
    calls = max(1.0, steps * effort.calls) if steps else 0.0
    return calls * head.seconds(rows * effort.rows / effort.calls, at)


def images_per_s(card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
    """Predicted speed of a choice on one device; None: it cannot be predicted.

    Args:
        card: of the pair.
        law: what is sampled.
        choice: method and batch.
        at: ceilings of the device at the law's precision.
    """
    method = choice.method
    if isinstance(card.target, LlamaGenConfig):
        return _codes_rate(card, card.target, law, choice, at)
    windows = method.head_window if isinstance(method, Plain | Cspd) else ()
    effort = effort_of(card, windows)
    if effort is None:
        return None
    if isinstance(method, Cspd) and method.variant == "released" and isinstance(card.draft, MarConfig):
        return choice.batch / _cspd_s(card, law, method, effort, choice.batch, at)
    if not isinstance(method, Plain):
        return None
    if isinstance(card.target, MarConfig):
        return choice.batch / _mar_s(card.target, law, effort, choice.batch, at)
    if isinstance(card.target, CausalConfig):
        return choice.batch / _causal_s(card.target, law, effort, choice.batch, at)
    return None


def _codes_rate(card: PairCard, config: LlamaGenConfig, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
    method = choice.method
    if isinstance(method, Plain):
        return choice.batch / plain_s(config, law, choice.batch, at)
    if not isinstance(method, Speculative) or method.tree or method.drafter != "draft":
        return None
    acceptance = measured_acceptance(card, law, method)
    if not acceptance or not isinstance(card.draft, LlamaGenConfig):
        return None
    return choice.batch / speculative_s(config, card.draft, law, method, acceptance, choice.batch, at)


def measured_acceptance(card: PairCard, law: SamplerLaw, method: Speculative) -> list[float] | None:
    """By place of the block, of the card's own figures at this law, at any precision; None: there are none."""
    for row in card.figures.get("bench", {}).get("rows", []):
        if row["method"] == method.name and row.get("acceptance_by_place"):
            measured = SamplerLaw.model_validate(row["law"]).model_copy(update={"dtype": law.dtype})
            if measured == law and Speculative.model_validate(row["settings"]) == method:
                return [float(share) for share in row["acceptance_by_place"]]
    return None


def _context_s(config: MarConfig, work: _Work, masked: int, sequences: int, at: Ceilings) -> float:
    """A masked model's transformer over ``sequences`` sequences with ``masked`` tokens hidden."""
    seen = config.buffer_size + config.seq_len - masked
    every = config.buffer_size + config.seq_len
    return work.first.seconds(sequences * seen, at) + work.second.seconds(sequences * every, at)


def _mar_iterations(config: MarConfig, law: SamplerLaw) -> list[tuple[int, int, int, int]]:
    """Number, tokens masked before, tokens made and head steps of every iteration that makes any."""
    found, masked = [], config.seq_len
    for step, left in enumerate(left_after(mask_lengths(config.seq_len, law.num_iter))):
        if left < masked:
            found.append((step, masked, masked - left, law.steps_at(step, law.num_iter)))
        masked = left
    return found


def _mar_s(config: MarConfig, law: SamplerLaw, effort: Effort, batch: int, at: Ceilings) -> float:
    work, copies = _work(config, law.dtype), 1 + (law.cfg != 1.0)
    return sum(
        _context_s(config, work, masked, batch * copies, at)
        + _path_s(work.head, steps, effort, batch * copies * made, at)
        for _, masked, made, steps in _mar_iterations(config, law)
    )


def _cspd_s(card: PairCard, law: SamplerLaw, method: Cspd, effort: Effort, batch: int, at: Ceilings) -> float:
    target, draft = card.target, card.draft
    if not isinstance(target, MarConfig) or not isinstance(draft, MarConfig):
        raise TypeError("CSpD of a pair of another family, allowed: mar")
    works, sequences = (_work(target, law.dtype), _work(draft, law.dtype)), batch * (1 + (law.cfg != 1.0))
    seconds, hidden, block, in_block = 0.0, target.seq_len, set[int](), 0
    prefill = prefill_iterations(method, law.num_iter)
    iterations = _mar_iterations(target, law)
    for step, masked, made, steps in iterations:
        by_target = step < prefill
        config, work = (target, works[0]) if by_target else (draft, works[1])
        seconds += _context_s(config, work, masked, sequences, at)
        seconds += _path_s(work.head, steps, effort, sequences * made, at)
        if by_target:
            hidden = masked - made
            continue
        block, in_block = block | {steps}, in_block + made
        if (step % method.gamma == 0 and step > 0) or step == iterations[-1][0]:
            seconds += _context_s(target, works[0], hidden, sequences, at)
            rows = sequences * in_block / len(block)
            seconds += sum(_path_s(works[0].head, count, effort, rows, at) for count in block)
            hidden, block, in_block = masked - made, set(), 0
    return seconds


def _causal_s(config: CausalConfig, law: SamplerLaw, effort: Effort, batch: int, at: Ceilings) -> float:
    work, rows = _work(config, law.dtype), batch * (1 + (law.cfg != 1.0))
    path, seconds = PathLaw(law, config.seq_len), 0.0
    token_bytes = 2 * config.depth * config.embed_dim * (2 if law.dtype == "bfloat16" else 4)
    below: dict[int, int] = {}
    for position in range(config.seq_len):
        own = path.at(position)
        seconds += work.first.seconds(rows, at, extra_bytes=rows * token_bytes * position)
        seconds += _path_s(work.head, own.above, effort, rows, at)
        below[own.handoff + 1] = below.get(own.handoff + 1, 0) + 1
    return seconds + sum(_path_s(work.head, steps, effort, rows * count, at) for steps, count in below.items())


#: Two schedules are worth measuring side by side if their calls differ by this factor.
APART = 1.25


def windows_for(card: PairCard, law: SamplerLaw, batch: int, at: Ceilings) -> tuple[tuple[int, ...], ...]:
    """The windows of a pair that a device should decode a batch fastest with, and the next best that differ from them.

    Below the ridge rows are free and the longest windows win; above it the shortest, or none at all.
    """

    def rate(tuned: TunedWindows) -> float:
        return images_per_s(card, law, Choice(method=Plain(head_window=tuned.windows), batch=batch), at) or -math.inf

    ranked = sorted(card.tuned_windows, key=rate, reverse=True)
    others = [of for of in ranked if max(of.calls, ranked[0].calls) >= APART * min(of.calls, ranked[0].calls)]
    return tuple(tuned.windows for tuned in [*ranked[:1], *others[:1]])
