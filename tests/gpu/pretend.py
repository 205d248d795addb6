"""A pretend CUDA device: tensors that say ``cuda:0``, hold their data on the CPU, and count what a GPU would do.

Inside `pretend_cuda` the project's GPU code runs as it is. What a GPU would refuse is refused: tensors of two devices
in one operation, and anything that waits inside a captured region; so is an index that lies on the CPU, which a GPU
would fetch and wait for. Counted, by the line that asks, are kernel launches and host syncs, the points at which the
host waits for the device: ``.item()``, ``nonzero`` and indexing by a mask, blocking copies either way.

The device knows nothing of speed or of a GPU's rounding, and its launches are estimates: one for most operators,
several for those that torch builds from several kernels (`KERNELS`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from spd_core import capture
from tests.gpu.ledger import Ledger, Region, asking_line
from tests.gpu.pretend_runtime import runtime

CUDA = torch.device("cuda", 0)

#: Operators that launch nothing, beside those that torch marks as views.
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "_reshape_alias",
        "detach", "detach_", "alias", "lift_fresh", "record_stream", "set_"}  # fmt: skip
#: Kernels of the operators that have several; all others have one.
KERNELS = {
    "sort": 4, "argsort": 4, "topk": 4, "nonzero": 4, "masked_select": 5, "constant_pad_nd": 2, "masked_fill": 2,
    "native_group_norm": 3, "scatter": 2, "index_put": 2, "_unique2": 6, "multinomial": 4,
}  # fmt: skip
#: Operators whose result's shape or value the host must know before it goes on.
WAITING = {
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "equal",
    "is_nonzero",
}
#: Composites that are one kernel on a GPU, or that are counted in a way of their own.
WHOLE = {"linear", "layer_norm", "scaled_dot_product_attention"}
INDEXED = {"index", "_index_put_impl_", "index_put", "index_put_"}


class MixedDevices(RuntimeError):
    """An operation on tensors of two devices."""


class SyncInCapture(RuntimeError):
    """A host sync inside a captured region, which no graph can hold."""


class Missing(RuntimeError):
    """Something the pretend device needs and the machine has not; the message says what."""


class PretendTensor(torch.Tensor):
    """A tensor of the pretend device; `held` is its data."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        # An ordinary tensor, also in inference mode: views of ordinary ones, such as weights, must be ordinary.
        with torch.inference_mode(False):
            made = torch.Tensor._make_wrapper_subclass(
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                device=CUDA,
            )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        _synced("tolist")
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.held!r})"


class PretendMode(TorchDispatchMode):
    """Sends what makes tensors on the device, and what moves them there, through the pretend device."""

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Recorder:
    """Where counts go: nowhere, to a ledger, or to the region that is being captured."""

    def __init__(self) -> None:
        self.ledger: Ledger | None = None
        self.regions: dict[str, Region] = {}  # captured so far, by name
        self.region: str | None = None  # being captured
        self.paused = 0

    @contextmanager
    def recording(self) -> Iterator[Ledger]:
        """Counts into a new ledger."""
        before, self.ledger = self.ledger, Ledger()
        try:
            yield self.ledger
        finally:
            self.ledger = before

    @contextmanager
    def capturing(self, name: str) -> Iterator[None]:
        """Counts into a region, where every wait is an error."""
        before, self.ledger, self.region = self.ledger, Ledger(), name
        try:
            yield
            region = self.regions.setdefault(name, Region())
            region.graphs += 1
            region.launches = max(region.launches, self.ledger.launched)
        finally:
            self.ledger, self.region = before, None

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Runs what a GPU would not be asked to run, such as the inside of a region that is replayed."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1


RECORDER = Recorder()


def _launched(operator: str, kernels: int = 1) -> None:
    if RECORDER.ledger is None or RECORDER.paused or not kernels:
        return
    RECORDER.ledger.launches[asking_line()] += kernels
    RECORDER.ledger.kernels[operator] += kernels


def _synced(what: str) -> None:
    if RECORDER.region is not None:
        raise SyncInCapture(f"{what} inside the captured region {RECORDER.region}, at {asking_line()}")
    if RECORDER.ledger is not None and not RECORDER.paused:
        RECORDER.ledger.syncs[what, asking_line()] += 1


