"""``spd sample``: a few images in this process, without Ray or a store, to a PNG grid or an .npz file."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.job.plan import requests_of
from jobs.job.spec import FixedSpec, Spec, load_spec
from jobs.words.errors import SpecError
from jobs.words.files import check_file
from jobs.words.progress import following
from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.law import Null
from spd_core.pairs.pair import load_card, load_pair

log = logging.getLogger(__name__)


def grid(images_nHWC: NDArray[np.uint8], columns: int, zoom: int = 2) -> Image.Image:
    """Images side by side in rows of ``columns``, each pixel ``zoom`` wide; missing places stay black."""
    n, height, width, channels = images_nHWC.shape
    rows = -(-n // columns)
    canvas = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    canvas[:n] = images_nHWC
    sheet = canvas.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    image = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _checked(out: str, n: int) -> Path:
    path = Path(out)
    if path.suffix not in (".png", ".npz"):
        raise SpecError(f"--out: got {out!r}, allowed: a file name that ends in .png or .npz")
    check_file("--out", out)
    if n < 1:
        raise SpecError(f"--n: got {n}, allowed: 1 or more")
    return path


def _spec(
    pair: str | None, n: int, label: int | str | None, seed: int, method: str | None, overrides: list[str]
) -> Spec:
    given = [f"requests.count={n}", f"seed={seed}"]
    given += [f"pair={pair}"] if pair is not None else []
    given += [f"requests.labels=[{json.dumps(label)}]"] if label is not None else []
    given += [f"method={method}"] if method is not None else []
    return load_spec(None, [*given, *overrides])


def run(
    pair: str | None, n: int, label: int | str | None, seed: int, method: str | None, overrides: list[str], out: str
) -> None:
    """Decodes ``n`` images and writes ``out``.

    The images are those of a job with the same seed and method: request i has the id and the random numbers it has
    there. Nothing is measured: without a method it is the pair's own.

    Args:
        pair: bundled name or folder; None: the spec's default.
        n: how many.
        label: of every image, number or class name; None: all classes in turn.
        seed: the job's seed.
        method: plain, cspd or speculative; None: the pair's own, see `Family.default_method`.
        overrides: ``field=value`` for any other field of the spec.
        out: ``.png`` (a grid, one column per class) or ``.npz`` (``images`` uint8 [n, H, W, C], ``labels`` int64 [n],
            ``tokens`` float32 [n, N, D]).

    Raises:
        SpecError, PairError: wrong input.
    """
    path = _checked(out, n)
    made = samples(_spec(pair, n, label, seed, method, overrides))
    if path.suffix == ".png":
        classes = made.classes
        columns = classes if label is None and classes <= n <= 50 * classes else math.ceil(math.sqrt(n))
        grid(made.images, min(columns, 50)).save(path)
    else:
        np.savez(path, images=made.images, labels=made.labels, tokens=made.tokens)


@dataclass(frozen=True)
class Samples:
    """Some decoded images."""

    images: NDArray[np.uint8]  #: [n, H, W, C]
    labels: NDArray[np.int64]  #: [n]
    tokens: NDArray[Any]  #: float32 [n, N, D], or codes int64 [n, N]
    classes: int  #: of the pair


def samples(spec: Spec) -> Samples:
    """Decodes the images of a spec in this process, on its GPU if it has one.

    The images are those of a job with the same spec, if it names its method: request i has the id and the random
    numbers it has there. Nothing is measured: without a method it is the pair's own.

    Raises:
        SpecError: a method that makes no tokens, or has to be measured first; a request file.
        PairError: unreadable or corrupt weights.
    """
    fixed = spec.unmeasured(load_card(spec.pair)) if "method" in spec.open_fields else spec
    if not isinstance(fixed, FixedSpec):
        raise SpecError("method: got 'auto', allowed: a method by name; only `spd generate` measures")
    if isinstance(fixed.method, Null):
        raise SpecError("method: got 'null', allowed: a method that makes tokens")
    if spec.requests.file is not None:
        raise SpecError("requests.file: got a file, allowed: none; only `spd generate` reads one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_pair(fixed.pair, device, draft=fixed.method.uses_draft)
    classes = len(loaded.card.class_names)
    asked = requests_of(range(fixed.requests.count), fixed.requests.labels, classes, fixed.seed)
    labels, seeds = (torch.tensor(column, device=device) for column in (asked.labels, asked.seeds))
    began = time.perf_counter()
    with following():
        tokens = decode(loaded, fixed.law, fixed.method, labels, Draws(seeds), fixed.batch).tokens
    images = loaded.to_images(tokens, fixed.law.dtype).numpy()
    log.info("%d images in %.1f s", len(images), time.perf_counter() - began)
    return Samples(images, labels.cpu().numpy(), tokens.cpu().numpy(), classes)
