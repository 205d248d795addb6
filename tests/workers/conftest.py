from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from spd_core.law import Cspd, Null
from spd_core.pairs.pair import load_card
from tests.seaweed import s3, s3_options
from tests.tiny_pair import LAW, make_tiny_pair
from workers.records import ImageFormat, ShardTask, WorkerSettings
from workers.store import Store

__all__ = ["s3", "s3_options"]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny")


@pytest.fixture(params=["path", "file", "memory", "s3"])
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
