"""Generated images held against a reference by the published definitions, and what the figures may be called.

A Frechet distance is an FID if the 2015 network, its resize and a reference made by both were used; the number of
images stands beside it. Anything else has another name, and the figures say why.

Shape legend: n generated images, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spd_core.quality.extractors import POOL, SPATIAL, FeatureMeasurer, InceptionExtractor
from spd_core.quality.inception import PUBLIC_SHA256
from spd_core.quality.intervals import wilson
from spd_core.quality.metrics import Told
from spd_core.quality.published import (
    ADM_CHUNK,
    KID_SIZE,
    KID_SUBSETS,
    NEIGHBOURS,
    inception_score_of_rows,
    precision_recall,
    published_kid,
)
from spd_core.quality.rows import FileRows, frechet_of_rows
from spd_core.quality.statistics import Statistics

#: Images of the published figures; with fewer an FID is larger.
PUBLISHED_IMAGES = 50_000
Figures = dict[str, Any]


class Gathered:
    """The rows of some extractor's features, in temporary files: memory does not grow with the images."""

    def __init__(self, extractor: FeatureMeasurer) -> None:
        self.extractor = extractor
        self.rows = {name: FileRows(shape[0]) for name, (_, shape) in extractor.rows.items()}

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Takes in the features of some images."""
        for name, kept in self.rows.items():
            kept.append(rows[name])

    def __len__(self) -> int:
        return len(self.rows[POOL])


@dataclass(frozen=True)
class Name:
    """What a Frechet distance may be called."""

    is_fid: bool
    why_not: str  #: empty: it is one


def name_of(extractor: FeatureMeasurer, reference: Statistics | None) -> Name:
    """Whether a distance by an extractor to a reference is the FID; the reference is one that fits the extractor."""
    if not isinstance(extractor, InceptionExtractor):
        return Name(False, f"the features are those of {extractor.name}")
    if extractor.sha256 != PUBLIC_SHA256:
        return Name(False, f"the weights are not the public file of sha256 {PUBLIC_SHA256[:12]}...")
    if reference is not None and reference.form == "bare":
        return Name(False, "the file of the reference does not say which network and which resize made it")
    return Name(True, "")


def figures(gathered: Gathered, reference: Statistics | None) -> Figures:
    """All figures that can be computed, as JSON values.

    Args:
        gathered: features of at least two images.
        reference: real images, one that `spd_core.quality.statistics.check_made_by` accepts; None: only what needs
            none.

    Raises:
        ValueError: fewer than two images.
    """
    if len(gathered) < 2:
        raise ValueError(f"images: got {len(gathered)}, allowed: at least 2 for a distance")
    extractor, pool = gathered.extractor, gathered.rows[POOL]
    called = name_of(extractor, reference)
    made: Figures = {
        "extractor": extractor.name,
        "weights_sha256": extractor.sha256,
        "resize": extractor.resize,
        "n": len(gathered),
        "is_fid": called.is_fid and reference is not None,
        "why_not_fid": called.why_not,
        "reference": None,
        "reference_sha256": None,
        "reference_images": None,
        "fid" if called.is_fid else "frechet": None,
        "sfid" if called.is_fid else "spatial_frechet": None,
    }
    if isinstance(extractor, InceptionExtractor):
        score = inception_score_of_rows(pool, extractor.logits)
        made["inception_score"] = {"mean": score.mean, "std": score.std, "chunk": ADM_CHUNK}
    return made if reference is None else made | _against(gathered, reference, called)


def _against(gathered: Gathered, reference: Statistics, called: Name) -> Figures:
    pool = gathered.rows[POOL]
    made: Figures = {
        "reference": reference.name,
        "reference_sha256": reference.sha256,
        "reference_images": reference.made_by.images if reference.made_by else None,
        "fid" if called.is_fid else "frechet": frechet_of_rows(pool, reference.moments[POOL]),
    }
    if SPATIAL in gathered.rows and SPATIAL in reference.moments:
        made["sfid" if called.is_fid else "spatial_frechet"] = frechet_of_rows(
            gathered.rows[SPATIAL], reference.moments[SPATIAL]
        )
    features = reference.features
    if features is None:
        return made | {"no_features": "the reference keeps no features of single images"}
    made["reference_features"] = len(features)
    if min(len(features), len(pool)) > NEIGHBOURS:
        found = precision_recall(features, pool)
        made |= {"precision": found.precision, "recall": found.recall}
    if min(len(features), len(pool)) >= KID_SIZE:
        kid = published_kid(features, pool)
        made["kid"] = {"mean": kid.mean, "std": kid.std, "subsets": KID_SUBSETS, "size": KID_SIZE}
    return made


class Agreement:
    """Images in which a classifier sees the class that was asked for, counted by class.

    Args:
        class_names: K of them.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = class_names
        self._images, self._agreeing = (torch.zeros(len(class_names), dtype=torch.int64) for _ in range(2))

    def add(self, predicted_n: Tensor, labels_n: Tensor) -> None:
        """Takes in some images."""
        for count, labels in ((self._images, labels_n), (self._agreeing, labels_n[predicted_n == labels_n])):
            count += torch.bincount(labels, minlength=len(self._names))

    def figures(self, classifier: str, sha256: str) -> Figures:
        """The share of all images with its 95 % interval, and the counts by class."""
        images, agreeing = int(self._images.sum()), int(self._agreeing.sum())
        by_class = zip(self._names, self._images.tolist(), self._agreeing.tolist(), strict=True)
        return {
            "classifier": classifier,
            "classifier_sha256": sha256,
            "images": images,
            "share": agreeing / images if images else None,
            "interval": list(wilson(agreeing, images)) if images else None,
            "classes": [{"name": name, "images": n, "agreeing": seen} for name, n, seen in by_class],
        }


