"""No order of the store's operations, no death and no pause loses, doubles or replaces what a record points at.

`python -m tests.interleavings` prints what the slow tests enumerate.
"""

from __future__ import annotations

import logging

import pytest

from jobs.dataset import commits, finish
from tests.interleavings import model, real
from workers import layout, shard
from workers.store import Conflict, Store

MODELS = {each.name: each for each in model.situations()}
#: Where each broken rule shows, in few states.
SHOWS = {
    "a repair deletes record and files": "two repairs of a file that is gone",
    "every file that no commit names is emptied": "a flipped file beside a shard to make, a driver",
    "a shard that was closed has no other read again": "a repair of two flipped files",
    "_SUCCESS without a look at the files": "a create that stores nothing, and two drivers",
}
#: Those of the default tier; the others are more of the same.
QUICK = (
    "two attempts of two platforms and a driver",
    "a dead attempt's file, an attempt and a driver",
    "two repairs of it, of two platforms",
    "a create that stores nothing, and two drivers",
    "a flipped file beside a shard to make, two platforms",
    "two repairs of two flipped files",
)
REAL = (
    "two attempts of two platforms",
    "a dead attempt's file, an attempt and a driver",
    "two repairs of it, of two platforms",
    "two repairs of a damaged record, of two platforms",
)
LATE = "an attempt and a driver of another platform"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory):
    logging.disable(logging.CRITICAL)  # thousands of executions warn of what they mend
    with pytest.MonkeyPatch.context() as patch:
        yield real.make_job(tmp_path_factory.mktemp("job"), patch)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", QUICK)
def test_the_model_holds_with_two_switches(name):
    found = MODELS[name].explore(model.Rules(), 2)
    print(found.line(name))
    assert found.states > 1000 and found.violations == []


def test_the_model_holds_in_every_order():
    name = "a dead attempt's file, an attempt and a driver"
    found = MODELS[name].explore(model.Rules())
    print(found.line(name))
    assert found.complete and found.states > 2000 and found.violations == []


@pytest.mark.parametrize("rule", model.broken_rules())
def test_a_broken_rule_is_found(rule):
    name = SHOWS.get(rule, "two attempts of two platforms and a driver")
    found = MODELS[name].explore(model.broken_rules()[rule], 2, first=True)
    assert found.violations, rule
    print(f"{rule}: {found.violations[0]}")


@pytest.mark.parametrize("name", REAL)
def test_the_program_holds_with_one_switch(name, job):
    found = {each.name: each for each in real.situations(job)}[name].explore(job, 1)
    print(found.line(name))
    assert found.states > 200 and found.violations == []


def _delete_and_make_again(store: Store, chain, _fingerprint: str, _reason: str) -> bool:
    for path in (layout.commit(chain.shard, chain.length - 1), *layout.parts(chain.shard, 1, chain.length - 1)):
        store.delete(path)
    return True


def _replace_leftovers(store: Store, blobs) -> None:
    for blob in blobs:
        try:
            store.create(blob.path, blob.data)
        except Conflict:
            store.delete(blob.path)
            store.create(blob.path, blob.data)


def _delete_leftovers(store: Store, _plan, committed) -> None:
    for kept in committed.records.values():
        for path in kept.closed_paths:
            store.delete(path)


#: What the program could do instead: module, function, what takes its place, and where that shows.
BROKEN = {
    "a repair deletes record and files": (commits, "void", _delete_and_make_again, REAL[2]),
    "other bytes under a name are replaced": (shard, "_write", _replace_leftovers, REAL[0]),
    "closed names are deleted": (
        finish,
        "put_empty_parts",
        _delete_leftovers,
        "an attempt and a driver of another platform",
    ),
    "closed names are left": (finish, "put_empty_parts", lambda *_: None, REAL[1]),
    "records are put": (Store, "create", Store.replace, REAL[0]),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_program_is_found(rule, job, monkeypatch):
    module, name, instead, situation = BROKEN[rule]
    found = {each.name: each for each in real.situations(job)}[situation]
    monkeypatch.setattr(module, name, instead)
    assert found.explore(job, 2, first=True).violations


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_model_holds_in_every_situation(name):
    found = MODELS[name].explore(model.Rules(), 2)
    print(found.line(name))
    assert found.violations == []


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_program_holds_in_every_situation(job):
    for situation in real.situations(job):
        found = situation.explore(job, 2)
        print(found.line(situation.name))
        assert found.violations == []
