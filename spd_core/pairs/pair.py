"""A pair on disk and in memory: target, draft, codec, and the card that says what they are.

A pair is a folder with ``pair.json`` (`PairCard`), ``target.safetensors`` and, if it has them, ``draft.safetensors``,
a second draft ``eagle.safetensors``, the autoencoder's ``vae.safetensors`` or the tokenizer's ``vq.safetensors``, and
the models' posterior variances, ``target_variance.safetensors`` and ``draft_variance.safetensors``.
Bundled pairs lie beside this file, ``spd_core/pairs/<name>/``; any other folder of that form is named by its path.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, ValidationInfo, create_model, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from spd_core.alike import did_you_mean
from spd_core.codec import Codec
from spd_core.complaints import one_line
from spd_core.families.family import Family
from spd_core.families.registry import FAMILIES, family
from spd_core.law import HeadWindow, Precision, SamplerLaw, Settings
from spd_core.models.grid import ModelConfig
from spd_core.precision import arithmetic

BUNDLED = Path(__file__).parent
#: Of a part; 4 TB in float32.
MOST_PARAMETERS = 10**12


class PairError(ValueError):
    """A pair that cannot be used; the message is one line for the user."""


class TunedWindows(Settings):
    """Windows of head self-speculation tuned where a row costs so much, and what a path should cost with them."""

    price: float = Field(ge=0.0, description="of a row, in sequential calls")
    windows: HeadWindow
    calls: float = Field(gt=0.0, description="expected sequential head calls of a path")
    rows: float = Field(gt=0.0, description="expected head rows of a path, a guided evaluation counting once")
    steps: int = Field(gt=0, description="of the path: calls and rows of plain decoding")


class PairCard(Settings):
    """The facts of a pair: what the models are, how they are meant to be sampled, where they come from."""

    name: str
    family: str = Field(description="of the models: one of `spd_core.families.registry`")
    target: SerializeAsAny[ModelConfig]
    draft: SerializeAsAny[ModelConfig] | None = None
    eagle: SerializeAsAny[BaseModel] | None = Field(
        None, description="a second draft, of codes: one layer on the target's features"
    )
    codec: SerializeAsAny[Codec]
    class_names: tuple[str, ...] = Field(min_length=1, description="one name per label")
    law: SamplerLaw = Field(description="the law the pair is meant to be sampled at")
    reference: str = Field("", description="bundled reference statistics the images are compared with; empty: none")
    licence: str
    data: str = Field(description="what the weights were trained on")
    sha256: dict[str, str] = Field(
        description="of each weights file, by part: target, draft, eagle, vae, vq, target_variance, draft_variance"
    )
    training: dict[str, Any] = Field(default_factory=dict, description="recipe, machine, hours, loss, by part")
    head_windows: tuple[HeadWindow, ...] = Field(
        (), description="schedules of head self-speculation tuned for the pair, the one of fewest calls first"
    )
    tuned_windows: tuple[TunedWindows, ...] = Field(
        (), description="schedules tuned at several prices of a row, to choose from by device and batch"
    )
    figures: dict[str, Any] = Field(
        default_factory=dict, description="measured figures and the command that printed them"
    )

    @field_validator("family")
    @classmethod
    def _known(cls, name: str) -> str:
        return family(name).name

    @field_validator("target", "draft", "eagle", mode="before")
    @classmethod
    def _of_the_family(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.data.get("family")
        if value is None or name is None:
            return value
        kind = family(name).configs.get(str(info.field_name))
        if kind is None:
            raise ValueError(f"none for family {name}")
        if isinstance(value, BaseModel) and not isinstance(value, kind):
            raise ValueError(f"the sizes of family {name}, which are not {type(value).__name__}")
        return kind.model_validate(value)

    @field_validator("codec", mode="before")
    @classmethod
    def _codec_of_the_family(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.data.get("family")
        if name is None:
            return value
        kinds = {codec.model_fields["kind"].default: codec for codec in family(name).codecs}
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        if kind not in kinds:
            raise ValueError(f"kind {' or '.join(kinds)} for family {name}, not {kind!r}")
        return kinds[kind].model_validate(value)

    @property
    def of(self) -> Family:
        """The family of the pair's models."""
        return family(self.family)

    @property
    def drafters(self) -> tuple[Literal["draft", "eagle"], ...]:
        """The pair's drafts by the names that a method uses."""
        small: tuple[Literal["draft", "eagle"], ...] = ("draft",) if self.draft is not None else ()
        return (*small, "eagle") if self.eagle is not None else small

    @property
    def windows(self) -> tuple[tuple[int, ...], ...]:
        """Schedules of head self-speculation worth trying: the pair's own, or its family's."""
        return self.head_windows or self.of.windows

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.codec.image_shape(self.target.seq_len)


