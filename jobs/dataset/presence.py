"""Which driver is at work on an output: a mark in the store, renewed while the job runs and taken away at its end.

Where creates are refused as they should be, the mark only tells: two drivers make one dataset together, since every
shard is committed once. Where a gateway ignores the condition, it is a lease: a second driver is refused while the mark
is renewed. Whether it is, is seen by watching it, so clocks may differ.
"""

from __future__ import annotations

import datetime
import logging
import time
import uuid
from types import TracebackType

from pydantic import Field, ValidationError

from jobs.job.plan import utc_now
from jobs.words.errors import JobError, SpecError
from jobs.words.progress import duration
from spd_core.law import Settings
from workers import layout
from workers.redact import public_url
from workers.sealed import canonical_json, seal, unseal
from workers.shard import worker_name
from workers.store import TIDY_DEADLINE_S, Store, StoreError

logger = logging.getLogger(__name__)

BEAT_S = 10.0  #: a driver at work renews its mark this often
WATCH_S = 40.0  #: a lease that is not renewed for so long is free
_LOOK_S = 0.5
_SETTLE_S = 2.0  #: of two that take a free lease at once, the later one holds it; both look after this time


class Mark(Settings):
    """Content of the mark."""

    driver: str = Field(description="host and process")
    run: str = Field(description="a new one for every run of a driver")
    seen: str = Field(description="UTC, ISO 8601, by the driver's clock")
    sha256: str = Field("", description="over the rest, see `workers.sealed`")

    @property
    def age_s(self) -> float:
        """Seconds since it was renewed, by this machine's clock."""
        now = datetime.datetime.now(datetime.UTC)
        return max(0.0, (now - datetime.datetime.fromisoformat(self.seen)).total_seconds())


def read_mark(store: Store) -> Mark | None:
    """The mark of an output; None: no driver is known to be at work.

    Raises:
        StoreError: the store cannot be read.
    """
    try:
        return Mark.model_validate(unseal(store.read(layout.DRIVER)))
    except (FileNotFoundError, ValidationError, ValueError):
        return None


class Presence:
    """This driver's mark. Use as a context; nothing is written before `announce`.

    Args:
        store: the output.
        exclusive: the store does not refuse the second creator, so one driver at a time may work on it.
    """

    def __init__(self, store: Store, exclusive: bool) -> None:
        self._store, self.exclusive = store, exclusive
        self._driver, self.run = worker_name(), uuid.uuid4().hex
        self._beaten: float | None = None  #: when the mark was renewed; None: it is not there yet

    def __enter__(self) -> Presence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beaten is None:
            return
        try:
            # Another driver's mark, if it has replaced ours, comes back with its next beat.
            self._store.delete(layout.DRIVER, TIDY_DEADLINE_S)
        except StoreError as failure:
            logger.warning("%s; the next driver replaces it", failure)

    def announce(self) -> None:
        """Leaves the mark, and tells of another driver's.

        Raises:
            SpecError: this store carries one driver at a time, and another one is at work.
            StoreError: the store cannot be read or written.
        """
        if self._beaten is not None:
            return
        other = read_mark(self._store)
        if self.exclusive:
            logger.warning(
                "%s does not refuse to create what is there already: one driver at a time, which takes a lease (%s)",
                public_url(self._store.url),
                layout.DRIVER,
            )
            if other is not None:
                self._wait_until_silent(other)
        elif other is not None and other.age_s < WATCH_S:
            logger.warning(
                "driver %s was at work on this output %s ago; if it still is, both make the one dataset: "
                "each shard is committed once, and nothing is lost if you stop either",
                other.driver,
                duration(other.age_s),
            )
        self._write()
        if self.exclusive:
            time.sleep(_SETTLE_S)
            if (holder := read_mark(self._store)) is not None and holder.run != self.run:
                self._beaten = None
                raise self._refusal(holder)

    def beat(self) -> None:
        """Renews the mark if it is time.

        Raises:
            JobError: another driver has taken the lease.
            StoreError: the store cannot be read or written.
        """
        if self._beaten is None or time.monotonic() - self._beaten < BEAT_S:
            return
        if self.exclusive and (mark := read_mark(self._store)) is not None and mark.run != self.run:
            self._beaten = None
            raise JobError(f"driver {mark.driver} has taken over this output; the same command resumes when it is done")
        self._write()

    def _write(self) -> None:
        mark = Mark(driver=self._driver, run=self.run, seen=utc_now())
        self._store.replace(layout.DRIVER, canonical_json(seal(mark.model_dump(mode="json"))))
        self._beaten = time.monotonic()

    def _wait_until_silent(self, other: Mark) -> None:
        logger.info("waiting up to %s to see whether driver %s is alive", duration(WATCH_S), other.driver)
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            now = read_mark(self._store)
            if now is None:
                return
            if now != other:
                raise self._refusal(now)

    def _refusal(self, holder: Mark) -> SpecError:
        return SpecError(
            f"output: driver {holder.driver} is at work on {public_url(self._store.url)}, allowed: one driver at a "
            "time on a store that ignores create-only writes"
        )
