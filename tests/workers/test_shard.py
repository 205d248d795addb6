from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from tests.workers.test_parquet import make_result
from workers import layout
from workers.sealed import canonical_json, seal
from workers.shard import (
    DamagedCommit,
    UnequalCommit,
    commit_shard,
    committed,
    drop_shard,
    read_commit,
    shard_paths,
    verify_shard,
)
from workers.store import Store, StoreError

PATHS = (layout.data(1, 3), layout.acceptance(1, 3), layout.features(1, 3))


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
    record = commit_shard(store, settings, task.model_copy(update={"attempt": 1}), again())
    assert record.attempt == 1
    assert verify_shard(store, record) == []
    assert set(store.list()) == {*PATHS, layout.commit(1)}


@pytest.mark.parametrize("path", PATHS)
def test_a_damaged_leftover_is_replaced(store, settings, task, path, caplog):
    store.create(path, b"half of a file")
    record = commit_shard(store, settings, task, make_result())
    assert verify_shard(store, record) == []
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
    if path == PATHS[1]:  # the same in both: nothing in the way
        theirs = make_result()
    with nullcontext() if path == PATHS[1] else pytest.raises(UnequalCommit):
        commit_shard(raced, settings, task, make_result())
    assert ("delete", path) not in raced.seen
    assert verify_shard(store, read_commit(store, 1)) == []


def test_a_rival_whose_files_were_replaced_is_written_again(store, settings, task, caplog):
    """The rival commits other bytes, but this attempt has already replaced its files: nobody's record may stand."""
    commit_shard(store, settings, task, other_result())
    record = store.read(layout.commit(1))
    drop_shard(store, 1, 3)

    raced = Raced(store, lambda: store.create(layout.commit(1), record))
    ours = commit_shard(raced, settings, task.model_copy(update={"attempt": 2}), make_result())
    assert "two attempts collided" in caplog.text
    assert ours.attempt == 2
    assert read_commit(store, 1) == ours
    assert verify_shard(store, ours) == []


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


def test_drop_removes_the_record_first(store, settings, task):
    record = commit_shard(store, settings, task, make_result())
    watched = Power(store, 100)
    drop_shard(watched, 1, 3)
    assert watched.seen == [("delete", path) for path in (layout.commit(1), *shard_paths(1, 3))]
    assert store.list() == {}
    assert verify_shard(store, record) == [f"{path}: missing" for path in PATHS]


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
    assert committed(store, settings, 1) is None
    assert store.list() == {}
    assert "made again" in caplog.text
    assert commit_shard(store, settings, task, make_result()) == read_commit(store, 1)


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
