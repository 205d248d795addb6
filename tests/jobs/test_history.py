"""A history loses nothing: two writers, damage, strangers' files."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.dataset.finish import rewrite_report
from jobs.nightly import record as record_module
from jobs.nightly.history import add_night, path_of, read_history
from jobs.nightly.record import Control, night_from_bytes, night_of, night_to_bytes
from jobs.words.errors import SpecError
from tests.faults.filesystem import Bucket
from tests.faults.in_process import TARGET, in_process, job, run
from tests.jobs.nights_tree import FIRST, a_night
from workers import layout
from workers.sealed import canonical_json, seal, unseal

CONTROL = Control(
    method=(5.0, 5.2), plain=(2.5, 2.5), method_cpu=0.2, plain_cpu=0.4, images=8, load=1.5, device="cpu", machine="m"
)


def test_a_record_comes_back_as_it_was_stored():
    night = a_night(control=CONTROL).sealed()
    assert night_from_bytes(night_to_bytes(night), "x") == night


def test_every_figure_is_a_column_of_its_own(tmp_path):
    add_night(str(tmp_path), a_night())
    (row,) = pq.read_table(tmp_path / path_of(FIRST)).to_pylist()
    assert row["night"] == FIRST
    assert row["figure.speed_over_plain"] == 2.4


@pytest.mark.parametrize("url", ["{}/history", "memory://history-of-two"])
def test_of_two_writers_the_first_wins_and_both_go_on_with_its_record(tmp_path, url):
    url = url.format(tmp_path)
    nights = [a_night(commit=str(writer)) for writer in range(8)]
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda night: add_night(url, night), nights))
    assert len({night.commit for night in held}) == 1
    assert [night.commit for night in read_history(url).nights] == [held[0].commit]


def test_a_damaged_record_is_named_hides_no_other_and_is_made_again_behind_it(tmp_path):
    for day in range(3):
        add_night(str(tmp_path), a_night(day))
    path = tmp_path / path_of(a_night(1).night)
    damaged = path.read_bytes()[:-40]
    path.write_bytes(damaged)
    history = read_history(str(tmp_path))
    assert [night.night.day for night in history.nights] == [1, 3]
    assert history.problems[0].startswith("nights/2026-11-02.parquet: ")
    add_night(str(tmp_path), a_night(1))
    after = read_history(str(tmp_path))
    assert [night.night.day for night in after.nights] == [1, 2, 3]
    assert after.problems == history.problems
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("cut", [0, 100])
def test_a_record_cut_short_is_named(tmp_path, cut):
    add_night(str(tmp_path), a_night())
    path = tmp_path / path_of(FIRST)
    path.write_bytes(path.read_bytes()[:cut])
    assert read_history(str(tmp_path)).problems == (f"{path_of(FIRST)}: is no record of a night",)


def with_column(name: str, column: pa.Array) -> bytes:
    """The first night's record with another column."""
    table = pq.read_table(pa.BufferReader(night_to_bytes(a_night())))
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(table.column_names.index(name), name, column), sink)
    return bytes(sink.getvalue())


def two_rows() -> bytes:
    table = pq.read_table(pa.BufferReader(night_to_bytes(a_night())))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([table, table]), sink)
    return bytes(sink.getvalue())


