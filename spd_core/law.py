"""What is sampled (`SamplerLaw`), how it is decoded (`Method`), and what that way promises (`Guarantee`)."""

from __future__ import annotations

import math
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

#: Arithmetic of a law's products; `spd_core.precision` says what it covers.
Precision = Literal["float32", "tf32", "bfloat16"]


class Guarantee(StrEnum):
    """What is known about the law of the images, against the target's own law."""

    EXACT = "exact"  #: the target's law itself
    TV = "tv"  #: the law of one image within a total variation that the mean of the images' certificates estimates
    W_INF = "w_inf"  #: each token's hand-off state, given the tokens before it, coupled to within a stated radius
    NONE = "none"  #: only the measured distance

    def admits(self, other: Guarantee) -> bool:
        """Whether ``other`` promises at least as much: exact above all, none below all, tv and w_inf side by side."""
        return other in (self, Guarantee.EXACT) or self is Guarantee.NONE


class Settings(BaseModel):
    """Base of every settings model: frozen, unknown fields refused, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class SamplerLaw(Settings):
    """Everything, besides the weights, that fixes the target's distribution. Speeds compare only at one law."""

    num_iter: int = Field(64, ge=1, le=65536, description="autoregressive iterations an image (MAR)")
    head_steps: int = Field(100, ge=2, le=1000, description="diffusion steps of the head, at the image's beginning")
    head_schedule: Literal["constant", "linear", "cosine", "two-stage"] = Field(
        "constant",
        description="how the head's steps fall along the image (DiSA, arXiv:2505.20297), by iteration (MAR) or token "
        "position (causal): linear, cosine: down to head_steps_end; two-stage: head_steps_end in the second half",
    )
    head_steps_end: int = Field(
        5, ge=2, le=1000, description="diffusion steps of the head at the image's end, unless head_schedule is constant"
    )
    start_level: int = Field(
        999, ge=1, le=999, description="original timestep at which the diffusion path starts from pure noise"
    )
    handoff_level: int = Field(
        0,
        ge=0,
        le=998,
        description="causal family: original timestep of the states that the context network reads; tokens are made "
        "one after another down to it and finished together. MAR: not used",
    )
    cfg: float = Field(1.0, ge=1.0, le=100.0, description="classifier-free guidance weight; 1: no guidance")
    cfg_schedule: Literal["linear", "constant"] = Field(
        "linear", description="linear: guidance grows with the share of tokens already made; constant: always cfg"
    )
    cfg_interval: int = Field(
        -1,
        ge=-1,
        description="codes: guidance for the first code and this many steps after the one that follows it, none later; "
        "-1: for all",
    )
    temperature: float = Field(
        1.0,
        gt=0.0,
        le=10.0,
        description="factor on the std of every diffusion step's noise; codes: divides the logits",
    )
    top_k: int = Field(0, ge=0, description="codes: only the k likeliest; 0: all")
    top_p: float = Field(
        1.0, gt=0.0, le=1.0, description="codes: only the likeliest that together reach this probability; 1: all"
    )
    dtype: Precision = Field(
        "float32",
        description="arithmetic of the products of transformers and heads; tf32: float32 with factors of 10 bits on a "
        "GPU, float32 on a CPU; output layers, densities and tests are float32 in any case",
    )

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.head_steps > self.start_level + 1:
            raise ValueError(f"head_steps at most start_level + 1 = {self.start_level + 1}, got {self.head_steps}")
        if self.handoff_level >= self.start_level:
            raise ValueError(f"handoff_level below start_level = {self.start_level}, got {self.handoff_level}")
        if not self.falls and self.head_steps_end != type(self).model_fields["head_steps_end"].default:
            raise ValueError(f"head_steps_end belongs to a head_schedule that falls, got {self.head_steps_end}")
        if self.falls and self.head_steps_end > self.head_steps:
            raise ValueError(f"head_steps_end at most head_steps = {self.head_steps}, got {self.head_steps_end}")
        return self

    @property
    def falls(self) -> bool:
        """Whether the head makes fewer steps towards the image's end."""
        return self.head_schedule != "constant"

    @property
    def steps_in_words(self) -> str:
        """Head steps, and how they fall along the image if they do."""
        falls = f" falling to {self.head_steps_end} ({self.head_schedule})" if self.falls else ""
        return f"{self.head_steps} head steps{falls}"

    def steps_at(self, index: int, count: int) -> int:
        """Head steps of iteration or token ``index``, 0-based, of ``count``; they never rise.

        Formulas of the public code of DiSA (arXiv:2505.20297).
        """
        first, last = self.head_steps, self.head_steps_end
        if not self.falls or count == 1:
            return first
        if self.head_schedule == "two-stage":
            return first if 2 * index < count else last
        if self.head_schedule == "linear":
            return last + int((count - 1 - index) / (count - 1) * (first - last))
        return last + int((math.cos(math.pi * index / (count - 1)) + 1) / 2 * (first - last))

    def at(self, index: int, count: int) -> SamplerLaw:
        """The law by which iteration or token ``index`` of ``count`` is made: one with a constant number of steps."""
        return self.with_steps(self.steps_at(index, count)) if self.falls else self

    def with_steps(self, steps: int) -> SamplerLaw:
        """The law that differs in a constant number of head steps."""
        return _with_steps(self, steps)


