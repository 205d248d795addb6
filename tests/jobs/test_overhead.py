"""``spd overhead`` without Ray: every step in this process, an engine plays the workers; once, slow, with all of it."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.bench import overhead
from jobs.bench import overhead_waiting as waiting
from jobs.cli import main
from jobs.dataset.commits import read_committed
from jobs.dataset.finish import finish
from jobs.dataset.validate import validate
from jobs.job.plan import make_plan, read_plan, store_plan
from jobs.job.request_file import RequestFile
from jobs.job.requests import Tasks, store_requests
from jobs.job.spec import FixedSpec
from jobs.run.encoding import encoding_cost
from jobs.words.progress import Steps
from tests.jobs.tree import worker_settings
from tests.tiny_pair import make_tiny_pair
from workers.engine import Engine
from workers.shard import commit_shard
from workers.store import Store


def generate_here(spec: FixedSpec) -> dict[str, Any]:
    """What the driver does, without Ray."""
    store, plan = Store(spec.output), make_plan(spec)
    store_requests(store, spec, plan)
    plan = store_plan(store, plan)
    settings, tasks = worker_settings(spec, plan), Tasks(store, plan)
    engine, done = Engine(settings), read_committed(store, plan).records
    made = 0
    for shard in sorted(set(range(plan.shards)) - set(done)):
        task = tasks.task(shard, 0)
        commit_shard(store, settings, task, engine.make(task))
        made += len(task.request_ids)
    finish(spec.output)
    return {"output": spec.output, "images": plan.rows, "shards": plan.shards, "made": made, "seconds": 1.0}


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(overhead, "generate", generate_here)
    monkeypatch.setattr(waiting, "generate", generate_here)
    monkeypatch.setattr(overhead, "encoding_cost", lambda shape, image, seconds: encoding_cost(shape, image, 0.0))
    monkeypatch.setattr(overhead, "_apart", lambda call: call())


def test_the_request_file_is_one_and_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(overhead, "_PART", 7)
    path = str(tmp_path / "r.parquet")
    overhead.write_requests(path, 30)
    assert pq.ParquetFile(path).num_row_groups == 5
    assert RequestFile(path, {}, tuple("0123456789")).scan().count == 30


def test_the_overhead_is_measured_and_the_resume_makes_what_is_missing(tmp_path, here):
    found = overhead.measure_overhead(str(tmp_path), 230, 10, 1, Steps(4))
    assert found["plan"]["shards"] == 23
    assert found["null"]["made"] == 230
    assert found["remainder"]["missing"] == found["resume"]["made"] == 30, "every tenth of 23 shards"
    assert found["remainder"]["damaged"] == 0
    assert all(found[step]["peak_mb"] > 10 for step in ("plan", "null", "remainder", "resume"))
    assert validate(f"{tmp_path}/null").problems == ()
    assert read_plan(Store(f"{tmp_path}/null")).spec.requests.count == 230


def test_loop_and_jobs_decode_the_same_number_of_shards_a_worker(tmp_path, here):
    pair = make_tiny_pair(tmp_path / "pair")
    overrides = [f"pair={pair}", "shard_size=3", "batch=2", "method=cspd"]
    found = overhead.measure_pair(str(tmp_path), overrides, 2, 2, Steps(6))
    assert len(found["laps"]) == 2
    assert found["spec"]["shard_size"] == 3 and found["spec"]["features"] is False
    rows = [read_plan(Store(f"{tmp_path}/{workers}-0")).rows for workers in (1, 2)]
    assert rows == [6, 12]
    ratios = [lap["one"]["images_per_s"] / lap["loop"]["images_per_s"] for lap in found["laps"]]
    assert found["job_over_loop"] == pytest.approx(sum(ratios) / 2)


def test_table_and_file_hold_the_figures(tmp_path, here, capsys):
    pair = make_tiny_pair(tmp_path / "pair")
    given = ["overhead", "--images", "100", "--shard-size", "10", "--workers", "1", "--folder", str(tmp_path)]
    given += ["--shards", "1", "--laps", "1", "--waiting", "8", "--json", str(tmp_path / "overhead.json")]
    for field in (f"pair={pair}", "shard_size=2", "method=plain"):
        given += ["--set", field]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "| images of the remainder, and made by a resume | 10, 10 |" in shown
    assert "| two workers over one, median of 1 | " in shown
    found = json.loads((tmp_path / "overhead.json").read_text())
    assert "| webp, fast | " in shown and "a decoder that waits, 200 images/s of 256 px, png, fast" in shown
    assert set(found["waiting"]["fast"]["share"]) == {"beside", "between"}
    assert found["machine"] and found["overhead"]["null"]["split"]["encode"] > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("spd-overhead")] == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--images", "9"], "--images: got 9, allowed: 10 or more"),
        (["--shard-size", "0"], "--shard-size: got 0, allowed: 1 or more"),
        (["--laps", "0"], "--laps: got 0, allowed: 1 or more"),
        (["--waiting", "-1"], "--waiting: got -1, allowed: 0 or more"),
        (["--wait-rate", "0"], "--wait-rate: got 0, allowed: above 0"),
        (["--folder", "/nowhere"], "--folder: got '/nowhere', allowed: a folder that exists"),
        (["--json", "/nowhere/x"], "--json: got '/nowhere/x', allowed: a file in a folder that exists"),
        (["--set", "method=auto"], "--set: got method 'auto', allowed: a method by name that makes tokens"),
        (["--set", "method=null"], "--set: got method 'null', allowed: a method by name that makes tokens"),
        (["--set", "nonsense=1"], "nonsense: unknown field"),
    ],
)
def test_wrong_input_is_one_line(given, says, capsys):
    assert main(["overhead", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"spd: {says}")


@pytest.mark.slow
def test_the_whole_overhead_with_ray(tmp_path):
    given = ["overhead", "--images", "2000", "--shard-size", "100", "--workers", "2", "--folder", str(tmp_path)]
    given += ["--shards", "1", "--laps", "1", "--waiting", "128", "--json", str(tmp_path / "overhead.json")]
    for field in (f"pair={make_tiny_pair(tmp_path / 'pair')}", "shard_size=8", "method=plain", "workers.num_cpus=0.5"):
        given += ["--set", field]
    assert main(given) == 0
    found = json.loads((tmp_path / "overhead.json").read_text())
    assert found["overhead"]["resume"]["made"] == found["overhead"]["remainder"]["missing"] == 200
    assert found["overhead"]["null"]["peak_mb"] < 600
