"""Seconds of a batch by `spd_core.decode.predict`: plain decoding with and without windows."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from spd_core.decode.ceilings import WEIGHT_BYTES, Ceilings, Pass
from spd_core.decode.work import HEAD_BLOCK_KERNELS, HEAD_KERNELS, blocks_pass, effort_of, path_s
from spd_core.families.sphere.model import Sphere, SphereConfig
from spd_core.families.sphere.tokens import SpherePath, null_first
from spd_core.law import Choice, Plain, Precision, SamplerLaw

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard


@lru_cache(maxsize=16)
def _work(config: SphereConfig, precision: Precision) -> tuple[Pass, Pass]:
    """The passes of transformer and head."""
    with torch.device("meta"):
        model = Sphere(config)
    weights = sum(p.numel() for p in model.head.parameters())
    head = Pass(weights, WEIGHT_BYTES[precision], HEAD_BLOCK_KERNELS * config.diff_layers + HEAD_KERNELS)
    return blocks_pass(model.layers, config.n_layer, precision), head


def batch_seconds(card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
    """Seconds of a batch; None: it cannot be predicted. Arguments as of `Family.batch_seconds`."""
    config, batch = card.target, choice.batch
    effort = effort_of(card, choice.method.head_window) if isinstance(choice.method, Plain) else None
    if effort is None or not isinstance(config, SphereConfig):
        return None
    (work, head), rows = _work(config, law.dtype), batch * (1 + (law.cfg != 1.0))
    path, seconds = SpherePath(law, config.seq_len), 0.0
    token_bytes = 2 * config.n_layer * config.dim * (2 if law.dtype == "bfloat16" else 4)
    below: dict[int, int] = {}
    # The null branch's own first token is one more than the image has.
    for position in [0] * null_first(law) + list(range(config.seq_len)):
        own = path.at(position)
        seconds += work.seconds(rows, at, extra_bytes=rows * token_bytes * (config.cls_token_num + position))
        seconds += path_s(head, own.above, effort, rows, at)
        below[own.handoff + 1] = below.get(own.handoff + 1, 0) + 1
    return seconds + sum(path_s(head, steps, effort, rows * count, at) for steps, count in below.items())
