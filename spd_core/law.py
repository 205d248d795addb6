"""What is sampled (`SamplerLaw`), how it is decoded (`Method`), and what that way promises (`Guarantee`)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from spd_core.accept.rules import RULES, Lossless, Rule, knobs_of, owners_of
from spd_core.complaints import allowed
from spd_core.settings import Guarantee as Guarantee
from spd_core.settings import Settings as Settings

#: Arithmetic of a law's products; `spd_core.precision` says what it covers.
Precision = Literal["float32", "tf32", "bfloat16"]


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
        "one after another down to it and finished together. SphereAR: the same in thousandths of noise, 0: the clean "
        "token, 40: before its last step. MAR: not used",
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
        ge=0.001,
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
        "paper: stop at the first rejection and discard what follows",
    )
    gamma: int = Field(8, ge=1, le=4096, description="draft iterations before each target pass")
    aligned: bool = Field(True, description="draft and target share start and step noise of a token")
    prefill: float = Field(0.05, ge=0.0, le=1.0, description="share of the iterations made by the target alone, first")
    inner_temperature: float = Field(
        42.0, gt=0.0, le=1e6, description="factor on the last step's std inside the acceptance test"
    )
    head_window: HeadWindow = ()
    unresolved: Literal["target", "zeros"] = Field(
        "target",
        description="released only, a rejected token whose 100 proposals were all dropped: target: its last-step mean, "
        "zeros: what the public code writes",
    )

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee.NONE

    @property
    def uses_draft(self) -> bool:
        return True


def _known(name: str) -> str:
    if name not in RULES:
        raise PydanticCustomError("literal_error", "one of {allowed}", {"allowed": ", ".join(RULES)})
    return name


def _knob(name: str) -> Any:
    """A field for the knob of every rule that has one of this name: described for each, within the widest bounds."""
    fields = {rule: RULES[rule].model_fields[name] for rule in owners_of(name)}
    rules: dict[str, list[str]] = {}
    for rule, field in fields.items():
        rules.setdefault(field.description or "", []).append(rule)

    def bounds(kind: type[Ge | Le], of: str) -> list[Any]:
        return [
            next((getattr(mark, of) for mark in field.metadata if isinstance(mark, kind)), None)
            for field in fields.values()
        ]

    lows, highs = bounds(Ge, "ge"), bounds(Le, "le")
    return Field(
        next(iter(fields.values())).default,
        ge=None if None in lows else min(lows),
        le=None if None in highs else max(highs),
        description="; ".join(f"{', '.join(names)}: {text}" for text, names in rules.items()),
    )


def _refused(knob: str, value: Any, error: PydanticCustomError | str) -> ValidationError:
    return ValidationError.from_exception_data("Acceptance", [InitErrorDetails(type=error, loc=(knob,), input=value)])


def _add_knobs(schema: dict[str, Any]) -> None:
    """Adds the knobs that are no field of `Acceptance` to its schema."""
    for rule in RULES.values():
        for name, knob in rule.model_json_schema().get("properties", {}).items():
            schema["properties"].setdefault(name, knob)


class Acceptance(Settings):
    """When a drafted token is accepted, and so what is promised: a rule of `spd_core.accept.rules` as a spec writes it.

    The bundled rules' knobs are fields, whichever rule is meant. A knob that only another rule has is written beside
    them, and is there for that rule alone, so that specs of the others stay what they are.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=_add_knobs)

    rule: Annotated[str, AfterValidator(_known)] = Field(
        Lossless.name,
        description="; ".join(f"{name}: {rule.summary}" for name, rule in RULES.items()),
        json_schema_extra=lambda schema: schema.update(enum=list(RULES)),
    )
    delta: float = _knob("delta")
    nu: float = _knob("nu")
    radius: float = _knob("radius")
    k: int = _knob("k")
    lam: float = _knob("lam")

    @model_validator(mode="after")
    def _knobs_of_the_rule(self) -> Self:
        knobs, fields = knobs_of(self.rule), type(self).model_fields
        for knob, value in (self.model_extra or {}).items():
            if knob not in knobs and not owners_of(knob):
                raise _refused(knob, value, "extra_forbidden")
        for knob, value in self._values().items():
            unset = fields[knob].default if knob in fields else None
            if knob not in knobs and value != unset:
                only = "none" if unset is None else f"{unset:g}"
                text = f"{only} with rule {self.rule}; it belongs to {' and '.join(owners_of(knob))}"
                raise _refused(knob, value, PydanticCustomError("knob", "{allowed}", {"allowed": text}))
        try:
            chosen = self.chosen
        except ValidationError as error:
            problem, model = error.errors()[0], RULES[self.rule]
            knob = str(problem["loc"][0])
            bounds = PydanticCustomError(
                "knob", "{allowed}", {"allowed": f"{allowed(model, knob)} with rule {self.rule}"}
            )
            raise _refused(knob, problem["input"], bounds) from error
        # As the rule reads them, and those that are not given at their defaults.
        self.__pydantic_extra__ = {knob: getattr(chosen, knob) for knob in sorted(knobs - set(fields))}
        return self

    def _values(self) -> dict[str, Any]:
        return {
            **{knob: getattr(self, knob) for knob in type(self).model_fields if knob != "rule"},
            **(self.model_extra or {}),
        }

    @property
    def chosen(self) -> Rule[Any]:
        """The rule with its knobs."""
        knobs = knobs_of(self.rule)
        return RULES[self.rule].model_validate({knob: value for knob, value in self._values().items() if knob in knobs})

    @property
    def guarantee(self) -> Guarantee:
        return RULES[self.rule].guarantee


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
        description="paths: residual proposals of a rejected token made at once; four times as many in each further "
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
        le=1e9,
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
        description="weakest promise of the methods to measure; exact: exact methods only; tv: those of exact or tv; "
        "w_inf: those of exact or w_inf; none: all",
    )
    delta: float = Field(
        1.0, ge=1.0, le=1e6, description="guarantee tv or none: annealed acceptance at this delta too; 1: without it"
    )
    radius: float = Field(
        0.0, ge=0.0, le=1e6, description="guarantee w_inf or none: coupled acceptance at this radius too; 0: without it"
    )
    candidates: Literal["all", "few"] = Field(
        "all", description="few: plain decoding and the methods that are most often the fastest; all: every method"
    )
    seconds: float = Field(
        120.0,
        ge=0.0,
        le=86_400.0,
        description="about how long the measurement takes; a large batch on a slow device needs more; 0: nothing is "
        "measured, the pair's own exact method is taken",
    )

    @model_validator(mode="after")
    def _knob_of_its_guarantee(self) -> Self:
        for rule in self.offered_rules():
            knob = str(rule.auto_knob)
            if not self.guarantee.admits(rule.guarantee):
                allowed = f"guarantee {rule.guarantee} or none"
                raise ValueError(f"{knob} belongs to {allowed}, got {getattr(self, knob):g} with {self.guarantee}")
        return self

    def offered_rules(self) -> list[type[Rule[Any]]]:
        """The relaxed rules whose knob here is set."""
        fields = type(self).model_fields
        return [
            rule
            for rule in RULES.values()
            if rule.auto_knob is not None and getattr(self, rule.auto_knob) != fields[rule.auto_knob].default
        ]

    def relaxed(self) -> list[Acceptance]:
        """The relaxed rules to measure, at the knob given here."""
        return [
            Acceptance.model_validate({"rule": rule.name, str(rule.main_knob): getattr(self, str(rule.auto_knob))})
            for rule in self.offered_rules()
        ]


#: What a spec may ask for; a plan holds a `Method`.
MethodRequest = Annotated[
    Annotated[Plain | Cspd | Speculative | Null | Auto, Field(discriminator="name")], BeforeValidator(_named)
]


class Choice(Settings):
    """A method and the images decoded together: what a measurement compares and a plan fixes."""

    method: Method
    batch: int = Field(ge=1, le=65536)
