"""Speed of the Inception extractor around its network: ``python -m tests.extractor_speed``.

In turns, batch by batch: the bare network on images that are in memory at its size, and everything that `spd report`
does with the same images, from the encoded bytes of a data file to the file of their features. Weights are of the
oracle's recipe, which takes as long as the public ones.
"""

from __future__ import annotations

import argparse
import io
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from jobs.dataset.comparison import images_of, own_device
from jobs.words.console import say
from spd_core.precision import arithmetic
from spd_core.quality.extractors import InceptionExtractor, batch_of
from spd_core.quality.inception import SIDE, LoadedInception
from tests.oracles.inception import recipe_network
from workers.machine import describe_machine
from workers.null import textured_images
from workers.quality import to_bytes


def data_file(count: int, first: int) -> bytes:
    """A data file of textured PNG images of 256 px, which cost a decoder what photographs do."""
    images = []
    for picture in textured_images(torch.arange(first, first + count), (256, 256, 3)).numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": images}), sink)
    return sink.getvalue()


def measured(images: int, batch: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """Seconds and CPU seconds of each turn: bare network, then extractor."""
    device = own_device()
    network = recipe_network().to(device).to(memory_format=torch.channels_last)
    extractor = InceptionExtractor(LoadedInception(network, "0" * 64), device)
    pixels = torch.rand(batch, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last) * 255

    def bare() -> None:
        with torch.inference_mode(), arithmetic("float32"):
            network.of_resized(pixels).pool.cpu()

    def whole(raw: bytes) -> None:
        made = [extractor(each) for each in images_of("data", raw)]
        for each in made:
            to_bytes(each, "0" * 64)

    columns: tuple[list[float], ...] = ([], [], [], [])
    whole(data_file(batch, 0))
    bare()
    for turn in range(-(-images // batch)):
        raw = data_file(batch, 1 + turn * batch)
        for place, run in enumerate((bare, lambda raw=raw: whole(raw))):
            began, cpu = time.perf_counter(), time.process_time()
            run()
            columns[2 * place].append(time.perf_counter() - began)
            columns[2 * place + 1].append(time.process_time() - cpu)
    return columns[0], columns[1], columns[2], columns[3]


def main() -> None:
    """Prints images per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--batch", type=int, default=30, help="images of a turn, at most those of a pass")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batch = min(batch_of(own_device()), args.batch)
    bare, bare_cpu, whole, whole_cpu = (np.array(each) for each in measured(args.images, batch))
    say(f"{len(bare) * batch} images of 256 px in batches of {batch}, {own_device()}, {args.threads} threads")
    say(describe_machine())
    for name, seconds, cpu in (("bare network", bare, bare_cpu), ("extractor", whole, whole_cpu)):
        say(f"{name}: {batch / np.median(seconds):.2f} images/s, {np.median(cpu) / batch:.3f} CPU seconds an image")
    say(f"speed of the extractor over that of the bare network: {np.median(bare / whole):.3f}")
    say(f"CPU seconds of the bare network over those of the extractor: {np.median(bare_cpu / whole_cpu):.3f}")


if __name__ == "__main__":
    main()
