from __future__ import annotations

import errno
import logging
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import workers.store as store_module
from workers.store import Conflict, Store, StoreError


def test_what_was_created_is_read_and_listed(store):
    store.create("data/a.bin", b"one")
    store.create("_run/plan.json", b"")
    assert store.read("data/a.bin") == b"one"
    assert store.size("data/a.bin") == 3
    assert store.exists("data/a.bin")
    assert not store.exists("data")
    assert not store.exists("data/b.bin")
    assert store.list() == {"_run/plan.json": 0, "data/a.bin": 3}
    assert store.list("data") == store.list("data/") == {"data/a.bin": 3}
    assert store.list("dat") == {}


def test_an_absent_output_is_empty(store):
    assert store.list() == {}
    assert not store.exists("x")
    with pytest.raises(FileNotFoundError, match=r"nothing\.json is not there"):
        store.read("nothing.json")
    with pytest.raises(FileNotFoundError):
        store.size("nothing.json")


def test_create_refuses_other_content_and_keeps_the_first(store):
    store.create("a", b"first")
    with pytest.raises(Conflict, match="/a exists with other content"):
        store.create("a", b"second")
    assert store.read("a") == b"first"
    assert store.list() == {"a": 5}


def test_create_with_the_same_content_is_written(store):
    store.create("a", b"same")
    store.create("a", b"same")
    assert store.list() == {"a": 4}


def test_replace_and_delete(store):
    store.replace("a/report.json", b"1")
    store.replace("a/report.json", b"22")
    assert store.read("a/report.json") == b"22"
    assert store.list() == {"a/report.json": 2}
    store.delete("a/report.json")
    store.delete("a/report.json")
    assert store.list() == {}
    store.create("a/report.json", b"3")
    assert store.read("a/report.json") == b"3"


def test_of_many_creators_one_wins(store):
    outcomes: list[str] = []
    gate = threading.Barrier(8)

    def creator(index: int) -> None:
        gate.wait()
        try:
            store.create("x/contested", f"{index}".encode() * 1000)
            outcomes.append(f"{index}")
        except Conflict:
            outcomes.append("lost")

    threads = [threading.Thread(target=creator, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if outcome != "lost"]
    assert len(outcomes) == 8
    assert len(winners) == 1
    assert store.read("x/contested") == winners[0].encode() * 1000
    assert store.list() == {"x/contested": 1000}


def test_check_writable_leaves_nothing(store, tmp_path):
    store.check_writable()
    assert store.list() == {}
    assert not list(tmp_path.iterdir())
    store.create("a", b"1")
    store.check_writable()
    assert store.list() == {"a": 1}


def test_a_crash_before_publication_leaves_no_object(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "out"))

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "hardlink_to", crash)
    # A killed process runs no clean-up either.
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        store.create("data/a", b"half")
    monkeypatch.undo()
    leftovers = list((tmp_path / "out" / "data").iterdir())
    assert len(leftovers) == 1
    assert store.list() == {}
    assert not store.exists("data/a")
    store.create("data/a", b"whole")
    assert store.read("data/a") == b"whole"
    assert store.list() == {"data/a": 5}


def test_a_full_disk_fails_at_once_and_leaves_nothing(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "out"))
    calls = []

    def full(_: int) -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.create("data/a", b"1")
    assert len(calls) == 1
    assert not list((tmp_path / "out" / "data").iterdir())


@pytest.mark.parametrize("action", ["create", "replace", "check"])
def test_an_output_below_a_file_is_one_clear_line(tmp_path, action):
    (tmp_path / "file").write_text("x")
    store = Store(str(tmp_path / "file" / "out"))
    with pytest.raises(StoreError, match="Not a directory") as caught:
        {
            "create": lambda: store.create("a", b"1"),
            "replace": lambda: store.replace("a", b"1"),
            "check": store.check_writable,
        }[action]()
    assert not isinstance(caught.value, Conflict)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "file" / "out") in str(caught.value)


