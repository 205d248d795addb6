"""The driver on a real local Ray, one for the whole module, with the null method: what is tested is everything else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.dataset.status import status
from jobs.dataset.validate import validate
from jobs.job.calibration import LAPS
from jobs.job.plan import read_plan
from jobs.job.spec import Spec, Workers, make_spec
from jobs.run.auto import choices_of
from jobs.run.cluster import running_ray
from jobs.run.driver import generate
from jobs.run.signals import Stopped, stoppable
from jobs.words.errors import SpecError
from spd_core.pairs.pair import load_card
from tests.faults.in_process import parts_of
from tests.jobs.test_auto import auto_spec
from tests.tiny_pair import make_tiny_pair
from workers import layout
from workers.place import PlaceError
from workers.sealed import canonical_json, seal, unseal
from workers.shard import read_commit
from workers.store import Store


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own, 15, starves them on a busy machine
    with running_ray(Workers(count=2)) as ray:
        yield ray


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory, cluster) -> Spec:
    spec = job(pair, tmp_path_factory.mktemp("finished") / "out")
    assert generate(spec)["made"] == 20
    return spec


def job(pair: str, output: Path, count: int = 20, **workers: object) -> Spec:
    raw: dict[str, Any] = {"pair": pair, "output": str(output), "method": "null", "features": False, "shard_size": 4}
    return make_spec({**raw, "requests": {"count": count}, "workers": {"count": 1, **workers}})


def data_files(output: str) -> dict[str, bytes]:
    return {path: raw for path, raw in parts_of(Store(output)).items() if path.startswith(layout.DATA)}


def copy_of(finished: Spec, folder: Path) -> Spec:
    """The same job in a copy of its output."""
    store, copy = Store(finished.output), Store(str(folder / "out"))
    for path in store.list():
        copy.create(path, store.read(path))
    return finished.model_copy(update={"output": copy.url})


def test_a_finished_job_validates(finished):
    assert validate(finished.output).problems == ()
    assert read_plan(Store(finished.output)).rows == 20


@pytest.mark.parametrize("count", [1, 2])
def test_same_spec_gives_the_same_bytes_with_any_number_of_workers(count, finished, pair, tmp_path):
    spec = job(pair, tmp_path / "out", count=20, num_cpus=0.5).model_copy(
        update={"workers": Workers(count=count, num_cpus=0.5)}
    )
    generate(spec)
    assert data_files(spec.output) == data_files(finished.output)


def test_a_finished_job_is_left_alone_without_ray(finished, monkeypatch):
    monkeypatch.setattr("jobs.run.driver.running_ray", None)
    monkeypatch.setattr("jobs.run.driver.check_weights", None)
    before = {path: path.stat().st_mtime_ns for path in Path(finished.output).rglob("*") if path.is_file()}
    assert generate(finished)["made"] == 0
    assert {path: path.stat().st_mtime_ns for path in Path(finished.output).rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["delete data", "corrupt data", "delete commit", "corrupt commit"])
def test_only_the_damaged_shard_is_made_again(damage, finished, tmp_path):
    spec = copy_of(finished, tmp_path)
    what, kind = damage.split()
    path = Path(spec.output) / (layout.data(2, 5) if kind == "data" else layout.commit(2))
    if what == "delete":
        path.unlink()
    else:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    kept = {
        path: path.stat().st_mtime_ns
        for shard in (0, 1, 3, 4)
        for path in (Path(spec.output) / layout.data(shard, 5), Path(spec.output) / layout.commit(shard))
    }
    assert generate(spec)["made"] == 4
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert data_files(spec.output) == data_files(finished.output)
    assert validate(spec.output).problems == ()
    record = read_commit(Store(spec.output), 2)
    assert record is not None and record.attempt == (1 if kind == "data" else 0)


@pytest.mark.parametrize("path", [layout.CARD, layout.REPORT_HTML, layout.REPORT_JSON, layout.PLAN, layout.SUCCESS])
@pytest.mark.parametrize("what", ["delete", "corrupt"])
def test_damaged_documents_are_written_again_without_making_a_shard(path, what, finished, tmp_path, monkeypatch):
    spec = copy_of(finished, tmp_path)
    monkeypatch.setattr("jobs.run.driver.running_ray", None)
    file = Path(spec.output) / path
    if what == "delete":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-20] + b"x" * 20)
    assert not validate(spec.output).ok
    assert generate(spec)["made"] == 0
    assert validate(spec.output).problems == ()


def test_another_jobs_commit_record_is_refused(finished, tmp_path):
    spec = copy_of(finished, tmp_path)
    store = Store(spec.output)
    foreign = {**unseal(store.read(layout.commit(3))), "fingerprint": "0" * 64}
    store.replace(layout.commit(3), canonical_json(seal(foreign)))
    store.delete(layout.PLAN)
    before = store.list()
    with pytest.raises(SpecError, match=r"_commits/00003.json belongs to a job with fingerprint 000000000000"):
        generate(spec)
    assert store.list() == before


def test_workers_with_another_pair_than_the_plans_write_nothing(pair, tmp_path):
    folder = make_tiny_pair(tmp_path / "pair")
    spec = job(str(folder), tmp_path / "out")
    (folder / "target.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot read"):
        generate(spec)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def measured(pair, tmp_path_factory, cluster) -> Spec:
    """A finished job with method auto."""
    spec = auto_spec(pair, tmp_path_factory.mktemp("measured") / "out", batch="auto", workers={"count": 1})
    assert generate(spec)["made"] == 10
    return spec


def test_auto_fixes_a_method_and_keeps_the_table(measured, pair):
    assert validate(measured.output).problems == ()
    plan = read_plan(Store(measured.output))
    rows = plan.calibration.rows
    assert [(row.method, row.batch) for row in rows] == [
        (choice.method, choice.batch) for choice in choices_of(measured, load_card(pair))
    ]
    assert plan.choice.method.name == "plain" and plan.guarantee == "exact"
    chosen = plan.calibration.chosen
    assert (chosen.method, chosen.batch) == (plan.choice.method, plan.choice.batch)
    # A clear winner ends the knock-out before the last lap.
    laps = max(len(row.trials) for row in rows)
    assert laps <= LAPS
    assert chosen.images_per_s == max(row.images_per_s for row in rows if len(row.trials) == laps)
    assert plan.calibration.machine["device"] == "cpu"
    assert json.loads((Path(measured.output) / layout.REPORT_JSON).read_text())["calibration"]["rows"]


@pytest.mark.parametrize("path", [layout.data(1, 3), layout.PLAN])
def test_a_resume_of_auto_measures_nothing(path, measured, tmp_path, monkeypatch):
    spec = copy_of(measured, tmp_path)
    monkeypatch.setattr("jobs.run.driver.decide", None)
    (Path(spec.output) / path).unlink()
    generate(spec)
    assert validate(spec.output).problems == ()
    assert data_files(spec.output) == data_files(measured.output)
    assert read_plan(Store(spec.output)).choice == read_plan(Store(measured.output)).choice


def test_auto_refuses_before_it_measures(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.run.driver.decide", None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(SpecError, match=r"holds a README\.md of no job"):
        generate(auto_spec(pair, tmp_path / "out"))
    folder = make_tiny_pair(tmp_path / "pair")
    (folder / "draft.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot read"):
        generate(auto_spec(str(folder), tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("output", ["memory://nobody/else", "file://{}/a/./x"])
def test_an_output_that_only_the_driver_sees_is_refused(output, pair, tmp_path):
    """A store in the memory of one process; a path with dots, which is a place like any other."""
    spec = job(pair, tmp_path).model_copy(update={"output": output.format(tmp_path)})
    if output.startswith("file"):
        assert generate(spec)["made"] == 20 and validate(spec.output).problems == ()
        return
    with pytest.raises(
        PlaceError, match=r"output: the worker .* does not see what the driver wrote to memory://nobody"
    ):
        generate(spec)
    assert Store(spec.output).list() == {}


def test_killing_an_actor_loses_nothing(finished, pair, tmp_path):
    spec = job(pair, tmp_path / "out", count=400)
    killed: list[int] = []

    def kill_first_worker() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for path in (tmp_path / "out" / layout.COMMITS).glob("[0-9]*.json"):
                name = re.search(rb'"worker": ".*-(\d+)"', path.read_bytes())
                if name:
                    killed.append(int(name[1]))
                    os.kill(killed[0], signal.SIGKILL)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=kill_first_worker)
    thread.start()
    generate(spec)
    thread.join()
    assert killed
    assert validate(spec.output).problems == ()
    workers = {read_commit(Store(spec.output), shard).worker for shard in range(100)}
    assert len(workers) == 2, "the killed worker and the one that took its place"


def test_a_signal_inside_rays_compiled_code_still_stops():
    with pytest.raises(Stopped, match="SIGTERM") as stop, stoppable():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped as error:
            raise SystemError("CoreWorker.wait returned a result with an exception set") from error
    assert stop.value.exit_code == 128 + signal.SIGTERM


def test_sigterm_leaves_a_job_that_resumes(pair, tmp_path):
    spec = job(pair, tmp_path / "out", count=4000)
    given = ["generate", "--output", spec.output, "--workers", "1"]
    fields = {"pair": pair, "method": "null", "features": "false", "shard_size": 4, "requests.count": 4000}
    for field, value in fields.items():
        given += ["--set", f"{field}={value}"]
    with subprocess.Popen([sys.executable, "-m", "jobs.cli", *given], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(f"out/{layout.COMMITS}/0*.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.stderr is not None
        last = process.stderr.read().strip().splitlines()[-1]
    assert process.returncode == 128 + signal.SIGTERM
    assert last == "spd: stopped by SIGTERM; committed shards remain, and the same command resumes"
    found = status(spec.output)
    assert 0 < found.committed < found.shards and not found.finished and not found.damaged
