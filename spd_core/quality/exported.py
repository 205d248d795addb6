"""Classifiers that ``torch.export.save`` wrote (``.pt2``), run without PyTorch's own loader.

``torch.export.load`` falls back to unrestricted unpickling and evaluates expressions of the file, so a file can run
code through it. Here the archive's graph is read as JSON and its weights as raw bytes. The graph is a list of calls;
only those of `OPERATORS` are made, which compute tensors from tensors. Pickles in the archive are not opened.
"""

from __future__ import annotations

import json
import operator
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spd_core.quality.files import QualityError, sha256_of

#: Of the aten operators, by name and overload, those that image classifiers are made of.
_NAMES = """
conv2d.default convolution.default linear.default addmm.default mm.default bmm.default matmul.default
batch_norm.default _native_batch_norm_legit_no_training.default layer_norm.default native_layer_norm.default
group_norm.default native_group_norm.default scaled_dot_product_attention.default dropout.default relu.default
relu_.default relu6.default leaky_relu.default hardtanh.default hardtanh_.default hardswish.default
hardswish_.default hardsigmoid.default silu.default silu_.default gelu.default elu.default sigmoid.default
tanh.default softmax.int _softmax.default log_softmax.int _log_softmax.default softplus.default
max_pool2d.default max_pool2d_with_indices.default avg_pool2d.default adaptive_avg_pool2d.default
_adaptive_avg_pool2d.default mean.default mean.dim sum.dim_IntList amax.default var_mean.correction add.Tensor
add_.Tensor sub.Tensor sub_.Tensor mul.Tensor mul_.Tensor div.Tensor div_.Tensor rsub.Scalar add.Scalar
sub.Scalar mul.Scalar div.Scalar pow.Tensor_Scalar neg.default exp.default sqrt.default rsqrt.default
clamp.default clamp_min.default abs.default minimum.default maximum.default linalg_vector_norm.default
flatten.using_ints view.default reshape.default _unsafe_view.default permute.default transpose.int t.default
unflatten.int squeeze.dim squeeze.dims squeeze.default unsqueeze.default expand.default expand_as.default
select.int slice.Tensor narrow.default cat.default stack.default chunk.default split.Tensor
split_with_sizes.default unbind.int constant_pad_nd.default pad.default roll.default clone.default
contiguous.default detach.default detach_.default alias.default lift_fresh_copy.default to.dtype
_to_copy.default upsample_bilinear2d.vec _upsample_bilinear2d_aa.vec upsample_bicubic2d.vec
_upsample_bicubic2d_aa.vec upsample_nearest2d.vec sym_size.int
"""
OPERATORS = frozenset(_NAMES.split())
#: Checks of the exporter, which compute nothing.
_IGNORED = frozenset({"torch.ops.aten._assert_tensor_metadata.default", "torch.ops.aten._assert_scalar.default"})
_WHOLE_NUMBERS: dict[str, Callable[[int, int], int]] = {
    f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv")
}
#: Types by their numbers in the archive.
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_LAYOUT_STRIDED = 7
_PLAIN = frozenset({"as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools"})
#: Arguments that say where or how a tensor is kept; it is kept as it is.
_PLACES = frozenset({"as_memory_format", "as_layout", "as_device"})
_LARGEST_JSON = 1 << 26
_BROKEN = (
    OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile,
    NotImplementedError, OverflowError, RecursionError,
)  # fmt: skip


class _Refused(ValueError):
    """What a file asks for and does not get."""


@dataclass(frozen=True)
class _Call:
    """One call of the graph."""

    function: Callable[..., Any]
    inputs: tuple[tuple[str, Any, bool], ...]  #: name, argument as in the file, whether it is given by name
    outputs: tuple[Any, ...]  #: as in the file
    done_with: tuple[str, ...]  #: names that no later call reads


