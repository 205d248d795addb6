"""The nights below one URL: records that are created and never changed, and pages that are made anew from them.

nights/2026-11-28.parquet      the night's record: the first writer's, whoever else makes one
nights/2026-11-28.r1.parquet   only behind a damaged record, which stays where it is and is named
trend.html, trend.md, trend.json
"""

from __future__ import annotations

import datetime
import logging
import re
from dataclasses import dataclass
from typing import Any

from jobs.nightly.record import Night, night_from_bytes, night_to_bytes
from workers.sealed import UnknownVersion
from workers.store import Conflict, Store, StoreError

logger = logging.getLogger(__name__)
NIGHTS = "nights"
_NAME = re.compile(rf"{NIGHTS}/(\d{{4}}-\d{{2}}-\d{{2}})(?:\.r([1-9]\d*))?\.parquet")
#: Damaged records that may lie before a sound one.
_PLACES = 100


def path_of(night: datetime.date, place: int = 0) -> str:
    """Of a night's record."""
    return f"{NIGHTS}/{night.isoformat()}{f'.r{place}' if place else ''}.parquet"


def _record_at(path: str, raw: bytes) -> Night:
    """The record under a name, which says of which night it is.

    Raises:
        ValueError: it is damaged, or another night's.
        UnknownVersion: a later program wrote it.
    """
    record = night_from_bytes(raw, path)
    if not path.startswith(f"{NIGHTS}/{record.night.isoformat()}."):
        raise ValueError(f"{path}: is the record of {record.night}")
    return record


@dataclass(frozen=True)
class History:
    """The nights of a history, in order, and what is wrong with it."""

    nights: tuple[Night, ...]
    problems: tuple[str, ...]  #: each led by the path of a record that cannot be read, or a stranger's file

    def of(self, night: datetime.date) -> Night | None:
        """The record of a night."""
        return next((record for record in self.nights if record.night == night), None)


def read_history(url: str, storage_options: dict[str, Any] | None = None) -> History:
    """Every record that can be read; one that cannot hides no other.

    Raises:
        StoreError: the history cannot be read at all.
    """
    store = Store(url, storage_options)
    sizes = store.list(NIGHTS)
    nights: dict[datetime.date, tuple[int, Night]] = {}
    problems = []
    for path, raw in store.read_many(sizes).items():
        found = _NAME.fullmatch(path)
        if found is None or raw is None:
            problems += [f"{path}: is no record of a night"] if found is None else []
            continue
        try:
            record = _record_at(path, raw)
        except (ValueError, UnknownVersion) as error:
            problems.append(str(error))
            continue
        place = int(found[2] or 0)
        if place <= nights.get(record.night, (_PLACES + 1, record))[0]:
            nights[record.night] = (place, record)
    ordered = tuple(nights[night][1] for night in sorted(nights))
    return History(ordered, tuple(problems))


def add_night(url: str, record: Night, storage_options: dict[str, Any] | None = None) -> Night:
    """Stores a night's record unless there is one, and returns the one that holds.

    Of two writers the first one wins and both go on with its record. Behind a record that is damaged the next name is
    taken: nothing is ever replaced, and a writer that was paused for hours can destroy nothing.

    Raises:
        StoreError: the history cannot be written, or a later program's record lies there.
    """
    store, raw = Store(url, storage_options), night_to_bytes(record)
    for place in range(_PLACES):
        path = path_of(record.night, place)
        try:
            store.create(path, raw)
            return record
        except Conflict:
            logger.debug("%s is there already", path)
        try:
            return _record_at(path, store.read(path))
        except ValueError as error:
            logger.warning("%s; the night is recorded again behind it", error)
    raise StoreError(f"history: {_PLACES} records of {record.night} are damaged")
