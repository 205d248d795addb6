"""What `spd bench` compares: laws and methods by family, their defaults and their names in the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spd_core.accept.rules import LanternPlus
from spd_core.law import Acceptance, Cspd, Guarantee, HeadWindow, Plain, SamplerLaw, Settings, Speculative

GAMMAS: dict[str, tuple[int, ...]] = {
    "mar": (4, 8, 16, 32),
    "causal": (4, 8),
    "llamagen": (2, 4, 6),
}
PAPER_GAMMAS = (8,)
#: How the head's steps fall in further rows of plain decoding, unless the law has so few that they hardly could.
HEAD_SCHEDULES: dict[str, tuple[str, ...]] = {
    "mar": ("linear",),
    "causal": (),
    "llamagen": (),
}
FEWEST_HEAD_STEPS = 20
DELTAS = (2.0, 4.0, 8.0, 16.0)

#: Of codes: the rules' knobs, and the trees.
CODE_DELTAS = (1.25, 1.5, 2.0, 3.0, 5.0)
NUS = (0.7, 0.0)
LAMS = (1.25, 1.5, 2.0, 3.0, 5.0)
LANTERN_DELTAS = (0.01, 0.05, 0.1, 0.2)
TREES = ((2, 1, 1, 1), (3, 2, 1))


class Naive(Settings):
    """The direct loop of `spd_core.decode.naive`: a measure for plain decoding, not a method of a job."""

    name: Literal["naive"] = "naive"

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee.EXACT


@dataclass(frozen=True)
class Entry:
    """One line of the table: a law and a method."""

    law: SamplerLaw
    method: Plain | Cspd | Speculative | Naive
    codes: bool = False  #: whether a token is a code

    @property
    def is_base(self) -> bool:
        """Whether this is what the others of its law are held against: plain decoding, one head call a step."""
        return isinstance(self.method, Plain) and not self.method.head_window

    @property
    def head_window(self) -> tuple[int, ...]:
        return () if isinstance(self.method, Naive) else self.method.head_window

    @property
    def acceptance(self) -> Acceptance | None:
        return self.method.acceptance if isinstance(self.method, Speculative) else None

    @property
    def label(self) -> str:
        """The entry's name in the table; several laws may share one."""
        if self.codes and isinstance(self.method, Speculative):
            return ", ".join([series(self.method), *self.method.acceptance.chosen.main_in_words])
        parts = [*_name(self.method)]
        if self.law.falls:
            parts.append(f"{self.law.head_steps}-{self.law.head_steps_end} head steps, {self.law.head_schedule}")
        if self.head_window:
            parts.append(f"windows {'/'.join(map(str, self.head_window))}")
        return ", ".join(parts)


def _name(method: Plain | Cspd | Speculative | Naive) -> list[str]:
    if isinstance(method, Naive):
        return ["naive loop"]
    if isinstance(method, Plain):
        return ["plain"]
    if isinstance(method, Cspd):
        noise = [] if method.aligned else ["unaligned"]
        return [f"cspd {method.variant}", f"gamma {method.gamma}", f"pre-fill {method.prefill:g}", *noise]
    rule = method.acceptance
    name = "speculative" if rule == Acceptance() else f"speculative {rule.rule}"
    return [name, *rule.chosen.main_in_words, f"gamma {method.gamma}", f"stride {method.stride}"]


def series(method: Speculative) -> str:
    """What methods over codes that differ only in their rule's main knob have in common."""
    drafter = [method.drafter] if method.drafter != "draft" else []
    block = f"tree {'-'.join(map(str, method.tree))}" if method.tree else f"gamma {method.gamma}"
    return ", ".join([*method.acceptance.chosen.series_in_words, *drafter, block])


