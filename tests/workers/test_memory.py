from __future__ import annotations

import pickle

import pytest
import torch

from workers.actor import Worker
from workers.engine import Engine
from workers.memory import OutOfMemory, ran_out, room, told_apart

CPU = torch.device("cpu")


def test_pytorch_says_on_a_cpu_that_there_is_no_memory():
    with pytest.raises(OutOfMemory, match=r"^batch: got 7, which does not fit .* allowed: a smaller one \(.*allocate"):  # noqa: SIM117
        with told_apart(7, CPU):
            torch.empty(1 << 50)


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), True),
        (MemoryError("Unable to allocate 9 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, is_it):
    assert ran_out(error) is is_it
    with pytest.raises(OutOfMemory if is_it else type(error)) as caught, told_apart(3, CPU):
        raise error
    if is_it:
        assert "\n" not in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_worker_that_runs_out_of_memory_names_its_batch(settings, task, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Engine, "decode", full)
    with pytest.raises(OutOfMemory, match=r"batch: got 4, which .* GB free\), allowed: .*Tried to allocate 20.00 GiB"):
        Worker(settings).run(task)


def test_a_device_that_is_full_frees_its_workspace(monkeypatch):
    given: list[bool] = []
    monkeypatch.setattr("spd_core.decode.workspace.release", lambda: given.append(True))
    with pytest.raises(ValueError, match="other"), told_apart(3, CPU):
        raise ValueError("other")
    assert not given
    with pytest.raises(OutOfMemory), told_apart(3, CPU):
        raise MemoryError
    assert given == [True]


def test_the_machine_has_room():
    found = room(CPU)
    assert found is not None and 0 < found.free <= found.total