WRONG = {
    "JSON of endless depth": with_column("spec", pa.array(["[" * 100_000])),
    "a date beyond the calendar": with_column("night", pa.array([2**31 - 1], pa.int32()).cast(pa.date32())),
    "no version": with_column("version", pa.array([None], pa.int32())),
    "a version in words": with_column("version", pa.array(["1"])),
    "a negative version": with_column("version", pa.array([-1], pa.int32())),
    "two rows": two_rows(),
    "another night": night_to_bytes(a_night(7)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_record_that_no_program_writes_stops_no_night(tmp_path, wrong):
    path = tmp_path / path_of(FIRST)
    path.parent.mkdir()
    path.write_bytes(WRONG[wrong])
    assert add_night(str(tmp_path), a_night()) == a_night()
    history = read_history(str(tmp_path))
    assert history.nights == (a_night(),)
    (problem,) = history.problems
    assert problem.startswith(f"{path_of(FIRST)}: is ") and "later" not in problem


def test_every_flipped_byte_is_noticed_or_changes_nothing(tmp_path):
    whole = night_to_bytes(a_night())
    for place in range(0, len(whole), 97):
        raw = bytearray(whole)
        raw[place] ^= 255
        try:
            assert night_from_bytes(bytes(raw), "x") == a_night()
        except ValueError as error:
            assert str(error).startswith("x: ")


def test_a_record_of_a_later_version_and_a_strangers_file_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "VERSION", 2)
    add_night(str(tmp_path), a_night(version=2))
    monkeypatch.setattr(record_module, "VERSION", 1)
    (tmp_path / "nights" / "notes.txt").write_text("mine")
    later, stranger = read_history(str(tmp_path)).problems
    assert "of version 2" in later
    assert stranger == "nights/notes.txt: is no record of a night"


def test_a_record_under_another_nights_name_is_named(tmp_path):
    add_night(str(tmp_path), a_night(0))
    Path(tmp_path / path_of(FIRST)).rename(tmp_path / path_of(a_night(4).night))
    assert "is the record of 2026-11-01" in read_history(str(tmp_path)).problems[0]


def test_a_history_of_no_nights_is_empty(tmp_path):
    assert read_history(str(tmp_path / "none")).nights == ()


@pytest.fixture
def dataset(monkeypatch, tmp_path):
    in_process(monkeypatch)
    from tests.tiny_pair import make_tiny_pair

    spec = job(str(make_tiny_pair(tmp_path / "pair")), method="cspd", workers={"price_per_hour": 1.0})
    assert run(spec) is None
    return spec


def test_a_record_holds_the_figures_of_its_dataset_and_of_its_control(dataset):
    night = night_of(TARGET["url"], FIRST, TARGET["options"], CONTROL)
    assert night.figures["images"] == 10
    assert night.figures["speed_over_plain"] == pytest.approx((2.0 * 2.08) ** 0.5)
    assert night.figures["cpu_over_plain"] == pytest.approx(0.5)
    assert night.figures["cost_per_1000"] == pytest.approx(night.figures["cost"] * 100)
    assert night.figures["retries"] == 0
    assert night.content == night_of(TARGET["url"], FIRST, TARGET["options"]).content


def test_a_record_is_made_of_a_finished_dataset_only(tmp_path):
    with pytest.raises(SpecError, match="allowed: an output of"):
        night_of(str(tmp_path), FIRST)


def damage(what: str) -> None:
    """Damages the finished dataset in one place."""
    place = TARGET["url"].partition("://")[2]
    paths = {"record": layout.commit(0), "report": layout.REPORT_JSON, "data": layout.data(1, 3)}
    if what.startswith("no "):
        del Bucket.objects[f"{place}/{paths.get(what[3:], layout.SUCCESS)}"]
    else:
        Bucket.objects[f"{place}/{paths[what]}"] += b" "


@pytest.mark.parametrize("what", ["record", "no record", "no data", "data", "report", "no report", "no manifest"])
def test_no_record_is_made_of_a_dataset_that_is_not_whole(dataset, what):
    damage(what)
    with pytest.raises(SpecError, match=r"^output: got \S+, allowed: a finished dataset \(\S+: .+\); `spd generate`"):
        night_of(TARGET["url"], FIRST, TARGET["options"])


def test_a_report_that_another_version_wrote_is_refused_until_it_is_made_anew(dataset):
    place = TARGET["url"].partition("://")[2]
    report, success = f"{place}/{layout.REPORT_JSON}", f"{place}/{layout.SUCCESS}"
    Bucket.objects[report] = b"{}"
    manifest = unseal(Bucket.objects[success])
    manifest["files"][layout.REPORT_JSON] = hashlib.sha256(b"{}").hexdigest()
    Bucket.objects[success] = canonical_json(seal(manifest))
    with pytest.raises(SpecError, match="lacks what this version of spd reads, allowed: one that `spd report`"):
        night_of(TARGET["url"], FIRST, TARGET["options"])
    rewrite_report(TARGET["url"], TARGET["options"])
    assert night_of(TARGET["url"], FIRST, TARGET["options"]).figures["images"] == 10
