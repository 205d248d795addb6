"""Files of the quality figures: bundled ones with their hashes checked, and weights that a user names."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from spd_core.law import Settings
from spd_core.pairs.pair import PairError
from spd_core.pairs.pickles import check_tensors, read_file

BUNDLED = Path(__file__).parent / "data"
Card = TypeVar("Card", bound=Settings)


class QualityError(ValueError):
    """Quality figures that cannot be computed; the message is one line for the user."""


def bundled_references() -> list[str]:
    """Names of the references in the package, sorted."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/reference.json"))


def reference_folder(name: str) -> Path:
    """Folder of a bundled reference.

    Raises:
        QualityError: if there is none of that name.
    """
    if name not in bundled_references():
        raise QualityError(f"reference: got {name!r}, allowed: {', '.join(bundled_references())}")
    return BUNDLED / name


def read_card(path: Path, model: type[Card]) -> Card:
    """The card at ``path``.

    Raises:
        QualityError: unreadable, or not a card of that model.
    """
    try:
        return model.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise QualityError(f"quality: cannot read {path}: {error.strerror}") from error
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise QualityError(f"quality: {path} is not a card: {str(error).splitlines()[0]}") from error


def read_checked(path: Path, sha256: str) -> bytes:
    """Bytes of a file whose hash is known.

    Raises:
        QualityError: unreadable, or other bytes than those the hash was taken of.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise QualityError(f"quality: cannot read {path}: {error.strerror}") from error
    digest = hashlib.sha256(raw).hexdigest()
    if digest != sha256:
        raise QualityError(f"quality: {path} has sha256 {digest[:12]}..., allowed: {sha256[:12]}...")
    return raw


def read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose hash is known.

    Raises:
        QualityError: unreadable, another hash, or not safetensors.
    """
    try:
        return load(read_checked(path, sha256))
    except SafetensorError as error:
        raise QualityError(f"quality: {path} is not a safetensors file: {error}") from error


def sha256_of(path: Path) -> str:
    """Hash of a file of any size.

    Raises:
        QualityError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise QualityError(f"quality: cannot read {path}: {error.strerror}") from error


@dataclass(frozen=True)
class State:
    """The tensors of a file of weights, and its hash."""

    tensors: dict[str, Tensor]
    sha256: str


def read_state(field: str, path: Path) -> State:
    """A state dict from a file of ``torch.save`` or a ``.safetensors`` file; nothing in the file is executed.

    Args:
        field: of the spec, for the error.
        path: of the file.

    Raises:
        QualityError: unreadable, or anything but a flat dict of dense real tensors.
    """
    allowed = "allowed: a state dict in .pth or .safetensors form"
    if _is_torchscript(path):
        raise QualityError(f"{field}: refused {path}, it is a TorchScript archive, which holds code; {allowed}")
    try:
        found = read_file(path)
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise QualityError(f"{field}: {path} holds no state dict, {allowed}")
        check_tensors(path, found)
    except PairError as error:
        text = str(error).removeprefix("checkpoint: ").partition("; allowed")[0]
        raise QualityError(f"{field}: {text}; {allowed}") from error
    return State({str(name): value for name, value in found.items()}, sha256_of(path))


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError):
        return False  # what is wrong with it the reader says
