"""Checked weights in, the files of a pair folder out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from spd_core.pairs.contents import Weights
from spd_core.pairs.pair import PairCard, PairError
from spd_core.pairs.pickles import one_line
from spd_core.progress import told


@dataclass(frozen=True)
class Take:
    """What the files of a conversion cannot tell, or tell twice.

    Attributes:
        weights: entry of target and draft whose weights are taken; None: averaged ones if there are any.
        target_heads, draft_heads: attention heads of models whose width is no public one.
        class_names: one a label; None: ImageNet's for 1,000 classes, else their numbers.
    """

    weights: str | None = None
    target_heads: int | None = None
    draft_heads: int | None = None
    class_names: tuple[str, ...] | None = None


TOLD = Take()  #: the files tell everything


#: Names of the ImageNet-1k classes, with their source and licence.
_IMAGENET = Path(__file__).parent / "imagenet_classes.json"


def class_names(given: tuple[str, ...] | None, classes: int) -> tuple[str, ...]:
    """Names of the classes: those given, or ImageNet's for 1,000 classes, or numbers.

    Raises:
        PairError: another number of names than classes, or one name for two of them.
    """
    if given is None:
        imagenet = json.loads(_IMAGENET.read_bytes())["names"]
        return tuple(imagenet) if classes == len(imagenet) else tuple(str(label) for label in range(classes))
    if len(given) != classes:
        raise PairError(f"class-names: got {len(given)}, allowed: {classes} (the target's classes)")
    first = {name: label for label, name in reversed(list(enumerate(given)))}
    for label, name in enumerate(given):
        if first[name] != label:
            raise PairError(
                f"class-names: got {name!r} for classes {first[name]} and {label}, allowed: a name of its own for each"
            )
    return given


def taken(files: Mapping[str, Path | None], found: Mapping[str, Weights]) -> dict[str, Any]:
    """For the card: which weights of which file each part is."""
    return {
        part: {"file": path.name, "weights": found[part].words}
        for part, path in files.items()
        if path is not None and part in found
    }


def as_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as a pair folder holds them."""
    return {name: value.float() for name, value in state.items()}


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
        for part, state in told(list(weights.items()), "models"):
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
        raise PairError(f"out: cannot write {out}: {reason or one_line(error)}; allowed: a writable folder") from error
