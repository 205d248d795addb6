"""A Ray cluster on one machine: each node a `ray start --block` on a loopback address of its own, with a token."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
SPD = str(Path(sys.executable).with_name("spd"))
_UP_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Nodes:
    """The nodes of one cluster; the head has no CPU for actors.

    Args:
        folder: for logs.
        variables: environment of every node, and so of the driver and the workers.
    """

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._gcs, self._dashboard = free_port(), free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # a busy machine would hardly run them
            "HOME": str(self.folder),  # where Ray would look for a token of this user
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **self.variables,
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        # Ray puts sockets below it, whose paths may have 107 characters.
        self._temporary = tempfile.TemporaryDirectory(prefix="spd-ray-", dir="/tmp", ignore_cleanup_errors=True)
        ports = {"port": self._gcs, "dashboard-port": self._dashboard, "ray-client-server-port": free_port()}
        flags = [f"--{name}={port}" for name, port in ports.items()]
        self._start(
            "--head", "--num-cpus=0", "--dashboard-host=127.0.0.1", f"--temp-dir={self._temporary.name}", *flags
        )
        self._wait_for_jobs_server()

    @property
    def gcs_address(self) -> str:
        return f"127.0.0.4:{self._gcs}"

    def add(self, cpus: int) -> subprocess.Popen[bytes]:
        """One more node; returns when it has said that it is up."""
        return self._start(f"--address={self.gcs_address}", f"--num-cpus={cpus}")

    def _start(self, *flags: str) -> subprocess.Popen[bytes]:
        number = len(self._processes)
        log = self.folder / f"node{number}.log"
        common = {
            "node-ip-address": f"127.0.0.{4 + number}",
            "dashboard-agent-listen-port": free_port(),
            "object-store-memory": 100_000_000,
            "min-worker-port": 0,
            "max-worker-port": 0,
        }
        given = ["start", "--block", *(f"--{name}={value}" for name, value in common.items()), *flags]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [RAY, *given], stdout=out, stderr=out, env=self.environment, start_new_session=True
            )
        self._processes.append(process)
        deadline = time.monotonic() + _UP_S
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        return process

    def _wait_for_jobs_server(self) -> None:
        deadline = time.monotonic() + _UP_S
        while self.ray("job", "list").returncode:
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def drain(self, node: str) -> None:
        """Announces that a node is about to be taken away, as the autoscaler does for a spot node."""
        notice = {"reason": "DRAIN_NODE_REASON_PREEMPTION", "reason-message": "spot", "deadline-remaining-seconds": 60}
        flags = [f"--{name}={value}" for name, value in notice.items()]
        done = self.ray("drain-node", f"--node-id={node}", *flags)
        assert done.returncode == 0, done.stderr

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Takes a node away without notice: every process of it, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self._processes:
            self.kill(process)
        self._temporary.cleanup()

    def ray(self, *given: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's, as a user of the cluster types it."""
        address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self._dashboard}", "RAY_ADDRESS": self.gcs_address}
        environment = {**self.environment, **address, **variables}
        if given[0] == "job":
            del environment["RAY_ADDRESS"]
        return subprocess.run(
            [RAY, *given], env=environment, cwd=cwd, text=True, capture_output=True, timeout=300, check=False
        )

    def submit(self, folder: Path, *given: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- spd generate job.yaml` in a folder; waits for the end."""
        return self.ray("job", "submit", "--working-dir", ".", "--", SPD, "generate", "job.yaml", *given, cwd=folder)

    def begin(self, folder: Path, name: str) -> None:
        """The same, without waiting, as a submission with a name."""
        flags = ("--no-wait", "--submission-id", name, "--working-dir", ".")
        done = self.ray("job", "submit", *flags, "--", SPD, "generate", "job.yaml", cwd=folder)
        assert done.returncode == 0, done.stderr

    def log(self, name: str) -> str:
        return self.ray("job", "logs", name).stdout.strip()

    def state(self, name: str) -> str:
        return self.ray("job", "status", name).stdout.strip()

    def nodes(self) -> list[dict[str, object]]:
        """What Ray says of its nodes."""
        script = "import json, ray; ray.init(address='auto', logging_level='ERROR'); print(json.dumps(ray.nodes()))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**self.environment, "RAY_ADDRESS": self.gcs_address},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        found: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
        return found
