"""A small finished dataset made without Ray, for tests of everything that reads one."""

from __future__ import annotations

from pathlib import Path

from jobs.dataset.commits import read_committed
from jobs.dataset.manifest import build_manifest
from jobs.job.plan import Plan, make_plan, store_plan, task_of
from jobs.job.spec import Spec, make_spec
from tests.tiny_pair import make_tiny_pair
from workers import layout
from workers.engine import Engine
from workers.records import CommitRecord, WorkerSettings
from workers.shard import commit_shard
from workers.store import Store


def tree_spec(folder: Path, **fields: object) -> Spec:
    """Ten images in three shards of a tiny pair, without features."""
    pair = make_tiny_pair(folder / "pair")
    raw = {"output": str(folder / "out"), "pair": str(pair), "requests": {"count": 10}, "shard_size": 4, "batch": 2}
    return make_spec({**raw, "features": False, "method": {"name": "cspd", "gamma": 3}, **fields})


def worker_settings(spec: Spec, plan: Plan) -> WorkerSettings:
    return WorkerSettings(
        name=spec.name,
        output=spec.output,
        storage_options=spec.storage_options,
        pair=spec.pair,
        pair_sha256=plan.pair_sha256,
        law=spec.law,
        method=spec.method,
        batch=spec.batch,
        image=spec.image,
        features=spec.features,
        device="cpu",
        threads=1,
        fingerprint=plan.fingerprint,
        shards=plan.shards,
    )


def make_shards(store: Store, spec: Spec, plan: Plan) -> list[CommitRecord]:
    settings = worker_settings(spec, plan)
    engine = Engine(settings)
    tasks = [task_of(plan, shard, 0) for shard in range(plan.shards)]
    return [commit_shard(store, settings, task, engine.make(task)) for task in tasks]


def make_tree(folder: Path, **fields: object) -> Store:
    """Writes a finished dataset with stand-ins for card and reports."""
    spec = tree_spec(folder, **fields)
    store, plan = Store(spec.output, spec.storage_options), make_plan(spec)
    store_plan(store, plan)
    make_shards(store, spec, plan)
    for path in (layout.CARD, layout.REPORT_JSON, layout.REPORT_HTML):
        store.create(path, f"stands for {path}\n".encode())
    store.create(layout.SUCCESS, build_manifest(store, plan, read_committed(store, plan).records.values()))
    return store


def lose_shard(store: Store, shard: int, shards: int) -> None:
    """Deletes a shard as no attempt would: its records and its files."""
    for path in (layout.commit(shard), *layout.parts(shard, shards)):
        store.delete(path)
