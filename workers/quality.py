"""The networks of the quality figures in a worker, and the files in which what they measured is kept.

A file is named by network, weights and the hash of the data file whose images were measured, so it cannot be taken for
another's. It lies beside the dataset and is no part of it: one that is missing or damaged is measured again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fsspec.utils import get_protocol
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from spd_core.quality.classifiers import load_classifier_file
from spd_core.quality.extractors import Measurer, key_of, load_extractor
from spd_core.quality.files import QualityError
from workers import layout
from workers.encode import decode_image, encode_image
from workers.fetched import local_file
from workers.records import ImageFormat, QualityFile, QualitySettings
from workers.staged import Measured
from workers.store import Store, StoreError

logger = logging.getLogger(__name__)


def load_measurers(settings: QualitySettings, device: torch.device) -> list[Measurer]:
    """The networks that a job measures its images with.

    Raises:
        QualityError: a file is missing, is not of its network, or is not the one that the driver saw.
    """
    found: list[Measurer] = []
    if settings.extractor:
        weights = settings.weights
        path = _local("quality.weights", weights, settings) if weights else None
        found.append(load_extractor(settings.extractor, path, device))
        _check("quality.weights", weights, found[-1])
    if settings.classifier:
        path = _local("quality.classifier", settings.classifier, settings)
        found.append(load_classifier_file(path, device))
        _check("quality.classifier", settings.classifier, found[-1])
    return found


def options_for(place: str, output: str, options: dict[str, Any]) -> dict[str, Any]:
    """Of the file system of a file: those of the output, if it is of the same protocol."""
    return options if get_protocol(place) == get_protocol(output) else {}


def _local(field: str, file: QualityFile, settings: QualitySettings) -> Path:
    return local_file(field, file.place, options_for(file.place, settings.output, settings.options))


def _check(field: str, file: QualityFile | None, loaded: Measurer) -> None:
    if file is not None and file.sha256 != loaded.sha256:
        got = f"sha256 {loaded.sha256[:12]}..., allowed: {file.sha256[:12]}... (the driver's)"
        raise QualityError(f"{field}: {file.place} has {got}")


class Measuring:
    """Measures a job's images as their files hold them.

    Args:
        settings: of the job.
        image: how its images are encoded; of a lossy form the pixels that come out again are measured.
        device: of the worker.

    Raises:
        QualityError: see `load_measurers`.
    """

    def __init__(self, settings: QualitySettings, image: ImageFormat, device: torch.device) -> None:
        self._measurers = load_measurers(settings, device)
        self._image = image

    def __call__(self, images_BHWC: Tensor) -> Measured:
        """What a batch of uint8 images on any device shows."""
        if self._image.format == "jpeg":
            pixels = [
                decode_image(encode_image(each, self._image), each.shape[2]) for each in images_BHWC.cpu().numpy()
            ]
            images_BHWC = torch.from_numpy(np.stack(pixels))
        return {key_of(each): each(images_BHWC) for each in self._measurers}


def to_bytes(rows: Mapping[str, Tensor], data_sha256: str) -> bytes:
    """The file of what was measured of a data file's images."""
    tensors = {name: rows[name].contiguous() for name in sorted(rows)}
    return save(tensors, {"data": data_sha256, "sha256": _digest(tensors)})


def from_bytes(raw: bytes, measurer: Measurer, data_sha256: str, images: int) -> dict[str, Tensor] | None:
    """What a file holds; None if it is damaged or of something else."""
    try:
        tensors = load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        said = header.get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    wanted = {name: (dtype, (images, *shape)) for name, (dtype, shape) in measurer.rows.items()}
    if shapes != wanted or said != {"data": data_sha256, "sha256": _digest(tensors)}:
        return None
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def keep(store: Store, measured: Measured, data_sha256: str) -> None:
    """Keeps what was measured of a committed data file; a store that refuses costs measuring again, not the shard."""
    for key, rows in measured.items():
        try:
            store.replace(layout.measured(key, data_sha256), to_bytes(rows, data_sha256))
        except StoreError as error:
            logger.warning("%s", error)


def kept(store: Store, measurer: Measurer, data_sha256: str, images: int) -> dict[str, Tensor] | None:
    """What is kept of a data file's images; None: nothing that can be believed.

    Raises:
        StoreError: the store cannot be read.
    """
    try:
        raw = store.read(layout.measured(key_of(measurer), data_sha256))
    except FileNotFoundError:
        return None
    return from_bytes(raw, measurer, data_sha256, images)
