"""Statistics of real images that generated ones are held against: public files of mean and covariance, and our own.

Three forms of ``.npz`` are read, none of which may hold Python objects:

- ``adm``: of the ADM evaluator, ``mu``, ``sigma``, ``mu_s``, ``sigma_s``, beside the images ``arr_0``; the network and
  the resize of the published FID made it.
- ``bare``: ``mu`` and ``sigma`` alone, as other tools keep them; the file does not say what made it.
- ``spd``: written by `write_statistics`, the same arrays and ``made_by``; with ``features`` precision, recall and KID
  can be computed.

Shape legend: m images whose features are kept, D features.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from spd_core.law import Settings
from spd_core.quality.extractors import POOL, SPATIAL
from spd_core.quality.files import QualityError, bundled_references, sha256_of
from spd_core.quality.frechet import Moments
from spd_core.quality.inception import POOL_DIMS, SPATIAL_DIMS
from spd_core.quality.reference import load_reference
from spd_core.quality.rows import FileRows, Rows, TensorRows, blocks

#: Names of the arrays of mean and covariance, by kind of features.
ARRAYS = {POOL: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
#: More features than any extractor has.
_MOST_DIMS = 8192
#: What cannot be a file of statistics fails in any of these ways.
_BROKEN = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_DATE = (1980, 1, 1, 0, 0, 0)


class MadeBy(Settings):
    """What made a file of statistics."""

    extractor: str
    weights_sha256: str
    resize: str
    images: int | None = Field(ge=2, description="behind mean and covariance; None: the file they are of does not say")
    source: str = Field("", description="what they were read from")
    program: str = Field("", description="and its version")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of real images."""

    name: str
    sha256: str  #: of the file; of a bundled reference that of its arrays
    form: Literal["adm", "bare", "spd"]
    made_by: MadeBy | None  #: None: the file does not say
    moments: dict[str, Moments]  #: by kind of features
    features: Rows | None  #: float32 [m, D] pool features; None: none are kept


def load_statistics(name: str, path: Path | None = None) -> Statistics:
    """A file of statistics, or a bundled reference.

    Args:
        name: how it is called; of a bundled reference its name.
        path: of the file; None: it is a bundled one.

    Raises:
        QualityError: there is no such, or it is none of the three forms.
    """
    if path is not None:
        return _read(name, path)
    if name not in bundled_references():
        known = f"a .npz file of statistics, or a bundled name ({', '.join(bundled_references())})"
        raise QualityError(f"quality.reference: got {name!r}, allowed: {known}")
    found = load_reference(name)
    card = found.card
    made_by = MadeBy(
        extractor=card.extractor,
        weights_sha256=card.extractor_sha256,
        resize="",
        images=card.train_images,
        source=card.data,
    )
    return Statistics(name, card.sha256, "spd", made_by, {POOL: found.moments}, TensorRows(found.features))


def _read(name: str, path: Path) -> Statistics:
    def refused(why: str) -> QualityError:
        allowed = "a .npz with mu and sigma, of the ADM evaluator or of `spd reference`"
        return QualityError(f"quality.reference: {path} {why}, allowed: {allowed}")

    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            kinds = [kind for kind, names in ARRAYS.items() if all(each in members for each in names)]
            if POOL not in kinds:
                raise refused("has no mu and sigma")
            made_by = _made_by(archive) if "made_by" in members else None
            count = (made_by.images if made_by else None) or 2
            moments = {kind: _gaussian(archive, count, *ARRAYS[kind]) for kind in kinds}
            features = _features(archive, len(moments[POOL].sum)) if "features" in members and made_by else None
    except QualityError:
        raise
    except ValidationError as error:
        raise refused("has a made_by of another form") from error
    except _BROKEN as error:
        raise refused(f"cannot be read ({' '.join(str(error).split())[:120]})") from error
    form: Literal["adm", "bare", "spd"] = "spd" if made_by else "adm" if SPATIAL in moments else "bare"
    if form != "spd":
        widths = {POOL: POOL_DIMS, SPATIAL: SPATIAL_DIMS}
        for kind, found in moments.items():
            if len(found.sum) != widths[kind]:
                raise refused(f"has {ARRAYS[kind][0]} of {len(found.sum)} numbers and not {widths[kind]}")
    return Statistics(name, sha256_of(path), form, made_by, moments, features)