def test_relative_paths_do_not_follow_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("out/run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.create("a", b"1")
    assert (tmp_path / "out" / "run" / "a").read_bytes() == b"1"


def test_a_pickled_store_is_url_and_options_alone(store):
    store.create("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert "_opened" not in vars(again)
    assert again.read("a") == b"1"


def test_an_unknown_scheme_is_a_store_error():
    with pytest.raises(StoreError, match="cannot open nosuch://x"):
        Store("nosuch://x").list()


class Flaky(MemoryFileSystem):
    """A remote file system that fails as told before it works, as s3fs would; not `MemoryFileSystem` to the store."""

    protocol = "flaky"
    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    failures: list[BaseException] = []  # noqa: RUF012
    calls: list[str] = []  # noqa: RUF012
    applies_before_failing = False
    honours_create = True

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self.calls.append("pipe")
        if Flaky.failures and not Flaky.applies_before_failing:
            raise Flaky.failures.pop(0)
        super().pipe_file(path, value, mode=mode if Flaky.honours_create else "overwrite")
        if Flaky.failures:
            raise Flaky.failures.pop(0)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.calls.append("cat")
        if Flaky.failures:
            raise Flaky.failures.pop(0)
        return super().cat_file(path, start, end)


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    # The store must take it for a remote file system.
    monkeypatch.setattr(store_module, "MemoryFileSystem", type("Other", (), {}))
    monkeypatch.setattr(store_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(store_module, "LONGEST_WAIT_S", 0.002)
    for name, value in (("store", {}), ("failures", []), ("calls", []), ("applies_before_failing", False)):
        monkeypatch.setattr(Flaky, name, value)
    monkeypatch.setattr(Flaky, "honours_create", True)
    return Store("flaky://bucket/out", {"secret": "hunter2secret"})


def test_transient_errors_are_retried(flaky, caplog):
    Flaky.failures = [OSError(errno.EBUSY, "SlowDown"), TimeoutError("slow"), ConnectionResetError("reset")]
    flaky.create("a", b"1")
    assert Flaky.calls.count("pipe") == 4
    Flaky.failures = [OSError(errno.EREMOTEIO, "InternalError")]
    assert flaky.read("a") == b"1"
    assert "SlowDown; trying again" in caplog.text


@pytest.mark.parametrize(
    "error", [PermissionError("AccessDenied"), FileNotFoundError("NoSuchBucket"), OSError(errno.EINVAL, "bad")]
)
def test_permanent_errors_are_not(flaky, error):
    Flaky.failures = [error, error]
    with pytest.raises(StoreError, match="cannot write flaky://bucket/out/a"):
        flaky.create("a", b"1")
    assert len(Flaky.calls) == 1


def test_the_deadline_ends_the_retries(flaky, monkeypatch):
    monkeypatch.setattr(store_module, "RETRY_DEADLINE_S", 0.05)
    Flaky.failures = [OSError(errno.EBUSY, "SlowDown")] * 10_000
    with pytest.raises(StoreError, match="SlowDown"):
        flaky.read("a")
    assert 3 < len(Flaky.calls) < 1000


def test_a_conflict_is_not_retried(flaky):
    flaky.create("a", b"1")
    with pytest.raises(Conflict):
        flaky.create("a", b"2")
    assert Flaky.calls == ["pipe", "cat"]


def test_a_lost_response_is_our_own_object(flaky):
    Flaky.applies_before_failing = True
    Flaky.failures = [ConnectionResetError("lost")]
    flaky.create("a", b"1")
    assert flaky.read("a") == b"1"
    assert Flaky.calls.count("pipe") == 1


@pytest.mark.parametrize("condition", [FileExistsError("412"), OSError(errno.EINVAL, "At least one precondition")])
def test_a_refused_precondition_is_a_conflict_in_every_dialect(flaky, condition, monkeypatch):
    flaky.create("a", b"theirs")
    if not isinstance(condition, FileExistsError):
        cause = RuntimeError("412")
        cause.response = {"Error": {"Code": "PreconditionFailed"}}  # type: ignore[attr-defined]
        condition.__cause__ = cause
    # The object appears between the look and the write.
    monkeypatch.setattr(Flaky, "info", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    Flaky.failures = [condition]
    with pytest.raises(Conflict):
        flaky.create("a", b"ours")


def test_a_gateway_that_ignores_create_only_is_named(flaky, caplog):
    flaky.check_writable()
    assert not caplog.records
    Flaky.honours_create = False
    flaky.check_writable()
    assert "does not honour create-only" in caplog.text
    assert flaky.list() == {}
    flaky.create("a", b"1")
    with pytest.raises(Conflict):
        flaky.create("a", b"2")


def test_options_stay_secret(flaky, caplog):
    caplog.set_level(logging.DEBUG)
    Flaky.failures = [TimeoutError("hunter2secret timed out"), PermissionError("key hunter2secret refused")]
    with pytest.raises(StoreError) as caught:
        flaky.create("a", b"1")
    assert "*** refused" in str(caught.value)
    for text in (str(caught.value), repr(flaky), caplog.text):
        assert "hunter2secret" not in text
    assert "pw" not in repr(Store("ftp://user:pw@host/x"))
