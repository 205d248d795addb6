from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from jobs.job import request_file
from jobs.job.request_file import RequestFile, RequestFileError
from jobs.job.request_ids import RepeatedIds

NAMES = tuple(str(label) for label in range(10))
COLUMNS = {"id": ["b-1", "a.2", "C_3"], "label": [9, 0, 3], "seed": [5, 2**63 - 1, 0]}
KINDS = ("parquet", "csv", "jsonl")


def write(folder: Path, kind: str, columns: dict[str, list]) -> RequestFile:
    path = folder / f"requests.{kind}"
    table = pa.table(columns)
    match kind:
        case "parquet":
            pq.write_table(table, path)
        case "csv":
            pa_csv.write_csv(table, path)
        case _:
            path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    return RequestFile(str(path), {}, NAMES)


def rows_of(source: RequestFile) -> dict[str, list]:
    parts = list(source.rows())
    found: dict[str, list] = {"label": [label for part in parts for label in part.labels.tolist()]}
    if parts[0].ids is not None:
        found["id"] = [name for part in parts for name in part.ids]
    if parts[0].seeds is not None:
        found["seed"] = [seed for part in parts for seed in part.seeds.tolist()]
    return found


def refusal(source: RequestFile) -> str:
    with pytest.raises(RequestFileError) as caught:
        source.scan()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("names", [("label",), ("label", "id"), ("seed", "label"), ("id", "label", "seed")])
def test_every_format_holds_the_same_requests(tmp_path, names):
    columns = {name: COLUMNS[name] for name in names}
    found = {kind: write(tmp_path, kind, columns) for kind in KINDS}
    assert all(rows_of(source) == columns for source in found.values())
    scans = {source.scan() for source in found.values()}
    assert len(scans) == 1 and scans.pop().count == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_is_of_the_rows_whatever_the_batches(tmp_path, kind, monkeypatch):
    source = write(tmp_path, kind, {"label": [i % 10 for i in range(100)], "id": [f"n{i}" for i in range(100)]})
    whole = source.scan()
    monkeypatch.setattr(request_file, "BATCH", 7)
    assert source.scan() == whole
    assert [part.first for part in source.rows()][:2] in ([0, 7], [0])  # a CSV comes in blocks of bytes


