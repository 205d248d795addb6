"""What a job says of a dataset is so: none finished over a hole, no other's work counted, nothing unknown touched."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from jobs.cli import main
from jobs.dataset import commits
from jobs.dataset.finish import rewrite_report
from jobs.dataset.status import status
from jobs.dataset.validate import validate
from jobs.run.driver import generate
from jobs.words.errors import JobError, SpecError
from tests.faults.filesystem import Bucket, Fault, Faulty
from tests.faults.in_process import TARGET, images, in_process, job, run
from workers import layout
from workers.sealed import canonical_json, seal, unseal
from workers.store import Store, StoreError

DATA = "bucket/out/" + layout.data(1, 3)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)


@pytest.fixture
def store() -> Store:
    return Store(TARGET["url"])


class Meanwhile(Fault):
    """Something happens just before an operation: who does it was paused there."""

    def __init__(self, act: Callable[[], object], action: str, path: str = "", skip: int = 0) -> None:
        super().__init__("slow", action, path, skip=skip)
        self._act = act

    def strikes(self, action: str, path: str) -> bool:
        if not super().strikes(action, path):
            return False
        Faulty.script.lock.release()  # the other driver needs it
        try:
            self._act()
        finally:
            Faulty.script.lock.acquire()
        return True


def flip(path: str, place: int = 99) -> None:
    raw = Bucket.objects[path]
    Bucket.objects[path] = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


@pytest.mark.parametrize("damage", ["vanished", "flipped"])
@pytest.mark.parametrize("skip", range(24))
def test_a_repair_that_is_paused_at_any_write_takes_nothing_away(damage, skip, pair, undisturbed, store):
    """Another driver repairs and ends the dataset while the first one stands still; then the first goes on."""
    assert run(job(pair)) is None
    Bucket.objects.pop(DATA) if damage == "vanished" else flip(DATA)
    other: list[BaseException | None] = []
    Faulty.script.faults = [Meanwhile(lambda: other.append(run(job(pair))), "create|replace|delete", skip=skip)]
    assert run(job(pair)) is None and other in ([None], [])
    Faulty.script.faults = []
    assert validate(store.url).problems == ()
    assert images() == undisturbed
    assert status(store.url).finished


@pytest.mark.parametrize("skip", range(12))
def test_a_repair_that_dies_at_any_write_forgets_none_of_the_damage(skip, pair, undisturbed, store):
    """Two shards are damaged; what a driver knows of the second one dies with it."""
    assert run(job(pair)) is None
    flip(DATA)
    flip("bucket/out/" + layout.data(2, 3))
    Faulty.script.faults = [Fault("crash before", "create|replace|delete", skip=skip)]
    run(job(pair))
    Faulty.script.faults = []
    assert run(job(pair)) is None
    assert images() == undisturbed


def test_a_file_that_vanishes_during_the_run_is_no_end(pair, undisturbed, store):
    vanish = Meanwhile(lambda: Bucket.objects.pop(DATA), "list", layout.COMMITS, skip=1)
    Faulty.script.faults = [vanish]
    failure = run(job(pair))
    assert vanish.fired and isinstance(failure, JobError)
    assert f"is not whole ({layout.data(1, 3)}: missing); the same command resumes" in str(failure)
    assert not store.exists(layout.SUCCESS)
    assert run(job(pair)) is None
    assert images() == undisturbed


def test_a_store_that_keeps_nothing_of_what_it_acknowledges_is_no_end(pair, undisturbed, store, monkeypatch):
    kept, swallowed = Bucket.pipe_file, []

    def pipe_file(self: Bucket, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        if path.endswith(layout.data(1, 3)) and not swallowed:
            swallowed.append(path)
        else:
            kept(self, path, value, mode, **options)

    monkeypatch.setattr(Bucket, "pipe_file", pipe_file)
    failure = run(job(pair))
    assert swallowed and "missing); the same command resumes" in str(failure)
    assert not store.exists(layout.SUCCESS)
    assert run(job(pair)) is None
    assert images() == undisturbed


def test_a_bit_that_flipped_before_a_resume_reaches_no_report(pair, undisturbed, store, caplog):
    caplog.set_level("INFO")
    assert run(job(pair)) is None
    Bucket.objects.pop(f"bucket/out/{layout.commit(2)}")
    flip(DATA)
    failure = run(job(pair))
    assert isinstance(failure, JobError) and f"{layout.data(1, 3)}: sha256" in str(failure)
    assert (
        "resuming: 2 of 3 shards are committed; their files have the right sizes and are not read again" in caplog.text
    )
    assert not store.exists(layout.SUCCESS)
    assert run(job(pair)) is None
    assert images() == undisturbed


@pytest.mark.parametrize("folder", layout.PARTS)
def test_what_a_report_reads_is_held_against_its_hash(folder, pair, store):
    assert run(job(pair)) is None
    kept = commits.read_committed(store, commits_plan(store)).records[1]
    path = f"bucket/out/{kept.paths[layout.PARTS.index(folder)]}"
    assert commits.read_part(store, kept, folder) == Bucket.objects[path]
    flip(path, 40)
    with pytest.raises(commits.DamagedPart, match=r"part-00001-of-00003\.parquet: sha256"):
        commits.read_part(store, kept, folder)
    del Bucket.objects[path]
    with pytest.raises(commits.DamagedPart, match="missing"):
        commits.read_part(store, kept, folder)


def commits_plan(store: Store):
    from jobs.job.plan import read_plan

    return read_plan(store)


def test_a_report_that_fails_leaves_a_finished_dataset_finished(pair, store, capsys):
    assert run(job(pair)) is None
    before = dict(Bucket.objects)
    flip(DATA)
    with pytest.raises(JobError, match="sha256"):
        rewrite_report(store.url)
    Bucket.objects[DATA] = before[DATA]
    assert Bucket.objects == before
    assert status(store.url).finished


@pytest.mark.parametrize("path", [layout.commit(0), layout.data(1, 3)])
def test_a_report_of_a_finished_dataset_with_a_hole_is_refused_and_writes_nothing(path, pair, store, capsys):
    assert run(job(pair)) is None
    Bucket.objects[f"bucket/out/{path}"] = b"x"
    before = dict(Bucket.objects)
    capsys.readouterr()
    assert main(["report", store.url]) == 1
    told = capsys.readouterr()
    assert f"the dataset is damaged ({path}: " in told.err and told.err.count("\n") == 1 and not told.out
    assert told.err.strip().endswith("`spd generate` with the same spec and output mends it")
    assert Bucket.objects == before
    assert run(job(pair)) is None
    assert rewrite_report(store.url)["images"]["committed"] == 10


def test_status_believes_no_manifest_over_a_hole(pair, store):
    assert run(job(pair)) is None
    whole = dict(Bucket.objects)
    Bucket.objects.pop(f"bucket/out/{layout.commit(1)}")
    found = status(store.url)
    assert not found.finished and (found.committed, found.shards) == (2, 3)
    assert "resumes" in found.next_step
    for change in (lambda raw: raw[:-9], lambda raw: b"", lambda raw: raw.replace(b"a", b"b", 1)):
        Bucket.objects.clear(), Bucket.objects.update(whole)
        Bucket.objects[f"bucket/out/{layout.SUCCESS}"] = change(whole[f"bucket/out/{layout.SUCCESS}"])
        found = status(store.url)
        assert not found.finished and found.state != "finished"
        assert any(line.startswith(f"not finished: {layout.SUCCESS}: ") for line in found.lines())
    Bucket.objects.clear(), Bucket.objects.update(whole)
    Bucket.objects.pop(DATA)
    assert not status(store.url).finished
    assert f"damaged: {layout.data(1, 3)}: missing" in status(store.url).lines()


def test_a_strange_file_that_readers_would_take_is_refused(pair, undisturbed, store):
    assert run(job(pair)) is None
    store.create("data/part-again.parquet", store.read(layout.data(0, 3)))
    with pytest.raises(SpecError, match=r"output: data/part-again\.parquet is no file of this job .* move it away"):
        generate(job(pair))
    store.delete("data/part-again.parquet")
    # A name that an attempt may have, though none has.
    store.create(layout.data(0, 3, 4), store.read(layout.data(0, 3)))
    with pytest.raises(JobError, match=r"part-00000-of-00003\.r4\.parquet is no file of this job"):
        generate(job(pair))
    store.delete(layout.data(0, 3, 4))
    assert generate(job(pair))["made"] == 0
    assert images() == undisturbed


def test_what_another_driver_made_is_not_counted(pair):
    made = []
    Faulty.script.faults = [Meanwhile(lambda: made.append(generate(job(pair))["made"]), "create", layout.data(1, 3))]
    assert generate(job(pair))["made"] == 4
    assert made == [6], "ten images, of which the first driver had made four when it was paused"


def test_a_lasting_failure_is_not_said_to_go_away_by_itself(pair):
    Faulty.script.faults = [Fault("deny", "replace", layout.REPORT_JSON, times=10**6)]
    failure = run(job(pair))
    assert str(failure).endswith("AccessDenied; once that is mended, the same command resumes")


def newer(store: Store, path: str) -> None:
    store.replace(path, canonical_json(seal({**unseal(store.read(path)), "version": 99, "news": {"law": 1}})))


@pytest.mark.parametrize("path", [layout.PLAN, layout.commit(1), layout.SUCCESS])
def test_what_a_later_program_wrote_is_refused_by_name(path, pair, store, capsys):
    assert run(job(pair)) is None
    newer(store, path)
    before = dict(Bucket.objects)
    message = rf"output: {re.escape(path)} is of version 99, allowed: 1 to \d; a later spd wrote it"
    with pytest.raises(StoreError, match=message):
        generate(job(pair))
    for look in (status, validate, rewrite_report):
        with pytest.raises(StoreError, match=message):
            look(store.url)
    assert main(["status", store.url]) == 2 and "\n" not in capsys.readouterr().err.strip()
    assert Bucket.objects == before


def test_a_worker_that_sees_another_place_makes_nothing(pair, monkeypatch):
    elsewhere = lambda *args, **_: Store("faulty://bucket/elsewhere")  # noqa: E731
    monkeypatch.setattr("workers.actor.Store", elsewhere)
    failure = run(job(pair))
    assert re.match(
        r"output: the worker \S+ does not see what the driver wrote to faulty://bucket/elsewhere, allowed: a place "
        "that the driver and every node reach, an object store or a shared folder$",
        str(failure),
    )
    assert Bucket.objects == {}


def test_a_driver_that_does_not_see_its_workers_makes_nothing(pair, monkeypatch):
    from workers import actor

    there = lambda store, run, who: actor.Store("faulty://bucket/elsewhere").create(layout.sign(run, who), b"")  # noqa: E731
    monkeypatch.setattr(actor, "leave_sign", there)
    failure = run(job(pair))
    assert re.match(
        r"output: the driver does not see what the worker \S+ wrote to faulty://bucket/out, allowed: ", str(failure)
    )
    assert not [path for path in Bucket.objects if path.startswith("bucket/out/")]


@pytest.mark.parametrize("output", ["out/run1", "run1", "./run1"])
def test_a_relative_output_of_a_submitted_job_is_refused(output, pair, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(SpecError, match=rf"output: got '{re.escape(output)}', allowed inside a submitted job: a URL"):
        generate(job(pair, output=output, storage_options={}))


def test_shards_of_two_platforms_are_told_of(pair, store, caplog):
    assert run(job(pair)) is None
    raw = unseal(store.read(layout.commit(1)))
    store.replace(layout.commit(1), canonical_json(seal({**raw, "platform": "another, torch 1"})))
    store.delete(layout.commit(2))
    assert run(job(pair)) is None
    assert "the shards come from 2 kinds of machine (another, torch 1; " in caplog.text
    card = store.read(layout.CARD).decode()
    assert "another, torch 1 (4 images)" in card and "equal bytes hold for each of them alone" in card
    assert b"mixed: equal bytes hold for each alone" in store.read(layout.REPORT_HTML)
    assert validate(store.url).problems == ()
