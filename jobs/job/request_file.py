"""Request files: Parquet, CSV or JSONL with a label per image, optionally its id and seed, read as a stream.

Nothing here holds more than one batch of rows, whatever the size of the file. The content hash is over the rows, not
the bytes: the same requests in another file format, place or compression are the same requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.job.labels import alike, allowed_labels, label_of
from jobs.job.request_ids import RepeatedIds
from jobs.job.request_tables import WrongColumns, WrongRow, WrongText, csv_tables, jsonl_tables, parquet_tables
from workers.redact import public_url

#: Rows of a batch: little memory, and few enough batches that Python's share of a row is small.
BATCH = 1 << 14
#: An id names its image's file wherever the image is unpacked, so it is a plain file name.
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_ID_WORDS = "a letter or digit, then at most 127 letters, digits, dots, dashes or underscores"
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
    classes: int  #: different labels among them


@dataclass(frozen=True)
class RequestFile:
    """A request file and what its rows must be like.

    Args:
        url: any fsspec URL, or a local path.
        options: of its file system; never shown.
        names: of the pair's classes; a label is one of them or its number.
    """

    url: str
    options: dict[str, Any] = field(repr=False)
    names: tuple[str, ...]

    @property
    def shown(self) -> str:
        """The URL without user name, password and query."""
        return public_url(self.url)

    def rows(self) -> Iterator[Rows]:
        """The rows in order, checked one by one; ids are not compared with each other.

        Raises:
            RequestFileError: the file cannot be read, or the first row that is wrong.
        """
        first = 0
        for table in self._tables():
            if table.num_rows:
                yield self._checked(table, first)
                first += table.num_rows

    def scan(self) -> Found:
        """Reads the whole file and checks everything, ids for being different too.

        Raises:
            RequestFileError: as `rows`; no row at all; or two rows with one id.
        """
        digest, labels = RowDigest(), set[int]()
        try:
            with RepeatedIds() as ids:
                for rows in self.rows():
                    digest.add(rows)
                    labels.update(np.unique(rows.labels).tolist())
                    if rows.ids is not None:
                        ids.add(rows.ids, rows.first)
                again = ids.first_repeated()
        except OSError as error:
            raise RequestFileError(
                f"requests.file: no room to compare the ids of {self.shown}: {error.strerror or error}, "
                "allowed: a TMPDIR that can be written"
            ) from error
        if again is not None:
            one, other = (self._id_of(row) for row in again)
            where = f"rows {again[0] + 1} and {again[1] + 1}"
            if one == other:
                raise RequestFileError(f"requests.file: id: got {one!r} in {where} of {self.shown}, allowed: once")
            raise RequestFileError(
                f"requests.file: id: got {one!r} and {other!r} in {where} of {self.shown}, "
                "allowed: ids that differ in more than their case (they are file names)"
            )
        if not digest.count:
            raise RequestFileError(f"requests.file: got {self.shown} without a row, allowed: one row or more")
        pa.default_memory_pool().release_unused()
        return Found(digest.count, digest.hexdigest(), len(labels))

    def _id_of(self, row: int) -> str | None:
        for rows in self.rows():
            if rows.ids is not None and row < rows.first + len(rows):
                return rows.ids[row - rows.first]
        return None

    def _tables(self) -> Iterator[pa.Table]:
        name = self.url.partition("?")[0] if "://" in self.url else self.url
        suffix = next((end for end in _KINDS if name.lower().endswith(end)), None)
        if suffix is None:
            raise RequestFileError(
                f"requests.file: got {self.shown!r}, allowed: a name that ends in {', '.join(_KINDS)}"
            )
        try:
            fs, path = fsspec.core.url_to_fs(self.url, **self.options)
            with fs.open(path, "rb") as file:
                match _KINDS[suffix]:
                    case "parquet":
                        yield from parquet_tables(file, BATCH)
                    case "csv":
                        yield from csv_tables(file, BATCH)
                    case _:
                        yield from jsonl_tables(file, BATCH, self._allowed)
        except RequestFileError:
            raise
        except WrongRow as wrong:
            raise self._wrong(wrong.field, wrong.row, wrong.value, wrong.allowed) from wrong
        except WrongColumns as wrong:
            raise RequestFileError(
                f"requests.file: columns: got {wrong} in {self.shown}, allowed: label and, if wanted, id and seed"
                f"{wrong.near}"
            ) from wrong
        except WrongText as wrong:
            raise RequestFileError(f"requests.file: got {wrong} in {self.shown}, allowed: UTF-8 text") from wrong
        except Exception as error:  # file systems and decoders raise anything
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            for secret in self._secrets():
                text = text.replace(secret, "***")
            raise RequestFileError(f"requests.file: cannot read {self.shown}: {text}") from error

    def _secrets(self) -> list[str]:
        """Texts that no message may show, longest first: one may be the beginning of another."""
        address = urlsplit(self.url)
        userinfo = address.netloc.rpartition("@")[0]
        texts = [userinfo, *userinfo.split(":")[1:], address.query]
        texts += [value for _, value in parse_qsl(address.query) if len(value) > 3]
        texts += [value for value in self.options.values() if isinstance(value, str)]
        return sorted(filter(None, texts), key=len, reverse=True)

    def _allowed(self, name: str) -> str:
        return {"label": allowed_labels(self.names), "seed": f"0..{_SEED_LIMIT}", "id": _ID_WORDS}[name]

    def _wrong(self, name: str, row: int, value: Any, allowed: str) -> RequestFileError:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        return RequestFileError(
            f"requests.file: {name}: got {shown} in row {row + 1} of {self.shown}, allowed: {allowed}"
        )

    def _checked(self, table: pa.Table, first: int) -> Rows:
        names = table.column_names
        try:
            return Rows(
                first,
                self._numbers(table, "label", first, len(self.names) - 1),
                self._ids(table, first) if "id" in names else None,
                self._numbers(table, "seed", first, _SEED_LIMIT) if "seed" in names else None,
            )
        except UnicodeDecodeError as error:  # Arrow takes the file's word that its text is UTF-8
            raise RequestFileError(
                f"requests.file: got text that is not UTF-8 in {self.shown}, allowed: UTF-8 text"
            ) from error

    def _numbers(self, table: pa.Table, name: str, first: int, largest: int) -> NDArray[np.int64]:
        column = _plain(table[name])
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_null(kind)):
            words = "whole numbers" if name == "seed" else "whole numbers or class names"
            raise RequestFileError(f"requests.file: {name}: got {kind} in {self.shown}, allowed: {words}")
        if pa.types.is_string(kind):
            column = self._read_numbers(column, name, first)
        try:
            values = np.asarray(column.cast(pa.int64()))
            if column.null_count == 0 and len(values) and values.min() >= 0 and values.max() <= largest:
                return values.astype(np.int64, copy=False)
        except pa.ArrowInvalid:
            pass  # found below
        for row, value in enumerate(column.to_pylist()):
            if value is None or not 0 <= value <= largest:
                raise self._wrong(name, first + row, value, self._allowed(name))
        raise self._wrong(name, first, column[0].as_py(), self._allowed(name))

    def _read_numbers(self, column: pa.ChunkedArray, name: str, first: int) -> pa.ChunkedArray:
        """A column of texts as numbers: digits, or for labels names of classes."""
        found = pc.dictionary_encode(column).combine_chunks()
        numbers: dict[str | None, int | None] = {}
        for text in found.dictionary.to_pylist():
            if name == "label":
                numbers[text] = label_of(text, self.names)
            else:
                number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
                numbers[text] = number if number is not None and number <= _SEED_LIMIT else None
        if column.null_count or None in numbers.values():
            for row, text in enumerate(column.to_pylist()):
                if numbers.get(text) is None:
                    near = alike(text, self.names) if name == "label" else ""
                    raise self._wrong(name, first + row, text, self._allowed(name) + near)
        return pa.chunked_array([pa.array(list(numbers.values()), pa.int64()).take(found.indices)])

    def _ids(self, table: pa.Table, first: int) -> list[str]:
        column = _plain(table["id"])
        if not (pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_null(column.type)):
            raise RequestFileError(
                f"requests.file: id: got {column.type} in {self.shown}, allowed: text or whole numbers"
            )
        names = column.cast(pa.string())
        fits = pc.fill_null(pc.match_substring_regex(names, rf"\A{ID_PATTERN}\z"), False)
        if not pc.all(fits).as_py():
            row = pc.index(fits, False).as_py()
            raise self._wrong("id", first + row, names[row].as_py(), self._allowed("id"))
        found: list[str] = names.to_pylist()
        return found


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values without a dictionary, and as the plain kind of text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_view = getattr(pa.types, "is_string_view", lambda _: False)
    return column.cast(pa.string()) if pa.types.is_large_string(column.type) or is_view(column.type) else column


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
