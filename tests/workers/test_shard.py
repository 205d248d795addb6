from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from tests.workers.test_parquet import make_result
from workers import layout, shard
from workers.machine import describe_platform
from workers.records import RECORD_VERSION, CommitRecord, VoidRecord
from workers.sealed import UnknownVersion, canonical_json, seal, unseal
from workers.shard import (
    DamagedCommit,
    UnequalCommit,
    commit_shard,
    committed,
    read_chain,
    read_commit,
    verify_shard,
    void,
)
from workers.store import Store, StoreError

PATHS = layout.parts(1, 3)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "GRACE_S", 0.0)


def paths_of(generation: int) -> tuple[str, ...]:
    return layout.parts(1, 3, generation)


class Power:
    """A store whose machine loses power before its ``left``-th write; ``seen`` lists what was done."""

    def __init__(self, store: Store, left: int) -> None:
        self._store, self._left = store, left
        self.seen: list[tuple[str, str]] = []

    def __getattr__(self, name):
        action = getattr(self._store, name)
        if name not in ("create", "delete", "replace"):
            return action

        def call(path, *args):
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            self.seen.append((name, path))
            return action(path, *args)

        return call


class Raced(Power):
    """A store in which ``rival`` acts just before something is created for the first time: the commit record."""

    def __init__(self, store: Store, rival: Callable[[], object], path: str = layout.commit(1)) -> None:
        super().__init__(store, 100)
        self._rivals, self._path = [rival], path

    def __getattr__(self, name):
        action = super().__getattr__(name)

        def create(path, data):
            if path == self._path and self._rivals:
                self._rivals.pop()()
            return action(path, data)

        return create if name == "create" else action


def other_result():
    """What a machine of another type might make of the same task."""
    result = make_result()
    return dataclasses.replace(result, images=(*result.images[:-1], result.images[0]))


def test_files_first_and_the_record_last(store, settings, task):
    watched = Power(store, 100)
    record = commit_shard(watched, settings, task, make_result())
    assert watched.seen == [("create", path) for path in (*PATHS, layout.commit(1))]
    assert set(store.list()) == {*PATHS, layout.commit(1)}
    assert read_commit(store, 1) == record
    assert [file.path for file in record.files] == list(PATHS)
    for file in record.files:
        data = store.read(file.path)
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [file.rows for file in record.files] == [6, 18, 6]
    assert (record.first_id, record.last_id, record.rows) == ("00000006", "00000011", 6)
    assert record.seconds.keys() == {"head", "upload"}
    assert record.fingerprint == settings.fingerprint
    assert verify_shard(store, record) == []


def test_without_features_there_is_no_features_file(store, settings, task):
    record = commit_shard(store, settings, task, dataclasses.replace(make_result(), features=None))
    assert [file.path for file in record.files] == list(PATHS[:2])


@pytest.mark.parametrize("writes", range(4))
@pytest.mark.parametrize("again", [make_result, other_result], ids=["same-bytes", "other-bytes"])
def test_a_crash_at_any_write_is_an_uncommitted_shard(store, settings, task, writes, again):
    with pytest.raises(KeyboardInterrupt):
        commit_shard(Power(store, writes), settings, task, make_result())
    assert read_commit(store, 1) is None
    assert len(store.list()) == writes
    left = {path: store.read(path) for path in store.list()}
    record = commit_shard(store, settings, task.model_copy(update={"attempt": 1}), again())
    assert record.attempt == 1
    assert verify_shard(store, record) == []
    assert {path: store.read(path) for path in left} == left, "nothing is ever replaced"
    if again is make_result or not left:
        assert (record.generation, record.closed) == (0, ())
        assert set(store.list()) == {*PATHS, layout.commit(1)}
    else:
        assert (record.generation, record.closed) == (1, (0,))
        assert set(store.list()) == {*left, layout.commit(1), *paths_of(1), layout.commit(1, 1)}


@pytest.mark.parametrize("path", PATHS)
def test_a_damaged_leftover_is_left_and_the_shard_gets_new_names(store, settings, task, path, caplog):
    store.create(path, b"half of a file")
    record = commit_shard(store, settings, task, make_result())
    assert verify_shard(store, record) == [] and record.closed == (0,)
    assert [file.path for file in record.files] == list(paths_of(1))
    assert store.read(path) == b"half of a file"
    assert f"{path} is left over" in caplog.text


