"""Plans whose requests come from a file: fixed by the hash of the rows, copied below the output, read by shard."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.dataset.commits import read_committed
from jobs.dataset.finish import finish
from jobs.dataset.manifest import build_manifest, check_manifest
from jobs.dataset.validate import validate
from jobs.job import requests
from jobs.job.plan import Plan, make_plan, parse_plan, store_plan
from jobs.job.requests import DamagedRequests, Tasks, part_rows, request_files, request_parts, store_requests
from jobs.job.spec import FixedSpec, make_spec
from jobs.run.auto import trial_task
from jobs.words.errors import SpecError
from spd_core.draws import image_seed
from spd_core.law import Choice, Plain
from spd_core.pairs.pair import load_card
from tests.jobs.tree import worker_settings
from tests.tiny_pair import CLASSES, make_tiny_pair
from workers import layout
from workers.engine import Engine
from workers.shard import commit_shard, read_commit
from workers.store import Store

ROWS = 23
SEEDS = [7 * row + 1 for row in range(ROWS)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of ten rows: two shards of five each."""
    monkeypatch.setattr(requests, "BATCH", 11)


def rows(**columns: list) -> list[dict]:
    given = {"label": [row % len(CLASSES) for row in range(ROWS)], **columns}
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


def write(folder: Path, content: list[dict], name: str = "requests.jsonl") -> str:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in content))
    return str(path)


def spec_of(pair: str, folder: Path, file: str, **asked: object) -> FixedSpec:
    raw = {"pair": pair, "output": str(folder / "out"), "method": "null", "features": False, "shard_size": 5}
    spec = make_spec({**raw, "requests": {"file": file, **asked}})
    assert isinstance(spec, FixedSpec)
    return spec


def stored(spec: FixedSpec) -> tuple[Store, Plan]:
    store, plan = Store(spec.output), make_plan(spec)
    store_requests(store, spec, plan)
    return store, store_plan(store, plan)


def finished(spec: FixedSpec) -> tuple[Store, Plan]:
    store, plan = stored(spec)
    settings, tasks = worker_settings(spec, plan), Tasks(store, plan)
    engine = Engine(settings)
    for shard in range(plan.shards):
        task = tasks.task(shard, 0)
        commit_shard(store, settings, task, engine.make(task))
    finish(spec.output)
    return store, plan


@pytest.mark.parametrize("given", [{}, {"id": [f"n-{row}" for row in range(ROWS)]}, {"seed": SEEDS}])
def test_shards_hold_the_rows_of_the_file_in_order(pair, tmp_path, given):
    spec = spec_of(pair, tmp_path, write(tmp_path, rows(**given)))
    store, plan = stored(spec)
    assert (plan.rows, plan.shards, len(request_parts(plan))) == (ROWS, 5, 3)
    Path(spec.requests.file or "").unlink()  # the copy is enough
    tasks = [Tasks(store, plan).task(shard, 2) for shard in (4, 3, 2, 1, 0)][::-1]
    ids = given.get("id") or [f"{row:08d}" for row in range(ROWS)]
    assert [name for task in tasks for name in task.request_ids] == ids
    assert [label for task in tasks for label in task.labels] == [row % len(CLASSES) for row in range(ROWS)]
    assert [s for task in tasks for s in task.seeds] == (given.get("seed") or [image_seed(0, name) for name in ids])
    assert [task.shard for task in tasks] == [0, 1, 2, 3, 4] and {task.attempt for task in tasks} == {2}


def test_a_file_of_the_planned_requests_gives_the_planned_images(pair, tmp_path):
    file = spec_of(pair, tmp_path, write(tmp_path, rows()))
    plain = make_spec({"pair": pair, "method": "null", "shard_size": 5, "requests": {"count": ROWS}})
    store, plan = stored(file)
    assert isinstance(plain, FixedSpec)
    computed = Tasks(store, make_plan(plain))
    assert [Tasks(store, plan).task(k, 0) for k in range(5)] == [computed.task(k, 0) for k in range(5)]


