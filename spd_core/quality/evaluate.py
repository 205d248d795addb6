"""Every quality figure of a set of generated images in one record, each with its interval and what to hold it against.

Shape legend: n images, D features, K classes.
"""

from __future__ import annotations

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from spd_core.law import Settings
from spd_core.progress import told
from spd_core.quality.features import DIMS, EXTRACTOR
from spd_core.quality.metrics import METRICS, Generated
from spd_core.quality.reference import load_reference

Bounds = tuple[float, float]


class ClassFigures(Settings):
    """One class."""

    name: str
    images: int = Field(description="asked for")
    agreeing: int | None = Field(description="images the classifier agrees with; None: not classified")
    agreement: float | None = Field(description="share of them; None: no images, or not classified")


class QualityFigures(Settings):
    """Quality of n generated images; intervals are at 95 %. A metric that is added has its figures beside these."""

    model_config = ConfigDict(extra="allow")

    extractor: str = Field(description="of the features; the distances are not the published FID and KID")
    reference: str
    n: int
    frechet: float = Field(description="Frechet distance to the real training images, biased upwards by small n")
    frechet_interval: Bounds | None = Field(description="for the expectation at this n; None: too few images")
    floor: float = Field(description="the same distance of floor_n class-balanced real test images")
    floor_spread: float = Field(description="standard deviation of the floor from one set of real images to another")
    floor_n: int = Field(description="n, or the real test images there are if those are fewer")
    kid: float | None = Field(description="unbiased kernel distance to the real test images; None: too few images")
    kid_interval: Bounds | None
    label_agreement: float | None = Field(description="share the classifier agrees with; None: not classified")
    label_agreement_interval: Bounds | None
    classes: tuple[ClassFigures, ...]


def _check(features_nD: Tensor, labels_n: Tensor, agree_n: Tensor | None, classes: int) -> None:
    count = len(labels_n)
    if count < 2:
        raise ValueError(f"images: got {count}, allowed: at least 2 for a distance")
    if features_nD.shape != (count, DIMS):
        raise ValueError(f"features: got {list(features_nD.shape)}, allowed: [{count}, {DIMS}]")
    if not torch.isfinite(features_nD).all():
        raise ValueError("features: got values that are not finite, allowed: finite ones")
    if agree_n is not None and agree_n.shape != labels_n.shape:
        raise ValueError(f"agreement: got {list(agree_n.shape)}, allowed: [{count}]")
    if int(labels_n.min()) < 0 or int(labels_n.max()) >= classes:
        got = f"{int(labels_n.min())}..{int(labels_n.max())}"
        raise ValueError(f"labels: got {got}, allowed: 0..{classes - 1}")


def evaluate(features_nD: Tensor, labels_n: Tensor, agree_n: Tensor | None, reference_name: str) -> QualityFigures:
    """Distances, floor and label agreement of generated images.

    Args:
        features_nD: from `FeatureExtractor`, any float dtype.
        labels_n: int64, the classes asked for.
        agree_n: bool, from `label_agreement`; None leaves the agreement out.
        reference_name: bundled reference.

    Raises:
        QualityError: unknown or corrupt reference.
        ValueError: fewer than two images, or shapes or values that do not fit.
    """
    reference = load_reference(reference_name)
    names = reference.card.class_names
    _check(features_nD, labels_n, agree_n, len(names))
    images = Generated(features_nD.float(), labels_n, agree_n, reference)
    metrics = told(list(METRICS.values()), "metrics")
    figures = {name: value for metric in metrics for name, value in metric.figures(images).items()}
    facts = {"extractor": EXTRACTOR, "reference": reference_name, "n": len(labels_n)}
    return QualityFigures.model_validate({**facts, **figures})
