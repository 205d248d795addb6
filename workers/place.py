"""Driver and workers show each other that they see the same output, before a shard is made.

A path that is a different disk on every node, a store in the memory of one process, a URL whose listing does not find
what was written: there every worker would make its shards, and the driver would never see one of them.
"""

from __future__ import annotations

import time

from workers import layout
from workers.redact import public_url
from workers.store import Store, StoreError

DRIVER = "driver"
_LOOKS = 3
LOOK_S = 1.0  #: between two looks; a listing may lag behind


class PlaceError(StoreError):
    """A driver and a worker do not see the same output; the message is one line."""


def leave_sign(store: Store, run: str, who: str) -> None:
    """Writes what the other side looks for.

    Raises:
        StoreError: the store cannot be written.
    """
    store.create(layout.sign(run, who), f"{run} {who}\n".encode())


def find_sign(store: Store, run: str, who: str, looker: str) -> None:
    """Finds the other side's sign in a listing, and reads it.

    Args:
        store: the output.
        run: of the driver.
        who: left the sign.
        looker: name of this side.

    Raises:
        PlaceError: it is not there.
        StoreError: the store cannot be read.
    """
    path = layout.sign(run, who)
    for look in range(_LOOKS):
        if look:
            time.sleep(LOOK_S)
        try:
            if path in store.list("_run") and store.read(path) == f"{run} {who}\n".encode():
                return
        except FileNotFoundError:
            continue
    writer = "the driver" if who == DRIVER else f"the worker {who}"
    raise PlaceError(
        f"output: {looker} does not see what {writer} wrote to {public_url(store.url)}, allowed: a place that the "
        "driver and every node reach, an object store or a shared folder"
    )
