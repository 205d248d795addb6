"""CUDA graphs played on a CPU: operations are recorded with the tensors they work on, and run again without Python.

Like a graph on a device it knows fixed tensors only: what a function decides in Python is decided once, and a result
that is not written by a recorded operation keeps the value it had. So a decoder whose images stay the same under it is
one whose captured functions depend on nothing but their arguments.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spd_core import capture

#: Operations that wait for a device, or need more than fixed addresses.
FORBIDDEN = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "lift_fresh",  # torch.tensor: a copy from the host
    "_unique2",
    "unique_consecutive",
}


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in FORBIDDEN:
            raise RuntimeError(f"{name} inside a captured function")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            booleans = [t for t in tree_leaves(args[1]) if isinstance(t, torch.Tensor) and t.dtype is torch.bool]
            if booleans:
                raise RuntimeError("boolean index inside a captured function")
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.operations:
            given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _is_strided(t)}
            old = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
            if old and all(t.untyped_storage().data_ptr() in given for t in old) and not _writes(func):
                continue  # a view of what is there
            new = func(*args, **kwargs)
            for before, now in zip(old, [t for t in tree_leaves(new) if isinstance(t, torch.Tensor)], strict=True):
                if before is not now and before.untyped_storage().data_ptr() != now.untyped_storage().data_ptr():
                    before.copy_(now)


def _is_strided(value):
    return isinstance(value, torch.Tensor) and not value.is_mkldnn


def _writes(func):
    return func._schema.is_mutable


def record(name, function, inputs):
    """In place of `spd_core.capture.record`."""
    with torch.inference_mode():
        held = [x.clone(memory_format=torch.contiguous_format) for x in inputs]
        function(*held)  # the warm-up: constants are made outside the recording
        with _Recorder() as recorder:
            made = function(*held)
        results = tuple(x.clone() for x in made)

    def replay(values):
        with torch.inference_mode():
            for goal, value in zip(held, values, strict=True):
                goal.copy_(value)
            recorder.replay()
            for goal, value in zip(results, made, strict=True):
                goal.copy_(value)
        return results

    return replay


@contextlib.contextmanager
def cpu_graphs():
    """Inside, captured functions are recorded on a CPU too; yields the list of their names."""
    listed = []

    def listing(name, function, inputs):
        replay = record(name, function, inputs)
        listed.append(name)
        return replay

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "RECORDED", frozenset({"cpu"}))
        patch.setattr(capture, "record", listing)
        yield listed
