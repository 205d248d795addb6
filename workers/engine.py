"""The engine of a worker: one loaded pair that turns a shard's requests into encoded images and their evidence.

Shape legend: n images of the shard, B images of a batch, N tokens, D token dims.
"""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from spd_core.decode import Decoded, decode
from spd_core.decode.log import DraftRecords
from spd_core.draws import Draws
from spd_core.law import Null
from spd_core.pairs.pair import Pair, PairCard, PairError, load_card, load_pair
from workers.encode import encode_image
from workers.null import null_images
from workers.records import PairSettings, ShardTask, WorkerSettings
from workers.result import DraftRows, ShardResult


class Engine:
    """Decodes shards; holds the models of one pair.

    A shard's result depends on its task and the settings alone: what is decoded together is the shard's own requests.

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
        self.card = planned_card(settings)
        self._pair: Pair | None = None
        if not isinstance(settings.method, Null):
            self._pair = load_pair(settings.pair, self.device, draft=settings.method.uses_draft)
        if settings.features:
            from spd_core.quality.features import FeatureExtractor

            self._extractor = FeatureExtractor(self.device)

    def make(self, task: ShardTask) -> ShardResult:
        """Decodes, encodes and measures the images of one shard."""
        started, began = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"), time.perf_counter()
        labels, seeds = (torch.tensor(column, device=self.device) for column in (task.labels, task.seeds))
        decoded = self._decode(labels, seeds)
        seconds = defaultdict[str, float](float, decoded.seconds)
        encoded, features, agrees = [], [], []
        # Tokens are small and the whole shard's are kept; images are made and encoded batch by batch.
        for start in range(0, len(seeds), self.settings.batch):
            at = slice(start, start + self.settings.batch)
            images = self._images(decoded.tokens[at], seeds[at], seconds)
            with _timed(seconds, "encode"):
                encoded += [encode_image(image, self.settings.image) for image in images.numpy()]
            if self.settings.features:
                with _timed(seconds, "features"):
                    features.append(self._extractor(images).numpy().astype(np.float16))
                    if self.card.reference:
                        agrees.append(self._agreement(images, labels[at].cpu()))
        return ShardResult(
            class_names=self.card.class_names,
            tokens=self.card.target.seq_len,
            guarantee=self.settings.method.guarantee,
            image_format=self.settings.image.format,
            images=tuple(encoded),
            rounds=decoded.rounds.cpu().numpy(),
            drafts=_draft_rows(decoded.drafts),
            features=np.concatenate(features) if features else None,
            label_agrees=torch.cat(agrees).numpy() if agrees else None,
            counts=decoded.counts,
            seconds=dict(seconds),
            started=started,
            began=began,
        )

    def _decode(self, labels_n: Tensor, seeds_n: Tensor) -> Decoded:
        method = self.settings.method
        if isinstance(method, Null) or self._pair is None:
            nothing = torch.zeros(len(seeds_n), 0, 0)
            return Decoded(nothing, torch.zeros_like(seeds_n), DraftRecords.concatenate([]), {}, {})
        return decode(self._pair, self.settings.law, method, labels_n, Draws(seeds_n), self.settings.batch)

    def _images(self, tokens_BND: Tensor, seeds_B: Tensor, seconds: defaultdict[str, float]) -> Tensor:
        """uint8 [B, H, W, C] on the CPU."""
        if self._pair is None:
            with _timed(seconds, "null"):
                return null_images(seeds_B, self.card.image_shape)
        with _timed(seconds, "codec"):
            return self._pair.to_images(tokens_BND)

    def _agreement(self, images_BHWC: Tensor, labels_B: Tensor) -> Tensor:
        from spd_core.quality.labels import label_agreement

        return label_agreement(images_BHWC, labels_B, self.card.reference).cpu()


def planned_card(settings: PairSettings) -> PairCard:
    """The card of the settings' pair.

    Raises:
        PairError: it is not there, or its weights are not those of the settings.
    """
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


def _draft_rows(drafts: DraftRecords) -> DraftRows:
    """Draft records of the shard, image by image; a stable sort keeps the order of the tests within an image."""
    order = torch.argsort(drafts.image, stable=True)
    return DraftRows(
        image=drafts.image[order].numpy(),
        token=drafts.token[order].numpy(),
        draft_index=drafts.draft_index[order].numpy(),
        log_ratio=drafts.log_ratio[order].float().numpy(),
        accepted=drafts.accepted[order].numpy(),
        excess=drafts.excess[order].float().numpy(),
    )
