"""Metrics of generated images: one class each, with its figures and how they are told.

Aggregation, report and card ask `METRICS` and know no metric by name: a metric is a class here or elsewhere, and one
entry. Its figures are fields of the report's ``quality``, beside those of the other metrics.

Shape legend: n images, D features, K classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spd_core.quality.frechet import frechet_interval, frechet_of_features
from spd_core.quality.intervals import GROUPS, wilson
from spd_core.quality.kid import KernelSample, kid
from spd_core.quality.reference import Reference

Figures = dict[str, Any]
_NORMAL_95 = 1.959964  #: quantile of a normal distribution: 95 % lie within


@dataclass(frozen=True)
class Generated:
    """What a metric is told."""

    features: Tensor  #: float32 [n, D]
    labels: Tensor  #: int64 [n], classes asked for
    agree: Tensor | None  #: bool [n], whether the classifier sees the class asked for; None: not classified
    reference: Reference  #: statistics of real images

    @property
    def has_intervals(self) -> bool:
        """Whether there are images enough for the jackknife over groups."""
        return len(self.labels) >= 2 * GROUPS


@dataclass(frozen=True)
class Told:
    """A figure as report and card show it."""

    name: str
    value: float
    interval: tuple[float, float] | None = None  #: at 95 %
    spread: float | None = None  #: standard deviation
    digits: int = 3  #: significant ones
    share: bool = False  #: shown as a percentage


@dataclass(frozen=True)
class Gap:
    """Frechet distance less floor."""

    value: float
    interval: tuple[float, float] | None  #: at 95 %, of both distances' errors as of independent ones


def gap_to_floor(quality: Mapping[str, Any]) -> Gap:
    """How much farther generated images are from the reference than real ones are, of a report's ``quality``."""
    value = quality["frechet"] - quality["floor"]
    if quality["frechet_interval"] is None:
        return Gap(value, None)
    low, high = quality["frechet_interval"]
    of_floor = _NORMAL_95 * quality["floor_spread"]
    below, above = math.hypot(quality["frechet"] - low, of_floor), math.hypot(high - quality["frechet"], of_floor)
    return Gap(value, (value - below, value + above))


class Metric(ABC):
    """A figure of quality, or a few that belong together."""

    #: The field whose presence in a report says that the metric was taken.
    name: ClassVar[str]

    @abstractmethod
    def figures(self, images: Generated) -> Figures:
        """Its fields of the report's ``quality``, as JSON values; `name` is among them, None where it has no value."""

    @abstractmethod
    def told(self, quality: Mapping[str, Any]) -> list[Told]:
        """What is shown of a report's ``quality`` in which the metric's field is a number."""


class Frechet(Metric):
    """Frechet distance to real images, beside the distance that real images themselves have."""

    name = "frechet"

    def figures(self, images: Generated) -> Figures:
        moments, floor = images.reference.moments, images.reference.floor(len(images.labels))
        of_floor = {"floor": floor.value, "floor_spread": floor.spread, "floor_n": floor.n}
        if not images.has_intervals:
            value = frechet_of_features(images.features, moments)
            return {"frechet": value, "frechet_interval": None, **of_floor}
        found = frechet_interval(images.features, images.labels, moments)
        return {"frechet": found.value, "frechet_interval": (found.low, found.high), **of_floor}

    def told(self, quality: Mapping[str, Any]) -> list[Told]:
        name = f"Frechet distance to {quality['reference']} at N = {quality['n']:,}"
        floor = f"floor: the same distance of {quality['floor_n']:,} real images"
        gap = gap_to_floor(quality)
        return [
            Told("gap: Frechet distance above the floor", gap.value, gap.interval),
            Told(name, quality["frechet"], quality["frechet_interval"], digits=4),
            Told(floor, quality["floor"], spread=quality["floor_spread"], digits=4),
        ]


class KernelDistance(Metric):
    """Unbiased kernel distance (KID) to real images."""

    name = "kid"

    def figures(self, images: Generated) -> Figures:
        if not images.has_intervals:
            return {"kid": None, "kid_interval": None}
        found = kid(KernelSample.of(images.features, images.labels), images.reference.kernel_sample)
        return {"kid": found.value, "kid_interval": (found.low, found.high)}

    def told(self, quality: Mapping[str, Any]) -> list[Told]:
        return [Told("kernel distance (KID)", quality["kid"], quality["kid_interval"])]


class LabelAgreement(Metric):
    """Share of the images in which a classifier of real images sees the class asked for, in all and by class."""

    name = "label_agreement"

    def figures(self, images: Generated) -> Figures:
        names, agree, n = images.reference.card.class_names, images.agree, len(images.labels)
        asked = torch.bincount(images.labels, minlength=len(names)).tolist()
        seen = None if agree is None else torch.bincount(images.labels[agree], minlength=len(names)).tolist()
        classes = [
            {
                "name": name,
                "images": asked[k],
                "agreeing": None if seen is None else seen[k],
                "agreement": None if seen is None or not asked[k] else seen[k] / asked[k],
            }
            for k, name in enumerate(names)
        ]
        total = None if seen is None else sum(seen)
        return {
            "label_agreement": None if total is None else total / n,
            "label_agreement_interval": None if total is None else wilson(total, n),
            "classes": classes,
        }

    def told(self, quality: Mapping[str, Any]) -> list[Told]:
        return [Told("label agreement", quality["label_agreement"], quality["label_agreement_interval"], share=True)]


#: Every metric that a report shows, in the order in which it does.
METRICS: dict[str, Metric] = {metric.name: metric for metric in (Frechet(), KernelDistance(), LabelAgreement())}


def told(quality: Mapping[str, Any]) -> list[Told]:
    """All figures of a report's ``quality``; a report of another version may lack some metric."""
    return [
        figure for name, metric in METRICS.items() if quality.get(name) is not None for figure in metric.told(quality)
    ]
