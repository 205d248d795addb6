"""A ledger of the random numbers of whole decodings: which counter was drawn for what, and how often.

A counter is (image seed, purpose, token, round, attempt). The role of a draw is the function of the decoders that asked
for it. Numbers may be asked for again, for instance for a draft that fell unread, but only in one role; and two rows of
one call must not get the same numbers, for they would be one number in two places.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch

from spd_core.decode.path import HeadDraws
from spd_core.draws import Draws, Purpose

Key = tuple[int, Purpose, int, int, int]
KINDS = ("uniforms", "fine_uniforms", "normals", "proposals")


class EndlessError(RuntimeError):
    """A rejection loop that gets the same numbers for ever."""


@dataclass
class Ledger:
    """Draws of one decoding."""

    roles: defaultdict[Key, set[str]] = field(default_factory=lambda: defaultdict(set))
    times: Counter[Key] = field(default_factory=Counter)
    twice_in_a_call: list[Key] = field(default_factory=list)

    def book(self, purpose: Purpose, role: str, rows: list[tuple[int, int, int, int]]) -> None:
        keys = [(seed, purpose, token, number, attempt) for seed, token, number, attempt in rows]
        self.twice_in_a_call += [key for key, count in Counter(keys).items() if count > 1]
        for key in keys:
            self.roles[key].add(role)
            self.times[key] += 1
            if self.times[key] > 100:
                raise EndlessError(f"drawn again and again: {key}")

    @property
    def in_two_roles(self) -> list[Key]:
        return [key for key, roles in self.roles.items() if len(roles) > 1]

    def drawn_again(self, *purposes: Purpose) -> list[Key]:
        """Counters of some purposes that were drawn more than once."""
        return [key for key, count in self.times.items() if count > 1 and key[1] in purposes]


def _role(kind: str) -> str:
    """What was drawn, and the decoders' function that drew it; head self-speculation is one role wherever it draws."""
    frame = sys._getframe(2)
    while frame is not None:
        own, code = frame.f_locals.get("self"), frame.f_code
        if isinstance(own, HeadDraws):
            return f"{kind} of head self-speculation"
        if not isinstance(own, Draws) and (
            "/spd_core/decode/" in code.co_filename or "/spd_core/families/" in code.co_filename
        ):
            return f"{kind} in {code.co_name}"
        frame = frame.f_back
    raise AssertionError("drawn by no decoder")


@contextmanager
def ledger() -> Iterator[Ledger]:
    """Books every draw of the decodings inside."""
    book = Ledger()

    def booked(kind: str) -> Any:
        right = getattr(Draws, kind)
        signature = inspect.signature(right)

        def draw(self: Draws, purpose: Purpose, image_R: torch.Tensor, token_R: torch.Tensor, *args: Any, **named: Any):
            given = signature.bind(self, purpose, image_R, token_R, *args, **named)
            given.apply_defaults()
            number, attempt = given.arguments.get("round_R", 0), given.arguments.get("attempt", 0)
            columns = [self.seeds[image_R], token_R]
            columns += [x if isinstance(x, torch.Tensor) else torch.full_like(token_R, x) for x in (number, attempt)]
            rows = torch.stack(torch.broadcast_tensors(*columns), dim=1).tolist()
            book.book(purpose, _role(kind), [tuple(row) for row in rows])
            return right(self, purpose, image_R, token_R, *args, **named)

        return draw

    with patch.multiple(Draws, **{kind: booked(kind) for kind in KINDS}):
        yield book