def test_the_first_commit_wins(store, settings, task, caplog):
    first = commit_shard(store, settings, task, make_result())
    before = {path: store.read(path) for path in store.list()}
    again = task.model_copy(update={"attempt": 1})
    assert commit_shard(store, settings, again, make_result()) == first
    assert not caplog.records
    with pytest.raises(UnequalCommit, match="the first commit stays"):
        commit_shard(store, settings, again, other_result())
    assert {path: store.read(path) for path in store.list()} == before


@pytest.mark.parametrize("theirs", [make_result, other_result], ids=["same-bytes", "other-bytes"])
def test_losing_the_race_for_the_record(store, settings, task, theirs, caplog):
    """Another attempt does all its work while this one is about to write its commit record."""
    rival = task.model_copy(update={"attempt": 7})

    raced = Raced(store, lambda: commit_shard(store, settings, rival, theirs()))
    with nullcontext() if theirs is make_result else pytest.raises(UnequalCommit, match="shard 1 is committed by"):
        assert commit_shard(raced, settings, task, make_result()).attempt == 7
    record = read_commit(store, 1)
    assert record.attempt == 7
    assert verify_shard(store, record) == []


@pytest.mark.parametrize("path", PATHS)
def test_a_rival_that_commits_while_the_files_are_written_keeps_its_files(store, settings, task, path):
    rival = task.model_copy(update={"attempt": 7})
    theirs = dataclasses.replace(other_result(), features=make_result().features + 1)
    raced = Raced(store, lambda: commit_shard(store, settings, rival, theirs), path)
    ours = make_result()
    if path == PATHS[1]:  # the same in both: nothing in the way
        ours = theirs = make_result()
    with nullcontext() if path == PATHS[1] else pytest.raises(UnequalCommit):
        commit_shard(raced, settings, task, ours)
    assert {action for action, _ in raced.seen} == {"create"}
    assert verify_shard(store, read_commit(store, 1)) == []


def test_a_late_record_finds_its_generation_closed(store, settings, task):
    """An attempt with other bytes closes the generation just before the first one writes its record."""
    rival = task.model_copy(update={"attempt": 7})
    raced = Raced(store, lambda: commit_shard(store, settings, rival, other_result()))
    with pytest.raises(UnequalCommit, match="the first commit stays"):
        commit_shard(raced, settings, task, make_result())
    record = read_commit(store, 1)
    assert (record.attempt, record.generation, record.closed) == (7, 1, (0,))
    assert verify_shard(store, record) == []


def test_a_rival_that_is_about_to_commit_is_waited_for(store, settings, task, monkeypatch):
    """Its files are there and its record is not: within the grace time it comes, and no generation is closed."""
    with pytest.raises(KeyboardInterrupt):
        commit_shard(Power(store, 3), settings, task, other_result())
    monkeypatch.setattr(shard, "GRACE_S", 0.04)
    rival = task.model_copy(update={"attempt": 7})
    monkeypatch.setattr(shard.time, "sleep", lambda _: commit_shard(store, settings, rival, other_result()))
    with pytest.raises(UnequalCommit):
        commit_shard(store, settings, task, make_result())
    assert read_chain(store, 1).length == 1


def test_the_chain_says_what_holds(store, settings, task):
    assert read_chain(store, 1).open and read_chain(store, 1).length == 0
    first = commit_shard(store, settings, task, make_result())
    chain = read_chain(store, 1)
    assert (chain.commit, chain.length, chain.open) == (first, 1, False)
    assert void(store, chain, settings.fingerprint, "damaged")
    assert committed(store, settings, 1) is None
    chain = read_chain(store, 1)
    assert isinstance(chain.last, VoidRecord) and chain.open
    assert (chain.length, chain.closed, chain.attempt) == (2, (0,), 0)
    again = commit_shard(store, settings, task.model_copy(update={"attempt": 1}), make_result())
    assert (again.generation, again.closed) == (2, (0,))
    assert [file.path for file in again.files] == list(paths_of(2))
    assert read_commit(store, 1) == again and verify_shard(store, again) == []


def test_a_late_repair_changes_nothing(store, settings, task):
    """Two drivers close the same damaged commit; the late one finds that the chain has gone on."""
    commit_shard(store, settings, task, make_result())
    late = read_chain(store, 1)
    assert void(store, late, settings.fingerprint, "damaged")
    again = commit_shard(store, settings, task, make_result())
    before = {path: store.read(path) for path in store.list()}
    assert not void(store, late, settings.fingerprint, "damaged, as I remember")
    assert {path: store.read(path) for path in store.list()} == before
    assert read_commit(store, 1) == again


