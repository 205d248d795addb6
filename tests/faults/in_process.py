"""The whole job in this process, on a store that a test can break."""

from __future__ import annotations

import re
from typing import Any

import fsspec
import pytest
import torch

import workers.store as store_module
from jobs.dataset import presence
from jobs.dataset.leftovers import is_empty_part
from jobs.dataset.status import status
from jobs.dataset.validate import validate
from jobs.job.spec import Spec, make_spec
from jobs.run import driver
from jobs.run.driver import generate
from jobs.words.errors import JobError, SpecError
from tests.faults.filesystem import Bucket, Crash, Faulty, PowerCut, Script, register
from tests.faults.inline_ray import inline_ray
from workers import layout, place, shard
from workers.store import Store, StoreError

#: Where the job's output is: by default in memory.
TARGET: dict[str, Any] = {"url": "faulty://bucket/out", "options": {}}


class Features:
    """Any features will do."""

    def __init__(self, _device: object) -> None:
        pass

    def __call__(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        return images_BHWC.float().mean(dim=(1, 2, 3)).reshape(-1, 1).expand(-1, 1280)


def in_process(patch: pytest.MonkeyPatch) -> None:
    """A fresh bucket, workers in this process, and little patience."""
    register()
    patch.setattr(Bucket, "objects", {})
    patch.setattr(Faulty, "script", Script())
    patch.setattr(driver, "running_ray", inline_ray)
    patch.setattr("spd_core.quality.features.FeatureExtractor", Features)
    patch.setattr(store_module, "FIRST_WAIT_S", 0.0001)
    patch.setattr(store_module, "LONGEST_WAIT_S", 0.001)
    patch.setattr(store_module, "_FIND_S", 0.001)
    patch.setattr(place, "LOOK_S", 0.001)
    patch.setattr(shard, "GRACE_S", 0.01)
    for name in ("RETRY_DEADLINE_S", "PROBE_DEADLINE_S", "TIDY_DEADLINE_S"):
        patch.setattr(store_module, name, 0.2)
    for name in ("WATCH_S", "_LOOK_S", "_SETTLE_S"):
        patch.setattr(presence, name, 0.01)


def job(pair: str, **fields: object) -> Spec:
    """Ten images in three shards, with features."""
    raw = {"pair": pair, "method": "null", "features": True, "shard_size": 4, "batch": 2, "requests": {"count": 10}}
    where = {"output": TARGET["url"], "storage_options": TARGET["options"]}
    return make_spec({**raw, **where, "workers": {"count": 1}, **fields})


def run(spec: Spec) -> BaseException | None:
    """Makes the dataset; how that failed, if it did in a way a job may fail."""
    try:
        generate(spec)
    except (SpecError, StoreError, JobError, Crash, PowerCut) as error:
        return error
    return None


def images() -> dict[str, bytes]:
    """Bytes by path of everything a sound dataset consists of but records and reports, which hold times."""
    assert validate(TARGET["url"], TARGET["options"]).problems == ()
    store = Store(TARGET["url"], TARGET["options"])
    return parts_of(store)


def parts_of(store: Store) -> dict[str, bytes]:
    """Bytes of every Parquet file that has rows, by its name in generation 0, whatever its generation is."""
    found = {}
    for path in store.list():
        if path.endswith(".parquet") and not is_empty_part(raw := store.read(path)):
            name = re.sub(r"\.r\d+\.parquet$", ".parquet", path)
            assert name not in found, f"{path} is read beside another of its shard"
            found[name] = raw
    return found


def explain() -> None:
    """`spd status` of an unfinished job says what to do, or that there is none yet."""
    store = Store(TARGET["url"], TARGET["options"])
    if not store.exists(layout.PLAN):
        with pytest.raises(SpecError, match="allowed: an output of `spd generate`"):
            status(store.url, TARGET["options"])
        return
    found = status(store.url, TARGET["options"])
    assert re.search("resumes|writes the report|ask again|finished", found.next_step)


def objects() -> list[str]:
    """Names of everything in the bucket."""
    fs, root = fsspec.core.url_to_fs(TARGET["url"], **TARGET["options"])
    return sorted(fs.find(root))
