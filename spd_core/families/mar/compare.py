"""What a benchmark of a MAR pair compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spd_core.compare import Compared, Naive, Wishes, falling
from spd_core.law import Cspd, HeadWindow, Plain, SamplerLaw

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard

GAMMAS, PAPER_GAMMAS = (4, 8, 16, 32), (8,)
#: How the head's steps fall in further rows of plain decoding.
HEAD_SCHEDULES = ("linear",)


def compared(card: PairCard, law: SamplerLaw, wishes: Wishes) -> list[tuple[SamplerLaw, Compared]]:
    """Laws and methods; arguments as of `Family.compared`."""
    gammas = list(wishes.gamma or GAMMAS)
    if wishes.ablation:
        return ablations(law, gammas[0] if len(gammas) == 1 else 8)
    windows = [tuple(wishes.head_window)] if wishes.head_window else card.windows
    iterations = wishes.num_iter or [law.num_iter // part for part in (1, 2, 4, 8)]
    iterations = list(dict.fromkeys([law.num_iter, *(n for n in iterations if n >= 1)]))
    paper = list(PAPER_GAMMAS) if wishes.paper_gamma is None else list(wishes.paper_gamma)
    return [*methods(law, iterations, gammas, paper, windows), *falling(law, wishes, HEAD_SCHEDULES, windows)]


def methods(
    law: SamplerLaw,
    iterations: list[int],
    gammas: list[int],
    paper_gammas: list[int],
    windows: Sequence[HeadWindow],
) -> list[tuple[SamplerLaw, Compared]]:
    """Plain at several iteration counts, then at the law's own: with windows, cspd of both variants, the naive loop."""
    plain = [(law.model_copy(update={"num_iter": n}), Plain()) for n in iterations]
    own: list[Plain | Cspd | Naive] = [
        *(Plain(head_window=window) for window in windows),
        *(Cspd(variant="released", gamma=g) for g in gammas),
        *(Cspd(variant="paper", gamma=g) for g in paper_gammas),
        Naive(),
    ]
    return plain + [(law, method) for method in own]


def ablations(law: SamplerLaw, gamma: int) -> list[tuple[SamplerLaw, Compared]]:
    """The CSpD paper's two ablations: noise alignment and pre-fill share."""
    aligned = [(law, Cspd(gamma=gamma, aligned=value)) for value in (True, False)]
    prefill = [(law, Cspd(gamma=gamma, prefill=share)) for share in (0.0, 0.15)]
    return [(law, Plain()), *aligned, *prefill]
