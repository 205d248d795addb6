"""``spd sample``: a few images in this process, without Ray or a store, to a PNG grid or an .npz file."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.job.plan import request_id
from jobs.job.spec import FixedSpec, Spec, load_spec
from jobs.words.errors import SpecError
from jobs.words.files import check_file
from spd_core.decode import decode
from spd_core.draws import Draws, image_seed
from spd_core.law import Null
from spd_core.pairs.pair import load_pair

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

    The images are those of a job with the same seed: request i has the id and the random numbers it has there.

    Args:
        pair: bundled name or folder; None: the spec's default.
        n: how many.
        label: of every image, number or class name; None: all classes in turn.
        seed: the job's seed.
        method: plain, cspd or speculative; None: that of the pair's family.
        overrides: ``field=value`` for any other field of the spec.
        out: ``.png`` (a grid, one column per class) or ``.npz`` (``images`` uint8 [n, H, W, C], ``labels`` int64 [n],
            ``tokens`` float32 [n, N, D]).

    Raises:
        SpecError, PairError: wrong input.
    """
    path = _checked(out, n)
    spec = _spec(pair, n, label, seed, method, overrides)
    if isinstance(spec.method, Null):
        raise SpecError("--method: got 'null', allowed: a method that makes tokens")
    if not isinstance(spec, FixedSpec):
        raise SpecError("--method: got 'auto', allowed: a method by name; only `spd generate` measures")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_pair(spec.pair, device, draft=spec.method.uses_draft)
    classes = len(loaded.card.class_names)
    cycle = range(classes) if spec.requests.labels == "balanced" else spec.requests.labels
    labels = torch.tensor([cycle[index % len(cycle)] for index in range(n)], device=device)
    seeds = torch.tensor([image_seed(seed, request_id(index)) for index in range(n)], device=device)
    began = time.perf_counter()
    tokens = decode(loaded, spec.law, spec.method, labels, Draws(seeds), spec.batch).tokens
    images = loaded.to_images(tokens, spec.law.dtype).numpy()
    log.info("%d images in %.1f s", n, time.perf_counter() - began)
    if path.suffix == ".png":
        columns = classes if label is None and classes <= n <= 50 * classes else math.ceil(math.sqrt(n))
        grid(images, min(columns, 50)).save(path)
    else:
        np.savez(path, images=images, labels=labels.cpu().numpy(), tokens=tokens.cpu().numpy())
