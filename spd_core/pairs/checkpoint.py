"""Public checkpoint files in, the files of a pair folder out.

The released files are pickles. They are read with PyTorch's restricted unpickler, which builds tensors and plain
containers, plus ``argparse.Namespace`` for a trainer's arguments, and refuses everything else.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from spd_core.pairs.pair import PairCard, PairError


def read_file(path: Path) -> Any:
    """What a checkpoint file holds; tensors of zip-format files are mapped, not read.

    Raises:
        PairError: a file that cannot be read, or holds anything but plain data.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise PairError(f"checkpoint: cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        named = re.search(r"unsupported (?:global|class):? (?:global )?([\w.]+)", str(error), re.IGNORECASE)
        reason = f"it asks for {named[1]}" if named else "it is no torch file"
        raise PairError(f"checkpoint: refused {path}, {reason}; allowed: a torch file of plain tensors") from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # A restricted unpickler fed with damaged bytes fails in any of these ways.
        raise PairError(f"checkpoint: {path} is no torch file: {_one_line(error)}; allowed: a checkpoint") from error


def held(saved: Any) -> str:
    """What a file holds, in a few words for an error."""
    return (", ".join(sorted(map(str, saved))) if isinstance(saved, dict) else type(saved).__name__)[:120]


def as_state(value: Any, without: str = "") -> dict[str, Tensor] | None:
    """A state dict as float32, but for the entry ``without``; None if it is none."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(item, Tensor) for item in value.values()):
        return None
    return {str(name): item.float() for name, item in value.items() if name != without}


def read_checkpoint(path: Path, key: str, without: str = "") -> dict[str, Tensor]:
    """The state dict under ``key`` of a checkpoint file, as float32, but for the entry ``without``.

    Raises:
        PairError: a file that cannot be read, holds anything but plain data, or has no state dict of that name.
    """
    saved = read_file(path)
    state = as_state(saved.get(key), without) if isinstance(saved, dict) else None
    if state is None:
        raise PairError(f"checkpoint: {path} holds {held(saved)}, allowed: a state dict under {key!r}")
    return state


def family_of(path: Path) -> Literal["mar", "llamagen"]:
    """The family of a target's checkpoint: the trainer of MAR keeps averaged weights beside the raw ones.

    Raises:
        PairError: a file that cannot be read, or holds anything but plain data.
    """
    saved = read_file(path)
    return "mar" if isinstance(saved, dict) and "model_ema" in saved else "llamagen"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def require(path: Path, state: Mapping[str, Tensor], make: Callable[[], nn.Module]) -> None:
    """Keys and shapes are exactly those of the model that ``make`` makes, which is never allocated.

    Raises:
        PairError: names the first key that is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        model = make()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(shapes.keys() | state.keys()):
        got = list(state[name].shape) if name in state else "none"
        allowed = shapes.get(name, "none")
        if got != allowed:
            raise PairError(f"checkpoint: {path} does not fit, {name}: got {got}, allowed: {allowed}")


def refuse_existing(out: Path) -> None:
    """A pair is never overwritten.

    Raises:
        PairError: the folder holds a pair.
    """
    if (out / "pair.json").exists():
        raise PairError(f"out: got {out}, which holds a pair already; allowed: a new folder")


def write_pair(out: Path, weights: Mapping[str, Mapping[str, Tensor]], card: PairCard) -> PairCard:
    """Writes ``<part>.safetensors`` of every part, then the card.

    Args:
        out: the folder.
        weights: state dicts by part.
        card: the card but for the files' hashes, which the returned one has.

    Raises:
        PairError: the folder cannot be written.
    """
    digests = {}
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for part, state in weights.items():
            path = out / f"{part}.safetensors"
            save_file({name: value.contiguous() for name, value in state.items()}, path)
            path.chmod(0o644)  # safetensors leaves it readable by its owner alone; workers may run as another user
            with path.open("rb") as file:
                digests[part] = hashlib.file_digest(file, "sha256").hexdigest()
        card = card.model_copy(update={"sha256": digests})
        (out / "pair.json").write_text(card.model_dump_json(indent=1) + "\n")
    return card


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise PairError(f"out: cannot write {out}: {reason or _one_line(error)}; allowed: a writable folder") from error
