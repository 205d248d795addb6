"""Running out of memory, on a GPU or a CPU, as one clear error that names the batch and the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spd_core.decode import workspace
from spd_core.law import Settings


class OutOfMemory(RuntimeError):
    """A batch does not fit; the message is one line. Another try of the same batch would fare no better."""


class Room(Settings):
    """Memory of a device, bytes."""

    free: int
    total: int


def room(device: torch.device) -> Room | None:
    """What a device has; None where nobody says."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Room(free=free, total=total)
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            found = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in file)}
        return Room(free=found["MemAvailable"], total=found["MemTotal"])
    except (OSError, KeyError, ValueError, IndexError):
        return None


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: PyTorch has a type for it on GPUs only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def told_apart(batch: int, device: torch.device) -> Iterator[None]:
    """Turns an error for want of memory inside into `OutOfMemory`; what the device keeps between batches is given back.

    Args:
        batch: images decoded together.
        device: of the decoder.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        workspace.release()  # what an earlier batch recorded must not take the place of the next, smaller one
        raise OutOfMemory(_in_words(error, batch, device)) from error


def _in_words(error: BaseException, batch: int, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    have = room(device)
    memory = f" of {have.total / 1e9:.1f} GB ({have.free / 1e9:.1f} GB free)" if have else ""
    first = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())[:200]
    return f"batch: got {batch}, which does not fit into the memory of {name}{memory}, allowed: a smaller one ({first})"
