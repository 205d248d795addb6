"""Two Ray nodes on one machine, 127.0.0.2 (the head) and 127.0.0.3, whose raylets are killed and started again."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

ADDRESSES = ("127.0.0.2", "127.0.0.3")
_UP_S = 120.0


def _command_of(pid: int) -> list[str]:
    """Arguments of a process; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


class Nodes:
    """The cluster.

    Args:
        folder: its temporary folder; Ray puts sockets below it, so the path must be short.
        port: first of 100 ports.
        variables: environment of the nodes, and so of the actors.
    """

    def __init__(self, folder: Path, port: int, variables: dict[str, str]) -> None:
        self._folder, self._port = folder, port
        self.address = f"{ADDRESSES[0]}:{port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **variables,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            # Otherwise workers are the last to get a core that others want too.
            "RAY_worker_niceness": "0",
            "RAY_raylet_start_wait_time_s": "120",
        }
        self._raylets: dict[str, list[str]] = {}  #: command by address
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Starts head and second node."""
        head = ["--head", f"--port={self._port}", "--include-dashboard=false", f"--temp-dir={self._folder}"]
        self._ray_start(0, *head, f"--ray-client-server-port={self._port + 1}")
        self._ray_start(1, f"--address={self.address}")
        for address in ADDRESSES:
            self._raylets[address] = _command_of(self.raylet(address))

    def _ray_start(self, index: int, *flags: str) -> None:
        ports = (
            "object-manager",
            "node-manager",
            "dashboard-agent-listen",
            "dashboard-agent-grpc",
            "runtime-env-agent",
        )
        first = self._port + 10 * (index + 1)
        given = [f"--{name}-port={first + place}" for place, name in enumerate(ports)]
        workers = self._port + 40 + 30 * index
        given += [f"--min-worker-port={workers}", f"--max-worker-port={workers + 29}"]
        given += [f"--node-ip-address={ADDRESSES[index]}", "--num-cpus=1", "--object-store-memory=100000000"]
        given += [f"--metrics-export-port={first + 9}", "--include-log-monitor=false", "--disable-usage-stats"]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), "start", *given, *flags],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_UP_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"ray start: {done.stdout}{done.stderr}")

    def _mine(self) -> list[int]:
        """Every process of this cluster."""
        return [pid for pid in _pids() if any(str(self._folder) in part for part in _command_of(pid))]

    def raylet(self, address: str) -> int:
        """Process id of a node's raylet; 0: it is not running."""
        for pid in self._mine():
            command = _command_of(pid)
            if command[0].endswith("/raylet") and f"--node_ip_address={address}" in command:
                return pid
        return 0

    def actors(self) -> list[int]:
        """Process ids of the job's workers that are up."""
        raylets = {self.raylet(address) for address in ADDRESSES} - {0}
        found = [pid for pid in _pids() if _parent_of(pid) in raylets]
        return [pid for pid in found if "".join(_command_of(pid)[:1]).startswith("ray::Worker")]

    def restart_raylets(self) -> int:
        """Starts every raylet that is not running, as a new node on the old address; how many."""
        started = 0
        for address, command in self._raylets.items():
            if self.raylet(address):
                continue
            old = next(part.partition("=")[2] for part in command if part.startswith("--node_id="))
            new = secrets.token_hex(len(old) // 2)
            for part in command:
                name, _, value = part.partition("=")
                if name in ("--raylet_socket_name", "--store_socket_name"):
                    Path(value).unlink(missing_ok=True)
            self._children.append(
                subprocess.Popen(
                    [part.replace(old, new) for part in command],
                    env=self.environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
            started += 1
        self._children = [child for child in self._children if child.poll() is None]
        return started

    def stop(self) -> None:
        """Kills every process of the cluster."""
        deadline = time.monotonic() + 20
        while (mine := [pid for pid in self._mine() if pid != os.getpid()]) and time.monotonic() < deadline:
            for pid in mine:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        for child in self._children:
            child.wait()