def test_a_record_says_where_and_for_whom_it_was_made(store, settings, task):
    record = commit_shard(store, settings.model_copy(update={"run": "r1"}), task, make_result())
    assert (record.run, record.platform) == ("r1", describe_platform("cpu"))


@pytest.mark.parametrize("kind", ["commit", "void"])
@pytest.mark.parametrize("version", [RECORD_VERSION + 1, 0, "2", True])
def test_a_record_of_another_version_is_refused_by_name(store, settings, task, kind, version):
    commit_shard(store, settings, task, make_result())
    path = layout.commit(1)
    if kind == "void":
        void(store, read_chain(store, 1), settings.fingerprint, "damaged")
        path = layout.commit(1, 1)
    content = {**unseal(store.read(path)), "version": version, "news": [1]}
    store.replace(path, canonical_json(seal(content)))
    before = store.list()
    for look in (lambda: committed(store, settings, 1), lambda: commit_shard(store, settings, task, other_result())):
        with pytest.raises(UnknownVersion, match=rf"{re.escape(path)} is of version {version!r}, allowed: 1 to"):
            look()
    assert store.list() == before


def test_a_record_of_the_first_version_is_read(store, settings, task):
    commit_shard(store, settings, task, make_result())
    content = unseal(store.read(layout.commit(1)))
    for name in ("generation", "closed", "run", "platform"):
        del content[name]
    store.replace(layout.commit(1), canonical_json(seal({**content, "version": 1})))
    record = committed(store, settings, 1)
    assert isinstance(record, CommitRecord)
    assert (record.version, record.generation, record.platform) == (1, 0, "")
    assert commit_shard(store, settings, task, make_result()) == record


def test_verify_names_what_is_wrong(store, settings, task):
    record = commit_shard(store, settings, task, make_result())
    good = {path: store.read(path) for path in PATHS}
    store.replace(PATHS[0], good[PATHS[0]][:-1])
    store.replace(PATHS[1], bytes([good[PATHS[1]][0] ^ 1]) + good[PATHS[1]][1:])
    store.delete(PATHS[2])
    size, digest, missing = verify_shard(store, record)
    assert size == f"{PATHS[0]}: {len(good[PATHS[0]]) - 1} bytes, committed: {len(good[PATHS[0]])}"
    assert digest.startswith(f"{PATHS[1]}: sha256 ")
    assert missing == f"{PATHS[2]}: missing"


def test_a_changed_record_is_noticed(store, settings, task):
    commit_shard(store, settings, task, make_result())
    good = store.read(layout.commit(1))
    for place in range(0, len(good), 301):
        store.replace(layout.commit(1), good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(DamagedCommit, match=r"_commits/00001\.json"):
            read_commit(store, 1)
    for damaged in (b"", b"[]", b"{}", canonical_json(seal({"shard": 1}))):
        store.replace(layout.commit(1), damaged)
        with pytest.raises(DamagedCommit):
            read_commit(store, 1)
    store.replace(layout.commit(2), good)
    with pytest.raises(DamagedCommit, match="is of shard 1"):
        read_commit(store, 2)


def test_a_damaged_record_makes_the_shard_again(store, settings, task, caplog):
    commit_shard(store, settings, task, make_result())
    store.replace(layout.commit(1), b"{")
    before = {path: store.read(path) for path in store.list()}
    assert committed(store, settings, 1) is None
    record = commit_shard(store, settings, task, make_result())
    assert "made again" in caplog.text
    assert record == read_commit(store, 1) and (record.generation, record.closed) == (2, (0,))
    assert {path: store.read(path) for path in before} == before


def test_another_plans_shard_is_never_touched(store, settings, task):
    commit_shard(store, settings, task, make_result())
    before = store.list()
    other = settings.model_copy(update={"fingerprint": "e" * 64})
    with pytest.raises(StoreError, match="belongs to another plan"):
        commit_shard(store, other, task, other_result())
    assert store.list() == before


def test_the_record_is_readable_json(store, settings, task):
    commit_shard(store, settings, task, make_result())
    content = json.loads(store.read(layout.commit(1)))
    assert content["accepted_by_index"] == [6, 6, 0]
    assert content["worker"]
