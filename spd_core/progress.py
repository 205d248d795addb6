"""Tells whoever listens how far a long computation is; nothing is shown here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")


class Listener(Protocol):
    """What is told."""

    def __call__(self, done: int, total: int, unit: str, note: str) -> None:
        """So much of the total is done; ``unit`` is what is counted, in the plural, ``note`` what came of it so far."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Has a listener told of the computations inside, of this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(done: int, total: int, unit: str, note: str = "") -> None:
    """Tells the listener, if there is one; at the start of a computation, too."""
    if (listener := _listener.get()) is not None:
        listener(done, total, unit, note)


def told(items: Sequence[T], unit: str) -> Iterator[T]:
    """The items, one by one; each is counted when the next is asked for."""
    for place, item in enumerate(items):
        tell(place, len(items), unit)
        yield item
    tell(len(items), len(items), unit)
