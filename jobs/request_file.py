"""Request files: Parquet, CSV or JSONL with a label per image, optionally its id and seed, read as a stream.

Nothing here holds more than one batch of rows, whatever the size of the file. The content hash is over the rows, not
the bytes: the same requests in another file format, place or compression are the same requests.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

#: Rows of a batch: little memory, and few enough batches that Python's share of a row is small.
BATCH = 1 << 14
#: An id names its image's file wherever the image is unpacked, so it is a plain file name.
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_ID_WORDS = "a letter or digit, then at most 127 letters, digits, dots, dashes or underscores"
_LONGEST_LINE = 1 << 16
_SEED_LIMIT = 2**63 - 1
_KINDS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


class RequestFileError(ValueError):
    """A request file that cannot be used; the message is one line: field, row, value, what is allowed."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a request file, checked."""

    first: int  #: index of the first one
    labels: NDArray[np.int64]
    ids: list[str] | None  #: None: the file has no ids
    seeds: NDArray[np.int64] | None  #: None: the file has no seeds

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Found:
    """What a request file holds."""

    count: int
    sha256: str  #: over the rows


@dataclass(frozen=True)
class RequestFile:
    """A request file and what its rows must be like.

    Args:
        url: any fsspec URL, or a local path.
        options: of its file system; never shown.
        classes: labels are 0 to this, exclusive.
    """

    url: str
    options: dict[str, Any] = field(repr=False)
    classes: int

    @property
    def shown(self) -> str:
        """The URL without user name and password."""
        return re.sub(r"//[^/@]*@", "//", self.url)

    def rows(self) -> Iterator[Rows]:
        """The rows in order, checked one by one; ids are not compared with each other.

        Raises:
            RequestFileError: the file cannot be read, or the first row that is wrong.
        """
        first = 0
        for table in self._tables():
            self._check_columns(table.column_names)
            if table.num_rows:
                yield self._checked(table, first)
                first += table.num_rows

    def scan(self) -> Found:
        """Reads the whole file and checks everything, ids for being different too.

        Raises:
            RequestFileError: as `rows`; no row at all; or two rows with one id.
        """
        digest, ids = RowDigest(), _Ids()
        with ids:
            for rows in self.rows():
                digest.add(rows)
                ids.add(rows)
            again = ids.first_repeated()
        if again is not None:
            name = self._id_of(again[1])
            where = f"rows {again[0] + 1} and {again[1] + 1}"
            raise RequestFileError(f"requests.file: id: got {name!r} in {where} of {self.shown}, allowed: once")
        if not digest.count:
            raise RequestFileError(f"requests.file: got {self.shown} without a row, allowed: one row or more")
        pa.default_memory_pool().release_unused()
        return Found(digest.count, digest.hexdigest())

    def _id_of(self, row: int) -> str | None:
        for rows in self.rows():
            if rows.ids is not None and row < rows.first + len(rows):
                return rows.ids[row - rows.first]
        return None

    def _tables(self) -> Iterator[pa.Table]:
        suffix = next((end for end in _KINDS if self.url.lower().endswith(end)), None)
        if suffix is None:
            raise RequestFileError(
                f"requests.file: got {self.shown!r}, allowed: a name that ends in {', '.join(_KINDS)}"
            )
        read = {"parquet": _parquet, "csv": _csv, "jsonl": self._jsonl}[_KINDS[suffix]]
        try:
            fs, path = fsspec.core.url_to_fs(self.url, **self.options)
            with fs.open(path, "rb") as file:
                yield from read(file)
        except RequestFileError:
            raise
        except Exception as error:  # file systems and decoders raise anything
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            for secret in self._secrets():
                text = text.replace(secret, "***")
            raise RequestFileError(f"requests.file: cannot read {self.shown}: {text}") from error

    def _secrets(self) -> list[str]:
        """Texts that no message may show, longest first: one may be the beginning of another."""
        userinfo = urlsplit(self.url).netloc.rpartition("@")[0]
        options = [value for value in self.options.values() if isinstance(value, str)]
        return sorted(filter(None, [userinfo, *userinfo.split(":")[1:], *options]), key=len, reverse=True)

    def _jsonl(self, file: Any) -> Iterator[pa.Table]:
        names: list[str] = []
        end, lines = 0, iter(lambda: file.readline(_LONGEST_LINE), b"")
        while batch := list(islice(lines, BATCH)):
            columns: dict[str, list[Any]] = {name: [] for name in names}
            for index, line in enumerate(batch, start=end):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    got = line[:40].decode(errors="replace").strip()
                    raise self._wrong("row", index, got, "one JSON object a line")
                if not names:
                    names = list(row)
                    self._check_columns(names)
                    columns = {name: [] for name in names}
                if row.keys() != columns.keys():
                    raise self._wrong("row", index, ", ".join(row), f"{', '.join(names)}, as in the first row")
                for name, value in row.items():
                    columns[name].append(value)
            end += len(batch)
            yield pa.table({name: self._json_column(name, values, end) for name, values in columns.items()})

    def _json_column(self, name: str, values: list[Any], end: int) -> pa.Array:
        kinds = set(map(type, values))
        if kinds <= {int} or (name == "id" and kinds <= {str}):
            try:
                return pa.array(values)
            except (OverflowError, pa.ArrowInvalid):
                return pa.array([str(value) for value in values])  # refused with its row below
        allowed = (str,) if name == "id" else (int,)
        at = next((i for i, value in enumerate(values) if type(value) not in allowed), 0)
        raise self._wrong(name, end - len(values) + at, values[at], self._allowed(name))

    def _allowed(self, name: str) -> str:
        return {"label": f"0..{self.classes - 1}", "seed": f"0..{_SEED_LIMIT}", "id": _ID_WORDS}[name]

    def _wrong(self, name: str, row: int, value: Any, allowed: str) -> RequestFileError:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        return RequestFileError(
            f"requests.file: {name}: got {shown} in row {row + 1} of {self.shown}, allowed: {allowed}"
        )

    def _check_columns(self, names: list[str]) -> None:
        # Others are no harm in themselves, but one of them may be a misspelled seed.
        if "label" not in names or len(set(names)) < len(names) or set(names) - {"label", "id", "seed"}:
            got = ", ".join(names[:10]) or "none"
            raise RequestFileError(
                f"requests.file: columns: got {got} in {self.shown}, allowed: label and, if wanted, id and seed"
            )

    def _checked(self, table: pa.Table, first: int) -> Rows:
        names = table.column_names
        return Rows(
            first,
            self._numbers(table, "label", first, self.classes - 1),
            self._names(table, first) if "id" in names else None,
            self._numbers(table, "seed", first, _SEED_LIMIT) if "seed" in names else None,
        )

    def _numbers(self, table: pa.Table, name: str, first: int, largest: int) -> NDArray[np.int64]:
        column = table[name]
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_null(kind)):
            raise RequestFileError(f"requests.file: {name}: got {kind} in {self.shown}, allowed: whole numbers")
        try:
            values = np.asarray(column.cast(pa.int64()))
            if column.null_count == 0 and len(values) and values.min() >= 0 and values.max() <= largest:
                return values.astype(np.int64, copy=False)
        except pa.ArrowInvalid:
            pass  # found below
        for row, value in enumerate(column.to_pylist()):
            whole = isinstance(value, int) or (isinstance(value, str) and value.isascii() and value.isdecimal())
            if not whole or not 0 <= int(value) <= largest:
                raise self._wrong(name, first + row, value, self._allowed(name))
        raise self._wrong(name, first, column[0].as_py(), self._allowed(name))

    def _names(self, table: pa.Table, first: int) -> list[str]:
        column = table["id"]
        if not (pa.types.is_integer(column.type) or pa.types.is_string(column.type)):
            try:
                column = column.cast(pa.string())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise RequestFileError(
                    f"requests.file: id: got {column.type} in {self.shown}, allowed: text or whole numbers"
                ) from error
        names = column.cast(pa.string())
        fits = pc.fill_null(pc.match_substring_regex(names, rf"\A{ID_PATTERN}\z"), False)
        if not pc.all(fits).as_py():
            row = pc.index(fits, False).as_py()
            raise self._wrong("id", first + row, names[row].as_py(), self._allowed("id"))
        found: list[str] = names.to_pylist()
        return found


