"""What the shapes of weights tell of a model's sizes, and errors that name the file and the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from spd_core.pairs.pair import PairError

State = Mapping[str, Tensor]


class Shapes:
    """Shapes of a state dict, with errors that name the file and the key."""

    def __init__(self, path: Path, state: State) -> None:
        self._path, self._state = path, state

    def dim(self, key: str, axis: int) -> int:
        shape = tuple(self._state[key].shape) if key in self._state else ()
        if not -len(shape) <= axis < len(shape):
            got = list(shape) if key in self._state else "none"
            raise PairError(f"checkpoint: {self._path} does not fit, {key}: got {got}, allowed: a weight of the model")
        return int(shape[axis])

    def count(self, pattern: str) -> int:
        """Blocks: the numbers that stand where ``#`` does."""
        regex = re.compile(re.escape(pattern).replace(r"\#", r"(\d{1,6})"))
        return len({found[1] for key in self._state if (found := regex.match(key))})

    def has(self, key: str) -> bool:
        return key in self._state


def heads_of(path: Path, width: int, known: Mapping[int, int], asked: int | None) -> int:
    """Attention heads of a model of a width.

    Raises:
        PairError: nothing tells.
    """
    heads = asked if asked is not None else known.get(width)
    if heads is None or heads < 1 or width % heads:
        words = "a divisor of the width" if asked is not None else "a number (no weight tells it at this width)"
        raise PairError(f"heads: got {'none' if heads is None else heads} for {path}, width {width}, allowed: {words}")
    return heads


def no_model(path: Path, error: ValidationError) -> PairError:
    """The complaint about shapes that no model has."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"])) or "sizes"
    return PairError(f"checkpoint: {path} does not fit, {place}: got {problem['input']!r}, allowed: a model's sizes")
