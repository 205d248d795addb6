"""The engine of a worker: one loaded pair that turns a shard's requests into encoded images and their evidence.

Shape legend: n images of the shard, B images of a batch, N tokens, D token dims.
"""

from __future__ import annotations

import datetime
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spd_core.decode import decode
from spd_core.decode.log import DraftRecords
from spd_core.draws import Draws
from spd_core.law import Null
from spd_core.pairs.pair import Pair, PairCard, PairError, load_card, load_pair
from workers.encode import encode_image
from workers.null import null_images
from workers.records import ShardTask, WorkerSettings
from workers.result import DraftRows, ShardResult


@dataclass(frozen=True)
class _Batch:
    """One decoded batch."""

    images: Tensor  #: uint8 [B, H, W, C] on the CPU
    rounds: Tensor  #: int64 [B]
    drafts: DraftRecords


class Engine:
    """Decodes shards; holds the models of one pair.

    A shard's result depends on its task and the settings alone: batches are cut from the shard's own requests.

    Args:
        settings: of the job.

    Raises:
        PairError: unknown or damaged pair, or another one than the plan's.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        if self.device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self.card = _planned_card(settings)
        self._pair: Pair | None = None
        if not isinstance(settings.method, Null):
            self._pair = load_pair(settings.pair, self.device, draft=settings.method.uses_draft)
        if settings.features:
            from spd_core.quality.features import FeatureExtractor

            self._extractor = FeatureExtractor(self.device)

    def make(self, task: ShardTask) -> ShardResult:
        """Decodes, encodes and measures the images of one shard."""
        started, began = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"), time.perf_counter()
        seconds: defaultdict[str, float] = defaultdict(float)
        counts: Counter[str] = Counter()
        batches, encoded, features, agrees = [], [], [], []
        for start in range(0, len(task.request_ids), self.settings.batch):
            at = slice(start, start + self.settings.batch)
            labels = torch.tensor(task.labels[at], device=self.device)
            batch = self._decode(labels, torch.tensor(task.seeds[at], device=self.device), counts, seconds)
            with _timed(seconds, "encode"):
                encoded += [encode_image(image, self.settings.image) for image in batch.images.numpy()]
            if self.settings.features:
                with _timed(seconds, "features"):
                    features.append(self._extractor(batch.images).numpy().astype(np.float16))
                    if self.card.reference:
                        agrees.append(self._agreement(batch.images, labels.cpu()))
            batches.append(batch)
        return ShardResult(
            class_names=self.card.class_names,
            tokens=self.card.target.seq_len,
            guarantee=self.settings.method.guarantee,
            image_format=self.settings.image.format,
            images=tuple(encoded),
            rounds=torch.cat([batch.rounds.cpu() for batch in batches]).numpy(),
            drafts=_draft_rows(batches, self.settings.batch),
            features=np.concatenate(features) if features else None,
            label_agrees=torch.cat(agrees).numpy() if agrees else None,
            counts=dict(counts),
            seconds=dict(seconds),
            started=started,
            began=began,
        )

    def _decode(
        self, labels_B: Tensor, seeds_B: Tensor, counts: Counter[str], seconds: defaultdict[str, float]
    ) -> _Batch:
        method = self.settings.method
        if isinstance(method, Null) or self._pair is None:
            with _timed(seconds, "null"):
                images = null_images(seeds_B, self.card.image_shape)
            return _Batch(images, torch.zeros(len(seeds_B), dtype=torch.int64), DraftRecords.concatenate([]))
        decoded = decode(self._pair, self.settings.law, method, labels_B, Draws(seeds_B))
        counts.update(decoded.counts)
        for name, spent in decoded.seconds.items():
            seconds[name] += spent
        with _timed(seconds, "codec"):
            images = self._pair.to_images(decoded.tokens)
        return _Batch(images, decoded.rounds, decoded.drafts)

    def _agreement(self, images_BHWC: Tensor, labels_B: Tensor) -> Tensor:
        from spd_core.quality.labels import label_agreement

        return label_agreement(images_BHWC, labels_B, self.card.reference).cpu()


def _planned_card(settings: WorkerSettings) -> PairCard:
    card = load_card(settings.pair)
    if card.sha256 != settings.pair_sha256:
        shown, planned = (
            ", ".join(f"{part} {digest[:12]}" for part, digest in sorted(hashes.items())) or "none"
            for hashes in (card.sha256, settings.pair_sha256)
        )
        raise PairError(f"pair: {settings.pair} has weights {shown}, allowed: {planned} (the plan's)")
    return card


@contextmanager
def _timed(seconds: defaultdict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - began


def _draft_rows(batches: list[_Batch], size: int) -> DraftRows:
    """Draft records of the shard, image by image; a stable sort keeps the order of the tests within an image."""
    parts = [batch.drafts for batch in batches]
    image = torch.cat([part.image + index * size for index, part in enumerate(parts)])
    order = torch.argsort(image, stable=True)

    def column(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])[order]

    return DraftRows(
        image=image[order].numpy(),
        token=column("token").numpy(),
        draft_index=column("draft_index").numpy(),
        log_ratio=column("log_ratio").float().numpy(),
        accepted=column("accepted").numpy(),
        excess=column("excess").float().numpy(),
    )
