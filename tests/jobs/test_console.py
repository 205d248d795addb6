from __future__ import annotations

import itertools
import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from jobs.cli import main
from jobs.dataset.commits import find_damage, read_committed
from jobs.job.plan import read_plan
from jobs.words import progress
from jobs.words.console import say
from jobs.words.progress import Progress, Steps, following
from spd_core.progress import told
from tests.jobs.tree import make_tree


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def seconds_left(text: str) -> float:
    return float(text.removesuffix(" s")) if text.endswith(" s") else 0.0


def test_the_time_left_counts_down_between_commits(clock):
    shown = Progress(100, "images")
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
    shown = Progress(20, "images")
    clock[0] = 10.0
    shown.add(10)
    clock[0] = 60.0
    assert shown.left() == "a moment" and shown.rate == 1.0


def test_before_the_first_shard_is_finished_it_says_ever_less_often_what_is_in_progress(clock, caplog):
    caplog.set_level(logging.INFO)
    shown, said = Progress(40, "images"), []
    for second in range(1, 301):
        clock[0] = float(second)
        before = len(caplog.records)
        shown.tick("2 of 3 workers ready, 2 shards being made")
        said += [second] * (len(caplog.records) - before)
    assert caplog.messages[0] == "2 of 3 workers ready, 2 shards being made, none finished after 5.0 s"
    assert said == [5, 10, 20, 40, 80, 140, 200, 260]


def test_after_the_first_shard_it_says_how_far_it_is(clock, caplog):
    caplog.set_level(logging.INFO)
    shown = Progress(40, "images")
    clock[0] = 6.0
    shown.add(10, "1/4 shards")
    shown.tick("2 of 2 workers ready, 2 shards being made")
    assert caplog.messages == ["1/4 shards, 10/40 images, 1.67 images/s, 18.0 s left"]


def test_steps_say_what_ended_and_how_long_the_rest_takes(clock, caplog):
    caplog.set_level(logging.INFO)
    steps = Steps(4)
    for second, name in ((10.0, "one"), (12.0, "two"), (30.0, "three"), (31.0, "four")):
        clock[0] = second
        steps.did(name)
    assert [record.getMessage() for record in caplog.records] == [
        "1/4: one, about 30.0 s left",
        "3/4: three, about 10.0 s left",
        "4/4: four",
    ]


def test_results_go_to_standard_output(capsys):
    say("| a |")
    assert capsys.readouterr() == ("| a |\n", "")


def test_lines_come_seconds_apart_and_ever_less_often_and_the_last_one_says_how_long_it_took(clock, caplog):
    caplog.set_level(logging.INFO)
    said = []
    with Progress(3600, "shards", note="re-reading") as shown:
        for second in range(1, 3601):
            clock[0] = float(second)
            before = len(caplog.records)
            shown.add()
            shown.tick()
            said += [second] * (len(caplog.records) - before)
    apart = [later - earlier for earlier, later in itertools.pairwise([0, *said])]
    assert apart[0] == 5 and apart == sorted(apart) and apart[-1] == 60
    assert caplog.messages[-1] == "re-reading, 3,600/3,600 shards, 1.00 shards/s, done after 1 h 00 min"


def test_work_of_a_moment_says_nothing(clock, caplog):
    caplog.set_level(logging.INFO)
    with Progress(3, "shards") as shown:
        shown.add(3)
        shown.tick()
    assert caplog.messages == []


def test_earlier_runs_do_not_count_for_the_rate(clock):
    shown = Progress(100, "images", done=50)
    clock[0] = 10.0
    shown.add(10)
    assert shown.line() == "60/100 images, 1.00 images/s, 40.0 s left"


def test_a_long_computation_of_the_core_is_shown_by_whoever_follows_it(clock, caplog):
    caplog.set_level(logging.INFO)
    with following("training"):
        for second in told(range(10), "steps"):
            clock[0] = 6.0 * (second + 1)
    assert caplog.messages[0] == "training, 1/10 steps, 0.17 steps/s, 54.0 s left"
    assert caplog.messages[-1] == "training, 10/10 steps, 0.17 steps/s, done after 1 min 00 s"
    assert list(told(range(3), "steps")) == [0, 1, 2]  # and by nobody otherwise


_A_COMMAND = """
import logging, time
from jobs.words.console import LogHandler, say
from jobs.words.progress import Progress, draw_bars
logging.basicConfig(level=logging.INFO, handlers=[LogHandler()], format="%(message)s")
draw_bars()
with Progress(4, "images") as shown:
    for _ in range(4):
        time.sleep(0.3)
        shown.add()
        shown.tick()
    logging.info("a shard is slow")
say("4 images")
"""


def test_a_terminal_gets_a_bar_below_what_is_logged_and_results_stay_apart():
    terminal, other_end = pty.openpty()
    made = subprocess.run([sys.executable, "-c", _A_COMMAND], stdout=subprocess.PIPE, stderr=other_end, check=True)
    drawn = os.read(terminal, 1 << 16).decode()
    assert made.stdout == b"4 images\n"
    assert "━" in drawn and re.search("[1-4]/4 images", drawn) and "a shard is slow\r\n" in drawn


def test_a_pipe_gets_lines_without_a_bar():
    made = subprocess.run([sys.executable, "-c", _A_COMMAND], capture_output=True, check=True)
    assert (made.stdout, made.stderr) == (b"4 images\n", b"a shard is slow\n")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["validate"], r"[12]/3 shards, [\d.,]+ shards/s, [\w ,.]+ left"),
        (["export", "--to", "npz"], r"[48]/10 images, [\d.,]+ images/s, [\w ,.]+ left"),
    ],
    ids=["validate", "export"],
)
def test_a_command_says_how_far_it_is(command, told, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    given = [make_tree(tmp_path).url, *([str(tmp_path / "there")] if command[0] == "export" else [])]
    assert main([command[0], *given, *command[1:]]) == 0
    assert any(re.fullmatch(told, message) for message in caplog.messages), caplog.messages


def test_re_reading_the_files_of_a_dataset_says_how_far_it_is(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    store = make_tree(tmp_path)
    committed = read_committed(store, read_plan(store))
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    find_damage(store, committed)
    assert any(re.fullmatch(r"re-reading, [1-5]/6 files, [\d.,]+ files/s, .* left", each) for each in caplog.messages)