@contextmanager
def array_in(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """The opened member of an ``.npz`` that holds an array in C order: its numbers, shape and type.

    Raises:
        ValueError: it holds Python objects, or is no array.
        KeyError: there is no such member.
    """
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(file)
        if dtype.hasobject or (fortran and len(shape) > 1):
            raise ValueError(f"{name} holds objects or is in Fortran order")
        yield file, shape, dtype


def _floats(archive: zipfile.ZipFile, name: str, dims: int) -> Tensor:
    """A vector or square matrix of numbers as float64.

    Raises:
        ValueError: something else.
    """
    with array_in(archive, name) as (file, shape, dtype):
        if len(shape) != dims or len(set(shape)) != 1 or not 0 < shape[0] <= _MOST_DIMS or dtype.kind != "f":
            raise ValueError(f"{name} is {dtype} {list(shape)}")
        wanted = int(np.prod(shape)) * dtype.itemsize
        raw = file.read(wanted)
    if len(raw) != wanted:
        raise ValueError(f"{name} ends early")
    values = torch.from_numpy(np.frombuffer(raw, dtype=dtype).astype(np.float64).reshape(shape))
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} has values that are not finite")
    return values


def _gaussian(archive: zipfile.ZipFile, count: int, mean: str, covariance: str) -> Moments:
    mu, sigma = _floats(archive, mean, 1), _floats(archive, covariance, 2)
    if len(mu) != len(sigma):
        raise ValueError(f"{mean} has {len(mu)} numbers and {covariance} {len(sigma)} rows")
    if not torch.allclose(sigma, sigma.T, rtol=1e-4, atol=1e-6 * float(sigma.diagonal().abs().max())):
        raise ValueError(f"{covariance} is not symmetric")
    return Moments.from_gaussian(count, mu, (sigma + sigma.T) / 2)


def _made_by(archive: zipfile.ZipFile) -> MadeBy:
    with array_in(archive, "made_by") as (file, shape, dtype):
        if dtype != np.uint8 or len(shape) != 1 or shape[0] > 1 << 16:
            raise ValueError(f"made_by is {dtype} {list(shape)}")
        return MadeBy.model_validate(json.loads(file.read(shape[0])))


def _features(archive: zipfile.ZipFile, dims: int) -> FileRows:
    rows = FileRows(dims)
    with array_in(archive, "features") as (file, shape, dtype):
        if len(shape) != 2 or shape[1] != dims or dtype != np.float32:
            raise ValueError(f"features are {dtype} {list(shape)}")
        width = dims * dtype.itemsize
        while raw := file.read(256 * width):
            if len(raw) % width:
                raise ValueError("features end early")
            rows.append(torch.from_numpy(np.frombuffer(raw, dtype=np.float32).reshape(-1, dims).copy()))
    if len(rows) != shape[0]:
        raise ValueError("features end early")
    return rows


def write_statistics(path: Path, made_by: MadeBy, moments: dict[str, Moments], features: Rows | None = None) -> None:
    """Writes a file of statistics, whole or not at all; features pass by block by block.

    Raises:
        OSError: it cannot be written.
    """
    text = np.frombuffer(json.dumps(made_by.model_dump(mode="json"), sort_keys=True).encode(), dtype=np.uint8)
    part = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for kind, found in moments.items():
                mean, covariance = ARRAYS[kind]
                _put(archive, mean, found.mean.shape, np.dtype("<f8"), [found.mean])
                _put(archive, covariance, found.covariance.shape, np.dtype("<f8"), [found.covariance])
            _put(archive, "made_by", text.shape, text.dtype, [torch.from_numpy(text.copy())])
            if features is not None:
                _put(archive, "features", (len(features), features.dims), np.dtype("<f4"), blocks(features))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _put(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[Tensor]
) -> None:
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, described)
    # A fixed date, so that the same images give the same file.
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _DATE), "w", force_zip64=True) as to:
        to.write(header.getvalue())
        for part in parts:
            to.write(np.ascontiguousarray(part.numpy(), dtype=dtype).tobytes())


def check_made_by(statistics: Statistics, extractor: str, weights_sha256: str, resize: str) -> None:
    """Refuses statistics of another extractor, other weights or another resize, as far as the file says.

    Raises:
        QualityError: one line that names both.
    """
    made_by = statistics.made_by
    if made_by is None:
        # The public forms are of 2048 features, which only one extractor has.
        if len(statistics.moments[POOL].sum) != POOL_DIMS or not extractor.startswith("inception"):
            got = f"statistics of {len(statistics.moments[POOL].sum)} features"
            raise QualityError(f"quality.reference: {statistics.name} holds {got}, allowed: those of {extractor}")
        return
    facts = {
        "extractor": (made_by.extractor, extractor),
        "weights": (made_by.weights_sha256, weights_sha256),
        "resize": (made_by.resize or resize, resize),
    }
    for what, (got, allowed) in facts.items():
        if got != allowed:
            short = [text[:12] if what == "weights" else text for text in (got, allowed)]
            raise QualityError(
                f"quality.reference: {statistics.name} was made by {what} {short[0]}, allowed: {short[1]} "
                "(that of the quality block); `spd reference` makes one"
            )