@dataclass(frozen=True)
class Exported:
    """A graph with its weights: one tensor in, one tensor out."""

    sha256: str
    weights: dict[str, Tensor]  #: by the names that the graph gives them
    calls: tuple[_Call, ...]
    input: str
    output: str
    input_shape: tuple[int | None, ...]  #: None: any size
    output_shape: tuple[int | None, ...]

    def to(self, device: torch.device | str) -> Exported:
        """The same with its weights on a device."""
        moved = {name: weight.to(device) for name, weight in self.weights.items()}
        return Exported(self.sha256, moved, self.calls, self.input, self.output, self.input_shape, self.output_shape)

    def __call__(self, images: Tensor) -> Tensor:
        """The graph's output.

        Raises:
            RuntimeError, TypeError, ValueError, KeyError: the graph does not run on such images.
        """
        values: dict[str, Any] = {**self.weights, self.input: images}
        for call in self.calls:
            positional = [_value(arg, values) for _, arg, named in call.inputs if not named]
            named = {name: _value(arg, values) for name, arg, is_named in call.inputs if is_named}
            named = {name: value for name, value in named.items() if value is not _PLACE}
            made = call.function(*positional, **named)
            _assign(call.outputs, made, values)
            for name in call.done_with:
                values.pop(name, None)
        found = values[self.output]
        if not isinstance(found, Tensor):
            raise TypeError("the output is no tensor")
        return found


_PLACE = object()


def _value(argument: dict[str, Any], values: dict[str, Any]) -> Any:
    """An argument of a call, from the names made so far."""
    ((kind, value),) = argument.items()
    if kind in _PLAIN:
        return value
    if kind == "as_none":
        return None
    if kind in _PLACES:
        return _PLACE
    if kind == "as_scalar_type":
        return _DTYPES[value]
    if kind == "as_tensor":
        return values[value["name"]]
    if kind == "as_tensors":
        return [values[each["name"]] for each in value]
    if kind in ("as_sym_int", "as_sym_ints"):
        found = [each["as_int"] if "as_int" in each else values[each["as_name"]] for each in _listed(value)]
        return found if kind == "as_sym_ints" else found[0]
    raise _Refused(f"it has an argument of kind {str(kind)[:40]}")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _assign(outputs: tuple[Any, ...], made: Any, values: dict[str, Any]) -> None:
    """Gives what a call made its names in the graph."""
    if len(outputs) == 1 and "as_tensors" in outputs[0]:
        names = [each["name"] for each in outputs[0]["as_tensors"]]
        values.update(zip(names, made, strict=True))
        return
    several = made if len(outputs) > 1 else (made,)
    for output, value in zip(outputs, several, strict=True):
        ((kind, named),) = output.items()
        if kind == "as_tensor":
            values[named["name"]] = value
        elif kind == "as_sym_int":
            values[named["as_name"]] = value
        elif kind != "as_none":
            raise _Refused(f"it has an output of kind {str(kind)[:40]}")


def load_exported(path: Path) -> Exported:
    """Reads a ``.pt2`` file; nothing in it is executed.

    Raises:
        QualityError: not such a file, or one that asks for more than `OPERATORS`.
    """
    allowed = "a file of torch.export.save with one image tensor in and one of logits out"
    try:
        with zipfile.ZipFile(path) as archive:
            names = _members(path, archive)
            program = _json(archive, names["models/model.json"])
            stored = _weights(archive, names, "weights") | _weights(archive, names, "constants")
        return _exported(program["graph_module"], stored, sha256_of(path))
    except _Refused as error:
        raise QualityError(f"quality.classifier: refused {path}, {error}; allowed: {allowed}") from error
    except _BROKEN as error:
        text = " ".join(str(error).split())[:120] or type(error).__name__
        raise QualityError(f"quality.classifier: cannot read {path} ({text}), allowed: {allowed}") from error


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members by their names below the archive's one folder."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _Refused("it has compressed members")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise _Refused("its members exceed the file")
    found = {member.filename.partition("/")[2]: member for member in members}
    if "models/model.json" not in found:
        raise _Refused("it has no models/model.json, the form that PyTorch 2.13 writes")
    return found


