"""A job whose decoder only waits, as one on another device would: what of its speed is left when images are encoded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from jobs.job.spec import FixedSpec, make_spec
from jobs.run.driver import generate
from jobs.run.encoding import FORMATS, encoding_in_words, threads_rate
from jobs.words.phrases import number
from spd_core.codec import PixelCodec
from spd_core.pairs.pair import load_card
from workers import layout
from workers.machine import usable_cpus
from workers.records import ImageFormat
from workers.store import Store

log = logging.getLogger(__name__)
Figures = dict[str, Any]
SIDE = 256  #: of the images, pixels
BATCH, SHARD = 32, 64
#: Settings that are tried: the default, and one whose encoding is slower than the decoder.
IMAGES = FORMATS[:2]


def write_stand_in(folder: Path) -> str:
    """A pair of coloured images that has a card and no weights, which no method but null needs."""
    card = load_card("fashion-mar").model_copy(
        update={"name": "stand-in", "codec": _CODEC, "sha256": {}, "reference": "", "figures": {}, "training": {}}
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pair.json").write_text(json.dumps(card.model_dump(mode="json")))
    return str(folder)


_CODEC = PixelCodec(size=SIDE, padded=SIDE, channels=3, patch_size=16)


def waiting_spec(folder: str, image: ImageFormat, images: int, rate: float, encoders: int) -> FixedSpec:
    """The job of one worker; without encoders it encodes in between, as a worker on a CPU does."""
    spec = make_spec(
        {
            "output": f"{folder}/waiting-{image.effort}-{encoders}",
            "pair": write_stand_in(Path(folder) / "stand-in"),
            "method": {"name": "null", "images_per_s": rate},
            "features": False,
            "batch": BATCH,
            "shard_size": SHARD,
            "image": image.model_dump(),
            "requests": {"count": images},
            "workers": {"count": 1, "encoders": encoders},
        }
    )
    assert isinstance(spec, FixedSpec)
    return spec


def waiting_step(spec: FixedSpec) -> Figures:
    """Makes the job; its speed, what was at work meanwhile and the worker's memory."""
    done = generate(spec)
    speed = json.loads(Store(done["output"]).read(layout.REPORT_JSON))["throughput"]
    return {name: speed[name] for name in ("images_per_s", "at_work", "peak_memory")}


def rate_step(image: ImageFormat, images: int) -> float:
    """What the cores encode with nothing else to do, images/s."""
    return threads_rate((SIDE, SIDE, 3), image, usable_cpus(), images)


def shares(row: Figures, rate: float) -> Figures:
    """Each job's speed over the lower of the decoder's and that of encoding, which nothing can pass."""
    limit = min(rate, row["cores_encode"])
    return {name: row[name]["images_per_s"] / limit for name in ("beside", "between")}


def rows(found: Figures, rate: float, images: int) -> list[tuple[str, str]]:
    """What and value of each figure, for a table."""
    lines: list[tuple[str, str]] = []
    for image in IMAGES:
        row = found[image.effort]
        kept = shares(row, rate)
        job = f"a decoder that waits, {rate:g} images/s of {SIDE} px, {encoding_in_words(image)}"
        lines += [
            (f"{job}: {usable_cpus()} cores encode", f"{number(row['cores_encode'])} images/s"),
            (f"job of {images:,} that encodes beside it", _speed(row["beside"], kept["beside"])),
            (f"job of {images // 4:,} that encodes in between", _speed(row["between"], kept["between"])),
        ]
    return lines


def _speed(job: Figures, kept: float) -> str:
    host = job["peak_memory"].get("host", 0) / 1e6
    return (
        f"{number(job['images_per_s'])} images/s, {kept:.3f} of the lower; decoder at work "
        f"{job['at_work']['decoder']:.2f}, worker's peak memory {host:.0f} MB"
    )
