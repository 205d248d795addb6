from __future__ import annotations

import errno
import logging
import os
import pickle
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

import workers.store as store_module
from tests.faults.filesystem import Bucket, Fault, Faulty, Script, register
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


def test_a_file_is_created_once_from_a_file_of_this_machine(store, tmp_path):
    file = tmp_path / "large.bin"
    file.write_bytes(b"content" * 1000)
    assert store.is_empty()
    store.create_from("a/large.bin", file)
    assert not store.is_empty()
    store.create_from("a/large.bin", file)
    file.unlink()  # what has two names on a disk would change under both
    file.write_bytes(b"another" * 1000)
    with pytest.raises(Conflict, match="exists with other content"):
        store.create_from("a/large.bin", file)
    assert store.read("a/large.bin") == b"content" * 1000


def test_an_output_with_empty_folders_is_empty(tmp_path):
    (tmp_path / "out" / "folder").mkdir(parents=True)
    (tmp_path / "out" / f".plan.json.{'0' * 32}.tmp").write_bytes(b"of a writer that was killed")
    store = Store(str(tmp_path / "out"))
    assert store.is_empty() and store.local_folder() == tmp_path / "out"
    (tmp_path / "out" / "folder" / "file").touch()
    assert not store.is_empty()
    assert Store("memory://nowhere").local_folder() is None


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

    monkeypatch.setattr(os, "link", crash)
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


