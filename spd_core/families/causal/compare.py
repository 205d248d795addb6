"""What a benchmark of a causal pair compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spd_core.compare import Compared, Naive, Wishes, falling
from spd_core.law import Acceptance, HeadWindow, Plain, SamplerLaw, Speculative

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard

GAMMAS = (4, 8)
DELTAS = (2.0, 4.0, 8.0, 16.0)


def compared(card: PairCard, law: SamplerLaw, wishes: Wishes) -> list[tuple[SamplerLaw, Compared]]:
    """Laws and methods; arguments as of `Family.compared`."""
    windows = [tuple(wishes.head_window)] if wishes.head_window else card.windows
    deltas = list(DELTAS) if wishes.delta is None else list(wishes.delta)
    stride, has_draft = wishes.stride or Speculative().stride, card.draft is not None
    own = methods(law, list(wishes.gamma or GAMMAS), deltas, list(wishes.radius or []), windows, stride, has_draft)
    return [*own, *falling(law, wishes, (), windows)]


def methods(
    law: SamplerLaw,
    gammas: list[int],
    deltas: list[float],
    radii: list[float],
    windows: Sequence[HeadWindow],
    stride: int,
    has_draft: bool,
) -> list[tuple[SamplerLaw, Compared]]:
    """Plain and speculative with windows and without, relaxed rules at the last gamma, the naive loop.

    Args:
        law: the pair's own.
        gammas: draft lengths.
        deltas: of the annealed rule.
        radii: of the coupled rule.
        windows: schedules of head self-speculation; speculative decoding takes the first.
        stride: of the draft.
        has_draft: False leaves plain decoding.
    """
    found: list[Plain | Speculative | Naive] = [Plain(), *(Plain(head_window=window) for window in windows)]
    if has_draft:
        rules = [Acceptance(rule="annealed", delta=delta) for delta in deltas]
        rules += [Acceptance(rule="coupled", radius=radius) for radius in radii]
        last = Speculative(gamma=gammas[-1], stride=stride, head_window=windows[0])
        found += [last.model_copy(update={"gamma": gamma}) for gamma in gammas]
        found.append(last.model_copy(update={"head_window": ()}))
        found += [last.model_copy(update={"acceptance": rule}) for rule in rules]
    return [(law, method) for method in [*found, Naive()]]
