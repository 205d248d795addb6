"""What `spd bench` compares: laws and methods by family, their defaults and their names in the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spd_core.law import Acceptance, Cspd, Guarantee, HeadWindow, Plain, SamplerLaw, Settings, Speculative

GAMMAS: dict[Literal["mar", "causal", "llamagen"], tuple[int, ...]] = {
    "mar": (4, 8, 16, 32),
    "causal": (4, 8),
    "llamagen": (2, 4, 6),
}
PAPER_GAMMAS = (8,)
DELTAS = (2.0, 4.0, 8.0, 16.0)


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
        parts = [*_name(self.method)]
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
    block = [f"gamma {method.gamma}", f"stride {method.stride}"]
    if rule.rule == "lossless":
        return ["speculative", *block]
    knob = f"delta {rule.delta:g}" if rule.rule == "annealed" else f"radius {rule.radius:g}"
    return [f"speculative {rule.rule}", knob, *block]


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