def test_parts_are_of_whole_shards(pair, tmp_path):
    for size in (1, 5, 7, 11, 12, 40):
        spec = spec_of(pair, tmp_path, write(tmp_path, rows())).model_copy(update={"shard_size": size})
        plan = make_plan(spec)
        assert part_rows(plan) % size == 0 and len(request_parts(plan)) == -(-ROWS // part_rows(plan))


def test_a_resume_with_a_changed_file_is_refused(pair, tmp_path):
    file = write(tmp_path, rows())
    store, _ = stored(spec_of(pair, tmp_path, file))
    changed = rows()
    changed[22]["label"] = 0
    write(tmp_path, changed)
    with pytest.raises(
        SpecError, match=r"requests\.sha256: got '[0-9a-f]+\.\.\., stored '[0-9a-f]+\.\.\.; allowed: the sto"
    ):
        store_plan(store, make_plan(spec_of(pair, tmp_path, file)))


def test_the_same_rows_elsewhere_resume(pair, tmp_path):
    store, plan = stored(spec_of(pair, tmp_path, write(tmp_path, rows())))
    (tmp_path / "moved.csv").write_text("label\n" + "".join(f"{row['label']}\n" for row in rows()))
    again = make_plan(spec_of(pair, tmp_path, str(tmp_path / "moved.csv")))
    assert store_plan(store, again).created == plan.created


def test_the_plan_names_the_file_without_its_password(pair, tmp_path):
    spec = spec_of(pair, tmp_path, write(tmp_path, rows()))
    asked = spec.requests.model_copy(update={"file": "s3://me:hunter2@bucket/r.csv"})
    plan = make_plan(spec.model_copy(update={"requests": asked}))
    assert plan.spec.requests.file == "s3://bucket/r.csv"
    assert parse_plan(plan.to_bytes()) is not None


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"count": 22}, "requests.count: got 22, allowed: 23 "),
        ({"labels": [1]}, "requests.labels: got [1], allowed: none beside requests.file"),
        ({"sha256": "0" * 64}, "requests.sha256: got 000000000000..., allowed: "),
        ({"sha256": "0"}, "requests.sha256: got '0', allowed: "),
    ],
)
def test_what_contradicts_the_file_is_refused(pair, tmp_path, asked, says):
    with pytest.raises(SpecError) as caught:
        spec_of(pair, tmp_path, write(tmp_path, rows()), **asked)
    assert str(caught.value).startswith(says)


def test_what_the_card_says_makes_the_same_job(pair, tmp_path):
    spec = spec_of(pair, tmp_path, write(tmp_path, rows()))
    asked = make_plan(spec).stored_spec["requests"]
    assert make_plan(spec_of(pair, tmp_path, **asked)).fingerprint == make_plan(spec).fingerprint


def test_a_hash_without_a_file_is_refused(pair):
    with pytest.raises(SpecError, match=r"requests\.sha256: got .* allowed: only with requests\.file"):
        make_spec({"pair": pair, "requests": {"sha256": "0" * 64}})


def test_labels_are_those_of_the_pair(pair, tmp_path):
    bad = [*rows(), {"label": len(CLASSES)}]
    with pytest.raises(SpecError, match=rf"label: got {len(CLASSES)} in row 24 of .*allowed: 0\.\.{len(CLASSES) - 1}"):
        spec_of(pair, tmp_path, write(tmp_path, bad))


def test_a_file_that_changes_meanwhile_stops_the_job(pair, tmp_path):
    file = write(tmp_path, rows())
    spec = spec_of(pair, tmp_path, file)
    write(tmp_path, [*rows()[:-1], {"label": 0}])
    with pytest.raises(SpecError, match="was changed while it was read"):
        stored(spec)
    assert Store(spec.output).list() == {}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("damage", ["delete", "empty", "flip"])
def test_a_damaged_copy_is_told_and_written_again(pair, tmp_path, place, damage):
    spec = spec_of(pair, tmp_path, write(tmp_path, rows()))
    store, plan = stored(spec)
    before = {path: store.read(path) for path in request_files(plan)}
    path = request_files(plan)[place]
    hurt(store, path, damage)
    with pytest.raises(DamagedRequests, match=rf"{path}: (missing|damaged); `spd generate` with the same spec writes"):
        Tasks(store, plan).task(2 * place if place < 3 else 0, 0)
    store_requests(store, spec, plan)
    assert {path: store.read(path) for path in request_files(plan)} == before


