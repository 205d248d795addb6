"""What encoding costs: images/s of a core by format and effort, on images that cost what photographs do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from jobs.words.phrases import number, size
from workers.encode import encode_image
from workers.null import textured_images
from workers.records import ImageFormat

#: What the table compares, the default first.
FORMATS = tuple(
    ImageFormat.model_validate(fields)
    for fields in (
        {"format": "png", "effort": "fast"},
        {"format": "png", "effort": "small"},
        {"format": "webp", "effort": "fast"},
        {"format": "webp", "effort": "small"},
        {"format": "jpeg"},
    )
)
_IMAGES = 8  #: different images that are encoded in turn
_LEAST = 5  #: times that one is encoded, at least


@dataclass(frozen=True)
class EncodingCost:
    """What an image costs."""

    seconds: float  #: of one core; the median
    bytes: float  #: on average


def encoding_cost(shape: tuple[int, int, int], image: ImageFormat, seconds: float = 0.1) -> EncodingCost:
    """Encodes images of a shape (height, width, channels) for about this long, in this thread."""
    pixels = textured_images(torch.arange(_IMAGES) * 7919, shape).numpy()
    times: list[float] = []
    sizes: list[int] = []
    until = time.perf_counter() + seconds
    while len(times) < _LEAST or time.perf_counter() < until:
        began = time.perf_counter()
        sizes.append(len(encode_image(pixels[len(times) % _IMAGES], image)))
        times.append(time.perf_counter() - began)
    return EncodingCost(statistics.median(times), statistics.fmean(sizes))


def threads_rate(shape: tuple[int, int, int], image: ImageFormat, threads: int, images: int) -> float:
    """Images/s that threads of one process encode with nothing else to do."""
    pixels = textured_images(torch.arange(_IMAGES) * 7919, shape).numpy()
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        for _ in pool.map(lambda at: encode_image(pixels[at % _IMAGES], image), range(images)):
            pass
        return images / (time.perf_counter() - began)


def encoding_in_words(image: ImageFormat) -> str:
    """``png, fast`` or ``jpeg, quality 95``."""
    return f"{image.format}, " + (f"quality {image.quality}" if image.format == "jpeg" else image.effort)


def encoding_table(shape: tuple[int, int, int], costs: Sequence[EncodingCost]) -> str:
    """A markdown table of `FORMATS`."""
    height, width, channels = shape
    lines = [f"| {width} x {height} x {channels} | ms an image, one core | size |", "|---|---|---|"]
    for image, cost in zip(FORMATS, costs, strict=True):
        lines.append(f"| {encoding_in_words(image)} | {number(1000 * cost.seconds)} | {size(round(cost.bytes))} |")
    return "\n".join(lines)
