"""The worker: what a Ray actor runs. The driver wraps it, ``ray.remote(Worker)``, with the resources it reserves.

Calls may be repeated after a lost actor or a lost answer, so the store decides what is done, never a call's result.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Any

import ray
import torch

from workers.engine import Engine
from workers.machine import describe_platform, memory_now
from workers.memory import told_apart
from workers.metrics import GPU_MEMORY, HOST_MEMORY, STAGE_SECONDS, STORE_RETRIES, Meter, Waiting
from workers.place import DRIVER, find_sign, leave_sign
from workers.records import CommitRecord, ShardTask, WorkerSettings
from workers.shard import commit_shard, committed, worker_name
from workers.store import Store

logger = logging.getLogger(__name__)


class Worker:
    """Makes shards of one job; loads the pair on first use.

    One shard at a time is decoded. Where the settings let stages overlap, calls of `run` come from several threads, and
    while one shard is decoded another is encoded and a third uploaded; no more than these are held at once.

    Args:
        settings: the same for every worker of a job.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._store = Store(settings.output, settings.storage_options, known=True)
        self._engine: Engine | None = None
        self._load_seconds = 0.0
        self._room = threading.BoundedSemaphore(settings.in_flight)
        self._device = threading.Lock()
        self._meter, self._waiting = Meter(settings.name), Waiting()
        self._retries = 0  # of the store, that are counted
        self._watched = False

    def _loaded(self) -> Engine:
        # Not in the constructor: there an error would reach the driver as a dead actor instead of as itself.
        if self._engine is None:
            began = time.perf_counter()
            self._engine = Engine(self._settings, _cores_per_gpu())
            self._load_seconds = time.perf_counter() - began
        return self._engine

    def ready(self) -> dict[str, Any]:
        """Loads the pair, shows the driver that it sees the output, and says where it is.

        Returns:
            ``name``, ``node`` (of Ray), ``hostname``, ``pid``, ``device``, ``platform``, ``load_seconds``.

        Raises:
            PairError: unknown or damaged pair, or another one than the plan's.
            PlaceError: the driver's output is not to be seen from here.
            StoreError: the output cannot be read or written.
        """
        with self._device:
            engine = self._loaded()
        device = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else str(engine.device)
        if self._settings.run:
            find_sign(self._store, self._settings.run, DRIVER, f"the worker {worker_name()}")
            leave_sign(self._store, self._settings.run, worker_name())
        if not self._watched:
            self._watched = True
            self._meter.watch(self._look)
        return {
            "name": worker_name(),
            "platform": describe_platform(self._settings.device),
            "node": ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "device": device,
            "load_seconds": self._load_seconds,
        }

    def run(self, task: ShardTask) -> dict[str, Any]:
        """Makes and commits a shard, or finds it committed; its `CommitRecord` as a dict.

        Raises:
            PairError: as `ready`.
            OutOfMemory: the batch does not fit into the device's memory.
            StoreError: the output cannot be read or written.
            UnequalCommit: another attempt committed the shard first, with other bytes.
        """
        with self._waiting:
            record = committed(self._store, self._settings, task.shard)
            if record is None:
                record = self._make(task)
            else:
                logger.info("shard %d is committed already, by %s", task.shard, record.worker)
        return record.model_dump(mode="json")

    def _make(self, task: ShardTask) -> CommitRecord:
        with self._room:
            with self._device, told_apart(self._settings.batch, torch.device(self._settings.device)):
                engine = self._loaded()
                shard = engine.decode(task)
            result = engine.encode(shard)
            record = commit_shard(self._store, self._settings, task, result)
            if result.measured:
                from workers.quality import keep

                keep(self._store, result.measured, record.files[0].sha256)
        if record.worker == worker_name():
            self._meter.add_shard(record)
        return record

    def _look(self) -> None:
        """Records what does not wait for the end of a shard."""
        held = memory_now(torch.device(self._settings.device))
        self._meter.set(HOST_MEMORY, held["host"])
        if "device" in held:
            self._meter.set(GPU_MEMORY, held["device"])
        self._meter.add(STAGE_SECONDS, self._waiting.taken(), stage="waiting")
        retries = self._store.retries
        self._meter.add(STORE_RETRIES, retries - self._retries)
        self._retries = retries


def _cores_per_gpu() -> int:
    """This actor's share of its node's cores, by its share of the node's GPUs; 0: Ray does not say."""
    if not ray.is_initialized():
        return 0
    module: Any = ray  # whose functions are not annotated
    context = module.get_runtime_context()
    mine = context.get_assigned_resources().get("GPU", 0.0)
    for node in module.nodes():
        if node["NodeID"] == context.get_node_id() and node["Resources"].get("GPU"):
            return max(1, int(node["Resources"].get("CPU", 0.0) * mine / node["Resources"]["GPU"]))
    return 0