def falling_laws(law: SamplerLaw, schedules: Sequence[str], steps: Sequence[int] | None) -> list[SamplerLaw]:
    """The law with head steps that fall along the image, once for each schedule.

    Args:
        law: the pair's own.
        schedules: as `SamplerLaw.head_schedule`.
        steps: the first and the last number; None: a half and a twentieth of the law's.

    Raises:
        ValidationError: no such schedule, or steps that rise.
    """
    first, last = steps or (max(2, law.head_steps // 2), max(2, law.head_steps // 20))
    changed = {"head_steps": first, "head_steps_end": last}
    return [SamplerLaw.model_validate({**law.model_dump(), **changed, "head_schedule": name}) for name in schedules]


def falling_entries(laws: Sequence[SamplerLaw], windows: Sequence[HeadWindow]) -> list[Entry]:
    """Plain at each law, one head call a step and with the last windows, which waste the fewest rows."""
    return [Entry(law, method) for law in laws for method in (Plain(), *(Plain(head_window=w) for w in windows[-1:]))]


def mar_entries(
    law: SamplerLaw,
    iterations: list[int],
    gammas: list[int],
    paper_gammas: list[int],
    windows: Sequence[HeadWindow],
) -> list[Entry]:
    """Plain at several iteration counts, then at the law's own: with windows, cspd of both variants, the naive loop."""
    plain = [Entry(law.model_copy(update={"num_iter": n}), Plain()) for n in iterations]
    own: list[Plain | Cspd | Naive] = [
        *(Plain(head_window=window) for window in windows),
        *(Cspd(variant="released", gamma=g) for g in gammas),
        *(Cspd(variant="paper", gamma=g) for g in paper_gammas),
        Naive(),
    ]
    return plain + [Entry(law, method) for method in own]


def ablation_entries(law: SamplerLaw, gamma: int) -> list[Entry]:
    """The CSpD paper's two ablations: noise alignment and pre-fill share."""
    aligned = [Entry(law, Cspd(gamma=gamma, aligned=value)) for value in (True, False)]
    prefill = [Entry(law, Cspd(gamma=gamma, prefill=share)) for share in (0.0, 0.15)]
    return [Entry(law, Plain()), *aligned, *prefill]


def causal_entries(
    law: SamplerLaw,
    gammas: list[int],
    deltas: list[float],
    radii: list[float],
    windows: Sequence[HeadWindow],
    stride: int,
    has_draft: bool,
) -> list[Entry]:
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
    methods: list[Plain | Speculative | Naive] = [Plain(), *(Plain(head_window=window) for window in windows)]
    if has_draft:
        rules = [Acceptance(rule="annealed", delta=delta) for delta in deltas]
        rules += [Acceptance(rule="coupled", radius=radius) for radius in radii]
        last = Speculative(gamma=gammas[-1], stride=stride, head_window=windows[0])
        methods += [last.model_copy(update={"gamma": gamma}) for gamma in gammas]
        methods.append(last.model_copy(update={"head_window": ()}))
        methods += [last.model_copy(update={"acceptance": rule}) for rule in rules]
    return [Entry(law, method) for method in [*methods, Naive()]]


def code_rules(
    deltas: Sequence[float], nus: Sequence[float], lams: Sequence[float], lantern_deltas: Sequence[float]
) -> list[Acceptance]:
    """The relaxed rules for codes: annealed at each nu and delta, lantern++, lantern."""
    return [
        *(Acceptance(rule="annealed", delta=delta, nu=nu) for nu in nus for delta in deltas),
        *(Acceptance(rule="lantern++", lam=lam) for lam in lams),
        *(Acceptance(rule="lantern", delta=delta) for delta in lantern_deltas),
    ]


def code_entries(
    law: SamplerLaw,
    gammas: list[int],
    trees: Sequence[tuple[int, ...]],
    rules: list[Acceptance],
    drafters: Sequence[Literal["draft", "eagle"]],
) -> list[Entry]:
    """Plain, lossless chains and trees, every relaxed rule on a chain of the last gamma, lantern++ on the first tree.

    Args:
        law: the pair's own.
        gammas: draft lengths.
        trees: branches by level.
        rules: the relaxed ones.
        drafters: the first makes all drafts, each other one those of one lossless chain; none leaves plain decoding.
    """
    methods: list[Plain | Speculative] = [Plain()]
    if drafters:
        chain = Speculative(gamma=gammas[-1], drafter=drafters[0])
        methods += [chain.model_copy(update={"gamma": gamma}) for gamma in gammas]
        methods += [chain.model_copy(update={"drafter": drafter}) for drafter in drafters[1:]]
        methods += [chain.model_copy(update={"tree": tree}) for tree in trees]
        methods += [chain.model_copy(update={"acceptance": rule}) for rule in rules]
        neighbourly = [rule for rule in rules if isinstance(rule.chosen, LanternPlus)]
        methods += [
            chain.model_copy(update={"tree": tree, "acceptance": rule}) for tree in trees[:1] for rule in neighbourly
        ]
    return [Entry(law, method, codes=True) for method in methods]
