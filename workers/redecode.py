"""The worker that decodes requests again: what a Ray actor runs to see whether their images depend on their batch."""

from __future__ import annotations

from workers.engine import Engine
from workers.machine import describe_platform
from workers.records import ShardTask, WorkerSettings
from workers.shard import worker_name


class Redecoder:
    """Makes images of requests that have images already; writes nothing.

    Args:
        settings: of the job, with the batch size to decode at this time.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._engine: Engine | None = None

    def ready(self) -> dict[str, str]:
        """Loads the pair; ``name`` of the worker as commit records have it, and its ``platform``.

        Raises:
            PairError: unknown or damaged pair, or another one than the plan's.
        """
        # Not in the constructor: there an error would reach the driver as a dead actor instead of as itself.
        self._engine = self._engine or Engine(self._settings)
        return {"name": worker_name(), "platform": describe_platform(self._settings.device)}

    def images(self, task: ShardTask) -> tuple[bytes, ...]:
        """The encoded images of the task's requests, in order."""
        self._engine = self._engine or Engine(self._settings)
        return self._engine.make(task).images
