"""A mutant, and what it takes to run one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True)
class Mutant:
    """A decoder with one thing wrong."""

    name: str
    owner: Any  #: module or class ...
    attribute: str  #: ... and what of it is replaced
    wrong: Callable[[Any], Any]  #: from what is right
    check: str  #: that must notice

    def run(self, check: Callable[[], None]) -> bool:
        """Whether the check notices."""
        right = inspect.getattr_static(self.owner, self.attribute)
        plain = right.__func__ if isinstance(right, staticmethod | classmethod) else right
        wrong = self.wrong(plain.fget if isinstance(plain, property) else plain)
        if isinstance(right, property | staticmethod):
            wrong = type(right)(wrong)
        with patch.object(self.owner, self.attribute, wrong):
            try:
                check()
            except AssertionError:
                return True
        return False


@dataclass(frozen=True)
class Decoder:
    """A way of decoding, the checks of its law, and its mutants."""

    name: str
    checks: dict[str, Callable[[], None]]
    mutants: tuple[Mutant, ...]
