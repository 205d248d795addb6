"""The Python interface: the code of the README runs, and every name that it re-exports is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import spd
import torch
from spd import packages

from jobs.job.plan import make_plan, store_plan
from tests.faults.inline_ray import inline_ray
from tests.jobs.tree import lose_shard, make_shards, tree_spec
from tests.tiny_causal import make_tiny_causal_pair
from workers.encode import decode_image
from workers.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_causal_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


def test_every_name_is_there_and_documented():
    for name in spd.__all__:
        assert getattr(spd, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'spd' has no attribute 'genrate'"):
        spd.genrate  # noqa: B018


def test_importing_it_loads_nothing():
    loaded = "import sys, spd; print(sorted({'torch', 'ray', 'pyarrow', 'jobs'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT / "jobs/api", capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stderr


def test_samples_are_the_images_of_a_job(pair, tmp_path, monkeypatch):
    spec = {"pair": pair, "output": str(tmp_path / "out"), "requests": {"count": 5}, "features": False}
    spec |= {"seed": 3, "workers": {"count": 1}, "method": "plain"}
    monkeypatch.setattr("jobs.run.driver.running_ray", inline_ray)
    assert spd.generate(spec)["images"] == 5
    made = spd.sample(spec)
    rows = spd.read(tmp_path / "out").to_table().to_pylist()
    assert [row["label"] for row in rows] == made.labels.tolist()
    stored = np.stack([decode_image(row["image"]["bytes"], channels=1) for row in rows])
    assert np.array_equal(stored, made.images)


def test_reading_gives_the_committed_rows_alone(tmp_path):
    spec = tree_spec(tmp_path, method="null", requests={"count": 10}, shard_size=4)
    store, plan = Store(spec.output), make_plan(spec)
    store_plan(store, plan)
    assert spd.read(spec.output).count_rows() == 0
    make_shards(store, spec, plan)
    (Path(spec.output) / "data" / "part-00000-of-00003.r2.parquet").write_bytes(b"of a dead attempt")
    assert spd.read(spec.output).to_table()["request_id"].to_pylist() == [f"{i:08d}" for i in range(10)]
    lose_shard(store, 1, plan.shards)
    assert spd.read(spec.output).to_table()["request_id"].to_pylist() == [f"{i:08d}" for i in (0, 1, 2, 3, 8, 9)]


def test_wrong_input_raises_one_line(tmp_path):
    with pytest.raises(spd.SpecError, match=r"^requests\.count: got 'many', allowed: a whole number"):
        spd.generate({"requests": {"count": "many"}})
    with pytest.raises(spd.SpecError, match="method: got 'auto'"):
        spd.sample({"method": "auto"})
    with pytest.raises(spd.SpecError, match=r"allowed: an output of `spd generate`"):
        spd.read(tmp_path)
    with pytest.raises(spd.PairError, match="did you mean fashion-ar"):
        spd.load_pair("fashion-arr")


@pytest.mark.parametrize("wrong", [None, 3, b"x", ["a"]])
def test_what_is_neither_a_mapping_nor_a_path_is_refused_by_its_field(wrong):
    for call in (spd.sample, spd.generate):
        with pytest.raises(spd.SpecError, match=r"^spec: got .+, allowed: a mapping of fields, or the path of a YAML"):
            call(wrong)
    with pytest.raises(spd.SpecError, match=r"^output: got .+, allowed: URL or folder of a dataset$"):
        spd.read(wrong)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_code_of_the_docs_runs(page, tmp_path, monkeypatch):
    text = (ROOT / page).read_text()
    section = text.split("## From Python", 1)[1].split("\n## ")[0] if page == "README.md" else text
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.run.driver.running_ray", inline_ray)
    torch.set_num_threads(1)
    known: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), known)


@pytest.mark.parametrize("name", ["jobs/__init__.py", "workers.py", "spd_core/__init__.py"])
def test_another_package_of_the_same_name_on_the_path_is_named(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'jobs/api'}"}
    ran = subprocess.run([sys.executable, "-m", "spd", "spec"], env=path, cwd="/", capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"spd: path: '{Path(name).parts[0].removesuffix('.py')}' is {tmp_path}")


def test_the_command_is_a_module_too():
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'jobs/api'}"}
    ran = subprocess.run([sys.executable, "-m", "spd", "--version"], env=path, cwd="/", capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("spd ")


def test_a_program_beside_another_package_of_the_same_name_is_told_so(tmp_path):
    (tmp_path / "workers.py").write_text("")
    program = "import spd; spd.sample({})"
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'jobs/api'}"}
    ran = subprocess.run([sys.executable, "-c", program], env=path, cwd="/", capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1].startswith(f"ImportError: path: 'workers' is {tmp_path / 'workers.py'}, allowed")


def test_a_checkout_as_the_working_directory_of_a_job_is_no_other_package(tmp_path, monkeypatch):
    for name in ("jobs", "workers", "spd_core"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr("spd.packages._place_of", lambda name: tmp_path / name)
    assert packages.hidden() is None
    monkeypatch.setattr("spd.packages._place_of", lambda name: (tmp_path if name == "jobs" else ROOT) / name)
    assert "parts of spd are in" in str(packages.hidden())
