"""What is sampled (`SamplerLaw`), how it is decoded (`Method`), and what that way promises (`Guarantee`)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Guarantee(StrEnum):
    """What is known about the law of the images, against the target's own law."""

    EXACT = "exact"  #: the target's law itself
    TV = "tv"  #: total variation bounded by the logged certificate
    W_INF = "w_inf"  #: every token within a stated radius
    NONE = "none"  #: only the measured distance


class Settings(BaseModel):
    """Base of every settings model: frozen, unknown fields refused, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class SamplerLaw(Settings):
    """Everything, besides the weights, that fixes the target's distribution. Speeds compare only at one law."""

    num_iter: int = Field(64, ge=1, le=65536, description="autoregressive iterations an image (MAR)")
    head_steps: int = Field(100, ge=2, le=1000, description="diffusion steps of the head")
    start_level: int = Field(
        999, ge=1, le=999, description="original timestep at which the diffusion path starts from pure noise"
    )
    cfg: float = Field(1.0, ge=1.0, le=100.0, description="classifier-free guidance weight; 1: no guidance")
    cfg_schedule: Literal["linear", "constant"] = Field(
        "linear", description="linear: guidance grows with the share of tokens already made; constant: always cfg"
    )
    temperature: float = Field(1.0, gt=0.0, le=10.0, description="factor on the std of every diffusion step's noise")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="arithmetic of the transformers")

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.head_steps > self.start_level + 1:
            raise ValueError(f"head_steps at most start_level + 1 = {self.start_level + 1}, got {self.head_steps}")
        return self


class Plain(Settings):
    """The target alone, one iteration after another."""

    name: Literal["plain"] = "plain"

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


class Null(Settings):
    """Constant-cost noise images without any model, for measuring everything around the decoder."""

    name: Literal["null"] = "null"

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
Method = Annotated[Annotated[Plain | Cspd | Null, Field(discriminator="name")], BeforeValidator(_named)]
