"""Captured functions: a function of tensors that runs as one CUDA graph on a CUDA device, and is called elsewhere.

A launch costs the host about as much as a small kernel costs the device, so a loop of small kernels is bound by its
launches. A graph is launched at once. What it records are kernels, their shapes and their addresses, and so a captured
function

* works on the device alone: it never waits for it (``.item()``, ``nonzero``, boolean indices, copies from or to the
  host) and makes no tensor from Python numbers other than by filling (``torch.full``, ``arange``, not ``tensor``);
* takes its path through Python from the shapes and the constants of the call alone;
* draws no random numbers of torch's generators;
* reads, beside its arguments, only tensors that stay where they are and alive for as long as the `Captured` that holds
  it: weights, tables cached on the owner, static caches. What it writes in place must be the same if it is run twice.

The settings of the first call of a key (TF32, the chosen attention kernels) are recorded with it.

Facts relied on (PyTorch's notes on CUDA graphs): capturing needs a stream of its own, and the warm-up runs on that one,
for the libraries keep a workspace for every stream; graphs that are replayed one at a time may share a memory pool in
any order, as long as nobody reads in it what another has left; a pool must not outlive its last graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

#: Types of devices on which functions are recorded.
RECORDED = frozenset({"cuda"})
#: Graphs of one captured function; other shapes are called directly, so the memory is bounded and nothing is recorded
#: anew again and again.
MOST_GRAPHS = 64

Made = TypeVar("Made")
Function = Callable[..., tuple[Tensor, ...]]
#: Runs what was recorded on other values of the same shapes.
Replay = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


#: Of the function that is being recorded; a captured function that it calls becomes a part of it.
_RECORDING: list[str] = []


class Captured:
    """A function of tensors, recorded once for every key: its constants, and the arguments' shapes and dtypes.

    Results on a CUDA device belong to the recorded graph: they are valid until the next call with the same key. All
    calls must be on one stream of the device, one after another.

    Args:
        function: of tensors on one device, and constants as keywords; returns tensors. The module says what it may do.
        name: under which its graphs are listed.
        most: keys that are recorded; calls with others are direct.
    """

    def __init__(self, function: Function, name: str, most: int = MOST_GRAPHS) -> None:
        self.function = function
        self.name = name
        self.most = most
        self._graphs: dict[Hashable, Replay] = {}

    def __call__(self, *inputs: Tensor, **constants: Hashable) -> tuple[Tensor, ...]:
        """The function's results.

        Args:
            inputs: at least one tensor; all on one device.
            constants: whatever else decides what the function does.
        """
        if _RECORDING or not recorded(inputs[0].device):
            return self.function(*inputs, **constants)
        key = (inputs[0].device, *((x.shape, x.dtype) for x in inputs), *sorted(constants.items()))
        replay = self._graphs.get(key)
        if replay is None:
            if len(self._graphs) == self.most:
                return self.function(*inputs, **constants)
            _RECORDING.append(self.name)
            try:
                replay = self._graphs[key] = record(self.name, partial(self.function, **constants), inputs)
            finally:
                _RECORDING.pop()
        return replay(inputs)

    def fresh(self, *inputs: Tensor, **constants: Hashable) -> tuple[Tensor, ...]:
        """The function's results as tensors that stay."""
        made = self(*inputs, **constants)
        return tuple(x.clone() for x in made) if recorded(inputs[0].device) else made


def filled(rows: int) -> int:
    """What rows are filled up to where their number varies: at most an eighth more, eight numbers an octave."""
    step = 1 << max(0, rows.bit_length() - 4)
    return -(-rows // step) * step


def recorded(device: torch.device) -> bool:
    """Whether functions are recorded on a device."""
    return device.type in RECORDED


class ModuleCache(dict[Hashable, Any]):
    """What a module keeps for its captured functions; a copy of the module starts without."""

    def __deepcopy__(self, memo: object) -> ModuleCache:
        return ModuleCache()

    def __reduce__(self) -> tuple[type[ModuleCache], tuple[()]]:
        return ModuleCache, ()


def cached_on(owner: nn.Module, key: Hashable, make: Callable[[], Made]) -> Made:
    """What ``make`` made for this key the first time, kept as long as the module lives."""
    cached: ModuleCache = owner.__dict__.setdefault("cached", ModuleCache())
    if key not in cached:
        cached[key] = make()
    made: Made = cached[key]
    return made


def record(name: str, function: Function, inputs: Sequence[Tensor]) -> Replay:
    """Records the function on tensors like ``inputs`` and returns what replays it; nothing is computed with them yet.

    The one place that touches CUDA graphs: a device that only pretends puts its own in place of it.

    Args:
        name: of the function, for listings.
        function: of tensors alone.
        inputs: CUDA tensors whose shapes, dtypes and values the warm-up runs on.
    """
    del name
    device = inputs[0].device
    stream, pool = _stream(device), _anchor(device).pool()
    # Ordinary tensors, written to inside and outside inference mode, and not from the graphs' pool.
    with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
        held = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in inputs]
        _copy(held, inputs)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            shapes = [(y.shape, y.dtype) for y in _run(function, held)]
        torch.cuda.current_stream(device).wait_stream(stream)
        results = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype in shapes)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile: they copy images to the host.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            _copy(results, _run(function, held))

    def replay(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        _copy(held, values)
        graph.replay()
        return results

    return replay


def _run(function: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    # A weight that autocast has cast and keeps would be freed while the graph still reads it.
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.inference_mode():
            return function(*inputs)
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _copy(goals: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies tensors of like shapes, those of one dtype by one kernel."""
    for dtype in {goal.dtype for goal in goals}:
        pairs = [(goal, value) for goal, value in zip(goals, values, strict=True) if goal.dtype is dtype]
        torch._foreach_copy_([goal for goal, _ in pairs], [value for _, value in pairs])


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where a device's functions are warmed up and recorded."""
    return torch.cuda.Stream(device)


@lru_cache
def _anchor(device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph that is never replayed: while it lives, so does the memory pool that all graphs of the device share."""
    graph, stream = torch.cuda.CUDAGraph(), _stream(device)
    with (
        torch.inference_mode(False),
        torch.cuda.device(device),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        torch.zeros(1, device=device)
    return graph
