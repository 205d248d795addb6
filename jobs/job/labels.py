"""Labels as people write them, numbers or names of the pair's classes, as the numbers that the models know."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from spd_core.alike import did_you_mean

_SHOWN = 10


@lru_cache(maxsize=8)
def numbers_by_name(names: Sequence[str]) -> dict[str, int]:
    """The number of each class name that is no number itself and belongs to one class only."""
    return {name: at for at, name in enumerate(names) if names.count(name) == 1 and not name.isdecimal()}


def label_of(value: Any, names: tuple[str, ...]) -> int | None:
    """The label that a number, a text of digits or a class name means; None: none of the pair's."""
    if isinstance(value, str):
        if value in (known := numbers_by_name(names)):
            return known[value]
        # Longer ones are out of range, and Python refuses to read very long ones.
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < len(names) else None


def allowed_labels(names: tuple[str, ...]) -> str:
    """``0..9 or a name of T-shirt/top, Trouser, ...``."""
    known = list(numbers_by_name(names))
    more = ", ..." if len(known) > _SHOWN else ""
    return f"0..{len(names) - 1}" + (f" or a name of {', '.join(known[:_SHOWN])}{more}" if known else "")


def alike(value: Any, names: tuple[str, ...]) -> str:
    """What helps where a text is no label: the numbers of the classes that share it, or the name it is almost."""
    if not isinstance(value, str):
        return ""
    sharing = [str(label) for label, name in enumerate(names) if name == value]
    if len(sharing) > 1:
        return f"; {value!r} names the classes {' and '.join(sharing)}, give the number of one"
    return did_you_mean(value, list(numbers_by_name(names)))
