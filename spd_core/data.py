"""Fashion-MNIST from its idx files (Debian package ``dataset-fashion-mnist``, MIT licence)."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEFAULT_FOLDER = "/usr/share/datasets/fashion-mnist"


def _read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape)


def load_fashion_mnist(split: str, folder: str | None = None) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 28, 28, 1] and labels int64 [n] of ``train`` (60,000) or ``test`` (10,000).

    Args:
        split: ``train`` or ``test``.
        folder: folder of the four ``*-ubyte.gz`` files; default: $SPD_FASHION_MNIST, then where Debian puts them.

    Raises:
        FileNotFoundError: with the way to get the files, if they are not there.
    """
    root = Path(folder or os.environ.get("SPD_FASHION_MNIST") or DEFAULT_FOLDER)
    prefix = {"train": "train", "test": "t10k"}[split]
    paths = [root / f"{prefix}-images-idx3-ubyte.gz", root / f"{prefix}-labels-idx1-ubyte.gz"]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"data: {path} is not there; get it with `apt-get install dataset-fashion-mnist`, or without root "
                "`apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist*.deb DIR` and "
                f"set SPD_FASHION_MNIST=DIR{DEFAULT_FOLDER}"
            )
    images, labels = (_read_idx(path) for path in paths)
    return torch.from_numpy(images.copy())[..., None], torch.from_numpy(labels.astype(np.int64))