def _parquet(file: Any) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as source:
        yield source.schema_arrow.empty_table()  # its columns are looked at before any other is read
        for batch in source.iter_batches(BATCH):
            yield pa.Table.from_batches([batch])


def _csv(file: Any) -> Iterator[pa.Table]:
    # As text: a number that is none is then found with its row.
    texts = {name: pa.string() for name in ("label", "id", "seed")}
    with pa_csv.open_csv(file, convert_options=pa_csv.ConvertOptions(column_types=texts)) as source:
        for batch in source:
            yield pa.Table.from_batches([batch])


class RowDigest:
    """sha256 over rows, whatever the batches they come in."""

    def __init__(self) -> None:
        self.count = 0
        self._columns = {name: hashlib.sha256() for name in ("label", "id", "seed")}
        self._present: tuple[bool, bool] = (False, False)

    def add(self, rows: Rows) -> None:
        """Takes in the next rows."""
        self.count += len(rows)
        self._present = (rows.ids is not None, rows.seeds is not None)
        self._columns["label"].update(rows.labels.astype("<i8").tobytes())
        if rows.ids is not None:
            self._columns["id"].update("".join(f"{name}\n" for name in rows.ids).encode())
        if rows.seeds is not None:
            self._columns["seed"].update(rows.seeds.astype("<i8").tobytes())

    def hexdigest(self) -> str:
        """The hash of all rows so far."""
        columns = {name: column.hexdigest() for name, column in self._columns.items()}
        return hashlib.sha256(json.dumps([self.count, self._present, columns], sort_keys=True).encode()).hexdigest()


