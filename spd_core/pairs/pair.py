"""A pair on disk and in memory: target, draft, codec, and the card that says what they are.

A pair is a folder with ``pair.json`` (`PairCard`), ``target.safetensors`` and, if it has a draft, ``draft.safetensors``.
Bundled pairs lie beside this file, ``spd_core/pairs/<name>/``; any other folder of that form is named by its path.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from spd_core.codec import PixelCodec
from spd_core.law import SamplerLaw, Settings
from spd_core.models.mar import Mar, MarConfig
from spd_core.models.vae import KlCodec

BUNDLED = Path(__file__).parent
Codec = Annotated[PixelCodec | KlCodec, Field(discriminator="kind")]


class PairError(ValueError):
    """A pair that cannot be used; the message is one line for the user."""


class PairCard(Settings):
    """The facts of a pair: what the models are, how they are meant to be sampled, where they come from."""

    name: str
    family: Literal["mar"]
    target: MarConfig
    draft: MarConfig | None = None
    codec: Codec
    class_names: tuple[str, ...] = Field(description="one name per label")
    law: SamplerLaw = Field(description="the law the pair is meant to be sampled at")
    reference: str = Field("", description="bundled reference statistics the images are compared with; empty: none")
    licence: str
    data: str = Field(description="what the weights were trained on")
    sha256: dict[str, str] = Field(description="of each weights file, by part: target, draft")
    training: dict[str, Any] = Field(default_factory=dict, description="recipe, machine, hours, loss, by part")
    figures: dict[str, Any] = Field(default_factory=dict, description="measured figures and the command that printed them")


@dataclass(frozen=True)
class Pair:
    """A loaded pair, in eval mode on one device."""

    card: PairCard
    target: Mar
    draft: Mar | None
    device: torch.device

    def to_images(self, tokens_BND: Tensor) -> Tensor:
        """uint8 images [B, H, W, C] on the CPU."""
        return self.card.codec.decode(tokens_BND).cpu()


def bundled_pairs() -> list[str]:
    return sorted(path.parent.name for path in BUNDLED.glob("*/pair.json"))


def pair_folder(name: str) -> Path:
    """Folder of a bundled pair's name or of a path.

    Raises:
        PairError: if there is no such pair.
    """
    for folder in (BUNDLED / name, Path(name)):
        if (folder / "pair.json").is_file():
            return folder
    raise PairError(f"pair: got {name!r}, allowed: {', '.join(bundled_pairs())} or a folder that holds a pair.json")


def load_card(name: str) -> PairCard:
    """The card alone, without reading weights.

    Raises:
        PairError: unknown pair, or a pair.json that is not a card.
    """
    path = pair_folder(name) / "pair.json"
    try:
        return PairCard.model_validate(json.loads(path.read_bytes()))
    except (ValidationError, json.JSONDecodeError) as error:
        raise PairError(f"pair: {path} is not a pair card: {str(error).splitlines()[0]}") from error


def _load_part(folder: Path, card: PairCard, part: str, config: MarConfig) -> Mar:
    path = folder / f"{part}.safetensors"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PairError(f"pair: cannot read {path}: {error.strerror}") from error
    digest = hashlib.sha256(raw).hexdigest()
    if digest != card.sha256.get(part):
        raise PairError(
            f"pair: {path} has sha256 {digest[:12]}..., allowed: {card.sha256.get(part, 'none')[:12]}... (its card)"
        )
    try:
        weights = load(raw)
        with torch.device("meta"):
            model = Mar(config)
        model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise PairError(f"pair: {path} does not fit its card: {' '.join(str(error).split())[:200]}") from error
    return model.eval().requires_grad_(False)


def load_pair(name: str, device: torch.device | str = "cpu", draft: bool = True) -> Pair:
    """Loads a bundled pair or a pair folder; weights are checked against the card's hashes.

    Args:
        name: bundled name or folder.
        device: where the models go.
        draft: False leaves the draft out.

    Raises:
        PairError: unknown pair, unreadable or corrupt weights.
    """
    folder, card = pair_folder(name), load_card(name)
    target = _load_part(folder, card, "target", card.target)
    small = _load_part(folder, card, "draft", card.draft) if draft and card.draft else None
    return Pair(card, target.to(device), small.to(device) if small else None, torch.device(device))
