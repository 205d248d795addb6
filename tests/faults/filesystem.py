"""A store that fails as told: ``faulty://``, an fsspec file system over a bucket in memory or any other file system.

Faults are given to the class, so that a test reaches every instance a job opens in this process.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fsspec
from fsspec import AbstractFileSystem

SLOW_S = 0.02


class Crash(BaseException):
    """The process is killed here."""


class PowerCut(BaseException):
    """Driver and workers are killed here."""


class Bucket(AbstractFileSystem):
    """Objects in memory the way an object store has them: no folders, and of two creators one is refused."""

    protocol = "bucket"
    cachable = False
    objects: ClassVar[dict[str, bytes]] = {}
    lock = threading.Lock()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.objects:
            return {"name": path, "size": len(self.objects[path]), "type": "file"}
        if any(name.startswith(f"{path}/") for name in list(self.objects)):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self.objects[self.info(path)["name"]][start:end]

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        names = [name for name in sorted(self.objects) if name == path or name.startswith(f"{path}/")]
        return {name: self.info(name) for name in names}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        with self.lock:
            if mode == "create" and path in self.objects:
                raise FileExistsError(path)
            self.objects[path] = bytes(value)

    def rm_file(self, path: str) -> None:
        with self.lock:
            del self.objects[self.info(path)["name"]]


@dataclass
class Fault:
    """What goes wrong with which operations: those of an action on a path, after the first ``skip`` of them."""

    kind: str
    action: str  #: look, read, list, create, replace or delete; a regular expression
    path: str = ""  #: a regular expression that is searched for
    times: int = 1
    skip: int = 0
    fired: int = 0
    error: BaseException | None = None  #: of the kind "raise"

    def strikes(self, action: str, path: str) -> bool:
        if self.fired >= self.times or not re.fullmatch(self.action, action) or not re.search(self.path, path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.fired += 1
        return True


@dataclass
class Script:
    """The faults to come and what was done."""

    faults: list[Fault] = field(default_factory=list)
    done: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, action: str, path: str) -> Fault | None:
        with self.lock:
            self.done.append((action, path))
            return next((fault for fault in self.faults if fault.strikes(action, path)), None)


class Faulty(AbstractFileSystem):
    """Another file system behind a connection that breaks as told.

    Args:
        target: its protocol.
        target_options: its arguments.
    """

    protocol = "faulty"
    cachable = False
    script: ClassVar[Script] = Script()

    def __init__(self, target: str = "bucket", target_options: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._target = fsspec.filesystem(target, **(target_options or {}))

    def _do(self, action: str, path: str, call: Callable[[], Any], broken: Callable[[], Any] | None = None) -> Any:
        fault = self.script.next(action, self._strip_protocol(path))
        if fault is None:
            return call()
        if fault.kind in ("truncate", "stale", "ignore"):
            if broken is None:
                raise AssertionError(f"{fault.kind} says nothing of {action}")
            return broken()
        if fault.error is not None:
            raise fault.error
        if fault.kind == "crash before":
            raise Crash
        if fault.kind == "power cut":
            raise PowerCut
        if fault.kind in ("fail before", "outage"):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Could not connect")
        if fault.kind == "throttle":
            raise OSError(errno.EBUSY, "SlowDown: Please reduce your request rate.")
        if fault.kind == "deny":
            raise PermissionError("AccessDenied")
        if fault.kind == "slow":
            time.sleep(SLOW_S)
        done = call()
        if fault.kind == "fail after":
            raise TimeoutError("the response is lost")
        if fault.kind == "crash after":
            raise Crash
        return done

    def _absent(self, path: str) -> Any:
        raise FileNotFoundError(path)

    def info(self, path: str, **_: Any) -> Any:
        path = self._strip_protocol(path)
        return self._do("look", path, lambda: self._target.info(path), lambda: self._absent(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> Any:
        path = self._strip_protocol(path)
        whole = lambda: self._target.cat_file(path, start=start, end=end)  # noqa: E731
        return self._do("read", path, whole, lambda: whole()[: (end or 0) // 2])

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **_: Any) -> Any:
        path = self._strip_protocol(path)
        whole = lambda: self._target.find(path, detail=True)  # noqa: E731
        return self._do("list", path, whole, lambda: dict(list(whole().items())[:-1]))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> Any:
        path = self._strip_protocol(path)
        overwrite = lambda: self._target.pipe_file(path, value)  # noqa: E731
        if mode == "create":
            return self._do("create", path, lambda: self._target.pipe_file(path, value, mode="create"), overwrite)
        return self._do("replace", path, overwrite)

    def rm_file(self, path: str) -> Any:
        path = self._strip_protocol(path)
        return self._do("delete", path, lambda: self._target.rm_file(path))


def register() -> None:
    """Makes ``bucket://`` and ``faulty://`` known in this process."""
    for implementation in (Bucket, Faulty):
        fsspec.register_implementation(implementation.protocol, implementation, clobber=True)
