"""Acceptance rules: when a drafted token is accepted, what replaces a rejected one, and what that promises.

A rule is a class with its knobs as fields, and one entry of `RULES`. Law, decoders, report, card, bench and command
line ask the rule and know none of them by name.

A decoder describes its drafts by a class of evidence and hands it to `Rule.judge`. A rule names the evidence it needs.
A decoder can apply each rule whose evidence its own is or extends (`names_for`): a rule that looks at the ratio alone
serves paths and codes, a rule that looks at codes is refused for paths.

Shape legend: R tested drafts, in any shape; V codes, k neighbours, D token dims.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, final

import torch
from pydantic import Field
from torch import Tensor

from spd_core.accept.lemma import Verdict, judge, residual
from spd_core.settings import Guarantee, Settings


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a decoder tells a rule about R drafts."""


@dataclass(frozen=True, kw_only=True)
class Ratios(Evidence):
    """Drafts of q, tested against the target's law p by the ratio of the two at the draft."""

    log_ratio: Tensor  #: [R] log p/q
    place: Tensor  #: int64 [R], 0-based place in the block
    uniform: Tensor  #: [R] of the test
    rounding: float = 0.0  #: error of the log ratio, see `spd_core.accept.lemma.judge`


@dataclass(frozen=True, kw_only=True)
class CodeRatios(Ratios):
    """Drafted codes: their ratio, and the distributions it comes from."""

    p: Tensor  #: [R, V] the target's distribution
    q_at: Tensor  #: [R] the draft's probability of the drafted code
    code: Tensor  #: int64 [R]
    nearest: Tensor | None = None  #: int64 [V, k], nearest other codes of each code; None: the rule has no neighbours


@dataclass(frozen=True, kw_only=True)
class Couplings(Evidence):
    """Drafts beside the target's own tokens, both made from the same noise."""

    drafted: Tensor  #: [R, D] the draft's state at the hand-off
    coupled: Tensor  #: [R, D] the target's


E = TypeVar("E", bound=Evidence)
R = TypeVar("R", bound=Ratios)


class Rule(Settings, ABC, Generic[E]):
    """When a drafted token is accepted. The fields of a rule are its knobs.

    A knob that is also a field of `spd_core.law.Acceptance` takes its value from there; a knob of another name is
    written beside it in a spec.
    """

    name: ClassVar[str]
    #: When a draft is accepted, in a line of `spd spec`.
    summary: ClassVar[str]
    guarantee: ClassVar[Guarantee]
    #: What a decoder must know of a draft to apply the rule.
    evidence: ClassVar[type[Evidence]]
    #: The knob that buys speed with distance; None: there is none.
    main_knob: ClassVar[str | None] = None
    #: The field of `spd_core.law.Auto` that offers the rule to a measurement, as the value of the main knob.
    auto_knob: ClassVar[str | None] = None

    @abstractmethod
    def judge(self, drafts: E) -> Verdict:
        """Which drafts are accepted."""

    @property
    def neighbours(self) -> int:
        """How many codes near the drafted one the rule looks at."""
        return 0

    @property
    def main_value(self) -> float | None:
        """Value of the main knob."""
        return None if self.main_knob is None else float(getattr(self, self.main_knob))

    @property
    def main_in_words(self) -> list[str]:
        """Name and value of the main knob, in a list of one or none."""
        return [] if self.main_value is None else [f"{self.main_knob} {self.main_value:g}"]

    @property
    def series_in_words(self) -> list[str]:
        """What rules that differ in their main knob alone have in common: the name and each other knob."""
        others = [name for name in type(self).model_fields if name != self.main_knob]
        return [self.name, *(f"{name} {getattr(self, name):g}" for name in others)]

    @property
    def label(self) -> str:
        """The rule with all of its knobs, in words."""
        return ", ".join([*self.series_in_words, *self.main_in_words])


class RatioRule(Rule[R], Generic[R]):
    """A draft is accepted with probability f = min(1, relaxed ratio), and the relaxed ratio is never below R = p/q.

    A rejected draft is replaced by a sample of the lossless residual Norm[(p - q)_+]. That is right for every such f:
    Norm[(p - q f)_+] is the same law, and certificates (`spd_core.accept.certificate`) rest on it. So the residual is
    no choice of a rule: `residual` where p is a table of probabilities, `spd_core.accept.lemma.sample_residual` where p
    can only be sampled.
    """

    @abstractmethod
    def log_relaxed(self, drafts: R) -> Tensor:
        """log [R] of the relaxed ratio, at least the log ratio."""

    @final
    def judge(self, drafts: R) -> Verdict:
        return judge(drafts.log_ratio, self.log_relaxed(drafts), drafts.uniform, drafts.rounding)

    @final
    def residual(self, p: Tensor, q: Tensor) -> Tensor:
        """The law [..., V] of the token in place of a rejected draft."""
        return residual(p, q)


class Lossless(RatioRule[Ratios]):
    """Speculative sampling (Leviathan et al. 2022, arXiv:2211.17192)."""

    name = "lossless"
    summary = "with probability min(1, R)"
    guarantee = Guarantee.EXACT
    evidence = Ratios

    def log_relaxed(self, drafts: Ratios) -> Tensor:
        return drafts.log_ratio


