"""What a job has gained, as its last lines, its report and its card say it."""

from __future__ import annotations

import json
import re

import pytest

from jobs.cli import main
from jobs.run import driver
from jobs.words.gained import gained_lines, speed_in_words
from tests.faults.inline_ray import inline_ray
from tests.tiny_causal import make_tiny_causal_pair

PLAIN = {"name": "plain", "head_window": []}
WINDOWED = {"name": "plain", "head_window": [8, 4]}
SPECULATIVE = {"name": "speculative", "head_window": []}
GAIN = {"ratio": 2.345, "method": [2.0, 3.0], "plain": [1.0, 1.2], "images": 64.0, "batch": 32, "whole": True}
ROW = {"method": PLAIN, "images_per_s": 1.0}


def report_of(**fields: object) -> dict[str, object]:
    return {"method": WINDOWED, "throughput": {"images_per_s": 12.34, "workers": 2}, **fields}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"against_plain": GAIN, "calibration": {"rows": [ROW], "made": "2026-11-28T08:00:00"}},
            "plain with head windows is 2.35 times as fast as plain decoding at the same law and batch: "
            "2 turns of 32 images each way, on one worker, before the job, 2026-11-28",
        ),
        (
            {"method": SPECULATIVE, "against_plain": GAIN, "calibration": {"rows": [ROW], "remembered": True}},
            "speculative is 2.35 times as fast as plain decoding at the same law and batch: "
            "2 turns of 32 images each way, on one worker, earlier, on such a device",
        ),
        (
            {"method": PLAIN, "calibration": {"rows": [ROW, ROW, {**ROW, "images_per_s": None}]}},
            "plain decoding is the fastest of the 2 ways measured on one worker, before the job",
        ),
        (
            {"against_plain": {**GAIN, "images": 9.0, "whole": False}, "calibration": {"rows": [ROW]}},
            "plain with head windows is 2.35 times as fast as plain decoding at the same law and batch: "
            "2 turns of 4.5 images each way, cut off before a batch was whole, on one worker, before the job",
        ),
        ({"method": PLAIN}, "by plain decoding"),
        (
            {"method": SPECULATIVE},
            "plain decoding was not measured beside it: `spd calibrate` with the same spec does that",
        ),
        ({"method": {"name": "null"}}, "no model was run"),
    ],
)
def test_the_speed_is_told_with_what_it_was_held_against(fields, words):
    assert speed_in_words(report_of(**fields)) == f"12.3 images/s on 2 workers; {words}"


def test_the_last_lines_name_acceptance_and_quality_where_there_are_any():
    quality = {"frechet": 337.3, "frechet_interval": [326.7, 347.9], "floor": 87.7, "floor_n": 2000}
    found = report_of(acceptance={"rate": 0.8888}, quality={**quality, "label_agreement": 0.9215})
    assert gained_lines(found)[1:] == [
        "acceptance: 88.9 % of the drafts tested, up to the first rejection of a block",
        "quality: distance to real images 337 (95 % interval 327 to 348), the same of 2,000 real ones 87.7; "
        "a classifier sees the label in 92.2 % of the images",
    ]
    skipped = report_of(acceptance=None, quality={"skipped": "12 images are too few, at least 50 are needed"})
    assert gained_lines(skipped)[1:] == ["quality: not computed: 12 images are too few, at least 50 are needed"]
    assert gained_lines({"method": PLAIN}) == [], "nothing is committed"


def test_a_job_without_a_method_measures_says_what_it_gained_and_measures_once(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(driver, "running_ray", inline_ray)
    pair = str(make_tiny_causal_pair(tmp_path / "tiny"))
    given = ["generate", "--pair", pair, "--count", "12", "--workers", "1", "--set", "features=false"]
    caplog.set_level("INFO")
    lines = []
    for name in ("a", "a", "b"):
        assert main([*given, "--output", str(tmp_path / name)]) == 0
        lines.append(capsys.readouterr().out.splitlines())
    assert caplog.text.count("method auto: measuring ") == 1
    assert caplog.text.count("as measured before on such a device") == 1, "a finished job measures nothing"
    assert [re.sub(r" in this run of .*", "", line[0]) for line in lines] == [
        f"{tmp_path}/a: 12 images in 1 shard, 12 of them made",
        f"{tmp_path}/a: 12 images in 1 shard, 0 of them made",
        f"{tmp_path}/b: 12 images in 1 shard, 12 of them made",
    ]
    assert lines[0][1] == lines[1][1] and lines[0][1].startswith("speed: ")
    assert "on one worker, before the job, 20" in lines[0][1]
    assert "on one worker, earlier, on such a device, 20" in lines[2][1]
    assert [line[-1] for line in lines[1:]] == [f"report: {tmp_path}/{name}/report.html" for name in "ab"]
    report = json.loads((tmp_path / "a/report.json").read_text())
    told = speed_in_words(report)
    assert f'<p class="lead">{told}.</p>' in (tmp_path / "a/report.html").read_text()
    assert f"\n{told}.\n" in (tmp_path / "a/README.md").read_text()
    assert main(["validate", str(tmp_path / "a")]) == 0


def test_a_method_by_name_is_held_against_plain_decoding_by_calibrate(tmp_path, capsys):
    pair = str(make_tiny_causal_pair(tmp_path / "tiny"))
    given = ["calibrate", "--set", f"pair={pair}", "--set", "requests.count=8", "--set", "batch=4"]
    assert main([*given, "--set", "method=speculative"]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 4 and "plain (head_window off)" in table and "speculative (" in table
    assert main([*given, "--set", "method=plain"]) == 2
    assert "method: got 'plain', allowed: auto, or a method to hold against" in capsys.readouterr().err