def told(made: Mapping[str, Any]) -> list[Told | tuple[str, str]]:
    """The figures as report and card show them, with what has to be said beside them."""
    rows: list[Told | tuple[str, str]] = []
    if "extractor" in made:
        rows += _distances(made) + _others(made) + _said(made)
    agree = made.get("label_agreement")
    if agree and agree["share"] is not None:
        name = f"label agreement by classifier {agree['classifier']}, N = {agree['images']:,}"
        rows.append(Told(name, agree["share"], agree["interval"], share=True))
        rows.append(("weights of the classifier", f"sha256 {agree['classifier_sha256']}"))
    return rows


def _distances(made: Mapping[str, Any]) -> list[Told | tuple[str, str]]:
    at = f"to {made['reference']} at N = {made['n']:,}"
    names = {
        "fid": "FID",
        "sfid": "sFID",
        "frechet": f"Frechet distance of features {made['extractor']}",
        "spatial_frechet": f"Frechet distance of spatial features {made['extractor']}",
    }
    return [Told(f"{name} {at}", made[key], digits=4) for key, name in names.items() if made.get(key) is not None]


def _others(made: Mapping[str, Any]) -> list[Told | tuple[str, str]]:
    rows: list[Told | tuple[str, str]] = []
    foreign = "" if made["is_fid"] or not made["why_not_fid"].startswith("the weights") else ", of other weights"
    if score := made.get("inception_score"):
        name = f"Inception Score{foreign}, N = {made['n']:,}"
        rows.append(Told(name, score["mean"], spread=score["std"] if made["n"] > score["chunk"] else None, digits=4))
    if made.get("precision") is not None:
        against = f"{made['n']:,} images, {made['reference_features']:,} of the reference"
        rows.append(Told(f"precision{foreign} ({against})", made["precision"], digits=4))
        rows.append(Told(f"recall{foreign} ({against})", made["recall"], digits=4))
    if kid := made.get("kid"):
        name = f"KID{foreign}, {kid['subsets']} subsets of {kid['size']:,}"
        rows.append(Told(name, kid["mean"], spread=kid["std"], digits=4))
    return rows


def _said(made: Mapping[str, Any]) -> list[Told | tuple[str, str]]:
    rows: list[Told | tuple[str, str]] = []
    if made.get("fid") is not None and made["n"] < PUBLISHED_IMAGES:
        rows.append(
            (
                "bias",
                f"the FID of {made['n']:,} images is too high by a bias that falls with their number; it does not "
                f"compare with published figures, which are of {PUBLISHED_IMAGES:,} images",
            )
        )
    if made.get("frechet") is not None:
        rows.append(("not called FID", made["why_not_fid"]))
    if made.get("no_features"):
        rows.append(
            ("precision, recall, KID", f"not computed: {made['no_features']} (`spd reference --features N` keeps them)")
        )
    elif made["reference"] and not made.get("kid"):
        rows.append(("KID", f"not computed: it needs {KID_SIZE:,} images on either side"))
    rows.append(("features", f"{made['extractor']}, {made['resize']}; weights sha256 {made['weights_sha256']}"))
    if made["reference"]:
        images = "" if made["reference_images"] is None else f", of {made['reference_images']:,} images"
        rows.append(("reference", f"{made['reference']}{images}; sha256 {made['reference_sha256']}"))
    return rows
