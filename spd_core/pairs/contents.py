"""Where in a checkpoint the weights of a model are, and what model that is: told from keys, not from their container.

Trainers put state dicts under many names (``model``, ``module``, ``state_dict``, ``model_ema``, ``ema``, none at all)
and wrappers put their own before each key (``module.``, ``_orig_mod.``, ``model.``). A family has keys that no other
has; what comes before such a key is a wrapper's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spd_core.families.family import Family, Keys
from spd_core.families.registry import FAMILIES
from spd_core.pairs.pair import PairError
from spd_core.pairs.pickles import check_tensors, held, read_file

#: Keys of models that make images of texts.
_TEXT = ("cls_embedding.cap_proj", "cls_embedding.uncond_embedding", "cap_embedder", "text_encoder", "txt_in.")
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: Entries that are no weights: a table that is worked out again, a record of the codes in use, an average's counters.
_NO_WEIGHTS = frozenset({"freqs_cis", "quantize.codebook_used", "num_updates", "decay", "n_averaged"})
_DEEPEST, _MOST = 4, 1000


@dataclass(frozen=True)
class Weights:
    """The weights of one model in a checkpoint.

    Attributes:
        state: by the model's own keys, as they are stored.
        where: the entry they come from, such as ``model_ema``; empty: the file is the state dict.
        others: entries with weights of such a model that were not taken.
    """

    state: dict[str, Tensor]
    where: str
    others: tuple[str, ...]

    @property
    def words(self) -> str:
        """``the weights under model_ema (not those under model)``."""
        taken = f"the weights under {self.where}" if self.where else "the weights that the file is"
        return f"{taken} (not those under {', '.join(self.others)})" if self.others else taken


def _keys(kind: str) -> Keys:
    return next(family.keys[kind] for family in FAMILIES.values() if kind in family.keys)


def _families() -> list[Family]:
    return [family for name, family in FAMILIES.items() if name in family.keys]


def _allowed() -> str:
    """The models that a target may be."""
    return " or ".join(f"a {family.keys[family.name].title}" for family in _families())


def _dicts(value: Any, where: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping with tensors in it, and the entry it lies under."""
    if not isinstance(value, Mapping) or id(value) in seen or depth > _DEEPEST or len(seen) > _MOST:
        return
    seen.add(id(value))
    tensors = {str(name): item for name, item in value.items() if isinstance(item, Tensor)}
    if tensors:
        yield where, tensors
    for name, item in value.items():
        yield from _dicts(item, f"{where}.{name}" if where else str(name), seen, depth + 1)


def _unwrapped(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        key = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if key in plain:
            raise PairError(f"checkpoint: {path} holds {key[:80]} twice, allowed: once without its wrappers")
        plain[key] = value
    return plain


def _candidates(path: Path, saved: Any, kind: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    keys = _keys(kind)
    anchor = keys.has
    for where, tensors in _dicts(saved, "", set()):
        state = _unwrapped(path, tensors)
        for key in state:
            if key != anchor and not key.endswith(f".{anchor}"):
                continue
            prefix = key.removesuffix(anchor)
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            if keys.lacks in own:
                continue
            label = ".".join(filter(None, [where, prefix.rstrip(".")]))
            yield label, {name: value for name, value in own.items() if name not in _NO_WEIGHTS}


def kind_of(path: Path, saved: Any) -> str:
    """What model a file holds, or which part of a pair.

    Raises:
        PairError: none that is known; a model of texts is named as such.
    """
    models = [family.name for family in _families()]
    parts = [kind for family in _families() for kind in family.keys if kind not in models]
    # An autoencoder in one file with its model is not what the file is about.
    for kind in (*models, *parts):
        if next(_candidates(path, saved, kind), None) is not None:
            return kind
    _refuse_text(path, saved)
    raise PairError(
        f"checkpoint: {path} holds {held(saved)}, allowed: weights of {_allowed()}, as the file itself or under any "
        "name"
    )


def family_of_file(path: Path, saved: Any) -> Family:
    """The family of the model that a file holds.

    Raises:
        PairError: it holds none.
    """
    kind = kind_of(path, saved)
    if kind not in FAMILIES:
        raise PairError(f"target: got {path}, which is a {_keys(kind).title}, allowed: {_allowed()}")
    return FAMILIES[kind]


def _refuse_text(path: Path, saved: Any) -> None:
    for _, tensors in _dicts(saved, "", set()):
        if any(mark in name for name in tensors for mark in _TEXT):
            raise PairError(f"checkpoint: {path} is a text-to-image model, allowed: a class-conditional one")


def find_weights(path: Path, saved: Any, kind: str, asked: str | None = None) -> Weights:
    """The weights of a model of a kind; averaged ones (EMA) before those they are averages of.

    Args:
        path: the file, for errors.
        saved: what it holds.
        kind: of the model.
        asked: the entry to take; None: told from the names.

    Raises:
        PairError: there are none, a text-to-image model, or not under the entry that was asked for.
    """
    found = dict(_candidates(path, saved, kind))
    if _keys(kind).texts:
        _refuse_text(path, saved)
    if not found:
        _refuse_text(path, saved)
        allowed = f"weights of a {_keys(kind).title}, under any name"
        raise PairError(f"checkpoint: {path} holds {held(saved)}, allowed: {allowed}")
    if asked is not None and asked not in found:
        allowed = ", ".join(name or "nothing (the file itself)" for name in found)
        raise PairError(f"weights: got {asked!r} for {path}, allowed: {allowed}")
    where = asked if asked is not None else min(found, key=lambda name: "ema" not in name.lower())
    check_tensors(path, found[where])
    return Weights(found[where], where, tuple(name or "the file itself" for name in found if name != where))


def read_weights(path: Path, kind: str, asked: str | None = None) -> Weights:
    """`find_weights` of a file."""
    return find_weights(path, read_file(path), kind, asked)
