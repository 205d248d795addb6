"""`ray job submit` on a cluster of three nodes with a token, output on a real S3 server."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from jobs.dataset.status import status
from jobs.dataset.validate import validate
from tests.cluster.nodes import Nodes
from workers import layout
from workers.shard import read_commit
from workers.store import Store

pytestmark = pytest.mark.slow


def write_job(folder: Path, pair: str, images: int = 400, **workers: object) -> str:
    """A spec file in a folder of its own; its output, on the S3 server."""
    folder.mkdir(exist_ok=True)
    output = f"s3://tests/{uuid.uuid4().hex}/out"
    spec = {
        "output": output,
        "pair": pair,
        "method": "null",
        "features": False,
        "shard_size": 4,
        "requests": {"count": images},
        "workers": {"count": 2, **workers},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    return output


def wait_until(true: Callable[[], object], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@dataclass
class Output:
    """A dataset in the making."""

    store: Store
    seen: dict[str, str] = field(default_factory=dict)

    def commits(self) -> int:
        return len(self.store.list(layout.COMMITS))

    def workers(self) -> set[str]:
        """Workers that committed a shard."""
        for path in set(self.store.list(layout.COMMITS)) - set(self.seen):
            if record := read_commit(self.store, int(Path(path).stem)):
                self.seen[path] = record.worker
        return set(self.seen.values())


def test_submit_ends_with_the_jobs_own_verdict(two_nodes: Nodes, pair: str, s3_options, tmp_path):
    output = write_job(tmp_path / "job", pair)
    done = two_nodes.submit(tmp_path / "job")
    assert done.returncode == 0, done.stdout + done.stderr
    assert validate(output, s3_options).problems == ()
    assert len(Output(Store(output, s3_options)).workers()) == 2
    assert s3_options["secret"] not in done.stdout + done.stderr

    failed = two_nodes.submit(tmp_path / "job", "--set", "requests.count=500")
    assert failed.returncode == 1
    log = two_nodes.log(re.search(r"raysubmit_\w+", failed.stdout)[0])
    assert log.splitlines()[-1].startswith("spd: requests.count: got 500, stored 400; allowed:")

    stranger = two_nodes.ray("job", "list", RAY_AUTH_TOKEN="0" * 64)
    assert stranger.returncode and "Authentication failed" in stranger.stderr


def test_a_pair_on_the_store_reaches_every_node(two_nodes: Nodes, pair: str, s3_options, tmp_path):
    """A pair's folder need not be in the working directory, which Ray limits to 100 MiB."""
    remote = f"s3://tests/{uuid.uuid4().hex}/pair"
    store = Store(remote, s3_options)
    for path in Path(pair).iterdir():
        store.create(path.name, path.read_bytes())
    output = write_job(tmp_path / "job", remote, images=40)
    done = two_nodes.submit(tmp_path / "job", "--set", "method=plain", "--set", "law.num_iter=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert validate(output, s3_options).problems == ()


def test_a_stopped_job_resumes(two_nodes: Nodes, pair: str, s3_options, tmp_path):
    output = write_job(tmp_path / "job", pair, images=2000)
    store = Store(output, s3_options)
    two_nodes.begin(tmp_path / "job", "stopped")
    wait_until(lambda: Output(store).commits() > 20)
    assert two_nodes.ray("job", "stop", "stopped").returncode == 0
    assert "was stopped" in two_nodes.state("stopped")
    found = status(output, s3_options)
    assert 20 < found.committed < found.shards and not found.finished
    before = {path: store.read(path) for path in store.list(layout.COMMITS)}

    again = two_nodes.submit(tmp_path / "job")
    assert again.returncode == 0, again.stdout + again.stderr
    assert validate(output, s3_options).problems == ()
    assert {path: store.read(path) for path in before} == before, "what was committed is not made again"
    last = two_nodes.log("stopped").splitlines()[-1]
    assert last == "spd: stopped by SIGTERM; committed shards remain, and the same command resumes"


@pytest.mark.timeout(1500)
def test_workers_come_and_go_with_their_nodes(nodes: Nodes, pair: str, s3_options, tmp_path):
    """One node at first; a second joins, the first is drained, a third joins and the second is lost without notice."""
    nodes.add(1)
    url = write_job(tmp_path / "job", pair, images=4000, count=0)
    output = Output(Store(url, s3_options))
    nodes.begin(tmp_path / "job", "job")
    wait_until(lambda: output.commits() > 10)
    assert len(output.workers()) == 1
    second = nodes.add(1)
    wait_until(lambda: len(output.workers()) == 2)
    first = next(node["NodeID"] for node in nodes.nodes() if node["NodeManagerAddress"] == "127.0.0.5")
    nodes.drain(str(first))
    wait_until(lambda: "its worker gets no more shards" in nodes.log("job"))
    nodes.add(1)
    wait_until(lambda: len(output.workers()) == 3)
    nodes.kill(second)
    wait_until(lambda: "succeeded" in nodes.state("job"), 900.0)
    assert validate(url, s3_options).problems == ()
    assert len(output.workers()) == 3
    assert "its worker is lost" in nodes.log("job")


def test_a_worker_that_stands_still_does_not_hold_up_the_end(two_nodes: Nodes, pair: str, s3_options, tmp_path):
    url = write_job(tmp_path / "job", pair, images=800)
    output = Output(Store(url, s3_options))
    two_nodes.begin(tmp_path / "job", "still")
    wait_until(lambda: len(output.workers()) == 2)
    pid = int(min(output.workers()).rpartition("-")[2])
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: "succeeded" in two_nodes.state("still"))
    finally:
        with contextlib.suppress(ProcessLookupError):  # the end of the job has killed it
            os.kill(pid, signal.SIGKILL)
    assert validate(url, s3_options).problems == ()
    assert "an idle worker makes it too" in two_nodes.log("still")