@pytest.mark.parametrize("name", COLUMNS)
def test_every_value_counts_for_the_hash(tmp_path, name):
    before = write(tmp_path, "jsonl", COLUMNS).scan()
    other = {"id": "x", "label": 1, "seed": 7}[name]
    assert write(tmp_path, "jsonl", {**COLUMNS, name: [*COLUMNS[name][:2], other]}).scan() != before
    assert write(tmp_path, "jsonl", {k: v for k, v in COLUMNS.items() if k in ("label",)}).scan() != before
    assert write(tmp_path, "jsonl", {key: values[::-1] for key, values in COLUMNS.items()}).scan() != before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value", "shown", "allowed"),
    [
        ("label", 10, "10", "0..9"),
        ("label", -1, "-1", "0..9"),
        ("label", None, "", "0..9"),
        ("seed", -1, "-1", f"0..{2**63 - 1}"),
        ("id", "../../etc/passwd", "'../../etc/passwd'", "a letter or digit"),
        ("id", "a/b", "'a/b'", "a letter or digit"),
        ("id", ".hidden", "'.hidden'", "a letter or digit"),
        ("id", "a\nb", "", "a letter or digit"),
        ("id", "a\x00b", "", "a letter or digit"),
        ("id", "", "", "a letter or digit"),
        ("id", "x" * 129, "'xxx", "a letter or digit"),
        ("id", "ü", "'ü'", "a letter or digit"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(tmp_path, kind, name, value, shown, allowed):
    text = refusal(write(tmp_path, kind, {**COLUMNS, name: [COLUMNS[name][0], value, COLUMNS[name][2]]}))
    if kind == "csv" and value in ("a\nb", "a\x00b"):
        assert "requests.csv" in text  # where the line ends there, it is another row or no CSV at all
    else:
        assert text.startswith(f"requests.file: {name}: got ") and " in row 2 of " in text
        assert shown in text and f"allowed: {allowed}" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_row_is_counted_over_batches(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(request_file, "BATCH", 8)
    labels = [0] * 50
    labels[41] = 77
    assert "got 77 in row 42 of" in refusal(write(tmp_path, kind, {"label": labels})).replace("'77'", "77")


def test_the_longest_id_and_seed_fit(tmp_path):
    columns = {"label": [0], "id": ["x" * 128], "seed": [2**63 - 1]}
    assert {write(tmp_path, kind, columns).scan().count for kind in KINDS} == {1}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_seed_beyond_64_bits_is_refused(tmp_path, kind):
    path = tmp_path / f"r.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"label": [1, 1], "seed": pa.array([0, 2**64 - 1], pa.uint64())}), path)
    else:
        path.write_text('{"label": 1, "seed": 0}\n{"label": 1, "seed": 18446744073709551615}\n')
    assert "18446744073709551615" in refusal(RequestFile(str(path), {}, NAMES))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_are_ids_too(tmp_path, kind):
    assert rows_of(write(tmp_path, kind, {"label": [1, 2], "id": [17, 4]}))["id"] == ["17", "4"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [{"labels": [1]}, {"label": [1], "seeds": [2]}, {"id": ["a"]}])
def test_unknown_and_missing_columns_are_refused(tmp_path, kind, columns):
    text = refusal(write(tmp_path, kind, columns))
    assert text.startswith(f"requests.file: columns: got {', '.join(columns)} in ")
    assert "allowed: label and, if wanted, id and seed" in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", [1, 9, 95])
def test_a_repeated_id_is_named_with_both_rows(tmp_path, kind, gap, monkeypatch):
    monkeypatch.setattr(request_file, "BATCH", 16)
    ids = [f"img{i}" for i in range(100)]
    ids[2 + gap] = ids[2]
    ids[99] = ids[98]
    text = refusal(write(tmp_path, kind, {"label": [0] * 100, "id": ids}))
    assert f"requests.file: id: got 'img2' in rows 3 and {3 + gap} of " in text and text.endswith("allowed: once")


def test_repeated_seeds_and_labels_are_allowed(tmp_path):
    assert write(tmp_path, "jsonl", {"label": [1, 1], "seed": [3, 3]}).scan().count == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("r.txt", b"label\n1\n", "allowed: a name that ends in .parquet, .csv, .jsonl"),
        ("r.parquet", b"no parquet", "cannot read"),
        ("r.csv", b"", "without a row"),
        ("r.csv", b"label,id\n1\n", "row: got '1' in row 1 of"),
        ("r.csv", b"label\n", "without a row"),
        ("r.jsonl", b"", "without a row"),
        ("r.jsonl", b'{"label": 1}\n{"label": 1, "id": "x"}\n', "row: got 'label, id' in row 2"),
        ("r.jsonl", b'{"label": 1}\nnonsense\n', "row: got 'nonsense' in row 2"),
        ("r.jsonl", b'{"label": 1}\n[1]\n', "row: got '[1]"),
        ("r.jsonl", b'{"label": true}\n', "label: got True in row 1"),
        ("r.jsonl", b'{"label": 1.0}\n', "label: got 1.0 in row 1"),
        ("r.jsonl", b'{"label": [1]}\n', "label: got [1] in row 1"),
        ("r.csv", b"label\n1.5\n", "label: got '1.5' in row 1"),
    ],
)
def test_what_is_no_request_file_is_refused(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    assert says in refusal(RequestFile(str(path), {}, NAMES))


def test_a_missing_file_is_refused_and_shows_no_secret():
    source = RequestFile("memory://user:hunter2@host/nothing.csv", {}, NAMES)
    text = refusal(source)
    assert "cannot read" in text and "hunter2" not in text and "hunter2" not in repr(source.shown)


def test_parquet_floats_are_no_labels(tmp_path):
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"label": [1.0, None]}), path)
    assert "label: got double" in refusal(RequestFile(str(path), {}, NAMES))


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(batches: int) -> int:
        labels = np.arange(batches * request_file.BATCH // 8) % len(NAMES)
        table = pa.table({"label": labels, "id": [f"i{n}" for n in range(len(labels))]})
        path = tmp_path / f"{batches}.parquet"
        pq.write_table(table, path, row_group_size=request_file.BATCH // 8)
        del table, labels
        tracemalloc.start()
        RequestFile(str(path), {}, NAMES).scan()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(32) < 1.5 * peak(8)


def test_two_ids_are_the_same_only_if_they_are_equal_but_for_their_case():
    with RepeatedIds() as ids:
        ids.add(["a", "b", "c"], 0)
        assert ids.first_repeated() is None
        ids.add(["d", "B"], 3)
        assert ids.first_repeated() == (1, 4)
