"""The worker: what a Ray actor runs. The driver wraps it, ``ray.remote(Worker)``, with the resources it reserves.

Calls may be repeated after a lost actor or a lost answer, so the store decides what is done, never a call's result.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any

import ray
import torch

from workers.engine import Engine
from workers.records import ShardTask, WorkerSettings
from workers.shard import commit_shard, committed
from workers.store import Store

logger = logging.getLogger(__name__)


class Worker:
    """Makes shards of one job, one at a time; loads the pair on first use.

    Args:
        settings: the same for every worker of a job.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._store = Store(settings.output, settings.storage_options, known=True)
        self._engine: Engine | None = None
        self._load_seconds = 0.0

    def _loaded(self) -> Engine:
        # Not in the constructor: there an error would reach the driver as a dead actor instead of as itself.
        if self._engine is None:
            began = time.perf_counter()
            self._engine = Engine(self._settings)
            self._load_seconds = time.perf_counter() - began
        return self._engine

    def ready(self) -> dict[str, Any]:
        """Loads the pair and says where: ``node`` (of Ray), ``hostname``, ``pid``, ``device``, ``load_seconds``.

        Raises:
            PairError: unknown or damaged pair, or another one than the plan's.
        """
        engine = self._loaded()
        device = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else str(engine.device)
        return {
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
            StoreError: the output cannot be read or written.
            UnequalCommit: another attempt committed the shard first, with other bytes.
        """
        record = committed(self._store, self._settings, task.shard)
        if record is None:
            record = commit_shard(self._store, self._settings, task, self._loaded().make(task))
        else:
            logger.info("shard %d is committed already, by %s", task.shard, record.worker)
        return record.model_dump(mode="json")
