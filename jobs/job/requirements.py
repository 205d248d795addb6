"""The ``requirements:`` of a spec: what a night's figures must be, and how much worse they may become."""

from __future__ import annotations

import datetime

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from jobs.job.figures import FIGURES
from spd_core.alike import did_you_mean
from spd_core.law import Settings


class Requirement(Settings):
    """Of one figure."""

    min: float | None = Field(None, description="least value")
    max: float | None = Field(None, description="largest value")
    exact: float | None = Field(None, description="the value")
    max_regression: float | None = Field(
        None,
        ge=0,
        le=100,
        description="percent by which the figure may become worse over the nights; given for a figure that is only "
        "shown, it is judged too",
    )
    history: int | None = Field(None, ge=6, le=10_000, description="nights before changes of level are looked for")


class Requirements(Settings):
    """Of the nights of a job; they decide no byte of a dataset."""

    since: datetime.date | None = Field(
        None,
        description="nights before this one are shown and not judged: what came of a change is to be the new normal",
        json_schema_extra={"allowed": "a date as YYYY-MM-DD"},
    )
    figures: dict[str, Requirement] = Field(default_factory=dict, description="by figure, see docs/nightly.md")

    @field_validator("figures")
    @classmethod
    def _known(cls, value: dict[str, Requirement]) -> dict[str, Requirement]:
        for name in value:
            if name not in FIGURES:
                allowed = f"{', '.join(FIGURES)}{did_you_mean(name, list(FIGURES))}"
                raise PydanticCustomError("figures", "{allowed}", {"allowed": allowed})
        return value

    def of(self, figure: str) -> Requirement:
        """What is asked of a figure."""
        return self.figures.get(figure, Requirement())