def _held(value: Any) -> Any:
    """An operator's argument, or a list of them, as it lies on the CPU."""
    if isinstance(value, PretendTensor):
        return value.held
    return [_held(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _pretending(value: Any) -> Any:
    """The result of an operator, of the device: a tensor, a tuple or list of them, or anything else."""
    if isinstance(value, PretendTensor):
        return value
    if isinstance(value, Tensor):
        return PretendTensor(value)
    return type(value)(map(_pretending, value)) if isinstance(value, (list, tuple)) else value


@cache
def _decomposes(func: Any) -> bool:
    if func.overloadpacket.__name__ in WHOLE:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _kernels(func: Any) -> int:
    name = func.overloadpacket.__name__
    return 0 if name in FREE or getattr(func, "is_view", False) else KERNELS.get(name, 1)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator, on whatever devices its tensors lie."""
    if func is torch.ops.prim.device.default:
        return CUDA if isinstance(args[0], PretendTensor) else torch.device("cpu")
    name = func.overloadpacket.__name__
    if name in SPECIAL:
        return SPECIAL[name](func, *args, **kwargs)
    if _decomposes(func):
        with PretendMode():
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    goal = kwargs.get("device")
    to_device = goal is not None and torch.device(goal).type == "cuda"
    if not to_device and not any(isinstance(tensor, PretendTensor) for tensor in tensors):
        kwargs.pop("pin_memory", None)  # all memory of a host without a device is alike
        return func(*args, **kwargs)
    if name in INDEXED:
        _check_index(name, args)
    else:
        _check_devices(func, tensors)
    if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _synced(name)
    made = _on_cpu(func, args, kwargs)
    _launched(name, _kernels(func))
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], PretendTensor):
        return args[0]
    return _pretending(made)


def _on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    kwargs = {key: _held(value) for key, value in kwargs.items() if key != "pin_memory"}
    if kwargs.get("device") is not None:
        kwargs["device"] = "cpu"
    return func(*map(_held, args), **kwargs)


def _check_devices(func: Any, tensors: list[Tensor]) -> None:
    """A single number on the CPU may enter an elementwise operation; nothing else may cross."""
    for tensor in tensors:
        if isinstance(tensor, PretendTensor) or (tensor.dim() == 0 and torch.Tag.pointwise in func.tags):
            continue
        raise MixedDevices(f"{func} got a tensor {tuple(tensor.shape)} on the CPU, at {asking_line()}")


def _check_index(name: str, args: Any) -> None:
    """Refuses an index on the CPU, which a GPU would copy over and wait for; counts the sync of a mask."""
    values = args[2] if len(args) > 2 else None
    number = isinstance(values, Tensor) and not isinstance(values, PretendTensor) and values.dim() == 0
    if not isinstance(args[0], PretendTensor) or (
        isinstance(values, Tensor) and not isinstance(values, PretendTensor) and not number
    ):
        raise MixedDevices(f"{name} of tensors on two devices, at {asking_line()}")
    for index in _tensors(args[1]):
        if not isinstance(index, PretendTensor):
            raise MixedDevices(f"{name} got an index {tuple(index.shape)} on the CPU, at {asking_line()}")
        # A mask stands for its nonzero places; to fill them with one number torch needs not know them.
        if index.dtype in (torch.bool, torch.uint8) and not number:
            _synced("mask as index")
            _launched("nonzero", KERNELS["nonzero"])


def _to_copy(func: Any, source: Tensor, **kwargs: Any) -> Tensor:
    """Conversions of dtype and device."""
    goal = kwargs.get("device")
    from_device = isinstance(source, PretendTensor)
    to_device = torch.device(goal).type == "cuda" if goal is not None else from_device
    made = _on_cpu(func, (source,), {key: v for key, v in kwargs.items() if key not in ("device", "non_blocking")})
    _crossed(from_device, to_device, bool(kwargs.get("non_blocking")))
    return PretendTensor(made) if to_device else made


def _copy_(func: Any, goal: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    _crossed(isinstance(source, PretendTensor), isinstance(goal, PretendTensor), non_blocking)
    func(_held(goal), _held(source))
    return goal


def _crossed(from_device: bool, to_device: bool, non_blocking: bool) -> None:
    """Counts a copy: a kernel within the device; across, a wait unless it was asked not to."""
    if from_device and to_device:
        _launched("copy")
    elif from_device != to_device and not non_blocking:
        _synced("copy to the host" if from_device else "copy to the device")


def _local_scalar_dense(func: Any, tensor: Tensor) -> Any:
    if isinstance(tensor, PretendTensor):
        _synced("item")
    return func(_held(tensor))


def _attention(
    func: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Attention, computed in float32; a Boolean mask costs its conversion, one of rows not aligned its padding."""
    mask = kwargs.pop("attn_mask", mask)
    tensors = [tensor for tensor in (q, k, v, mask) if tensor is not None]
    if not isinstance(q, PretendTensor):
        return func(q, k, v, mask, *args, **kwargs)
    _check_devices(func, tensors)
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"attention of {q.dtype}, {k.dtype}, {v.dtype}, at {asking_line()}")
    wide = (_held(tensor).float() for tensor in (q, k, v))
    added = mask is None or mask.dtype is not torch.bool
    seen = _held(mask) if mask is None or not added else _held(mask).float()
    made = F.scaled_dot_product_attention(*wide, seen, *args, **kwargs).to(q.dtype)
    _launched("attention", 1 + (not added) + 2 * (mask is not None and mask.shape[-1] % 16 != 0))
    return PretendTensor(made)


SPECIAL: dict[str, Callable[..., Any]] = {
    "_to_copy": _to_copy,
    "copy_": _copy_,
    "_local_scalar_dense": _local_scalar_dense,
    "scaled_dot_product_attention": _attention,
}


def record(name: str, function: capture.Function, inputs: Sequence[Tensor]) -> capture.Replay:
    """In place of `spd_core.capture.record`: a replay is one launch, and one for the inputs of each dtype.

    The function runs again at every replay, uncounted, on fixed tensors and into fixed results, as a graph would.
    """
    with torch.inference_mode():
        held = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs]
        with RECORDER.uncounted():
            _overwrite(held, inputs)
            function(*held)  # the warm-up makes what is made once
        with RECORDER.capturing(name):
            results = tuple(made.clone() for made in function(*held))

    def replay(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if RECORDER.ledger is not None and not RECORDER.paused:
            RECORDER.ledger.replays[name] += 1
        _launched(f"graph {name}", 1 + len({x.dtype for x in values}))
        with torch.inference_mode(), RECORDER.uncounted():
            _overwrite(held, values)
            _overwrite(results, function(*held))
        return results

    return replay


def _overwrite(goals: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for goal, value in zip(goals, values, strict=True):
        goal.copy_(value)


@lru_cache(maxsize=1)
def _load_guard() -> None:
    """Compiles and loads the device's guard, once a machine and torch version.

    Raises:
        Missing: no C++ compiler, or torch has a real device of this kind.
    """
    if torch.backends.cuda.is_built():
        raise Missing("a torch without CUDA, whose place it takes")
    compiler = shutil.which("g++")
    if compiler is None:
        raise Missing("g++, which compiles the pretend device's guard")
    from torch.utils.cpp_extension import include_paths

    library = Path(tempfile.gettempdir(), f"pretend_guard_{os.getuid()}_{torch.__version__}.so")
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}.so")
        source, lib = Path(__file__).with_name("pretend_guard.cpp"), Path(torch.__file__).parent / "lib"
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
        includes = [f"-I{path}" for path in include_paths()]
        flags = ["-O1", "-fPIC", "-shared", "-std=c++17", abi, *includes]
        subprocess.run([compiler, *flags, str(source), "-o", str(made), f"-L{lib}", "-lc10"], check=True)
        made.replace(library)
    ctypes.CDLL(str(library))


@contextmanager
def pretend_cuda() -> Iterator[Recorder]:
    """Within it ``cuda:0`` is there.

    Raises:
        Missing: the machine cannot pretend.
    """
    _load_guard()
    with ExitStack() as stack:
        for owner, name, stand_in in runtime(_synced):
            stack.enter_context(patch.object(owner, name, stand_in))
        stack.enter_context(patch.object(capture, "record", record))
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.enter_context(PretendMode())
        yield RECORDER