@pytest.fixture
def remote(monkeypatch):
    """A store that fails as the test tells it to, and whose retries take no time."""
    register()
    monkeypatch.setattr(Bucket, "objects", {})
    monkeypatch.setattr(Faulty, "script", Script())
    monkeypatch.setattr(store_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(store_module, "LONGEST_WAIT_S", 0.002)
    monkeypatch.setattr(store_module, "_answered", set())
    return Store("faulty://bucket/out", {"secret": "hunter2secret"})


def calls(action: str) -> int:
    return sum(done == action for done, _ in Faulty.script.done)


@pytest.mark.parametrize("kind", ["throttle", "fail before", "fail after"])
def test_transient_errors_are_retried(remote, kind, caplog):
    Faulty.script.faults = [Fault(kind, action, times=3) for action in ("create", "read", "list", "delete", "replace")]
    remote.create("a", b"1")
    assert remote.read("a") == b"1"
    assert remote.list() == {"a": 1}
    remote.replace("a", b"22")
    remote.delete("a")
    assert Bucket.objects == {}
    assert all(fault.fired for fault in Faulty.script.faults)
    assert "; trying again" in caplog.text


@pytest.mark.parametrize(
    "error", [PermissionError("AccessDenied"), FileNotFoundError("NoSuchBucket"), OSError(errno.EINVAL, "bad")]
)
def test_permanent_errors_are_not(remote, error):
    Faulty.script.faults = [Fault("raise", "create", error=error, times=2)]
    with pytest.raises(StoreError, match="cannot write faulty://bucket/out/a"):
        remote.create("a", b"1")
    assert calls("create") == 1


@pytest.mark.parametrize("answered", [True, False])
def test_the_deadline_ends_the_retries(remote, answered, monkeypatch):
    """A store that has never answered is rather mistyped than away, and is given up sooner."""
    monkeypatch.setattr(store_module, "RETRY_DEADLINE_S", 0.3 if answered else 1000.0)
    monkeypatch.setattr(store_module, "PROBE_DEADLINE_S", 1000.0 if answered else 0.3)
    if answered:
        assert not remote.exists("a")
    Faulty.script.faults = [Fault("throttle", "create", times=10**6)]
    with pytest.raises(StoreError, match="SlowDown"):
        remote.create("a", b"1")
    assert 3 < calls("create") < 1000


def test_a_store_that_answers_500_is_given_up_sooner_than_one_that_is_away(remote, monkeypatch):
    assert not remote.exists("a")
    monkeypatch.setattr(store_module, "FAULT_DEADLINE_S", 0.05)
    broken = OSError(errno.EREMOTEIO, "We encountered an internal error")
    broken.__cause__ = Exception()
    broken.__cause__.response = {"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 500}}
    Faulty.script.faults = [Fault("raise", "create", error=broken, times=10**6)]
    with pytest.raises(StoreError, match="internal error"):
        remote.create("a", b"1")
    assert 2 < calls("create") < 1000
    Faulty.script.faults = [Fault("raise", "create", error=broken, times=2)]
    remote.create("b", b"1")


def test_a_worker_knows_its_store_from_the_start(remote, monkeypatch):
    monkeypatch.setattr(store_module, "PROBE_DEADLINE_S", 0.0)
    again = Store(remote.url, known=True)
    Faulty.script.faults = [Fault("throttle", "look", times=3)]
    assert not again.exists("a")


def test_a_conflict_is_not_retried(remote):
    remote.create("a", b"1")
    with pytest.raises(Conflict):
        remote.create("a", b"2")
    assert calls("create") == 1


def test_a_lost_response_is_our_own_object(remote):
    Faulty.script.faults = [Fault("fail after", "create")]
    remote.create("a", b"1")
    assert remote.read("a") == b"1"
    assert calls("create") == 1


@pytest.mark.parametrize("name", ["a", "some/b"])
def test_a_reading_that_ends_early_is_repeated(remote, name):
    remote.create(name, b"0123456789")
    Faulty.script.faults = [Fault("truncate", "read", times=2)]
    assert remote.read(name) == b"0123456789"
    Faulty.script.faults = [Fault("truncate", "read", times=2)]
    assert remote.read_many({name: 10, "gone": 3}) == {name: b"0123456789", "gone": None}


def test_a_rival_that_vanishes_is_no_conflict(remote, monkeypatch):
    """The object is there when it is created and gone when it is read: its writer has dropped it again."""
    remote.create("a", b"theirs")
    read = Store.read

    def vanish(store: Store, path: str) -> bytes:
        store.delete(path)
        return read(store, path)

    monkeypatch.setattr(Store, "read", vanish)
    remote.create("a", b"ours")
    assert Bucket.objects == {"bucket/out/a": b"ours"}


@pytest.mark.parametrize("condition", [FileExistsError("412"), OSError(errno.EINVAL, "At least one precondition")])
def test_a_refused_precondition_is_a_conflict_in_every_dialect(remote, condition):
    remote.create("a", b"theirs")
    if not isinstance(condition, FileExistsError):
        condition.__cause__ = RuntimeError("412")
        condition.__cause__.response = {"Error": {"Code": "PreconditionFailed"}}
    # The object appears between the look and the write.
    Faulty.script.faults = [Fault("ignore", "look"), Fault("raise", "create", error=condition)]
    with pytest.raises(Conflict):
        remote.create("a", b"ours")


def test_a_gateway_that_ignores_create_only_is_known(remote):
    assert remote.check_writable()
    Faulty.script.faults = [Fault("ignore", "create", times=10**6)]
    assert not remote.check_writable()
    assert remote.list() == {}
    remote.create("a", b"1")
    with pytest.raises(Conflict):
        remote.create("a", b"2")


def test_tidying_up_does_not_wait_for_a_store_that_is_away(remote, monkeypatch):
    monkeypatch.setattr(store_module, "TIDY_DEADLINE_S", 0.01)
    Faulty.script.faults = [Fault("fail before", "delete", times=10**6)]
    assert remote.check_writable()


def test_options_stay_secret(remote, caplog):
    caplog.set_level(logging.DEBUG)
    errors = (TimeoutError("hunter2secret timed out"), PermissionError("key hunter2secret refused"))
    Faulty.script.faults = [Fault("raise", "create", error=error) for error in errors]
    with pytest.raises(StoreError) as caught:
        remote.create("a", b"1")
    assert "*** refused" in str(caught.value)
    for text in (str(caught.value), repr(remote), caplog.text):
        assert "hunter2secret" not in text
    assert "pw" not in repr(Store("ftp://user:pw@host/x"))


def test_an_endpoint_where_nobody_answers_is_named(s3_options, monkeypatch):
    monkeypatch.setattr(store_module, "PROBE_DEADLINE_S", 0.0)
    wrong = {**s3_options, "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(StoreError, match=r'connect to the endpoint URL: "http://127\.0\.0\.1:9/'):
        Store(f"s3://tests/{uuid.uuid4().hex}", wrong).list()


def test_the_usual_environment_is_enough(s3, monkeypatch):
    """Endpoint and keys from AWS_* alone; a wrong key is one line that does not repeat it."""
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    url = f"s3://tests/{uuid.uuid4().hex}"
    Store(url, {"skip_instance_cache": True}).create("a", b"1")
    assert Store(url, s3.options).read("a") == b"1"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "no-such-secret-key")
    with pytest.raises(StoreError, match="signature") as caught:
        Store(url, {"skip_instance_cache": True}).list()
    assert "no-such-secret-key" not in str(caught.value)


def test_a_profile_is_enough(s3, monkeypatch, tmp_path):
    (tmp_path / "config").write_text(
        f"[profile batch]\naws_access_key_id = {s3.options['key']}\n"
        f"aws_secret_access_key = {s3.options['secret']}\nendpoint_url = {s3.endpoint}\n"
    )
    for name in s3.variables:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = Store(f"s3://tests/{uuid.uuid4().hex}", {"profile": "batch", "skip_instance_cache": True})
    store.create("a", b"1")
    assert store.read("a") == b"1"


@pytest.mark.slow
def test_an_object_of_several_parts_is_created_once(s3_options):
    """Above 100 MB s3fs uploads parts, and the condition goes with the last request."""
    store = Store(f"s3://tests/{uuid.uuid4().hex}", s3_options)
    data = bytes(105 * 2**20)
    store.create("large", data)
    assert store.size("large") == len(data)
    with pytest.raises(Conflict):
        store.create("large", b"other")
    fs, key = store._opened[0], store._key("large")
    with pytest.raises(OSError) as caught:
        fs.pipe_file(key, data, mode="create")  # without the look that comes before
    assert store_module._is_taken(caught.value)
    assert store.list() == {"large": len(data)}
    store.delete("large")


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def without_links(request, monkeypatch):
    """gcsfuse, s3fs-fuse and BeeGFS answer like this when they are asked for a hard link."""

    def link(*_args, **_options):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("rename", [True, False], ids=["exclusive-rename", "no-exclusive-rename"])
def test_a_file_system_without_hard_links_is_written_to(without_links, rename, tmp_path, monkeypatch):
    if not rename:
        monkeypatch.setattr(store_module.local_disk, "_rename", lambda *_: None)
    store = Store(str(tmp_path / "out"))
    assert store.check_writable() is rename, "without either, the driver takes a lease"
    assert not (tmp_path / "out").exists()
    store.create("data/a", b"one")
    store.create("data/a", b"one")
    with pytest.raises(Conflict):
        store.create("data/a", b"two")
    assert store.list() == {"data/a": 3} and list((tmp_path / "out/data").iterdir()) == [tmp_path / "out/data/a"]


def test_an_exclusive_rename_has_one_winner(without_links, tmp_path):
    store, won = Store(str(tmp_path)), []

    def create(number: int) -> None:
        try:
            store.create("a", bytes([number]))
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("a") == bytes(won)


@pytest.mark.parametrize("url", ["file://{}/./x", "{}/y/../x", "file://{}//x"])
def test_a_local_path_with_dots_lists_what_it_holds(url, tmp_path):
    store = Store(url.format(tmp_path))
    assert store.check_writable()
    store.create("_commits/0.json", b"x")
    assert store.list("_commits") == {"_commits/0.json": 1}


@pytest.mark.parametrize("path", ["/p", "a//b"])
def test_a_url_that_hides_what_is_written_is_refused(path, s3_options, monkeypatch):
    monkeypatch.setattr(store_module, "_FIND_S", 0.0)
    with pytest.raises(StoreError, match="does not show when it is listed, allowed: a URL without empty or dotted"):
        Store(f"s3://tests/{path}", s3_options).check_writable()
