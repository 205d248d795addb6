"""The Ray that `spd` starts by itself: out of reach for others, and without a trace in the home folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster import running_ray
from jobs.spec import SpecError, Workers

SCRIPT = """
import json, os, sys
from pathlib import Path

from jobs.cluster import running_ray
from jobs.spec import Workers


def family(root):
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def listeners(pids):
    sockets = set()
    for pid in pids:
        try:
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                sockets.add(os.readlink(fd))
        except OSError:
            pass
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                yield fields[1].rpartition(":")[0]


class Actor:
    def mode(self):
        return os.environ.get("RAY_AUTH_MODE")


with running_ray(Workers(count=1)) as ray:
    actor = ray.remote(Actor).options(num_cpus=1).remote()
    mode = ray.get(actor.mode.remote(), timeout=60)
    nodes = [node["NodeManagerAddress"] for node in ray.nodes()]
    print(json.dumps([mode, nodes, sorted(listeners(family(os.getpid())))]))
"""
#: 127.0.0.1 as the kernel prints it, alone and as an IPv6 address.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mode", [None, pytest.param("disabled", marks=pytest.mark.slow)])
def test_a_local_ray_listens_on_loopback_alone_and_leaves_no_token(mode, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "RAY_worker_niceness": "0"}
    environment |= {"RAY_AUTH_MODE": mode} if mode else {}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, text=True, capture_output=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    found, nodes, listening = json.loads(done.stdout.splitlines()[-1])
    assert found == (mode or "token")
    assert nodes == ["127.0.0.1"]
    assert len(listening) > 3 and set(listening) <= LOOPBACK
    assert not (tmp_path / ".ray").exists()


def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    told = r"RAY_ADDRESS: got '127\.0\.0\.1:1', allowed: a running Ray cluster"
    with pytest.raises(SpecError, match=told), running_ray(Workers()):
        pytest.fail("joined")