@lru_cache(maxsize=4096)
def _with_steps(law: SamplerLaw, steps: int) -> SamplerLaw:
    return law.model_copy(
        update={
            "head_schedule": "constant",
            "head_steps": steps,
            "head_steps_end": SamplerLaw.model_fields["head_steps_end"].default,
        }
    )


#: Steps that a head speculates ahead of itself. It moves no law, so it belongs to the method; being fixed there keeps
#: an image's draws the same in every run.
HeadWindow = Annotated[
    tuple[Annotated[int, Field(ge=1, le=1000)], ...],
    Field(
        max_length=1000,
        description="head self-speculation: steps the head runs ahead on its last prediction before one batched check, "
        "one number for each equal slice of the path, first to last; empty: off",
    ),
]


class Plain(Settings):
    """The target alone, one iteration after another."""

    name: Literal["plain"] = "plain"
    head_window: HeadWindow = ()

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee.EXACT

    @property
    def uses_draft(self) -> bool:
        return False


class Cspd(Settings):
    """Continuous speculative decoding for MAR (arXiv:2411.11925): approximate, block-prefix conditioning."""

    name: Literal["cspd"] = "cspd"
    variant: Literal["paper", "released"] = Field(
        "released",
        description="released: what the public code does, every decision of a block kept; "
        "paper: stop at the first refusal and discard what follows",
    )
    gamma: int = Field(8, ge=1, le=4096, description="draft iterations before each target pass")
    aligned: bool = Field(True, description="draft and target share start and step noise of a token")
    prefill: float = Field(0.05, ge=0.0, le=1.0, description="share of the iterations made by the target alone, first")
    inner_temperature: float = Field(
        42.0, gt=0.0, description="factor on the last step's std inside the acceptance test"
    )
    head_window: HeadWindow = ()
    unresolved: Literal["target", "zeros"] = Field(
        "target",
        description="released only, a refused token whose 100 proposals were all dropped: target: its last-step mean, "
        "zeros: what the public code writes",
    )

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee.NONE

    @property
    def uses_draft(self) -> bool:
        return True


class Acceptance(Settings):
    """When a drafted token is kept, and so what is promised."""

    rule: Literal["lossless", "annealed", "coupled", "lantern", "lantern++"] = Field(
        "lossless",
        description="lossless: with probability min(1, R); annealed: min(1, w R), w largest early in a block; "
        "coupled: if the target's own path on the same noise ends within the radius; codes only: lantern, lantern++: "
        "min(1, (p + S) / q), S the target's mass on codes near the drafted one",
    )
    delta: float = Field(
        1.0,
        ge=0.0,
        le=1e6,
        description="annealed: w of a block's first draft, at least 1, falling from there; "
        "lantern: most mass S, at most 1",
    )
    nu: float = Field(0.7, ge=0.0, le=100.0, description="annealed: w falls by exp(-nu) a draft; 0: uniform")
    radius: float = Field(
        0.0,
        ge=0.0,
        description="coupled: largest Euclidean distance of a token's state at the hand-off, in units of the "
        "normalised token; clean tokens may lie farther apart",
    )
    k: int = Field(100, ge=1, description="lantern, lantern++: nearest codes whose mass may count")
    lam: float = Field(1.0, ge=1.0, le=1e6, description="lantern++: S at most (lam - 1) p")

    @model_validator(mode="after")
    def _knob_of_its_rule(self) -> Self:
        for knob, rules in RULES_OF_KNOB.items():
            value = getattr(self, knob)
            if value != type(self).model_fields[knob].default and self.rule not in rules:
                raise ValueError(f"{knob} belongs to rule {' or '.join(rules)}, got {value:g} with {self.rule}")
        if self.rule == "annealed" and self.delta < 1:
            raise ValueError(f"delta at least 1 with rule annealed, got {self.delta:g}")
        if self.rule == "lantern" and self.delta > 1:
            raise ValueError(f"delta at most 1 with rule lantern, got {self.delta:g}")
        return self

    @property
    def guarantee(self) -> Guarantee:
        return {"lossless": Guarantee.EXACT, "coupled": Guarantee.W_INF}.get(self.rule, Guarantee.TV)

    @property
    def neighbourly(self) -> bool:
        """Whether the rule looks at codes near the drafted one."""
        return self.rule in ("lantern", "lantern++")


