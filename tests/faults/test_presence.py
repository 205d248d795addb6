"""The driver's mark; and what it is on a gateway that ignores create-only writes: a lease."""

from __future__ import annotations

import threading
import time

import pytest

from jobs.dataset import presence
from jobs.dataset.presence import Mark, Presence, read_mark
from jobs.dataset.status import status
from jobs.job.plan import utc_now
from jobs.run.driver import generate
from jobs.words.errors import JobError, SpecError
from tests.faults.filesystem import Bucket, Fault, Faulty
from tests.faults.in_process import TARGET, images, in_process, job, run
from workers import layout
from workers.sealed import canonical_json, seal
from workers.store import Store

IGNORED = ("ignore", "create")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)


@pytest.fixture
def store() -> Store:
    return Store(TARGET["url"])


def leave_mark(store: Store, seen: str = "2026-01-01T00:00:00.000+00:00", name: str = "elsewhere-7") -> Mark:
    mark = Mark(driver=name, run="another", seen=seen)
    store.replace(layout.DRIVER, canonical_json(seal(mark.model_dump(mode="json"))))
    return mark


def test_a_gateway_that_ignores_create_only_gets_one_driver(pair, undisturbed, caplog):
    Faulty.script.faults = [Fault(*IGNORED, times=10**6)]
    assert run(job(pair)) is None
    told = [r.getMessage() for r in caplog.records if "one driver at a time, which takes a lease" in r.getMessage()]
    assert len(told) == 1
    Faulty.script.faults = []
    assert images() == undisturbed
    assert f"bucket/out/{layout.DRIVER}" not in Bucket.objects


def test_a_store_that_refuses_the_second_creator_needs_no_lease(pair, caplog):
    assert run(job(pair)) is None
    assert "lease" not in caplog.text


def test_a_second_driver_is_refused_while_the_lease_is_renewed(pair, store, monkeypatch):
    monkeypatch.setattr(presence, "WATCH_S", 30.0)
    monkeypatch.setattr(presence, "BEAT_S", 0.0)
    Faulty.script.faults = [Fault(*IGNORED, times=10**6)]
    over = threading.Event()
    with Presence(store, exclusive=True) as first:
        first.announce()

        def beat() -> None:
            while not over.wait(0.005):
                first.beat()

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            with pytest.raises(SpecError, match=r"driver \S+ is at work on faulty://bucket/out, allowed: one driver"):
                generate(job(pair))
        finally:
            over.set()
            thread.join()
        assert read_mark(store) is not None, "the refused driver left the lease alone"
    assert not store.list("data")


def test_a_lease_that_nobody_renews_is_taken_over(pair, store, undisturbed):
    leave_mark(store)
    Faulty.script.faults = [Fault(*IGNORED, times=10**6)]
    assert run(job(pair)) is None
    Faulty.script.faults = []
    assert images() == undisturbed


def test_of_two_that_take_a_free_lease_at_once_one_has_it(store, monkeypatch):
    monkeypatch.setattr(presence, "_SETTLE_S", 0.2)
    gate, won = threading.Barrier(2), []

    def take() -> None:
        with Presence(Store(TARGET["url"]), exclusive=True) as mine:
            gate.wait()
            try:
                mine.announce()
            except SpecError:
                return
            won.append(mine)
            time.sleep(0.3)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_driver_whose_lease_was_taken_ends(store, monkeypatch):
    monkeypatch.setattr(presence, "BEAT_S", 0.0)
    with Presence(store, exclusive=True) as mine:
        mine.announce()
        other = leave_mark(store)
        with pytest.raises(JobError, match="driver elsewhere-7 has taken over this output"):
            mine.beat()
    assert read_mark(store).run == other.run, "the other's lease stays"


def test_two_attempts_that_overwrite_each_other_are_found_at_the_end(pair, undisturbed, monkeypatch):
    """Without a refusal nothing keeps a late attempt off a committed shard's files."""
    Faulty.script.faults = [Fault(*IGNORED, times=10**6), Overwritten("replace", layout.DRIVER, skip=1)]
    monkeypatch.setattr(presence, "BEAT_S", 0.0)
    failure = run(job(pair))
    assert isinstance(failure, JobError)
    assert "the dataset is not whole (data/part-00000" in str(failure) and "the same command resumes" in str(failure)
    Faulty.script.faults = []
    assert run(job(pair)) is None
    assert images() == undisturbed


class Overwritten(Fault):
    """At some beat of the driver, a file of the first shard is another one of the same size."""

    def __init__(self, action: str, path: str, skip: int) -> None:
        super().__init__("slow", action, path, skip=skip)

    def strikes(self, action: str, path: str) -> bool:
        strikes = super().strikes(action, path)
        if strikes:
            name = f"bucket/out/{layout.data(0, 3)}"
            Bucket.objects[name] = bytes(len(Bucket.objects[name]))
        return strikes


@pytest.mark.parametrize("age", ["old", "new"])
def test_another_drivers_recent_mark_is_told_of(age, pair, store, undisturbed, caplog, monkeypatch):
    monkeypatch.setattr(presence, "WATCH_S", 30.0)
    leave_mark(store, utc_now() if age == "new" else "2026-01-01T00:00:00.000+00:00")
    assert run(job(pair)) is None
    assert ("driver elsewhere-7 was at work on this output" in caplog.text) == (age == "new")
    assert images() == undisturbed


def test_a_mark_that_cannot_be_read_counts_for_nothing(pair, store, undisturbed):
    store.replace(layout.DRIVER, b"{")
    assert read_mark(store) is None
    assert run(job(pair)) is None
    assert images() == undisturbed
    assert status(TARGET["url"]).driver is None
