"""``chaos://``: S3 whose operations kill a process when an order says so.

An order is a file that names the operation, the victim and whether it dies before or after. Whoever comes to that
operation first takes the order away and carries it out, in a driver or in an actor, so that each kill happens once.
"""

from __future__ import annotations

import json
import os
import re
import signal
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

    def _do(self, action: str, path: str, call: Callable[[], Any], broken: Callable[[], Any] | None = None) -> Any:
        victim = self._take(action, path)
        if victim is None:
            return call()
        pid, when = victim
        if when == "before":
            os.kill(pid, signal.SIGKILL)
        done = call()
        if when == "after":
            os.kill(pid, signal.SIGKILL)
        return done

    def _take(self, action: str, path: str) -> tuple[int, str] | None:
        """Process to kill and when, if the order is for this operation and nobody else has taken it."""
        try:
            order = json.loads(self._order.read_text())
        except FileNotFoundError:
            return None
        if not (re.fullmatch(order["action"], action) and re.search(order["path"], path)):
            return None
        if order["by"] != ("actor" if is_actor() else "driver"):
            return None
        try:
            self._order.rename(self._order.with_suffix(".taken"))
        except FileNotFoundError:
            return None
        pids = {"self": os.getpid(), "raylet": os.getppid(), "store": order["store"]}
        return pids[order["victim"]], order["when"]
