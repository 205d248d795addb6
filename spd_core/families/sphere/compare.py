"""What a benchmark of a SphereAR pair compares: its own law, and beside it the law with a hand-off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spd_core.compare import Compared, Naive, Wishes, falling
from spd_core.families.sphere.flow import LAST_LEVEL
from spd_core.families.sphere.tokens import SpherePath
from spd_core.law import Acceptance, Plain, SamplerLaw, Speculative

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard

GAMMAS = (4, 8)
DELTAS = (2.0, 8.0)
STRIDE = 1


def handed_off(law: SamplerLaw) -> SamplerLaw:
    """The law itself if it hands tokens over with noise, or else the one that does so before the last step."""
    return law if SpherePath(law, 1).handoff >= 0 else law.model_copy(update={"handoff_level": LAST_LEVEL})


def compared(card: PairCard, law: SamplerLaw, wishes: Wishes) -> list[tuple[SamplerLaw, Compared]]:
    """Laws and methods; arguments as of `Family.compared`."""
    windows = [tuple(wishes.head_window)] if wishes.head_window else card.windows
    plain: list[Compared] = [Plain(), *(Plain(head_window=window) for window in windows)]
    found = [(law, method) for method in (*plain, Naive())]
    if card.draft is not None:
        handed = handed_off(law)
        found += [
            (handed, method) for method in (*([] if handed == law else plain[:2]), *_speculative(wishes, windows[0]))
        ]
    return [*found, *falling(law, wishes, (), windows)]


def _speculative(wishes: Wishes, windows: tuple[int, ...]) -> list[Speculative]:
    gammas, stride = wishes.gamma or GAMMAS, wishes.stride or STRIDE
    rules = [Acceptance(rule="annealed", delta=delta) for delta in (DELTAS if wishes.delta is None else wishes.delta)]
    rules += [Acceptance(rule="coupled", radius=radius) for radius in wishes.radius or ()]
    made = [Speculative(gamma=gamma, stride=stride, head_window=windows) for gamma in gammas]
    return [*made, *(made[-1].model_copy(update={"acceptance": rule}) for rule in rules)]
