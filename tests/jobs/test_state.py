"""What a driver finds at an output decides what it does."""

from __future__ import annotations

import pytest

from jobs.job.plan import read_plan
from jobs.run.state import Case, find_state
from jobs.words.errors import SpecError
from tests.jobs.tree import lose_shard
from workers import layout
from workers.store import Store

PART = "data/part-00001-of-00003.parquet"


@pytest.fixture
def plan(store):
    return read_plan(store)


def case(store, plan) -> Case:
    return find_state(store, plan).case


def test_an_empty_output_is_new(plan, tmp_path):
    assert case(Store(str(tmp_path / "empty")), plan) is Case.NEW


def test_a_whole_dataset_is_done(store, plan):
    state = find_state(store, plan)
    assert state.case is Case.DONE
    assert (state.plan, len(state.committed.records)) == (plan, 3)


def test_a_lost_shard_is_missing_with_or_without_the_plan(store, plan):
    lose_shard(store, 1, 3)
    assert case(store, plan) is Case.UNFINISHED
    store.delete(layout.PLAN)
    assert case(store, plan) is Case.UNFINISHED


def test_a_plan_without_shards_is_unfinished(store, plan):
    for shard in range(3):
        lose_shard(store, shard, 3)
    assert case(store, plan) is Case.UNFINISHED


def test_a_changed_byte_is_damage(store, plan):
    data = store.read(PART)
    store.replace(PART, data[:-1] + bytes([data[-1] ^ 1]))
    state = find_state(store, plan)
    assert state.case is Case.DAMAGED
    assert list(state.committed.damaged) == [1]


@pytest.mark.parametrize("path", [layout.SUCCESS, layout.PLAN, layout.REPORT_JSON])
def test_what_the_end_of_a_job_writes_is_finished_alone(store, plan, path):
    store.delete(path)
    assert case(store, plan) is Case.TO_FINISH


def test_files_of_no_job_are_refused(store, plan, tmp_path):
    other = Store(str(tmp_path / "other"))
    other.create(layout.CARD, b"mine")
    with pytest.raises(SpecError, match=r"holds a README\.md of no job"):
        find_state(other, plan)
    store.create("data/part-00007-of-00009.parquet", b"mine")
    with pytest.raises(SpecError, match="is no file of this job"):
        find_state(store, plan)
