"""What turns images into rows for the quality figures, behind one interface: an extractor of features, a classifier.

Shape legend: n images of a call, H, W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from spd_core.precision import arithmetic
from spd_core.quality import features, inception
from spd_core.quality.files import QualityError
from spd_core.quality.inception import LoadedInception, load_inception, resize
from spd_core.quality.names import ExtractorName

POOL, SPATIAL = "pool", "spatial"
#: Images of one pass of a network.
BATCH_CPU, BATCH_GPU = 32, 64


RowKinds = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class Measurer(Protocol):
    """A network that gives every image one row of one or more named tensors."""

    @property
    def name(self) -> str:
        """Of the network and what is done to images before it."""
        ...

    @property
    def sha256(self) -> str:
        """Of its weights file."""
        ...

    @property
    def rows(self) -> RowKinds:
        """By name, dtype and shape of an image's row."""
        ...

    def __call__(self, images: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Rows [n, ...] by name, on the CPU.

        Args:
            images: uint8 [H, W, 1 or 3], of one size or several; one tensor [n, H, W, C] is quicker.
        """
        ...


def key_of(measurer: Measurer) -> str:
    """Name of the folder of what it has measured: another network or other weights have another."""
    return f"{measurer.name}-{measurer.sha256[:16]}"


def by_size(images: Sequence[Tensor] | Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of one size as batches [b, H, W, C], each with the indices int64 [b] of its images."""
    if isinstance(images, Tensor):
        index = torch.arange(len(images))
        yield from zip(index.split(at_once), images.split(at_once), strict=True) if len(images) else ()
        return
    sizes: dict[torch.Size, list[int]] = {}
    for place, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(place)
    for places in sizes.values():
        for start in range(0, len(places), at_once):
            some = places[start : start + at_once]
            yield torch.tensor(some), torch.stack([images[place] for place in some])


def as_rgb(images_BHWC: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, 3, H, W] on a device; grey becomes three equal channels.

    Raises:
        ValueError: another dtype or shape.
    """
    if images_BHWC.dtype != torch.uint8 or images_BHWC.dim() != 4 or images_BHWC.shape[-1] not in (1, 3):
        got = f"{images_BHWC.dtype} {list(images_BHWC.shape)}"
        raise ValueError(f"images: got {got}, allowed: torch.uint8 [B, H, W, 1 or 3]")
    return images_BHWC.to(device).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)


def batch_of(device: torch.device) -> int:
    """Images of one pass on a device."""
    return BATCH_GPU if device.type == "cuda" else BATCH_CPU


class InceptionExtractor:
    """Pool and spatial features of the 2015 network.

    Args:
        loaded: with its weights.
        device: where they are.
    """

    name = inception.EXTRACTOR
    resize = inception.RESIZE
    rows: ClassVar[RowKinds] = {
        POOL: (torch.float32, (inception.POOL_DIMS,)),
        SPATIAL: (torch.float32, (inception.SPATIAL_DIMS,)),
    }

    def __init__(self, loaded: LoadedInception, device: torch.device | str = "cpu") -> None:
        self.network, self.sha256 = loaded.network, loaded.sha256
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        made = {name: torch.empty(len(images), *shape) for name, (_, shape) in self.rows.items()}
        places: list[Tensor] = []
        ready: list[Tensor] = []
        at_once = batch_of(self.device)
        with arithmetic("float32"):
            # At the network's size, images of all sizes make one batch.
            for index, batch in by_size(images, at_once):
                places.append(index)
                ready.append(resize(as_rgb(batch, self.device).float()))
                if sum(map(len, places)) >= at_once:
                    self._pass(made, places, ready)
            if places:
                self._pass(made, places, ready)
        return made

    def _pass(self, made: dict[str, Tensor], places: list[Tensor], ready: list[Tensor]) -> None:
        """Takes what is ready through the network and forgets it."""
        index = torch.cat(places)
        pixels = torch.cat(ready).contiguous(memory_format=torch.channels_last)
        found = self.network.of_resized(pixels)
        made[POOL][index], made[SPATIAL][index] = found.pool.cpu(), found.spatial.cpu()
        places.clear()
        ready.clear()

    def logits(self, pool: Tensor) -> Tensor:
        """[n, 1008] of pool features on the CPU, without the bias."""
        return (pool.to(self.device) @ self.network.fc.weight.T).cpu()


class EfficientNetExtractor:
    """Features of the packaged EfficientNet-Lite0, see `spd_core.quality.features`."""

    name = features.EXTRACTOR
    resize = f"bilinear with antialiasing to {features.SIDE} px, (x - 127) / 128"
    sha256 = features.WEIGHTS_SHA256
    rows: ClassVar[RowKinds] = {POOL: (torch.float32, (features.DIMS,))}

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._extract = features.FeatureExtractor(device)

    def __call__(self, images: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        made = torch.empty(len(images), features.DIMS)
        for index, batch in by_size(images, batch_of(self._extract.device)):
            made[index] = self._extract(batch)
        return {POOL: made}


FeatureMeasurer = InceptionExtractor | EfficientNetExtractor


def load_extractor(name: ExtractorName, weights: Path | None, device: torch.device | str = "cpu") -> FeatureMeasurer:
    """An extractor by its name in the spec.

    Args:
        name: of it.
        weights: file of the weights of ``inception``; the other brings its own.
        device: where it runs.

    Raises:
        QualityError: the file is not that of the network, or is missing.
    """
    if name == "efficientnet":
        return EfficientNetExtractor(device)
    if weights is None:
        raise QualityError("quality.weights: got nothing, allowed: a file of the weights of inception-2015-12-05")
    return InceptionExtractor(load_inception(weights, device), device)
