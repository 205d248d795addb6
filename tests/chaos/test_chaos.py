"""The count of what is lost can tell; and a short run of the whole thing, `python -m tests.chaos` is the long one."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.dataset import Difference, compare, read_rows
from tests.chaos.kills import CAUSES, PAUSED, next_kill
from tests.jobs.tree import make_tree
from workers import layout
from workers.parquet import read_table


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    return make_tree(tmp_path_factory.mktemp("tree"), method="null")


def test_a_dataset_is_like_itself(store):
    assert compare(read_rows(store), read_rows(store)) == Difference()
    assert len(read_rows(store).images) == 10


def test_every_loss_is_counted(store, tmp_path):
    whole = read_rows(store)
    lost = dataclasses.replace(whole, images=dict(list(whole.images.items())[:-2]))
    assert compare(lost, whole).lost == 2
    doubled = dataclasses.replace(whole, counts=whole.counts + Counter(list(whole.counts)[:3]))
    assert compare(doubled, whole).doubled == 3
    name, (label, seed, digest) = next(iter(whole.images.items()))
    for other in ((label + 1, seed, digest), (label, seed + 1, digest), (label, seed, digest[::-1])):
        assert compare(dataclasses.replace(whole, images={**whole.images, name: other}), whole).differing == 1


def test_a_second_file_of_a_shard_is_counted(store, tmp_path):
    whole = read_rows(store)
    again = make_tree(tmp_path, method="null")
    again.create("data/part-again.parquet", again.read(layout.data(0, 3)))
    found = compare(read_rows(again), whole)
    assert (found.lost, found.doubled, found.differing, found.files) == (
        0,
        read_table(again.read(layout.data(0, 3))).num_rows,
        0,
        1,
    )


def test_kills_keep_their_shares():
    draw, done = random.Random(0), Counter()
    for number in range(200):
        kill = next_kill(draw, done, {}, 200, ("early", "middle", "middle", "late", "repair")[number % 5])
        done[kill.label] += 1
    assert all(done[cause] >= 15 for cause in CAUSES)
    assert all(done[f"{cause} paused"] >= 5 for cause in PAUSED)


def test_pauses_last_up_to_a_minute():
    draw = random.Random(1)
    pauses = [next_kill(draw, {}, {}, 200, "middle").pause_s for _ in range(400)]
    assert 50 < max(pauses) <= 60 and any(0 < pause < 3 for pause in pauses) and pauses.count(0.0) > 250


@pytest.mark.slow
def test_nothing_is_lost(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "tests.chaos",
        "--kills",
        "12",
        "--out",
        str(tmp_path / "table.md"),
        "--port",
        "22400",
    ]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    last = (tmp_path / "table.md").read_text().splitlines()[8].split("|")
    assert int(last[2]) >= 12 and [int(count) for count in last[6:10]] == [0, 0, 0, 0]
