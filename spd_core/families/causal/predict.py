"""Seconds of a batch by `spd_core.decode.predict`: plain decoding with and without windows."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from spd_core.decode.ceilings import Ceilings, Pass
from spd_core.decode.work import blocks_pass, effort_of, head_pass, path_s
from spd_core.families.causal.model import Causal, CausalConfig
from spd_core.families.causal.tokens import PathLaw
from spd_core.law import Choice, Plain, Precision, SamplerLaw

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard


@lru_cache(maxsize=16)
def _work(config: CausalConfig, precision: Precision) -> tuple[Pass, Pass]:
    """The passes of transformer and head."""
    with torch.device("meta"):
        model = Causal(config)
    return blocks_pass(model.blocks, config.depth, precision), head_pass(model.head, precision)


def batch_seconds(card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
    """Seconds of a batch; None: it cannot be predicted. Arguments as of `Family.batch_seconds`."""
    config, batch = card.target, choice.batch
    effort = effort_of(card, choice.method.head_window) if isinstance(choice.method, Plain) else None
    if effort is None or not isinstance(config, CausalConfig):
        return None
    (work, head), rows = _work(config, law.dtype), batch * (1 + (law.cfg != 1.0))
    path, seconds = PathLaw(law, config.seq_len), 0.0
    token_bytes = 2 * config.depth * config.embed_dim * (2 if law.dtype == "bfloat16" else 4)
    below: dict[int, int] = {}
    for position in range(config.seq_len):
        part = path.at(position)
        seconds += work.seconds(rows, at, extra_bytes=rows * token_bytes * position)
        seconds += path_s(head, part.above, effort, rows, at)
        below[part.handoff + 1] = below.get(part.handoff + 1, 0) + 1
    return seconds + sum(path_s(head, steps, effort, rows * count, at) for steps, count in below.items())
