"""What a command has found out goes to standard output; what it is doing meanwhile is logged to standard error."""

from __future__ import annotations

import logging
import sys
import time

from jobs.words.progress import duration

logger = logging.getLogger(__name__)


def say(text: str) -> None:
    """Writes a result and a line break to standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Steps:
    """Says how far a command with a known number of steps is, one line as each step ends.

    Args:
        total: steps of the whole command.
        every_s: seconds between two lines, at least; the last step always has one.
    """

    def __init__(self, total: int, every_s: float = 0.0) -> None:
        self._total, self._every_s = total, every_s
        self._done = 0
        self._began = time.monotonic()
        self._said = -every_s

    def done(self, what: str) -> None:
        """One step has ended."""
        self._done += 1
        now = time.monotonic()
        left = max(0, self._total - self._done)
        if left and now - self._began - self._said < self._every_s:
            return
        self._said = now - self._began
        rest = f", about {duration(self._said / self._done * left)} left" if left else ""
        logger.info("%d/%d: %s%s", self._done, max(self._total, self._done), what, rest)
