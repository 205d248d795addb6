"""Nights of a real job on workers in this process: one record a night whatever happens, a control, pages, a verdict."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from jobs.nightly import command
from jobs.nightly.history import add_night, read_history
from jobs.run import driver
from jobs.words.errors import JobError
from tests.faults.inline_ray import inline_ray
from tests.jobs.code_pair import make_code_pair
from tests.jobs.nights_tree import a_night, thirty_nights
from tests.tiny_pair import make_tiny_pair

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "nightly.md").read_text()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_code_pair(tmp_path_factory.mktemp("pair") / "pair")


@pytest.fixture
def job(pair, tmp_path, monkeypatch):
    """A spec file of a few images; workers run in this process."""
    for module in (driver, command):
        monkeypatch.setattr(module, "running_ray", inline_ray)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "job.yaml"
    spec = {
        "pair": str(pair), "output": str(tmp_path / "out"), "requests": {"count": 6}, "shard_size": 3, "batch": 3,
        "features": False, "workers": {"count": 1, "price_per_hour": 2.0},
        "method": {"name": "speculative", "gamma": 2},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(spec))
    return file


def nightly(*words: str) -> int:
    return main(["nightly", "history", *words, "--turns", "2"])


def test_a_night_is_made_recorded_and_judged(job, capsys):
    assert nightly("--run", str(job), "--night", "2026-11-28") == 0
    (night,) = read_history("history").nights
    assert night.output.endswith("/out/2026-11-28")
    assert night.figures["images"] == 6
    assert night.figures["speed_over_plain"] > 0
    assert len(night.control.plain) == len(night.control.method) == 2
    assert capsys.readouterr().out.startswith("ok: ")
    assert json.loads(Path("history/trend.json").read_text())["verdict"] == "ok"
    assert "speed over plain" in Path("history/trend.html").read_text()
    assert Path("history/trend.md").read_text().startswith("# fashion: 2026-11-28")


def test_the_next_night_makes_another_dataset_of_the_same_bytes(job):
    assert nightly("--run", str(job), "--night", "2026-11-28") == 0
    assert nightly("--run", str(job), "--night", "2026-11-29") == 0
    first, second = read_history("history").nights
    assert first.content == second.content
    assert first.output != second.output


def test_the_same_night_repeated_makes_nothing_anew(job, monkeypatch):
    assert nightly("--run", str(job), "--night", "2026-11-28") == 0
    before = Path("history/nights/2026-11-28.parquet").read_bytes()
    monkeypatch.setattr(command, "make_tonight", lambda *_: pytest.fail("the night is made already"))
    assert nightly("--run", str(job), "--night", "2026-11-28") == 0
    assert Path("history/nights/2026-11-28.parquet").read_bytes() == before
    assert len(list(Path("history/nights").iterdir())) == 1


@pytest.mark.parametrize("killed_before", ["measure_control", "night_of", "add_night", "pages_of"])
def test_a_killed_night_resumes_and_has_one_record(job, monkeypatch, killed_before):
    def killed(*_args, **_fields):
        raise JobError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(command, killed_before, killed)
        assert nightly("--run", str(job), "--night", "2026-11-28") == 1
    assert nightly("--run", str(job), "--night", "2026-11-28") == 0
    (night,) = read_history("history").nights
    assert night.figures["retries"] == 0
    assert night.figures["cost"] == pytest.approx(night.figures["cost_per_1000"] * 6 / 1000)
    assert len(list(Path("history/nights").iterdir())) == 1


def test_a_changed_acceptance_ends_with_exit_code_3_and_a_first_line_that_names_it(job, monkeypatch, capsys):
    assert nightly("--run", str(job), "--night", "2026-11-28") == 0
    true = command.night_of

    def other(*args, **fields):
        night = true(*args, **fields)
        figures = {**night.figures, "acceptance": night.figures["acceptance"] * 0.9}
        return night.model_copy(update={"figures": figures, "commit": "def456"}).sealed()

    monkeypatch.setattr(command, "night_of", other)
    capsys.readouterr()
    assert nightly("--run", str(job), "--night", "2026-11-29") == 3
    first = capsys.readouterr().out.splitlines()[0]
    assert re.match(
        r"regression: acceptance fell 10 % .* since the night of 2026-11-29; between: commit .*def456", first
    )


def test_requirements_of_the_spec_are_judged(job, capsys):
    words = ("--run", str(job), "--night", "2026-11-28", "--set", "requirements.figures.speed_over_plain.min=1000")
    assert nightly(*words) == 3
    assert "speed_over_plain is" in capsys.readouterr().out.splitlines()[0]


def test_plain_decoding_has_no_control(job):
    assert nightly("--run", str(job), "--night", "2026-11-28", "--set", "method=plain") == 0
    assert read_history("history").nights[0].control is None


def test_head_windows_have_a_control(job, tmp_path):
    pair = make_tiny_pair(tmp_path / "tiny")
    sets = ("--set", f"pair={pair}", "--set", "method={name: plain, head_window: [4]}")
    assert nightly("--run", str(job), "--night", "2026-11-28", *sets) == 0
    assert read_history("history").nights[0].figures["speed_over_plain"] > 0


def test_a_dataset_that_is_there_is_recorded_without_a_control(job, tmp_path):
    assert main(["generate", str(job)]) == 0
    assert nightly("--of", str(tmp_path / "out"), "--night", "2026-11-28") == 0
    (night,) = read_history("history").nights
    assert night.control is None
    assert "acceptance" in night.figures


def test_a_damaged_record_is_named_and_the_night_after_goes_on(job, capsys):
    assert nightly("--run", str(job), "--night", "2026-11-28") == 0
    Path("history/nights/2026-11-28.parquet").write_bytes(b"PAR1")
    assert nightly("--run", str(job), "--night", "2026-11-29") == 0
    assert "damaged: nights/2026-11-28.parquet: is no record of a night" in capsys.readouterr().out
    assert "nights/2026-11-28.parquet" in Path("history/trend.html").read_text()


def test_two_datasets_are_compared(job, tmp_path, capsys):
    for name, gamma in (("a", 2), ("b", 2), ("c", 3)):
        assert main(["generate", str(job), "--output", name, "--set", f"method.gamma={gamma}"]) == 0
    capsys.readouterr()
    assert main(["compare", "a", "b", "--out", "pages", "--html", "page.html"]) == 0
    assert Path("page.html").read_bytes() == Path("pages/compare.html").read_bytes()
    assert capsys.readouterr().out.startswith("ok: ")
    assert Path("pages/compare.html").read_text().startswith("<!doctype html>")
    assert main(["compare", "a", "c"]) == 0
    assert "explained: rounds_per_image" in capsys.readouterr().out
    asked = tmp_path / "asked.yaml"
    asked.write_text("requirements: {figures: {acceptance: {min: 1.1}}}")
    assert main(["compare", "a", "b", "--requirements", str(asked)]) == 3


def test_a_dataset_that_is_not_whole_is_neither_recorded_nor_compared(job, capsys):
    assert main(["generate", str(job), "--output", "whole"]) == 0
    assert main(["generate", str(job), "--output", "holed"]) == 0
    next(Path("holed/data").glob("part-00001*")).unlink()
    capsys.readouterr()
    for words in (
        ["nightly", "history", "--of", "holed"],
        ["compare", "whole", "holed"],
        ["compare", "holed", "whole"],
    ):
        assert main(words) == 2
        told = capsys.readouterr()
        assert "holed, allowed: a finished dataset (data/part-00001-of-00002.parquet: missing)" in told.err
        assert told.err.count("\n") == 1 and not told.out
    assert read_history("history").nights == ()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "--run: got None and --of None, allowed: one of the two"),
        (("--run", "job.yaml", "--night", "today"), "--night: got 'today', allowed: a date as YYYY-MM-DD"),
        (("--run", "job.yaml", "--turns", "0"), "--turns: got 0, allowed: 1 or more"),
        (("--of", "nowhere"), "allowed: an output of `spd generate`"),
        (
            ("--run", "job.yaml", "--set", "requirements.figures.speed.min=1"),
            "requirements.figures: got {'speed': {'min': 1}}, allowed: speed_over_plain",
        ),
        (
            ("--run", "job.yaml", "--set", "requirements.since=yesterday"),
            "requirements.since: got 'yesterday', allowed: a date as YYYY-MM-DD",
        ),
    ],
)
def test_wrong_input_is_one_line(job, capsys, words, complaint):
    assert main(["nightly", "history", *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("history").exists()


def test_a_relative_history_is_refused_inside_a_submitted_job(job, monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert nightly("--run", str(job)) == 2
    assert "HISTORY: got 'history'" in capsys.readouterr().err


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def commands() -> dict[str, str]:
    """The command line of each example of the guide."""
    (crontab,) = blocks("crontab")
    line = next(line for line in crontab.splitlines() if "spd nightly" in line)
    submit = next(line for text in blocks("bash") for line in text.splitlines() if line.startswith("ray job submit"))
    (cron_job,) = (text for text in blocks("yaml") if "CronJob" in text)
    manifest = yaml.safe_load(cron_job)
    container = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert manifest["spec"]["concurrencyPolicy"] == "Forbid"
    return {
        "cron": line[line.index("spd nightly") :].partition(" >>")[0],
        "ray": submit.partition(" -- ")[2],
        "kubernetes": shlex.join(container["command"]),
    }


@pytest.mark.parametrize("where", ["cron", "ray", "kubernetes"])
def test_the_examples_of_the_guide_run(job, tmp_path, where):
    program, *words = shlex.split(commands()[where])
    assert program == "spd"
    local = {"s3://BUCKET/nights": str(tmp_path / "nights"), "s3://BUCKET/fashion": str(tmp_path / "fashion")}
    found = [word if not word.endswith("job.yaml") else str(job) for word in words]
    found = [re.sub(r"s3://BUCKET/\w+", lambda url: local[url[0]], word) for word in found]
    assert main([*found, "--turns", "1"]) == 0
    assert len(read_history(str(tmp_path / "nights")).nights) == 1


def test_the_guides_requirements_are_a_spec(job, tmp_path):
    (asked,) = (text for text in blocks("yaml") if text.startswith("requirements:"))
    file = tmp_path / "asked.yaml"
    file.write_text(job.read_text() + asked)
    assert main(["plan", str(file)]) == 0


def test_the_guide_names_every_figure():
    from jobs.job.figures import FIGURES

    assert [name for name in FIGURES if f"`{name}`" not in GUIDE] == []


@pytest.mark.parametrize(("drop", "code"), [(0.08, 3), (0.0, 0)])
def test_thirty_recorded_nights_are_judged(tmp_path, capsys, drop, code):
    url = str(tmp_path / "history")
    nights = thirty_nights(drop)
    for night in nights:
        add_night(url, night)
    assert main(["nightly", url, "--of", "made-already", "--night", str(nights[-1].night)]) == code
    first = capsys.readouterr().out.splitlines()[0]
    size = re.match(r"regression: speed_over_plain fell ([\d.]+) % .* since the night of 2026-11-24; .*commit", first)
    assert (size is not None and abs(float(size[1]) - 8) <= 2) == bool(drop)
    page = (tmp_path / "history" / "trend.html").read_text()
    assert ("another level from 2026-11-24 on" in page) == bool(drop)


def test_texts_of_records_cannot_act_on_the_page(tmp_path):
    url, wicked = str(tmp_path / "history"), "<script>alert(1)</script>"
    add_night(url, a_night(0))
    add_night(url, a_night(1, output=wicked, commit=wicked, fingerprint="0" * 64, figures={"acceptance": 0.8}))
    assert main(["nightly", url, "--of", "made-already", "--night", "2026-11-02"]) == 0
    assert "<script>" not in (tmp_path / "history" / "trend.html").read_text()
    assert "<script>" not in (tmp_path / "history" / "trend.md").read_text()