@dataclass(frozen=True)
class Pair:
    """A loaded pair, in eval mode on one device."""

    card: PairCard
    target: nn.Module
    draft: nn.Module | None
    device: torch.device
    parts: Mapping[str, nn.Module] = field(default_factory=dict)  #: others, by name: autoencoder, further drafts

    def drafter(self, name: str) -> nn.Module | None:
        """The draft that a method names; None: the pair was loaded without it."""
        return self.draft if name == "draft" else self.parts.get(name)

    def to_images(self, tokens: Tensor, precision: Precision = "float32") -> Tensor:
        """`images` on the CPU."""
        return self.images(tokens, precision).cpu()

    def images(self, tokens: Tensor, precision: Precision = "float32") -> Tensor:
        """uint8 images [B, H, W, C] on the pair's device of tokens [B, N, D] or codes [B, N].

        Args:
            tokens: of the images.
            precision: of the tokens' law. float32 gives IEEE convolutions; any other gives TF32 on a GPU: autoencoders
                are a small part of the work, and in bfloat16 their rounding would reach the pixels.

        Raises:
            PairError: if images need an autoencoder or tokenizer and the pair was made without one.
        """
        with arithmetic("float32" if precision == "float32" else "tf32"):
            return self._decoded(tokens)

    def _decoded(self, tokens: Tensor) -> Tensor:
        codec = self.card.codec
        network = self.parts.get(codec.part)
        if codec.part and network is None:
            missing, file = codec.part_title, f"{codec.part}.safetensors"
            raise PairError(f"pair: {self.card.name} has no {missing}, allowed: a pair with {file}")
        return codec.images(tokens, network)


