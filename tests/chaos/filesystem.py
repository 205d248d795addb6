"""``chaos://``: S3 whose operations kill or stop a process when an order says so, and that is throttled at times.

An order is a file that names the operation, the victim, the signal and whether it comes before or after. Whoever comes
to that operation first takes the order away and carries it out, in a driver or in an actor, so that each happens once.
Another file names the time until which about half of all operations are refused with a 503.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.filesystem import Faulty


def is_actor() -> bool:
    """Whether this process is a Ray worker."""
    return Path("/proc/self/cmdline").read_bytes().startswith(b"ray::")


class Chaos(Faulty):
    """S3 with the endpoint and the credentials of the environment.

    Args:
        order: path of the order file.
    """

    protocol = "chaos"

    def __init__(self, order: str, **options: Any) -> None:
        super().__init__("s3", {"use_listings_cache": False}, **options)
        self._order = Path(order)
        self._slow = self._order.with_name("throttle.json")

    def _do(self, action: str, path: str, call: Callable[[], Any], broken: Callable[[], Any] | None = None) -> Any:
        if self._throttled():
            raise OSError(errno.EBUSY, "SlowDown: Please reduce your request rate.")
        taken = self._take(action, path)
        if taken is None:
            return call()
        pid, when, number = taken
        if when == "before":
            os.kill(pid, number)
        done = call()
        if when == "after":
            os.kill(pid, number)
        return done

    def _throttled(self) -> bool:
        try:
            until = float(self._slow.read_text() or 0)
        except FileNotFoundError:
            return False
        return time.time() < until and random.random() < 0.5

    def _take(self, action: str, path: str) -> tuple[int, str, int] | None:
        """Victim, when and signal, if the order is for this operation and nobody else has taken it."""
        try:
            order = json.loads(self._order.read_text())
        except FileNotFoundError:
            return None
        if not (re.fullmatch(order["action"], action) and re.search(order["path"], path)):
            return None
        if order["by"] != ("actor" if is_actor() else "driver"):
            return None
        try:
            taken = self._order.rename(self._order.with_suffix(f".by-{os.getpid()}"))
        except FileNotFoundError:
            return None
        pids = {"self": os.getpid(), "raylet": os.getppid(), "store": order["store"]}
        victim = pids[order["victim"]]
        taken.write_text(str(victim))
        taken.rename(self._order.with_suffix(".taken"))
        return victim, order["when"], signal.SIGSTOP if order["pause"] else signal.SIGKILL
