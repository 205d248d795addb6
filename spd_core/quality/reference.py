"""Bundled statistics of real images: moments of the training set, features of the test set, the real/real floor.

A reference is a folder ``spd_core/quality/data/<name>/`` with ``reference.json`` (`ReferenceCard`) and
``reference.npz``: mean and upper covariance triangle of the training features, and the test features in 8 bits, linear
per dimension. What that rounding changes in the figures was measured when it was made and is in the card.

Shape legend: m test images, n images, D features, K classes.
"""

from __future__ import annotations

import functools
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from spd_core.law import Settings
from spd_core.quality.features import EXTRACTOR
from spd_core.quality.files import QualityError, read_card, read_checked, reference_folder
from spd_core.quality.frechet import Moments, frechet_interval, frechet_of_features
from spd_core.quality.kid import KernelSample

STATISTICS, CARD = "reference.npz", "reference.json"
FLOOR_SUBSETS = 5


class ReferenceCard(Settings):
    """Where a reference comes from."""

    name: str
    data: str
    licence: str
    extractor: str
    extractor_sha256: str = Field(description="of the extractor's weights file")
    class_names: tuple[str, ...]
    train_images: int = Field(gt=1, description="behind the moments")
    test_images: int = Field(gt=1, description="whose features are stored")
    sha256: str = Field(description="of the statistics file")
    bytes: int = Field(description="size of the statistics file")
    storage_error: dict[str, float] = Field(description="change of a figure by the compact storage, by figure")
    made_by: str


@dataclass(frozen=True)
class Floor:
    """Distance that real images themselves have at n: what a perfect generator would score."""

    value: float  #: mean over disjoint subsets of the test images
    spread: float  #: standard deviation of one subset's distance, by the jackknife if there is only one
    n: int  #: images per subset; fewer than asked for if there are not as many


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of real images, ready to compare with."""

    card: ReferenceCard
    moments: Moments  #: of the training images
    features: Tensor  #: float32 [m, D], test images
    labels: Tensor  #: int64 [m]

    @functools.cached_property
    def kernel_sample(self) -> KernelSample:
        """The test images' side of the kernel distance."""
        return KernelSample.of(self.features, self.labels)

    @functools.cached_property
    def _by_class(self) -> list[Tensor]:
        """Indices of the test images of each class, in a fixed random order."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))
        return [order[self.labels[order] == label] for label in range(len(self.card.class_names))]

    def subsets(self, n: int) -> list[Tensor]:
        """Up to `FLOOR_SUBSETS` disjoint class-balanced sets of test images, int64 [min(n, m)] indices each."""
        classes = len(self._by_class)
        n = min(n, classes * min(len(index) for index in self._by_class))
        shares = [n // classes + (label < n % classes) for label in range(classes)]
        possible = min(len(index) // share for index, share in zip(self._by_class, shares, strict=True) if share)
        return [
            torch.cat([index[k * share : (k + 1) * share] for index, share in zip(self._by_class, shares, strict=True)])
            for k in range(min(FLOOR_SUBSETS, possible))
        ]

    def floor(self, n: int) -> Floor:
        """Frechet distance between n class-balanced real test images and the training images.

        For n above the stored images it is that of all of them, and the result's ``n`` says so: a floor at fewer images
        is too high for more.

        Raises:
            ValueError: for n < 2.
        """
        if n < 2:
            raise ValueError(f"images: got {n}, allowed: at least 2 for a distance")
        return _floor(self, n)


@functools.cache
def _floor(reference: Reference, n: int) -> Floor:
    subsets = reference.subsets(n)
    values = torch.tensor(
        [frechet_of_features(reference.features[index], reference.moments) for index in subsets], dtype=torch.float64
    )
    if len(subsets) > 1:
        spread = values.std().item()
    else:
        features, labels = reference.features[subsets[0]], reference.labels[subsets[0]]
        spread = frechet_interval(features, labels, reference.moments).error
    return Floor(values.mean().item(), spread, len(subsets[0]))


def pack(moments: Moments, features_mD: Tensor, labels_m: Tensor) -> bytes:
    """The statistics file of training moments and test features (>= 0)."""
    scale = features_mD.amax(dim=0).clamp_min(torch.finfo(torch.float32).tiny) / 255
    rows, columns = torch.triu_indices(*moments.covariance.shape)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        count=np.int64(moments.count),
        mean=moments.mean.numpy(),
        covariance=moments.covariance[rows, columns].float().numpy(),
        # Dimension by dimension compresses better than image by image.
        features=(features_mD / scale).round().to(torch.uint8).T.contiguous().numpy(),
        scale=scale.numpy(),
        labels=labels_m.to(torch.uint8).numpy(),
    )
    return buffer.getvalue()


def unpack(raw: bytes) -> tuple[Moments, Tensor, Tensor]:
    """Inverse of `pack`: moments, features float32 [m, D], labels int64 [m]."""
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        stored = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    dims = len(stored["mean"])
    rows, columns = torch.triu_indices(dims, dims)
    covariance = torch.zeros(dims, dims, dtype=torch.float64)
    covariance[rows, columns] = covariance[columns, rows] = stored["covariance"].double()
    moments = Moments.from_gaussian(int(stored["count"]), stored["mean"], covariance)
    return moments, (stored["features"].float() * stored["scale"][:, None]).T.contiguous(), stored["labels"].long()


def read_reference(folder: Path) -> Reference:
    """The reference in a folder.

    Raises:
        QualityError: missing or corrupt files, or statistics of another extractor.
    """
    card = read_card(folder / CARD, ReferenceCard)
    if card.extractor != EXTRACTOR:
        raise QualityError(f"quality: {folder / CARD} is of {card.extractor!r}, allowed: {EXTRACTOR!r}")
    raw = read_checked(folder / STATISTICS, card.sha256)
    try:
        return Reference(card, *unpack(raw))
    except (ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise QualityError(f"quality: {folder / STATISTICS} does not fit its card: {error}") from error


@functools.cache
def load_reference(name: str) -> Reference:
    """A bundled reference, read once per process.

    Raises:
        QualityError: unknown name, or missing or corrupt files.
    """
    return read_reference(reference_folder(name))
