"""What a checkpoint file holds, without running or unfolding anything that it asks for.

Files of ``torch.save`` are read with PyTorch's restricted unpickler, which builds tensors and plain containers and
refuses everything else; besides those it is given the types that trainers leave in their files and that do nothing.
``.safetensors`` files hold tensors alone.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from spd_core.pairs import unfolding
from spd_core.pairs.pair import PairError

#: A file of the two public sizes is 1.1 times its weights; views into one storage may be named twice.
_MOST_UNFOLDED = 2.0
_SLACK = 1 << 20
_LONGEST_PICKLE = 1 << 25  #: the public files have 200 kB
_LEGACY_PICKLES = 5  #: that a file of ``torch.save`` before PyTorch 1.6 begins with


def _named(kind: Callable[..., Any], *names: str) -> list[tuple[Callable[..., Any], str]]:
    return [(kind, name) for name in names]


def _as_dict(*_: object) -> dict[Any, Any]:
    """In place of a defaultdict: the restricted unpickler fills plain dicts only."""
    return {}


def _ignored(*_: object) -> None:
    """In place of what a file names but need not call: a text of texts may be made exponentially long."""


def _path(*parts: object) -> pathlib.PurePath:
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("a path of other things than texts")
    return pathlib.PurePosixPath(*map(str, parts))


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Types of trainers' arguments, numbers and paths, under all names that versions of their libraries use."""
    scalar: Any = np.float64(0).__reduce__()[0]
    rebuild: Any = np.zeros(1).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    paths = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path", "PurePath")
    found: list[Any] = [argparse.Namespace, types.SimpleNamespace, np.dtype, np.ndarray, *kinds]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [*_named(scalar, f"{module}.scalar"), *_named(rebuild, f"{module}._reconstruct")]
    for name in paths:
        found += _named(_path, f"pathlib.{name}", f"pathlib._local.{name}")
    for plain in (list, dict, tuple, int, float, str, bool):
        found += _named(_ignored, f"builtins.{plain.__name__}")
    return [*found, (_as_dict, "collections.defaultdict"), OrderedDict]


def read_file(path: Path) -> Any:
    """What a checkpoint file holds; tensors of zip-format and safetensors files are mapped, not read.

    Raises:
        PairError: a file that cannot be read, holds anything but plain data, or unfolds to more than it is.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_zip(path)
        else:
            with path.open("rb") as file:
                unfolding.check(file, _LEGACY_PICKLES)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise PairError(f"checkpoint: cannot read {path}: {error.strerror or error}") from error
    except unfolding.Unfolds as error:
        raise PairError(f"checkpoint: refused {path}, {error}; allowed: a torch file of plain tensors") from error
    except pickle.UnpicklingError as error:
        named = re.search(r"unsupported (?:global|class):? (?:global )?([\w.]+)", str(error), re.IGNORECASE)
        reason = f"it asks for {named[1]}" if named else "it is no torch file"
        raise PairError(f"checkpoint: refused {path}, {reason}; allowed: a torch file of plain tensors") from error
    except PairError:
        raise
    except (Exception, MemoryError) as error:
        # A restricted unpickler fed with damaged bytes fails in any way.
        text = one_line(error)
        reason = text if " " in text else "its bytes cannot be read as one"  # a bare key says nothing
        raise PairError(f"checkpoint: {path} is no torch file: {reason}; allowed: a checkpoint") from error


def _check_zip(path: Path) -> None:
    """Refuses archives that unfold: torch itself compresses nothing.

    Raises:
        PairError: a compressed member, or members that are larger than the file.
        Unfolds: what the pickles in it ask for.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_members(path, members)
        for member in members:
            if member.filename.endswith(".pkl"):
                with archive.open(member) as file:
                    unfolding.check(file)


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    packed = next((member.filename for member in members if member.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise PairError(f"checkpoint: refused {path}, {packed[:80]} is compressed; allowed: a file of torch.save")
    longest = max((member.file_size for member in members if member.filename.endswith(".pkl")), default=0)
    if sum(member.file_size for member in members) > path.stat().st_size or longest > _LONGEST_PICKLE:
        raise PairError(f"checkpoint: refused {path}, its parts exceed the file; allowed: a file of torch.save")


def check_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuses tensors that are more than their bytes: repeated by strides of zero, or all views of one storage.

    Raises:
        PairError: names the tensor.
    """
    total = 0
    for name, value in state.items():
        bytes_ = value.numel() * value.element_size()
        if value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized:
            raise PairError(f"checkpoint: refused {path}, {name[:80]} is no plain tensor; allowed: dense real weights")
        if value.untyped_storage().nbytes() < bytes_:
            raise PairError(f"checkpoint: refused {path}, {name[:80]} is repeated from fewer bytes than it has")
        total += bytes_
    if total > _MOST_UNFOLDED * path.stat().st_size + _SLACK:
        raise PairError(f"checkpoint: refused {path}, its weights are {total:,} bytes, more than twice the file")


def held(saved: Any) -> str:
    """What a file holds, in a few words for an error."""
    return (", ".join(sorted(map(str, saved))) if isinstance(saved, dict) else type(saved).__name__)[:120]


def one_line(error: BaseException) -> str:
    """An error's text, short, on one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
