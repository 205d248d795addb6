"""What a benchmark of a pair of codes compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from spd_core.accept.rules import LanternPlus
from spd_core.compare import Compared, Wishes, label_of
from spd_core.law import Acceptance, Plain, SamplerLaw, Speculative

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard

GAMMAS = (2, 4, 6)
#: The rules' knobs, and the trees.
DELTAS = (1.25, 1.5, 2.0, 3.0, 5.0)
NUS = (0.7, 0.0)
LAMS = (1.25, 1.5, 2.0, 3.0, 5.0)
LANTERN_DELTAS = (0.01, 0.05, 0.1, 0.2)
TREES = ((2, 1, 1, 1), (3, 2, 1))


def compared(card: PairCard, law: SamplerLaw, wishes: Wishes) -> list[tuple[SamplerLaw, Compared]]:
    """Laws and methods; arguments as of `Family.compared`."""
    rules = relaxed_rules(
        *(
            usual if wished is None else wished
            for usual, wished in (
                (DELTAS, wishes.delta),
                (NUS, wishes.nu),
                (LAMS, wishes.lam),
                (LANTERN_DELTAS, wishes.lantern_delta),
            )
        )
    )
    drafters = sorted(card.drafters, key=lambda drafter: drafter != wishes.drafter)
    trees = TREES if wishes.tree is None else wishes.tree
    return methods(law, list(wishes.gamma or GAMMAS), trees, rules, drafters)


def label(law: SamplerLaw, method: Compared) -> str:
    """A name by the rule, its knobs and the shape of a block."""
    if not isinstance(method, Speculative):
        return label_of(law, method)
    return ", ".join([series(method), *method.acceptance.chosen.main_in_words])


def series(method: Speculative) -> str:
    """What methods over codes that differ only in their rule's main knob have in common."""
    drafter = [method.drafter] if method.drafter != "draft" else []
    block = f"tree {'-'.join(map(str, method.tree))}" if method.tree else f"gamma {method.gamma}"
    return ", ".join([*method.acceptance.chosen.series_in_words, *drafter, block])


def relaxed_rules(
    deltas: Sequence[float], nus: Sequence[float], lams: Sequence[float], lantern_deltas: Sequence[float]
) -> list[Acceptance]:
    """The relaxed rules for codes: annealed at each nu and delta, lantern++, lantern."""
    return [
        *(Acceptance(rule="annealed", delta=delta, nu=nu) for nu in nus for delta in deltas),
        *(Acceptance(rule="lantern++", lam=lam) for lam in lams),
        *(Acceptance(rule="lantern", delta=delta) for delta in lantern_deltas),
    ]


def methods(
    law: SamplerLaw,
    gammas: list[int],
    trees: Sequence[tuple[int, ...]],
    rules: list[Acceptance],
    drafters: Sequence[Literal["draft", "eagle"]],
) -> list[tuple[SamplerLaw, Compared]]:
    """Plain, lossless chains and trees, every relaxed rule on a chain of the last gamma, lantern++ on the first tree.

    Args:
        law: the pair's own.
        gammas: draft lengths.
        trees: branches by level.
        rules: the relaxed ones.
        drafters: the first makes all drafts, each other one those of one lossless chain; none leaves plain decoding.
    """
    found: list[Plain | Speculative] = [Plain()]
    if drafters:
        chain = Speculative(gamma=gammas[-1], drafter=drafters[0])
        found += [chain.model_copy(update={"gamma": gamma}) for gamma in gammas]
        found += [chain.model_copy(update={"drafter": drafter}) for drafter in drafters[1:]]
        found += [chain.model_copy(update={"tree": tree}) for tree in trees]
        found += [chain.model_copy(update={"acceptance": rule}) for rule in rules]
        neighbourly = [rule for rule in rules if isinstance(rule.chosen, LanternPlus)]
        found += [
            chain.model_copy(update={"tree": tree, "acceptance": rule}) for tree in trees[:1] for rule in neighbourly
        ]
    return [(law, method) for method in found]