def _json(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> dict[str, Any]:
    if member.file_size > _LARGEST_JSON:
        raise _Refused(f"{member.filename} is larger than {_LARGEST_JSON} bytes")
    content = json.loads(archive.read(member))
    if not isinstance(content, dict):
        raise _Refused(f"{member.filename} is no mapping")
    return content


def _weights(archive: zipfile.ZipFile, names: dict[str, zipfile.ZipInfo], kind: str) -> dict[str, Tensor]:
    """Tensors by their names in the module."""
    config = names.get(f"data/{kind}/model_{kind}_config.json")
    found = {}
    for name, entry in (_json(archive, config)["config"] if config else {}).items():
        if entry["use_pickle"]:
            raise _Refused(f"{name[:80]} is a pickle")
        meta = entry["tensor_meta"]
        sizes, strides = ([part["as_int"] for part in meta[what]] for what in ("sizes", "strides"))
        offset, dtype = meta["storage_offset"]["as_int"], _DTYPES[meta["dtype"]]
        if meta["layout"] != _LAYOUT_STRIDED or min([offset, *sizes, *strides], default=0) < 0:
            raise _Refused(f"{name[:80]} is no plain tensor")
        raw = archive.read(names[f"data/{kind}/{entry['path_name']}"])
        flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.zeros(0, dtype=dtype)
        count = reduce(operator.mul, sizes, 1)
        reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
        if count and (reach > len(flat) or count > len(flat)):
            raise _Refused(f"{name[:80]} is repeated from fewer bytes than it has")
        found[name] = flat.as_strided(sizes, strides, offset) if count else torch.zeros(sizes, dtype=dtype)
    return found


def _exported(module: dict[str, Any], stored: dict[str, Tensor], sha256: str) -> Exported:
    graph, signature = module["graph"], module["signature"]
    weights: dict[str, Tensor] = {}
    images: list[str] = []
    for spec in signature["input_specs"]:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            images.append(value["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            weights[value["arg"]["name"]] = stored[value[f"{kind}_name"]]
        else:
            raise _Refused(f"it has an input of kind {str(kind)[:40]}")
    outputs = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in signature["output_specs"]]
    if len(images) != 1 or len(outputs) != 1:
        raise _Refused(f"it has {len(images)} inputs and {len(outputs)} outputs")
    shapes = graph["tensor_values"]
    return Exported(
        sha256=sha256,
        weights=weights,
        calls=_calls([node for node in graph["nodes"] if node["target"] not in _IGNORED], {*weights, outputs[0]}),
        input=images[0],
        output=outputs[0],
        input_shape=_shape(shapes[images[0]]),
        output_shape=_shape(shapes[outputs[0]]),
    )


def _shape(meta: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(size.get("as_int") for size in meta["sizes"])


def _calls(nodes: list[dict[str, Any]], lasting: set[str]) -> tuple[_Call, ...]:
    """The calls in order, each with the names that are last read by it."""
    seen = set(lasting)
    calls = []
    for node in reversed(nodes):
        inputs = tuple((each["name"], each["arg"], each.get("kind") == 2) for each in node["inputs"])
        read = {name for _, arg, _ in inputs for name in _names(arg)}
        calls.append(_Call(_function(node["target"]), inputs, tuple(node["outputs"]), tuple(read - seen)))
        seen |= read
    return tuple(reversed(calls))


def _names(argument: dict[str, Any]) -> set[str]:
    """Names that an argument reads."""
    ((kind, value),) = argument.items()
    if kind in ("as_tensor", "as_tensors"):
        return {each["name"] for each in _listed(value)}
    if kind in ("as_sym_int", "as_sym_ints"):
        return {each["as_name"] for each in _listed(value) if "as_name" in each}
    return set()


def _function(target: str) -> Callable[..., Any]:
    """The function that a call names.

    Raises:
        _Refused: it is not one of those that may be called.
    """
    if target in _WHOLE_NUMBERS:
        return _WHOLE_NUMBERS[target]
    name = target.removeprefix("torch.ops.aten.")
    if name == target or name not in OPERATORS:
        raise _Refused(f"it calls {target[:80]}")
    operation, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, operation), overload)
