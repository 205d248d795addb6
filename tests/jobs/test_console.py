from __future__ import annotations

import itertools
import logging

import pytest

from jobs.words import console, progress
from jobs.words.console import Steps, say
from jobs.words.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    for module in (console, progress):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def seconds_left(text: str) -> float:
    return float(text.removesuffix(" s")) if text.endswith(" s") else 0.0


def test_the_time_left_counts_down_between_commits(clock):
    shown = Progress(shards=10, images=100, done_shards=0, done_images=0)
    lefts = []
    for second in range(1, 51):
        clock[0] = float(second)
        if second % 5 == 0:
            shown.add(10)
        if second >= 5:
            lefts.append(seconds_left(shown.left()))
    assert lefts[0] == 45.0 and lefts[-1] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(lefts))


def test_a_late_shard_does_not_make_the_time_left_grow(clock):
    shown = Progress(2, 20, 0, 0)
    clock[0] = 10.0
    shown.add(10)
    clock[0] = 60.0
    assert shown.left() == "a moment" and shown.rate == 1.0


def test_before_the_first_shard_is_finished_it_says_ever_less_often_what_is_in_progress(clock, caplog):
    caplog.set_level(logging.INFO)
    shown, said = Progress(shards=4, images=40, done_shards=0, done_images=0), []
    for second in range(1, 301):
        clock[0] = float(second)
        before = len(caplog.records)
        shown.tick("workers up: 2 of 3, shards in progress: 2")
        said += [second] * (len(caplog.records) - before)
    assert caplog.messages[0] == "workers up: 2 of 3, shards in progress: 2, none finished after 5.0 s"
    assert said == [5, 10, 20, 40, 80, 140, 200, 260]


def test_after_the_first_shard_it_says_how_far_it_is(clock, caplog):
    caplog.set_level(logging.INFO)
    shown = Progress(shards=4, images=40, done_shards=0, done_images=0)
    clock[0] = 6.0
    shown.add(10)
    shown.tick("workers up: 2 of 2, shards in progress: 2")
    assert caplog.messages == ["1/4 shards, 10/40 images, 1.67 images/s, 18.0 s left"]


def test_steps_say_what_ended_and_how_long_the_rest_takes(clock, caplog):
    caplog.set_level(logging.INFO)
    steps = Steps(4, every_s=5.0)
    for second, name in ((10.0, "one"), (12.0, "two"), (30.0, "three"), (31.0, "four")):
        clock[0] = second
        steps.done(name)
    assert [record.getMessage() for record in caplog.records] == [
        "1/4: one, about 30.0 s left",
        "3/4: three, about 10.0 s left",
        "4/4: four",
    ]


def test_results_go_to_standard_output(capsys):
    say("| a |")
    assert capsys.readouterr() == ("| a |\n", "")
