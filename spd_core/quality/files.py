"""Bundled data of the quality figures: where it lies, and reading it with its hash checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from spd_core.law import Settings

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
