from __future__ import annotations

import io
import re
from itertools import chain

import pytest
from rich.console import Console

from jobs.cli import main
from jobs.commands import watch as watch_module
from jobs.commands.watch import Seen, watch
from jobs.dataset.status import Status, Watched, recent, status
from jobs.dataset.totals import Totals
from tests.jobs.tree import lose_shard, make_shards, make_tree
from workers import layout
from workers.shard import read_chain, void
from workers.store import Store, StoreError


def at(committed: int, **fields: object) -> Status:
    given = {
        "output": "s3://bucket/run1", "shards": 4, "committed": committed, "damaged": (), "rows": 4000,
        "committed_rows": 1000 * committed, "images_per_s": 10.0, "recent_per_s": 20.0, "since_last_s": 3.0,
        "finished": committed == 4, "driver": None, **fields,
    }  # fmt: skip
    return Status(**given)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watch_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watch_module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def script(*looks):
    coming = chain(looks)

    def look():
        found = next(coming)
        if isinstance(found, BaseException):
            raise found
        return found

    return look


def test_lines_until_the_job_is_finished_and_a_store_that_is_away_is_said(clock, capsys):
    away = StoreError("output: cannot list s3://bucket/run1: 503")
    assert watch(script(at(1), away, at(2), at(4)), 5.0) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines] == [
        "1/4 shards, 1,000/4,000 images (25.0 %), 20.00 images/s over the last minute, about 2 min 30 s left, stopped",
        "cannot be read now, trying again: output: cannot list s3://bucket/run1: 503",
        "2/4 shards, 2,000/4,000 images (50.0 %), 20.00 images/s over the last minute, about 1 min 40 s left, stopped",
        "4/4 shards, 4,000/4,000 images (100.0 %), 20.00 images/s over the last minute, all images committed, finished",
        "finished; `spd validate s3://bucket/run1` re-reads everything",
    ]
    assert clock[0] == 15.0


def test_an_interruption_ends_it_without_a_word(clock, capsys):
    assert watch(script(at(1), KeyboardInterrupt()), 5.0) == 130
    told = capsys.readouterr()
    assert told.err == "" and len(told.out.splitlines()) == 1


def drawn(seen: Seen) -> str:
    text = io.StringIO()
    Console(file=text, width=100, force_terminal=True, color_system=None, legacy_windows=False).print(seen)
    return text.getvalue()


def test_a_drawing_counts_down_and_shows_states_and_damage(clock):
    seen = Seen()
    seen.look(script(at(2, again=1, damaged=("data/part-3: missing",))))
    clock[0] = 40.0
    text = drawn(seen)
    assert "━" in text and "50.0 %" in text and "2,000/4,000 images" in text
    assert "20.00 images/s over the last minute, about 1 min 00 s left" in text
    assert re.search(r"committed 2 +to be made 1 +to be made again 1 +damaged 1", text)
    assert "last commit 43.0 s ago; stopped: no driver is at work" in text and "damaged: data/part-3: missing" in text
    seen.look(script(StoreError("output: away")))
    assert "2,000/4,000 images" in drawn(seen) and "cannot be read now, trying again: output: away" in drawn(seen)


def test_records_that_were_read_are_not_read_again(tmp_path, monkeypatch):
    store = make_tree(tmp_path)
    store.delete(layout.SUCCESS)
    lose_shard(store, 1, 3)
    watched = Watched(store.url)
    assert watched.look().committed_rows == 6
    read: list[str] = []
    real = Store.read_many
    monkeypatch.setattr(Store, "read_many", lambda self, sizes: read.extend(sizes) or real(self, sizes))
    make_shards(store, watched._plan.spec, watched._plan)
    found = watched.look()
    assert read == [layout.commit(1)]
    assert found.committed_rows == 10 and found == status(store.url).model_copy(
        update={"since_last_s": found.since_last_s, "recent_per_s": found.recent_per_s}
    )


def test_a_shard_that_is_closed_counts_no_more(tmp_path):
    store = make_tree(tmp_path)
    store.delete(layout.SUCCESS)
    watched = Watched(store.url)
    assert watched.look().committed_rows == 10
    void(store, read_chain(store, 0), watched._plan.fingerprint, "damaged")
    found = watched.look()
    assert (found.committed, found.committed_rows, found.again) == (2, 6, 1)


@pytest.mark.parametrize(
    ("shards", "now", "expected"),
    [
        ([], 0.0, (0.0, 60.0)),
        ([(0, 10), (10, 20), (20, 30)], 30.0, (1.0, 60.0)),  # the run is younger than a minute
        ([(10 * n, 10 * n + 10) for n in range(20)], 200.0, (1.0, 60.0)),
        ([(0, 10)], 100.0, (0.0, 60.0)),  # nothing came in the last minute
        ([(0, 100), (100, 200), (200, 300)], 300.0, (0.1, 200.0)),  # a shard takes longer than a minute
    ],
)
def test_the_recent_rate_is_over_the_last_minute_or_two_shards(shards, now, expected):
    totals = Totals()
    for start, end in shards:
        totals.starts.append(start)
        totals.ends.append(end)
        totals.rows.append(10)
    assert recent(totals, now) == pytest.approx(expected)


def test_how_often_to_look_is_checked(tmp_path, capsys):
    for given in ("0", "fast", "nan"):
        with pytest.raises(SystemExit, match="2"):
            main(["status", str(tmp_path), "--watch", given])
        assert f"--watch: got '{given}', allowed: 0.5 to 3600 seconds, after OUTPUT" in capsys.readouterr().err


def test_the_status_of_a_finished_dataset_is_watched_once(tmp_path, capsys, monkeypatch):
    store = make_tree(tmp_path)
    monkeypatch.setattr(watch_module.time, "sleep", lambda _: pytest.fail("slept"))
    assert main(["status", store.url, "--watch"]) == 0
    assert "3/3 shards, 10/10 images (100.0 %)" in capsys.readouterr().out
