"""What decoding a shard gives: encoded images, per-image columns, per-draft rows, and the figures of the commit record.

Shape legend: n images of the shard, K verified drafts of the shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spd_core.accept.certificate import image_certificates, log_weights
from spd_core.law import Guarantee
from workers.staged import Measured

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class DraftRows:
    """One row per verified draft, ordered by image and then as they were tested; columns of equal length K."""

    image: Int64  #: index into the shard, ascending
    token: Int64  #: raster index
    draft_index: Int64  #: place in the drafted block, from 0
    log_ratio: NDArray[np.float32]
    accepted: Bool
    excess: NDArray[np.float32]  #: what the rule added to the acceptance probability; NaN: no bound


@dataclass(frozen=True)
class ShardResult:
    """A decoded shard, ready to be written."""

    class_names: tuple[str, ...]
    tokens: int  #: tokens of an image
    guarantee: Guarantee
    image_format: str  #: png, webp or jpeg
    images: tuple[bytes, ...]  #: n encoded images
    rounds: Int64  #: [n]
    drafts: DraftRows
    features: NDArray[np.float16] | None  #: [n, 1280]
    label_agrees: Bool | None  #: [n]
    counts: dict[str, int]
    seconds: dict[str, float]  #: by span
    started: str  #: UTC, ISO 8601
    began: float  #: `time.perf_counter` of this process when decoding started
    memory: dict[str, int] = field(default_factory=dict)  #: bytes, see `workers.machine.peak_memory`
    measured: Measured = field(default_factory=dict)  #: for the quality figures; no part of the shard

    @property
    def drafted(self) -> Int64:
        """Verified drafts [n] of each image."""
        return np.bincount(self.drafts.image, minlength=len(self.images))

    @property
    def accepted(self) -> Int64:
        """Accepted drafts [n] of each image."""
        return np.bincount(self.drafts.image[self.drafts.accepted], minlength=len(self.images))

    @property
    def certificates(self) -> NDArray[np.float64]:
        """Certificate [n] of each image, see `spd_core.accept.certificate`; NaN where no bound exists."""
        if self.guarantee not in (Guarantee.EXACT, Guarantee.TV):
            return np.full(len(self.images), np.nan)
        drafts = self.drafts
        weights = log_weights(drafts.log_ratio, drafts.accepted, drafts.excess)
        return image_certificates(drafts.image, weights, len(self.images))

    def figures(self, labels: tuple[int, ...]) -> dict[str, Any]:
        """Fields of the commit record that are sums over the shard."""
        drafts, labels_n = self.drafts, np.asarray(labels, dtype=np.int64)
        certificates, excess = self.certificates, drafts.excess.astype(np.float64)
        known = not np.isnan(certificates).any()
        agreeing = None if self.label_agrees is None else labels_n[self.label_agrees]
        return {
            "counts": {
                **self.counts,
                "rounds": int(self.rounds.sum()),
                "drafted": len(drafts.image),
                "accepted": int(drafts.accepted.sum()),
            },
            "tested_by_index": _histogram(drafts.draft_index),
            "accepted_by_index": _histogram(drafts.draft_index[drafts.accepted], _length(drafts.draft_index)),
            "tested_by_token": _histogram(drafts.token, self.tokens),
            "accepted_by_token": _histogram(drafts.token[drafts.accepted], self.tokens),
            "certificate_sum": float(certificates.sum()) if known else None,
            "certificate_square_sum": float(np.square(certificates).sum()) if known else None,
            "excess_sum": float(excess.sum()) if known else None,
            "images_by_label": _histogram(labels_n, len(self.class_names)),
            "agreeing_by_label": None if agreeing is None else _histogram(agreeing, len(self.class_names)),
        }


def _length(values: Int64) -> int:
    return int(values.max()) + 1 if len(values) else 0


def _histogram(values: Int64, length: int = 0) -> tuple[int, ...]:
    return tuple(np.bincount(values, minlength=length).tolist())