#: Acceptance rules that have each knob.
RULES_OF_KNOB = {
    "delta": ("annealed", "lantern"),
    "nu": ("annealed",),
    "radius": ("coupled",),
    "k": ("lantern", "lantern++"),
    "lam": ("lantern++",),
}


class Speculative(Settings):
    """Speculative decoding, over codes or over the denoising paths of a causal pair: exact under the lossless rule."""

    name: Literal["speculative"] = "speculative"
    gamma: int = Field(8, ge=0, le=4096, description="tokens drafted before each target pass; 0: plain decoding")
    tree: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (),
        max_length=64,
        description="codes: branches of every node of the draft tree, level by level, in place of a chain of gamma",
    )
    drafter: Literal["draft", "eagle"] = Field(
        "draft", description="codes: which draft of the pair; draft: the small model; eagle: the layer on its features"
    )
    stride: int = Field(
        15, ge=1, le=1000, description="paths: steps for which the draft holds each prediction of its head"
    )
    proposals: int = Field(
        4,
        ge=1,
        le=256,
        description="paths: residual proposals of a refused token made at once; four times as many in each further "
        "attempt, up to 256",
    )
    acceptance: Acceptance = Acceptance()
    head_window: HeadWindow = ()

    @model_validator(mode="after")
    def _tree_fits(self) -> Self:
        nodes = width = 1
        for branches in self.tree:
            width *= branches
            nodes += width
        if nodes > 4096:
            raise ValueError(f"tree of at most 4096 nodes, got {nodes}")
        return self

    @property
    def guarantee(self) -> Guarantee:
        return self.acceptance.guarantee

    @property
    def uses_draft(self) -> bool:
        return True


class Null(Settings):
    """Constant-cost images without any model, for measuring everything around the decoder."""

    name: Literal["null"] = "null"
    images_per_s: float = Field(
        0.0,
        ge=0,
        description="above 0: textured images after the wait for a decoder of this speed on another device; 0: noise "
        "images, as fast as they come",
    )

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee.NONE

    @property
    def uses_draft(self) -> bool:
        return False


def _named(value: Any) -> Any:
    # YAML reads the name of the null method as None.
    if isinstance(value, dict) and "name" in value and value["name"] is None:
        return {**value, "name": "null"}
    return {"name": value or "null"} if value is None or isinstance(value, str) else value


#: A decoding method; ``"cspd"`` is short for ``{"name": "cspd"}``.
Method = Annotated[Annotated[Plain | Cspd | Speculative | Null, Field(discriminator="name")], BeforeValidator(_named)]


class Auto(Settings):
    """The fastest of the admissible methods, measured by one worker before the plan is written and fixed in it."""

    name: Literal["auto"] = "auto"
    guarantee: Guarantee = Field(
        Guarantee.EXACT,
        description="the least that is asked for; exact: only exact methods; tv or w_inf: these too; none: all",
    )
    delta: float = Field(
        1.0, ge=1.0, le=1e6, description="guarantee tv or none: annealed acceptance at this delta too; 1: without it"
    )
    radius: float = Field(
        0.0, ge=0.0, description="guarantee w_inf or none: coupled acceptance at this radius too; 0: without it"
    )
    seconds: float = Field(
        120.0,
        gt=0.0,
        le=86_400.0,
        description="about how long the measurement takes; a large batch on a slow device needs more",
    )

    @model_validator(mode="after")
    def _knob_of_its_guarantee(self) -> Self:
        if self.delta != 1.0 and not self.guarantee.admits(Guarantee.TV):
            raise ValueError(f"delta belongs to guarantee tv or none, got {self.delta:g} with {self.guarantee}")
        if self.radius != 0.0 and not self.guarantee.admits(Guarantee.W_INF):
            raise ValueError(f"radius belongs to guarantee w_inf or none, got {self.radius:g} with {self.guarantee}")
        return self


#: What a spec may ask for; a plan holds a `Method`.
MethodRequest = Annotated[
    Annotated[Plain | Cspd | Speculative | Null | Auto, Field(discriminator="name")], BeforeValidator(_named)
]


class Choice(Settings):
    """A method and the images decoded together: what a measurement compares and a plan fixes."""

    method: Method
    batch: int = Field(ge=1, le=65536)
