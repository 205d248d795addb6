"""Recipe of the bundled Fashion-MNIST reference statistics: features of every real image, packed, with a card."""

from __future__ import annotations

import functools
import hashlib
import logging
import operator
from pathlib import Path

import torch
from torch import Tensor

from spd_core.data import FASHION_CLASSES, load_fashion_mnist
from spd_core.quality.features import EXTRACTOR, WEIGHTS_SHA256, FeatureExtractor
from spd_core.quality.frechet import Moments, frechet_of_features
from spd_core.quality.kid import KernelSample, kid
from spd_core.quality.reference import CARD, STATISTICS, ReferenceCard, pack, unpack

log = logging.getLogger(__name__)

_CHUNK = 4000  # images whose float64 features are in memory at once


def moments_of(features_nD: Tensor) -> Moments:
    """Moments of many features, a chunk at a time."""
    return functools.reduce(operator.add, (Moments.from_features(part) for part in torch.split(features_nD, _CHUNK)))


def storage_error(
    moments: Moments, features_mD: Tensor, labels_m: Tensor, kernel_features: Tensor, kernel_labels: Tensor
) -> tuple[bytes, dict[str, float]]:
    """The packed statistics, and by how much figures change when they are read back.

    Args:
        moments: of the training images.
        features_mD, labels_m: test images.
        kernel_features, kernel_labels: the images that stand on the other side of the kernel distance.
    """
    raw = pack(moments, features_mD, labels_m)
    read_moments, read_features, read_labels = unpack(raw)
    changes = {}
    for count in sorted({min(count, len(features_mD)) for count in (250, 1000, len(features_mD))}):
        exact = frechet_of_features(features_mD[:count], moments)
        changes[f"moments: frechet at {count}"] = frechet_of_features(features_mD[:count], read_moments) - exact
        changes[f"features: frechet at {count}"] = frechet_of_features(read_features[:count], moments) - exact
    other = KernelSample.of(kernel_features, kernel_labels)
    exact_kid = kid(other, KernelSample.of(features_mD, labels_m)).value
    changes["features: kid"] = kid(other, KernelSample.of(read_features, read_labels)).value - exact_kid
    return raw, changes


def build_reference(out_dir: Path, device: str = "cpu") -> ReferenceCard:
    """Extracts the features of all 70,000 images and stores statistics and card in ``out_dir``.

    Args:
        out_dir: folder, made if it is not there.
        device: where the extractor runs.

    Raises:
        FileNotFoundError: if the Fashion-MNIST files are not there.
    """
    extract = FeatureExtractor(device)
    test_images, test_labels = load_fashion_mnist("test")
    test_features = extract(test_images)
    log.info("features of %d test images", len(test_features))
    train_images, train_labels = load_fashion_mnist("train")
    train_features = extract(train_images)
    log.info("features of %d training images", len(train_features))
    raw, changes = storage_error(
        moments_of(train_features), test_features, test_labels, train_features[:2000], train_labels[:2000]
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / STATISTICS).write_bytes(raw)
    card = ReferenceCard(
        name="fashion-mnist",
        data="Fashion-MNIST (Debian package dataset-fashion-mnist): moments of the training set, "
        "features of the test set",
        licence="MIT (data and statistics)",
        extractor=EXTRACTOR,
        extractor_sha256=WEIGHTS_SHA256,
        class_names=FASHION_CLASSES,
        train_images=len(train_features),
        test_images=len(test_features),
        sha256=hashlib.sha256(raw).hexdigest(),
        bytes=len(raw),
        storage_error=changes,
        made_by="spd_core.train.reference.build_reference",
    )
    (out_dir / CARD).write_text(card.model_dump_json(indent=1) + "\n")
    return card
