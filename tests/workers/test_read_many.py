"""Many objects read at once, on every file system of the store tests."""

from __future__ import annotations

import pytest

from workers.store import Store


def test_every_object_comes_as_it_is(store):
    whole = {f"_commits/{i:05d}.json": bytes([i]) * (i * 37) for i in range(40)}
    for path, data in whole.items():
        store.create(path, data)
    assert store.read_many({path: len(data) for path, data in whole.items()}) == whole
    assert store.read_many({}) == {}


def test_what_is_gone_or_of_another_size_is_read_by_itself(store):
    store.create("a", b"first")
    store.create("b", b"")
    assert store.read_many({"a": 999, "b": 0, "c/d": 5}) == {"a": b"first", "b": b"", "c/d": None}


@pytest.mark.parametrize("fault", [OSError("cut"), b"shor"])
def test_what_arrives_wrong_is_read_again(fault, monkeypatch):
    store = Store("memory://read-many/out")
    store.replace("a", b"whole")
    fs = store._opened[0]
    key = store._key("a")
    monkeypatch.setattr(type(fs), "cat", lambda *_args, **_options: {key: fault})
    assert store.read_many({"a": 5}) == {"a": b"whole"}

    def fails(*_args: object, **_options: object) -> None:
        raise OSError("all of it failed")

    monkeypatch.setattr(type(fs), "cat", fails)
    assert store.read_many({"a": 5}) == {"a": b"whole"}
