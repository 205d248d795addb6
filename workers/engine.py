"""The engine of a worker: one loaded pair that turns a shard's requests into encoded images and their evidence.

Shape legend: n images of the shard, B images of a batch, N tokens, D token dims.
"""

from __future__ import annotations

import datetime
import time
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from spd_core.decode import Decoded, decode, require_finite
from spd_core.decode.log import DraftRecords
from spd_core.draws import Draws
from spd_core.law import Null
from spd_core.pairs.pair import Pair, PairCard, PairError, load_card, load_pair
from workers import pair_cache
from workers.encode import Pixels, encode_image
from workers.machine import peak_memory, usable_cpus
from workers.null import null_images, textured_images
from workers.records import PairSettings, ShardTask, WorkerSettings
from workers.redact import public_url
from workers.result import DraftRows, ShardResult
from workers.staged import DecodedShard, HostCopy, joined, timed

_TOGETHER = 8  #: images that a thread encodes at a time


class Engine:
    """Decodes shards; holds the models of one pair.

    A shard's result depends on its task and the settings alone: what is decoded together is the shard's own requests.

    Args:
        settings: of the job.
        encoders: threads that encode beside the decoder where the settings leave it open; 0: one per usable core.

    Raises:
        PairError: unknown or damaged pair, or another one than the plan's.
    """

    def __init__(self, settings: WorkerSettings, encoders: int = 0) -> None:
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
        self._measuring = None
        if settings.quality:
            from workers.quality import Measuring

            self._measuring = Measuring(settings.quality, settings.image, self.device)
        encoders = settings.encoders or encoders or usable_cpus()
        self._threads = ThreadPoolExecutor(encoders, "encode") if settings.overlaps else None

    def make(self, task: ShardTask) -> ShardResult:
        """Decodes, encodes and measures the images of one shard."""
        return self.encode(self.decode(task))

    def decode(self, task: ShardTask) -> DecodedShard:
        """What the device does of a shard; one call at a time. The images are still on their way to the host."""
        started, began = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"), time.perf_counter()
        labels, seeds = torch.tensor(task.labels), torch.tensor(task.seeds, device=self.device)
        decoded = self._decode(labels.to(self.device), seeds)
        seconds = defaultdict[str, float](float, decoded.seconds)
        shard = DecodedShard(labels, decoded, HostCopy(decoded.finite()), deque(), [], [], seconds, started, began)
        # Tokens are small and the whole shard's are kept; images are made batch by batch.
        for start in range(0, len(seeds), self.settings.batch):
            at = slice(start, start + self.settings.batch)
            images = self._images(decoded.tokens[at], seeds[at], seconds)
            if self.settings.features:
                with timed(seconds, "features"):
                    shard.features.append(self._extractor(images).numpy().astype(np.float16))
            if self._measuring is not None:
                with timed(seconds, "quality"):
                    shard.measured.append(self._measuring(images))
            if self._threads is None:
                self._encode_batch(shard, images)
            else:
                shard.copies.append(HostCopy(images))
        return shard

    def encode(self, shard: DecodedShard) -> ShardResult:
        """What is left to do of a decoded shard, on the host; any thread may call it, of several shards at a time."""
        require_finite(shard.finite.wait())
        while shard.copies:
            # A batch of pixels is let go of as soon as it is encoded.
            self._encode_batch(shard, shard.copies.popleft().wait())
        decoded = shard.decoded
        return ShardResult(
            class_names=self.card.class_names,
            tokens=self.card.target.seq_len,
            guarantee=self.settings.method.guarantee,
            image_format=self.settings.image.format,
            images=tuple(shard.encoded),
            rounds=decoded.rounds.cpu().numpy(),
            drafts=_draft_rows(decoded.drafts),
            features=np.concatenate(shard.features) if shard.features else None,
            label_agrees=torch.cat(shard.agrees).numpy() if shard.agrees else None,
            counts=decoded.counts,
            seconds=dict(shard.seconds),
            started=shard.started,
            began=shard.began,
            memory=peak_memory(self.device),
            measured=joined(shard.measured),
        )

    def _encode_batch(self, shard: DecodedShard, images_BHWC: Tensor) -> None:
        """Adds the encoded images to the shard, and whether their labels are seen in them."""
        parts = [part.numpy() for part in images_BHWC.split(_TOGETHER)]
        for encoded, seconds in (self._threads.map if self._threads else map)(self._encode_some, parts):
            shard.encoded += encoded
            shard.seconds["encode"] += seconds
        if self.settings.features and self.card.reference:
            with timed(shard.seconds, "features"):
                at = len(shard.encoded) - len(images_BHWC)
                shard.agrees.append(self._agreement(images_BHWC, shard.labels[at : at + len(images_BHWC)]))

    def _encode_some(self, images_BHWC: Pixels) -> tuple[list[bytes], float]:
        """Encoded images and the seconds it took; runs in the threads."""
        began = time.perf_counter()
        return [encode_image(image, self.settings.image) for image in images_BHWC], time.perf_counter() - began

    def _decode(self, labels_n: Tensor, seeds_n: Tensor) -> Decoded:
        method = self.settings.method
        if isinstance(method, Null) or self._pair is None:
            nothing = torch.zeros(len(seeds_n), 0, 0)
            return Decoded(nothing, torch.zeros_like(seeds_n), DraftRecords.concatenate([]), {}, {})
        return decode(self._pair, self.settings.law, method, labels_n, Draws(seeds_n), self.settings.batch)

    def _images(self, tokens_BND: Tensor, seeds_B: Tensor, seconds: defaultdict[str, float]) -> Tensor:
        """uint8 [B, H, W, C], on the device if they are encoded beside it."""
        method = self.settings.method
        if self._pair is None:
            with timed(seconds, "null"):
                if isinstance(method, Null) and method.images_per_s:
                    return _waited(seeds_B, self.card.image_shape, method.images_per_s)
                return null_images(seeds_B, self.card.image_shape)
        with timed(seconds, "codec"):
            images = self._pair.images(tokens_BND, self.settings.law.dtype)
            return images if self._threads else images.cpu()

    def _agreement(self, images_BHWC: Tensor, labels_B: Tensor) -> Tensor:
        from spd_core.quality.labels import label_agreement

        return label_agreement(images_BHWC, labels_B, self.card.reference).cpu()


def planned_card(settings: PairSettings) -> PairCard:
    """The card of the settings' pair.

    Raises:
        PairError: it is not there, or its weights are not those of the settings.
    """
    pair_cache.use_options(settings.pair, settings.pair_options)
    card = load_card(settings.pair)
    if card.sha256 != settings.pair_sha256:
        shown, planned = (
            ", ".join(f"{part} {digest[:12]}" for part, digest in sorted(hashes.items())) or "none"
            for hashes in (card.sha256, settings.pair_sha256)
        )
        raise PairError(f"pair: {public_url(settings.pair)} has weights {shown}, allowed: {planned} (the plan's)")
    return card


def _waited(seeds_B: Tensor, shape: tuple[int, int, int], images_per_s: float) -> Tensor:
    """Textured images after the time that a decoder of this speed takes for them."""
    until = time.perf_counter() + len(seeds_B) / images_per_s
    images = textured_images(seeds_B, shape)
    time.sleep(max(0.0, until - time.perf_counter()))
    return images


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
