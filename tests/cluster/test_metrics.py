"""Prometheus finds the metrics of a running job where the job says that it does."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from workers.metrics import METRICS

#: Of a job without a GPU, without drafts, and in which nothing goes wrong.
NOT_THERE = {
    "spd_gpu_memory_bytes", "spd_drafts_tested_total", "spd_drafts_accepted_total",
    "spd_store_retries_total", "spd_shard_failures_total", "spd_shard_retries_total", "spd_worker_failures_total",
}  # fmt: skip
IMAGES, RATE = 96, 4.0  #: a job of this length is scraped once or twice


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def scraped(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except (OSError, urllib.error.URLError):
        return ""


@pytest.mark.slow
def test_a_running_job_is_seen_by_prometheus(tmp_path):
    port = free_port()
    given = {
        "output": f"{tmp_path}/out", "name": "shoes", "method": f"{{name: 'null', images_per_s: {RATE}}}",
        "features": "false", "requests.count": str(IMAGES), "shard_size": "4",
        "workers.count": "1", "workers.metrics_port": str(port),
    }  # fmt: skip
    command = [sys.executable, "-m", "jobs.cli", "generate"]
    command += [word for field, value in given.items() for word in ("--set", f"{field}={value}")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    lines: dict[str, str] = {}
    while job.poll() is None:
        time.sleep(1.0)
        for line in scraped(f"http://127.0.0.1:{port}/metrics").splitlines():
            if found := re.match(r"ray_(spd_\w+){(.*)} ", line):
                labels = ",".join(re.findall(r'(?:stage|state)="\w+"', found[2]))
                lines[f"{found[1]} {labels}".strip()] = line
    told = job.communicate()[1]
    assert job.returncode == 0, told
    assert f"metrics for Prometheus: http://127.0.0.1:{port}/metrics" in told
    assert {key.split()[0] for key in lines} == {metric.name for metric in METRICS} - NOT_THERE
    assert all('dataset="shoes"' in line and 'NodeAddress="127.0.0.1"' in line for line in lines.values())
    assert 0 < float(lines["spd_images_total"].rsplit(" ", 1)[1]) <= IMAGES
    states = [float(lines[f'spd_dataset_images state="{state}"'].rsplit(" ", 1)[1]) for state in ("committed", "left")]
    assert sum(states) == IMAGES


def test_a_port_that_is_taken_is_named(tmp_path, capsys):
    from jobs.cli import main

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        given = ["--set", f"workers.metrics_port={port}", "--set", "method=null", "--output", str(tmp_path / "out")]
        assert main(["generate", *given]) == 2
    assert f"spd: workers.metrics_port: got {port}, allowed: a free port" in capsys.readouterr().err
