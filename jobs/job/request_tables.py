"""The three formats of request files as Arrow tables of their columns, batch by batch, values as they were written.

In every format and message row 1 is the first request: neither a header nor an empty line counts.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from spd_core.alike import did_you_mean

COLUMNS = ("label", "id", "seed")
_LONGEST_LINE = 1 << 16
_LONGEST_NUMBER = 40  #: digits that Python is asked to read
#: What pandas writes beside the columns that it was given.
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0|")
#: Longest first: the mark of UTF-16 begins that of UTF-32.
_OTHER_TEXT = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class WrongRow(Exception):
    """A row that is no request.

    Args:
        field: what is wrong with it.
        row: its index.
        value: as it was written.
        allowed: instead.
    """

    def __init__(self, field: str, row: int, value: Any, allowed: str) -> None:
        super().__init__(field)
        self.field, self.row, self.value, self.allowed = field, row, value, allowed


class WrongText(Exception):
    """A text file in another encoding than UTF-8; the message says which."""


class WrongColumns(Exception):
    """Columns that are no request's, by name; ``near`` says what was probably meant."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(name if name == name.strip() else repr(name) for name in names[:10]) or "none")
        spaced = next((name for name in names if name != name.strip() and name.strip() in COLUMNS), None)
        other = next((name for name in names if name not in COLUMNS), "")
        self.near = (
            f", {spaced.strip()} without the spaces around it" if spaced is not None else did_you_mean(other, COLUMNS)
        )


def wanted(names: list[str]) -> list[str]:
    """The columns of requests among these, without what pandas adds of its own.

    Raises:
        WrongColumns: no label, a column twice, or one that may be a misspelled seed.
    """
    given = [name for name in names if not _INDEX.fullmatch(name)]
    if "label" not in given or len(set(given)) < len(given) or set(given) - set(COLUMNS):
        raise WrongColumns(given)
    return given


def parquet_tables(file: Any, batch: int) -> Iterator[pa.Table]:
    """Tables of a Parquet file; damage that Arrow finds raises an error of Arrow's."""
    with pq.ParquetFile(file) as source:
        names = wanted(source.schema_arrow.names)
        for part in source.iter_batches(batch, columns=names):
            yield pa.Table.from_batches([part])


def _start_of_text(file: Any) -> None:
    """Refuses other encodings that are told by their first bytes; leaves the file after UTF-8's mark."""
    start = file.read(4)
    for mark, name in _OTHER_TEXT.items():
        if start.startswith(mark):
            raise WrongText(f"{name} text")
    if b"\0" in start:
        raise WrongText("bytes that are no text, or UTF-16")
    file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)


def csv_tables(file: Any, batch: int) -> Iterator[pa.Table]:
    """Tables of a CSV file with a header, in blocks of bytes whatever the batch; all values are text."""
    _start_of_text(file)
    # As text: a number that is none is then found with its row.
    texts = pa_csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()))
    wrong: list[Any] = []

    def is_wrong(row: Any) -> str:
        wrong.append(row)
        return "error"

    parse = pa_csv.ParseOptions(invalid_row_handler=is_wrong)
    in_order = pa_csv.ReadOptions(use_threads=False)  # only then rows have numbers
    try:
        with pa_csv.open_csv(file, in_order, parse, texts) as source:
            names = wanted(source.schema.names)
            for part in source:
                yield pa.Table.from_batches([part]).select(names)
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
            raise WrongText("text that is not UTF-8") from error
        if wrong:
            row = wrong[0]
            raise WrongRow(
                "row", row.number - 2, row.text[:40], f"{row.expected_columns} values, as in the header"
            ) from error
        if "Empty CSV file" not in str(error):
            raise


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return found


def _number(digits: str) -> int | str:
    # Refused with its row as any text is: Python itself raises for very long ones.
    return int(digits) if len(digits) <= _LONGEST_NUMBER else digits


def _json_row(line: bytes, index: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(), object_pairs_hook=_object, parse_int=_number)
    except UnicodeDecodeError as error:
        raise WrongText(f"text that is not UTF-8 in row {index + 1}") from error
    except KeyError as error:
        raise WrongRow("row", index, f"{error.args[0]} twice", "each name once") from error
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise WrongRow("row", index, line[:40].decode(errors="replace").strip(), "one JSON object a line")
    return row


def _filled_lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(_LONGEST_LINE):
        if line.strip():
            yield line


def jsonl_tables(file: Any, batch: int, allowed: Callable[[str], str]) -> Iterator[pa.Table]:
    """Tables of a file with one JSON object a line; empty lines are no rows.

    Args:
        file: open, binary.
        batch: rows of a table.
        allowed: what a field may be, in words.
    """
    _start_of_text(file)
    names: list[str] = []
    end, lines = 0, _filled_lines(file)
    while some := list(islice(lines, batch)):
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for index, line in enumerate(some, start=end):
            row = _json_row(line, index)
            if not names:
                names = list(row)
                wanted(names)
                columns = {name: [] for name in names}
            if row.keys() != columns.keys():
                raise WrongRow("row", index, ", ".join(row), f"{', '.join(names)}, as in the first row")
            for name, value in row.items():
                columns[name].append(value)
        yield pa.table({name: _json_column(name, values, end, allowed) for name, values in columns.items()}).select(
            wanted(names)
        )
        end += len(some)


def _json_column(name: str, values: list[Any], first: int, allowed: Callable[[str], str]) -> pa.Array:
    kinds = set(map(type, values))
    if _INDEX.fullmatch(name):
        return pa.nulls(len(values))
    right = (int,) if name == "seed" else (int, str)
    if not kinds <= set(right):
        at = next(i for i, value in enumerate(values) if type(value) not in right)
        raise WrongRow(name, first + at, values[at], allowed(name))
    try:
        return pa.array(values)
    except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([str(value) for value in values])