def bundled_pairs() -> list[str]:
    """Names of the pairs inside the package, sorted."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/pair.json"))


#: The folder of a pair's URL on this machine, with its weights or only with its card.
Fetch = Callable[[str, bool], Path]
_fetch: list[Fetch] = []


def fetch_urls_with(fetch: Fetch) -> None:
    """Tells how a pair that is a URL is fetched: this package knows no stores."""
    _fetch[:] = [fetch]


def pair_folder(name: str, weights: bool = True) -> Path:
    """Folder of a bundled pair's name, of a path, or of a URL that was fetched.

    Args:
        name: of the pair.
        weights: False: only the card need be there.

    Raises:
        PairError: if there is no such pair.
    """
    if "://" in name and _fetch:
        return _fetch[0](name, weights)
    for folder in (BUNDLED / name, Path(name)):
        if (folder / "pair.json").is_file():
            return folder
    raise PairError(
        f"pair: got {name!r}, allowed: {', '.join(bundled_pairs())} or a folder or URL that holds a pair.json"
        + did_you_mean(name, bundled_pairs())
    )


def load_card(name: str) -> PairCard:
    """The card alone, without reading weights.

    Raises:
        PairError: unknown pair, or a pair.json that is not a card.
    """
    path = pair_folder(name, weights=False) / "pair.json"
    try:
        return parse_card(path.read_bytes(), str(path))
    except OSError as error:
        raise PairError(f"pair: cannot read {path}: {error.strerror or error}") from error


def parse_card(raw: bytes, place: str) -> PairCard:
    """The card that a pair.json holds.

    Args:
        raw: its bytes.
        place: where it is, for errors.

    Raises:
        PairError: it is no card.
    """
    try:
        return PairCard.model_validate(json.loads(raw))
    except RecursionError as error:
        raise PairError(f"pair: {place} is not a pair card: values too deep inside each other") from error
    except ValidationError as error:
        words = one_line(error, _with_parts(json.loads(raw)), "the fields of a card", "card")
        raise PairError(f"pair: {place} is not a pair card: {words}") from error
    except ValueError as error:  # no JSON, or not UTF-8
        raise PairError(f"pair: {place} is not a pair card: {' '.join(str(error).split())}") from error


def _with_parts(raw: Any) -> type[PairCard]:
    """The card's model with the family's own sizes and codec in it, so that errors can say what is allowed there."""
    found = FAMILIES.get(str(raw.get("family"))) if isinstance(raw, dict) else None
    if found is None:
        return PairCard
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in found.configs.items()}
    asked = raw["codec"].get("kind") if isinstance(raw.get("codec"), dict) else None
    for codec in found.codecs:
        if codec.model_fields["kind"].default == asked:
            fields["codec"] = (codec, ...)
    return create_model("PairCard", __base__=PairCard, **fields)


def part_sizes(card: PairCard, draft: bool = True) -> dict[str, int]:
    """Parameters of each part that `load_pair` loads, from the card alone; without the small variances.

    Raises:
        PairError: more than `MOST_PARAMETERS`; it is found while the part is built, which would take long.
    """
    parts = card.of.parts(card).items()
    makers = {name: part.make for name, part in parts if not part.small and (draft or not part.of_draft)}
    return {name: _parameters(card, name, make) for name, make in makers.items()}


def _parameters(card: PairCard, part: str, make: Callable[[], nn.Module]) -> int:
    total, thread = 0, threading.get_ident()

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        if parameter is None or threading.get_ident() != thread:
            return
        total += parameter.numel()
        if total > MOST_PARAMETERS:
            raise PairError(
                f"pair: {card.name} has a {part} of more parameters than {MOST_PARAMETERS:,}, the most allowed"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            return sum(each.numel() for each in make().parameters())
    finally:
        hook.remove()


def _load_part(
    folder: Path, card: PairCard, part: str, make: Callable[[], nn.Module], device: torch.device
) -> nn.Module:
    path = folder / f"{part}.safetensors"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != card.sha256.get(part):
            allowed = card.sha256.get(part, "none")[:12]
            raise PairError(f"pair: {path} has sha256 {digest[:12]}..., allowed: {allowed}... (its card)")
        # Mapped, not read: workers of one machine share the pages of large float32 weights, on a CPU as their weights,
        # for a GPU as the source of the copy, without another on the host.
        weights = load_file(path, device=str(device))
    except OSError as error:
        raise PairError(f"pair: cannot read {path}: {error.strerror}") from error
    except SafetensorError as error:
        raise PairError(f"pair: {path} is not a safetensors file: {error}") from error
    with torch.device("meta"):
        model = make()
    try:
        # One after the other: both forms of large half-precision weights are never there at once.
        for name in weights:
            weights[name] = weights[name].float()
            if not bool(torch.isfinite(weights[name]).all()):
                raise PairError(f"pair: {path} holds NaN or infinity in {name}, allowed: finite weights")
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise PairError(f"pair: {path} does not fit its card: {' '.join(str(error).split())[:200]}") from error
    return model.eval().requires_grad_(False)


def load_pair(name: str, device: torch.device | str = "cpu", draft: bool = True) -> Pair:
    """Loads a bundled pair or a pair folder; weights are checked against the card's hashes.

    Args:
        name: bundled name or folder.
        device: where the models go.
        draft: False leaves the draft out, and its variance.

    Raises:
        PairError: unknown pair, unreadable or corrupt weights.
    """
    folder, card, place = pair_folder(name), load_card(name), torch.device(device)
    parts = {
        part: _load_part(folder, card, part, of.make, place)
        for part, of in card.of.parts(card).items()
        if (draft or not of.of_draft) and (not of.optional or part in card.sha256)
    }
    card.of.assemble(parts)
    return Pair(card, parts.pop("target"), parts.pop("draft", None), place, parts)