class Annealed(RatioRule[Ratios]):
    """COOL-SD: the ratio times w = max(1, delta exp(-nu place)).

    A weight below 1 would only lose speed. Spending the excess early is best: a late draft is tested only if the
    earlier ones were accepted (COOL-SD's delta is this one times the mean of exp(-nu place) over the block).
    """

    name = "annealed"
    summary = "min(1, w R), w largest early in a block"
    guarantee = Guarantee.TV
    evidence = Ratios
    main_knob = "delta"
    auto_knob = "delta"

    delta: float = Field(1.0, ge=1.0, le=1e6, description="w of a block's first draft, at least 1, falling from there")
    nu: float = Field(0.7, ge=0.0, le=100.0, description="w falls by exp(-nu) a draft; 0: uniform")

    def log_weight(self, place: Tensor) -> Tensor:
        """log w [R] of drafts at places [R] of their block."""
        return (math.log(self.delta) - self.nu * place).clamp(min=0.0)

    def log_relaxed(self, drafts: Ratios) -> Tensor:
        return drafts.log_ratio + self.log_weight(drafts.place)


class Coupled(Rule[Couplings]):
    """Accepts a draft that lies within a radius of the target's own token on the same noise.

    A rejected draft is replaced by that token. What is emitted then lies within the radius of a sample of the target's
    law of the token given those emitted before it. That is no bound on the distance of images: the next token is
    compared with the target's given *this* one, and what is below the hand-off follows from states that differ.
    """

    name = "coupled"
    summary = "if the target's own path on the same noise ends within the radius"
    guarantee = Guarantee.W_INF
    evidence = Couplings
    main_knob = "radius"
    auto_knob = "radius"

    radius: float = Field(
        0.0,
        ge=0.0,
        le=1e6,
        description="largest Euclidean distance of a token's state at the hand-off, in units of the normalised token; "
        "clean tokens may lie farther apart",
    )

    def judge(self, drafts: Couplings) -> Verdict:
        distance = torch.linalg.vector_norm(drafts.drafted - drafts.coupled, dim=-1)
        accepted = distance <= self.radius
        log_ratio = torch.where(accepted & (distance == 0), torch.inf, (self.radius / distance).log())
        return Verdict(accepted, log_ratio, torch.full_like(distance, torch.nan))


def neighbour_mass(p: Tensor, code: Tensor, nearest_Vk: Tensor, budget: Tensor) -> Tensor:
    """The mass S [R] of p [R, V] on the longest prefix of the nearest codes of ``code`` [R] within a budget [R]."""
    masses = p.gather(-1, nearest_Vk[code]).cumsum(dim=-1)
    return torch.where(masses <= budget[..., None], masses, 0.0).amax(dim=-1)


class _OnNeighbours(RatioRule[CodeRatios]):
    """The ratio (p + S) / q, S the target's mass on the nearest codes of the draft, within a budget."""

    guarantee = Guarantee.TV
    evidence = CodeRatios

    k: int = Field(100, ge=1, description="nearest codes whose mass may count")

    @abstractmethod
    def budget(self, p_at: Tensor) -> Tensor:
        """The largest S [R] of drafts whose own probability is ``p_at`` [R]."""

    @property
    def neighbours(self) -> int:
        return self.k

    def log_relaxed(self, drafts: CodeRatios) -> Tensor:
        if drafts.nearest is None:
            raise TypeError(f"rule {self.name}: the decoder gave no nearest codes")
        p_at = drafts.p.gather(-1, drafts.code[..., None])[..., 0]
        mass = neighbour_mass(drafts.p, drafts.code, drafts.nearest, self.budget(p_at))
        return ((p_at + mass) / drafts.q_at).log()


class Lantern(_OnNeighbours):
    """LANTERN (arXiv:2410.03355), with the lossless residual in place of the published one.

    The published residual, that of p with the neighbours' mass moved onto the rejected code, is as far from p, but
    another one for each rejected code.
    """

    name = "lantern"
    summary = "codes: min(1, (p + S) / q), S at most delta, the target's mass on codes near the drafted one"
    main_knob = "delta"

    delta: float = Field(1.0, ge=0.0, le=1.0, description="most mass S, at most 1")

    def budget(self, p_at: Tensor) -> Tensor:
        return torch.full_like(p_at, self.delta)


class LanternPlus(_OnNeighbours):
    """LANTERN++ (arXiv:2502.06352): a budget in proportion to the code's own probability."""

    name = "lantern++"
    summary = "codes: the same, S at most (lam - 1) p"
    main_knob = "lam"

    lam: float = Field(1.0, ge=1.0, le=1e6, description="S at most (lam - 1) p")

    def budget(self, p_at: Tensor) -> Tensor:
        return (self.lam - 1.0) * p_at


#: Every rule that a spec may name.
RULES: dict[str, type[Rule[Any]]] = {rule.name: rule for rule in (Lossless, Annealed, Coupled, Lantern, LanternPlus)}


def knobs_of(name: str) -> frozenset[str]:
    """The knobs of a rule; none if no such rule is known, as in a plan of another version."""
    return frozenset(RULES[name].model_fields) if name in RULES else frozenset()


def owners_of(knob: str) -> list[str]:
    """The rules that have a knob."""
    return [name for name in RULES if knob in knobs_of(name)]


def names_for(*made: type[Evidence]) -> tuple[str, ...]:
    """The rules that a decoder can apply, by the kinds of evidence it makes."""
    return tuple(name for name, rule in RULES.items() if any(issubclass(kind, rule.evidence) for kind in made))


def checked(rule: Rule[Any], made: tuple[type[Evidence], ...], tokens: str) -> Rule[Any]:
    """The rule, if a decoder can apply it.

    Args:
        rule: that was asked for.
        made: kinds of evidence that the decoder makes.
        tokens: what it decodes, in words.

    Raises:
        ValueError: the decoder cannot tell the rule what it must know.
    """
    allowed = names_for(*made)
    if rule.name not in allowed:
        raise ValueError(f"acceptance.rule: got {rule.name!r}, allowed for {tokens}: {', '.join(allowed)}")
    return rule
