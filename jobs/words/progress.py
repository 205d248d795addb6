"""How far long work is: a bar where the command has a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from spd_core.progress import listening

if TYPE_CHECKING:
    from jobs.words.bars import Bars

logger = logging.getLogger(__name__)

_EVERY_S = 5.0
_LONGEST_SILENCE_S = 60.0
_bars: Bars | None = None  #: None: lines are logged


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 20 s``, ``2 h 05 min`` or ``3 d 04 h``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def time_left(images: int, rate: float) -> str:
    """Time for that many images at images per second; unknown before anything is done."""
    return duration(images / rate) if rate > 0 else "unknown"


def _rate(rate: float) -> str:
    return f"{rate:.2f}" if rate < 100 else f"{rate:,.0f}"


class Pulse:
    """When to say that something is still alive: after some seconds, then ever less often, at least once a minute."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def due(self) -> bool:
        """Whether it is time again; asking counts as saying it."""
        silent_s = time.monotonic() - self._said
        if silent_s < min(max(_EVERY_S, 0.5 * self.seconds), _LONGEST_SILENCE_S):
            return False
        self._said = time.monotonic()
        return True


def draw_bars() -> None:
    """From now on bars are drawn if standard error is a terminal: for commands, a library's caller may draw its own."""
    global _bars
    _bars = None
    if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        from jobs.words.bars import Bars  # loads rich

        _bars = Bars()


class Progress:
    """What is done of a known amount of work, how fast, and how long the rest takes.

    As a context it is drawn as a bar, see `draw_bars`. Without a terminal a line is logged every few seconds, as the
    work goes on ever less often, at least once a minute.

    Args:
        amount: of all the work.
        unit: what is counted, in the plural.
        done: by earlier runs; it does not count for the rate.
        note: said before the figures.
    """

    def __init__(self, amount: int, unit: str, done: int = 0, note: str = "") -> None:
        self.amount, self.unit, self.done, self.note = amount, unit, done, note
        self.made = 0  #: by this run
        self._began = self._said = self._added = time.monotonic()
        self._told = done  # by then, when a line was last said
        self._pulse = Pulse()
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        if _bars is not None:
            self._bars = _bars
            self._bars.open(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.close(self)
            self._bars = None
        long = self._added - self._began >= _EVERY_S
        if error is None and long and self.done >= self.amount and self._told < self.done:
            self._say(self.line())

    @property
    def rate(self) -> float:
        """Of this run, per second, up to what was done last: until the next it does not fall."""
        elapsed = self._added - self._began
        return self.made / elapsed if elapsed > 0 else 0.0

    def add(self, amount: int = 1, note: str | None = None) -> None:
        """Counts what is done."""
        self.done += amount
        self.made += amount
        self.note = self.note if note is None else note
        self._added = time.monotonic()
        if self._bars is not None:
            self._bars.move(self)

    def line(self) -> str:
        """How far it is, in words."""
        parts = [self.note, f"{self.done:,}/{self.amount:,} {self.unit}"]
        if self.made:
            whole = self.done >= self.amount
            parts += [f"{_rate(self.rate)} {self.unit}/s"]
            parts += [f"done after {duration(self._added - self._began)}" if whole else f"{self.left()} left"]
        return ", ".join(part for part in parts if part)

    def left(self) -> str:
        """Time to the end as expected when something was done last, less what has passed since: it counts down."""
        rest = self.amount - self.done
        if not rest or self.rate <= 0:
            return time_left(rest, self.rate)
        seconds = rest / self.rate - (time.monotonic() - self._added)
        return duration(seconds) if seconds > 0 else "a moment"

    def tick(self, in_progress: str = "") -> None:
        """Logs the line if the last one is some seconds old; before anything is done, what is in progress.

        Args:
            in_progress: in words; empty: nobody says.
        """
        if in_progress and not self.made:
            if self._bars is not None:
                self.note = in_progress
            elif self._pulse.due():
                logger.info("%s, none finished after %s", in_progress, duration(self._pulse.seconds))
        elif self._bars is None and self._is_due():
            self._say(self.line())

    def _is_due(self) -> bool:
        now = time.monotonic()
        return now - self._said >= min(max(_EVERY_S, 0.05 * (now - self._began)), _LONGEST_SILENCE_S)

    def _say(self, line: str) -> None:
        self._said, self._told = time.monotonic(), self.done
        logger.info("%s", line)


class Steps(Progress):
    """A known number of steps, each of which says what came of it."""

    def __init__(self, amount: int) -> None:
        super().__init__(amount, "steps")

    def did(self, what: str) -> None:
        """One step has ended."""
        self.amount = max(self.amount, self.done + 1)
        self.add(note=what)
        if self._bars is None and (self.done == self.amount or self._is_due()):
            self._say(self.line())

    def line(self) -> str:
        note = f": {self.note}" if self.note else ""
        rest = f", about {self.left()} left" if self.made and self.done < self.amount else ""
        return f"{self.done}/{self.amount}{note}{rest}"


class _Follower:
    """Shows what `spd_core.progress` tells, one computation after the other."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown: Progress | None = None

    def __call__(self, done: int, total: int, unit: str, note: str) -> None:
        shown = self._shown
        if shown is None or (shown.amount, shown.unit) != (total, unit) or done < shown.done:
            self.close()
            shown = self._shown = Progress(total, unit, done, self._name).__enter__()
        shown.add(done - shown.done, ", ".join(part for part in (self._name, note) if part))
        shown.tick()

    def close(self) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None


@contextmanager
def following(name: str = "") -> Iterator[None]:
    """Shows how far the long computations of `spd_core` inside are; ``name`` says what they are for."""
    follower = _Follower(name)
    try:
        with listening(follower):
            yield
    finally:
        follower.close()