class _Ids:
    """Finds a repeated id among any number in little memory: 16-byte hashes, spread over files, sorted one by one."""

    _FILES = 256
    _ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])

    def __enter__(self) -> None:
        self._files: list[Any] = []

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, rows: Rows) -> None:
        """Takes in the ids of rows; those made from the index cannot repeat."""
        if rows.ids is None:
            return
        if not self._files:
            self._files = [tempfile.TemporaryFile() for _ in range(self._FILES)]  # noqa: SIM115
        hashed = b"".join(hashlib.blake2b(name.encode(), digest_size=16).digest() for name in rows.ids)
        records = np.empty(len(rows), dtype=self._ROW)
        pairs = np.frombuffer(hashed, dtype="<u8").reshape(-1, 2)
        records["high"], records["low"] = pairs[:, 0], pairs[:, 1]
        records["row"] = rows.first + np.arange(len(rows))
        place = pairs[:, 0] % self._FILES
        records = records[np.argsort(place, kind="stable")]
        ends = np.cumsum(np.bincount(place.astype(np.int64), minlength=self._FILES))
        for file, part in zip(self._files, np.split(records, ends[:-1]), strict=True):
            file.write(part.tobytes())

    def first_repeated(self) -> tuple[int, int] | None:
        """Both rows of the repetition that ends first; None: all ids are different."""
        found: tuple[int, int] | None = None
        for file in self._files:
            file.seek(0)
            records = np.frombuffer(file.read(), dtype=self._ROW)
            records = records[np.lexsort((records["row"], records["low"], records["high"]))]
            same = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
            for at in np.flatnonzero(same):
                both = int(records["row"][at]), int(records["row"][at + 1])
                found = both if found is None or both[1] < found[1] else found
        return found
