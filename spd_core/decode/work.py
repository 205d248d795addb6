"""The work of a decoding, counted for `spd_core.decode.predict`: what the families' predictions share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from spd_core.decode.ceilings import WEIGHT_BYTES, Ceilings, Pass
from spd_core.law import Precision, SamplerLaw, Speculative
from spd_core.models.head import DiffusionHead

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard

#: Kernels of a transformer block and of a head's residual block, and of the rest of a head call (counted, MAR-B and H).
BLOCK_KERNELS, HEAD_BLOCK_KERNELS, HEAD_KERNELS = 17.0, 7.5, 8.0


def blocks_pass(blocks: nn.Module, depth: int, precision: Precision) -> Pass:
    """A pass through a transformer's blocks."""
    return Pass(_weights(blocks), WEIGHT_BYTES[precision], BLOCK_KERNELS * depth)


def head_pass(head: DiffusionHead, precision: Precision) -> Pass:
    """A call of a diffusion head."""
    kernels = HEAD_BLOCK_KERNELS * len(head.res_blocks) + HEAD_KERNELS
    return Pass(_weights(head), WEIGHT_BYTES[precision], kernels)


def _weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True)
class Effort:
    """Head calls and rows of a path, as shares of its steps."""

    calls: float
    rows: float


_ONE_CALL_A_STEP = Effort(1.0, 1.0)


def effort_of(card: PairCard, windows: tuple[int, ...]) -> Effort | None:
    """The effort of windows that were tuned for the pair; None: of other windows nothing is known."""
    if not windows:
        return _ONE_CALL_A_STEP
    tuned = next((tuned for tuned in card.tuned_windows if tuned.windows == windows), None)
    return Effort(tuned.calls / tuned.steps, tuned.rows / tuned.steps) if tuned else None


def path_s(head: Pass, steps: int, effort: Effort, rows: float, at: Ceilings) -> float:
    """Seconds of ``steps`` steps of ``rows`` paths together."""
    calls = max(1.0, steps * effort.calls) if steps else 0.0
    return calls * head.seconds(rows * effort.rows / effort.calls, at)


def measured_acceptance(card: PairCard, law: SamplerLaw, method: Speculative) -> list[float] | None:
    """Acceptance by place of the block, from the card's figures at this law and any precision; None: it has none."""
    for row in card.figures.get("bench", {}).get("rows", []):
        if row["method"] == method.name and row.get("acceptance_by_place"):
            measured = SamplerLaw.model_validate(row["law"]).model_copy(update={"dtype": law.dtype})
            if measured == law and Speculative.model_validate(row["settings"]) == method:
                return [float(share) for share in row["acceptance_by_place"]]
    return None
