"""Stand-ins for the parts of ``torch.cuda`` that a build without CUDA lacks: events, streams, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

#: Bytes of memory that the pretend device says it has.
MEMORY = 80 * 2**30


class Event:
    """An event at which nothing ever took time."""

    def __init__(self, synced: Callable[[str], None]) -> None:
        self._synced = synced

    def record(self, stream: Any = None) -> None:
        """Nothing to record: everything is done at once."""

    def wait(self, stream: Any = None) -> None:
        """A stream's wait, not the host's."""

    def synchronize(self) -> None:
        self._synced("event")

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return 0.0


class Stream:
    """The one stream."""

    def __init__(self, synced: Callable[[str], None]) -> None:
        self._synced = synced

    def synchronize(self) -> None:
        self._synced("stream")

    def wait_stream(self, stream: Any) -> None:
        """A stream's wait, not the host's."""

    def wait_event(self, event: Any) -> None:
        """A stream's wait, not the host's."""

    def record_event(self, event: Any = None) -> Any:
        return event or Event(self._synced)


def runtime(synced: Callable[[str], None]) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, stand-in) of every function to replace; ``synced`` is told of every wait."""
    cuda, stream = torch.cuda, Stream(synced)
    yield cuda, "is_available", lambda: True
    yield cuda, "is_initialized", lambda: True
    yield cuda, "device_count", lambda: 1
    yield cuda, "current_device", lambda: 0
    yield cuda, "set_device", lambda device: None
    yield cuda, "synchronize", lambda device=None: synced("synchronize")
    yield cuda, "Event", lambda **_: Event(synced)
    yield cuda, "Stream", lambda *_, **__: stream
    yield cuda, "current_stream", lambda device=None: stream
    yield cuda, "default_stream", lambda device=None: stream
    yield cuda, "stream", lambda _: nullcontext()
    yield cuda, "empty_cache", lambda: None
    yield cuda, "is_bf16_supported", lambda *_, **__: True
    yield cuda, "get_device_name", lambda device=None: "pretend"
    yield cuda, "get_device_capability", lambda device=None: (9, 0)
    yield (
        cuda, "get_device_properties",
        lambda device=None: SimpleNamespace(name="pretend", total_memory=MEMORY, multi_processor_count=132, major=9),
    )  # fmt: skip
    yield cuda, "mem_get_info", lambda device=None: (MEMORY, MEMORY)
    yield cuda, "memory_allocated", lambda device=None: 0
    yield cuda, "max_memory_allocated", lambda device=None: 0
    yield cuda, "reset_peak_memory_stats", lambda device=None: None
    yield cuda.amp.common, "amp_definitely_not_available", lambda: False
    # Pinned memory is the host's.
    yield torch.Tensor, "pin_memory", lambda self, device=None: self
    yield torch.Tensor, "is_pinned", lambda self, device=None: False