def hurt(store: Store, path: str, damage: str) -> None:
    whole = store.read(path)
    if damage == "delete":
        store.delete(path)
    else:
        middle = len(whole) // 2
        store.replace(
            path, b"" if damage == "empty" else whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        )


def test_a_dataset_of_a_file_validates(pair, tmp_path):
    ids = [f"img.{row}" for row in range(ROWS)]
    store, plan = finished(spec_of(pair, tmp_path, write(tmp_path, rows(id=ids, seed=SEEDS))))
    assert validate(store.url).problems == ()
    record = read_commit(store, 4)
    assert record is not None and (record.first_id, record.last_id) == ("img.20", "img.22")
    assert check_manifest(store, plan, read_committed(store, plan).records.values()) == []


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("damage", ["delete", "empty", "flip"])
def test_validation_names_a_damaged_copy(pair, tmp_path, place, damage):
    store, plan = finished(spec_of(pair, tmp_path, write(tmp_path, rows())))
    path = request_files(plan)[place]
    hurt(store, path, damage)
    assert {problem.split(":")[0] for problem in validate(store.url).problems} == {path}


def test_validation_notices_other_requests(pair, tmp_path):
    """Forged with every hash right: only the plan's hash of the rows can tell."""
    store, plan = finished(spec_of(pair, tmp_path, write(tmp_path, rows(seed=SEEDS))))
    other = spec_of(pair, tmp_path / "other", write(tmp_path, rows(seed=SEEDS[::-1])))
    _, theirs = stored(other)
    for mine, path in zip(request_files(plan), request_files(theirs), strict=True):
        store.replace(mine, Store(other.output).read(path))
    store.replace(layout.SUCCESS, build_manifest(store, plan, read_committed(store, plan).records.values()))
    (problem,) = validate(store.url).problems
    assert problem == f"{request_files(plan)[-1]}: the requests are not the plan's"


def test_the_command_line_plans_a_file_and_refuses_a_wrong_one(pair, tmp_path, capsys):
    given = ["plan", "--set", f"pair={pair}", "--set", "method=null", "--output", str(tmp_path / "out")]
    assert main([*given, "--set", f"requests.file={write(tmp_path, rows())}"]) == 0
    assert "images       23 of 3 classes" in capsys.readouterr().out
    wrong = write(tmp_path, [{"label": 0, "id": "../../x"}], "wrong.jsonl")
    assert main([*given, "--set", f"requests.file={wrong}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("spd: requests.file: id: got '../../x' in row 1 of ")
    assert not (tmp_path / "out").exists()


def test_auto_measures_before_the_rows_are_copied(pair, tmp_path):
    raw = {"pair": pair, "output": str(tmp_path / "out"), "method": "auto", "shard_size": 5}
    spec = make_spec({**raw, "requests": {"file": write(tmp_path, rows())}})
    assert spec.requests.count == ROWS and spec.shards == 5
    task = trial_task(spec, load_card(pair), Choice(method=Plain(), batch=4), 5, 1, 1.0)
    assert task.labels == (2, 0, 1, 2, 0) and len(set(task.seeds)) == 5


def test_the_default_requests_have_no_parts(pair, tmp_path):
    plain = make_spec({"pair": pair, "method": "null", "output": str(tmp_path / "out")})
    assert isinstance(plain, FixedSpec)
    store, plan = stored(plain)
    assert request_parts(plan) == () and list(store.list()) == [layout.PLAN]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_million_requests_are_planned_in_seconds(pair, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(requests, "BATCH", 1 << 16)
    count = 1_000_000
    table = pa.table({"id": [f"i{row}" for row in range(count)], "label": [row % 3 for row in range(count)]})
    path = tmp_path / f"r.{kind}"
    match kind:
        case "parquet":
            pq.write_table(table, path)
        case "csv":
            pa_csv.write_csv(table, path)
        case _:
            path.write_text("".join(f'{{"id": "i{row}", "label": {row % 3}}}\n' for row in range(count)))
    del table
    began = time.process_time()
    store, plan = stored(spec_of(pair, tmp_path, str(path)).model_copy(update={"shard_size": 64}))
    assert time.process_time() - began < 20
    assert plan.rows == count and plan.shards == 15_625
    last = Tasks(store, plan).task(15_624, 0)
    assert (last.request_ids[-1], last.labels[-1], len(last.labels)) == ("i999999", 999_999 % 3, 64)
