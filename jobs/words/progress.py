"""Rate and time left, for the lines of a running job and for the status of any output."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

_EVERY_S = 5.0
_LONGEST_SILENCE_S = 60.0


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


class Progress:
    """Logs one line every few seconds: what is done, how fast, how long still.

    Args:
        shards, images: of the whole job.
        done_shards, done_images: of earlier runs; they do not count for the rate.
    """

    def __init__(self, shards: int, images: int, done_shards: int, done_images: int) -> None:
        self._shards, self._images = shards, images
        self._done_shards, self._done_images = done_shards, done_images
        self._made = 0
        self._began = self._said = self._added = time.monotonic()
        self._pulse = Pulse()

    @property
    def made(self) -> int:
        """Images of this run."""
        return self._made

    @property
    def rate(self) -> float:
        """Images per second of this run, up to its last commit: until the next one it does not fall."""
        elapsed = self._added - self._began
        return self._made / elapsed if elapsed > 0 else 0.0

    def add(self, images: int) -> None:
        """Counts a committed shard."""
        self._done_shards += 1
        self._done_images += images
        self._made += images
        self._added = time.monotonic()

    def line(self) -> str:
        return (
            f"{self._done_shards}/{self._shards} shards, {self._done_images}/{self._images} images, "
            f"{self.rate:.2f} images/s, {self.left()} left"
        )

    def left(self) -> str:
        """Time to the end as expected at the last commit, less what has passed since: it counts down."""
        images = self._images - self._done_images
        if not images or self.rate <= 0:
            return time_left(images, self.rate)
        seconds = images / self.rate - (time.monotonic() - self._added)
        return duration(seconds) if seconds > 0 else "a moment"

    def tick(self, in_progress: str = "") -> None:
        """Logs the line if the last one is some seconds old; before a shard is finished, what is in progress.

        Args:
            in_progress: in words; empty: nobody says.
        """
        if in_progress and not self._made:
            if self._pulse.due():
                logger.info("%s, none finished after %s", in_progress, duration(self._pulse.seconds))
        elif time.monotonic() - self._said >= _EVERY_S:
            self._said = time.monotonic()
            logger.info(self.line())
