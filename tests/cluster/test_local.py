"""The Ray that `spd` starts by itself: out of reach for others, and without a trace in the home folder."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.job.spec import Workers
from jobs.run.cluster import running_ray, session_folder
from jobs.words.errors import SpecError

SCRIPT = """
import json, os, sys
from pathlib import Path

from jobs.run.cluster import running_ray
from jobs.job.spec import Workers


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
    session = ray._private.worker._global_node.get_session_dir_path()
    print(json.dumps([mode, nodes, session, sorted(listeners(family(os.getpid())))]))
"""
#: 127.0.0.1 as the kernel prints it, alone and as an IPv6 address.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mode", [None, pytest.param("disabled", marks=pytest.mark.slow)])
def test_a_local_ray_listens_on_loopback_alone_in_a_folder_of_its_own_and_leaves_no_token(mode, tmp_path):
    long, home = tmp_path / ("x" * 119), tmp_path / "home"
    long.mkdir()
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2]), "RAY_worker_niceness": "0"}
    environment |= {"RAY_AUTH_MODE": mode} if mode else {}
    environment["TMPDIR"] = str(long)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, text=True, capture_output=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    found, nodes, session, listening = json.loads(done.stdout.splitlines()[-1])
    assert found == (mode or "token")
    assert nodes == ["127.0.0.1"]
    assert len(listening) > 3 and set(listening) <= LOOPBACK
    assert not (home / ".ray").exists()
    folder = Path(session).parent
    assert folder.name.startswith("spd-") and not folder.exists() and not list(long.iterdir())


def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    told = r"RAY_ADDRESS: got '127\.0\.0\.1:1', allowed: a running Ray cluster"
    with pytest.raises(SpecError, match=told), running_ray(Workers()):
        pytest.fail("joined")


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "127.0.0.1", "head:port", "[::1]", "a b:1"]
)
def test_an_address_that_is_none_is_named(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SpecError, match="allowed: host:port of a running Ray cluster, or auto"), running_ray(Workers()):
        pytest.fail("joined")


def test_the_folder_of_a_killed_driver_goes_when_the_next_one_starts(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code = "from jobs.run.cluster import session_folder as s\nwith s() as f:\n    print(f, flush=True)\n    input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        left = Path(driver.stdout.readline().strip())
        with session_folder():
            assert left.is_dir(), "its driver lives"
        driver.kill()
        driver.wait()
        assert left.is_dir()
        (tmp_path / "spd-mine").mkdir()
        with session_folder() as folder:
            assert not left.exists() and Path(folder).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["spd-mine"], "a folder without a driver's lock is not ours"


def test_the_session_folder_is_private_short_and_gone_afterwards(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 119)
    long.mkdir()
    for place in (str(long), str(tmp_path / "missing"), "/tmp"):
        monkeypatch.setenv("TMPDIR", place)
        with session_folder() as folder:
            found = Path(folder).stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, os.getuid())
            session = f"{folder}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
            assert len(session) <= 107 and not list(long.iterdir())
        assert not Path(folder).exists()


def test_a_full_temporary_folder_is_passed_over_or_named(monkeypatch):
    monkeypatch.setattr(
        "shutil.disk_usage", lambda place: SimpleNamespace(free=(1 << 30) * (place == Path("/dev/shm")))
    )
    with session_folder() as folder:
        assert folder.startswith("/dev/shm/")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with pytest.raises(SpecError, match=r"RAY_TMPDIR: no room for Ray .*less than 64 MiB"), session_folder():
        pytest.fail("made")
