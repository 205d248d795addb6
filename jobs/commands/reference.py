"""``spd reference``: statistics of real images, for a quality block to hold generated ones against."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from jobs.dataset.commits import DamagedPart, read_committed, read_part
from jobs.dataset.comparison import images_of, own_device
from jobs.job.plan import package_version, read_plan
from jobs.words.console import say
from jobs.words.errors import SpecError
from jobs.words.files import check_file
from jobs.words.phrases import counted, size
from jobs.words.progress import Progress
from spd_core.quality.extractors import POOL, FeatureMeasurer, batch_of, load_extractor
from spd_core.quality.rows import FileRows, RunningMoments
from spd_core.quality.statistics import (
    ARRAYS,
    MadeBy,
    Statistics,
    array_in,
    check_made_by,
    load_statistics,
    write_statistics,
)
from workers import layout
from workers.decoding import in_batches, rgb
from workers.fetched import local_file
from workers.redact import public_url
from workers.store import Store

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_ALLOWED = "a folder of images, a Parquet file or folder, an output of `spd generate`, or an .npz with arr_0"
#: Images whose features are kept are drawn with it, the same ones every time.
_SEED = 0


@dataclass(frozen=True)
class Images:
    """Real images, read a batch at a time."""

    count: int
    batches: Callable[[], Iterator[list[Tensor]]]  #: uint8 [H, W, 3] each
    statistics: Statistics | None = None  #: that come with them


def run(args: argparse.Namespace) -> int:
    """Reads the images, takes them through the extractor, and writes the file.

    Raises:
        SpecError, QualityError: wrong input; nothing is written.
    """
    check_file("--out", args.out)
    if not args.out.endswith(".npz"):
        raise SpecError(f"--out: got {args.out!r}, allowed: a file that ends in .npz")
    if args.features < 0:
        raise SpecError(f"--features: got {args.features}, allowed: a number of images, 0 for none")
    if args.extractor == "efficientnet" and args.weights:
        raise SpecError(f"--weights: got {args.weights!r}, allowed: only with --extractor inception")
    weights = local_file("--weights", args.weights) if args.weights else None
    extractor = load_extractor(args.extractor, weights, own_device())
    images = open_images(args.images, args.column, args.options)
    made = make(images, extractor, args.features, public_url(args.images))
    write_statistics(Path(args.out), *made)
    features = made[2]
    kept = f", features of {counted(len(features), 'image', 'images')}" if features else ""
    say(f"{args.out}: {counted(images.count, 'image', 'images')} by {extractor.name}{kept}")
    say(f"weights sha256 {extractor.sha256}, {size(Path(args.out).stat().st_size)}")
    return 0


def make(
    images: Images, extractor: FeatureMeasurer, keep: int, source: str
) -> tuple[MadeBy, dict[str, Any], FileRows | None]:
    """What made the statistics, the moments by kind of features, and features of some images.

    Args:
        images: at least two, unless they bring statistics.
        extractor: of the features.
        keep: images whose features are kept, drawn at random.
        source: where the images are.

    Raises:
        SpecError: too few images, or a damaged one.
        QualityError: the images bring statistics of another extractor.
    """
    given = images.statistics
    if given is not None:
        check_made_by(given, extractor.name, extractor.sha256, extractor.resize)
    elif images.count < 2:
        raise SpecError(f"IMAGES: got {counted(images.count, 'image', 'images')} in {source}, allowed: at least 2")
    chosen = np.zeros(images.count, dtype=bool)
    chosen[np.random.RandomState(_SEED).permutation(images.count)[:keep]] = True
    running = {name: RunningMoments(shape[0]) for name, (_, shape) in extractor.rows.items()}
    features = FileRows(extractor.rows[POOL][1][0]) if keep else None
    if given is None or features is not None:
        done = 0
        with Progress(images.count, "images", note=f"measuring by {extractor.name}") as progress:
            for batch in images.batches():
                rows = extractor(batch)
                for name, total in running.items() if given is None else ():
                    total.add(rows[name])
                if features is not None:
                    features.append(rows[POOL][torch.from_numpy(chosen[done : done + len(batch)])])
                done += len(batch)
                progress.add(len(batch))
                progress.tick()
    made_by = MadeBy(
        extractor=extractor.name,
        weights_sha256=extractor.sha256,
        resize=extractor.resize,
        images=images.count if given is None else given.made_by.images if given.made_by else None,
        source=f"{source}, with the mean and covariance in it" if given else source,
        program=f"spd {package_version('spd')}",
    )
    moments = given.moments if given else {name: total.moments() for name, total in running.items()}
    return made_by, moments, features


def open_images(place: str, column: str, options: dict[str, Any]) -> Images:
    """The images of a folder, Parquet, dataset or ``.npz``.

    Args:
        place: path, or URL of an output of this program or of a file.
        column: of the images in Parquet that is not of this program.
        options: of the URL's file system.

    Raises:
        SpecError: there are none.
    """
    path = Path(place).expanduser()
    if "://" in place and not place.endswith((".npz", ".parquet")):
        return _of_output(place, options)
    if "://" in place or path.is_file():
        path = local_file("IMAGES", place, options)
        if path.suffix == ".npz":
            return _of_npz(path)
        if path.suffix == ".parquet":
            return _of_parquet([path], column)
        raise SpecError(f"IMAGES: got {place!r}, allowed: {_ALLOWED}")
    if (path / layout.PLAN).is_file():
        return _of_output(place, options)
    found = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else []
    if files := [each for each in found if each.suffix.lower() in _SUFFIXES]:
        return _of_files(files)
    if files := [each for each in found if each.suffix == ".parquet"]:
        return _of_parquet(files, column)
    raise SpecError(f"IMAGES: got {place!r}, allowed: {_ALLOWED}")


def _decoded(calls: Callable[[], Iterator[Callable[[], Tensor]]]) -> Callable[[], Iterator[list[Tensor]]]:
    return lambda: in_batches(calls(), batch_of(own_device()))


def _read(path: Path) -> Tensor:
    try:
        return rgb(path.read_bytes())
    except OSError as error:
        raise SpecError(f"IMAGES: cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SpecError(f"IMAGES: {path}: {error}; allowed: whole images") from error


def _of_files(paths: list[Path]) -> Images:
    return Images(len(paths), _decoded(lambda: (partial(_read, path) for path in paths)))


def _of_output(url: str, options: dict[str, Any]) -> Images:
    """The committed images of a dataset, every file checked against its hash."""
    store = Store(url, options)
    shards = list(read_committed(store, read_plan(store)).records.values())

    def batches() -> Iterator[list[Tensor]]:
        try:
            for shard in shards:
                yield from images_of(shard.paths[0], read_part(store, shard, layout.DATA))
        except DamagedPart as error:
            raise SpecError(f"IMAGES: {public_url(url)}: {error}; allowed: a dataset that is whole") from error

    return Images(sum(shard.rows for shard in shards), batches)


def _of_parquet(paths: list[Path], column: str) -> Images:
    try:
        schemas = {path: pq.read_schema(path) for path in paths}
        count = sum(pq.read_metadata(path).num_rows for path in paths)
    except (pa.ArrowException, OSError) as error:
        raise SpecError(f"IMAGES: cannot read as Parquet: {' '.join(str(error).split())[:120]}") from error
    for path, schema in schemas.items():
        kind = schema.field(column).type if column in schema.names else None
        is_struct = kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if kind is None or not (is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise SpecError(
                f"--column: got {column!r}, allowed: a column of encoded images in {path} ({', '.join(schema.names)})"
            )

    def calls() -> Iterator[Callable[[], Tensor]]:
        for path in paths:
            row = 0
            for batch in pq.ParquetFile(path).iter_batches(64, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield partial(_cell, path, row, value["bytes"] if isinstance(value, dict) else value)
                    row += 1

    return Images(count, _decoded(calls))


def _cell(path: Path, row: int, data: bytes | None) -> Tensor:
    try:
        return rgb(data or b"")
    except ValueError as error:
        raise SpecError(f"IMAGES: {path}, row {row}: {error}; allowed: whole images") from error


def _of_npz(path: Path) -> Images:
    """``arr_0`` uint8 [n, H, W, 3], read through; mean and covariance beside it are taken over."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            with array_in(archive, "arr_0") as (_, shape, dtype):
                if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
                    raise ValueError(f"arr_0 is {dtype} {list(shape)}, not uint8 [n, H, W, 3]")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SpecError(f"IMAGES: cannot read {path}: {' '.join(str(error).split())[:120]}") from error
    given = load_statistics(path.name, path) if set(ARRAYS[POOL]) <= names else None
    if given is not None and given.form == "bare":
        raise SpecError(
            f"IMAGES: {path} has mu and sigma that do not say what made them, allowed: a file of the ADM evaluator, "
            "with mu_s and sigma_s, or arr_0 alone"
        )
    at_once, bytes_each = batch_of(own_device()), int(np.prod(shape[1:]))

    def batches() -> Iterator[list[Tensor]]:
        with zipfile.ZipFile(path) as archive, array_in(archive, "arr_0") as (file, _, _):
            for start in range(0, shape[0], at_once):
                wanted = min(at_once, shape[0] - start) * bytes_each
                raw = file.read(wanted)
                if len(raw) != wanted:
                    raise SpecError(f"IMAGES: {path}: arr_0 ends early, allowed: a whole file")
                yield list(torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, *shape[1:]))

    return Images(shape[0], batches, given)
