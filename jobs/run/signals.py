"""What a signal or a failing store means to a driver at work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jobs.words.errors import JobError
from workers.place import PlaceError
from workers.sealed import UnknownVersion
from workers.store import StoreError


class Stopped(BaseException):
    """SIGINT or SIGTERM; no error, so nothing may catch it on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `Stopped`; a second one is ignored while the first is being dealt with."""
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        came.append(number)
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:
        # Raised inside Ray's compiled code, `Stopped` comes out as a SystemError.
        if came:
            raise Stopped(came[0]) from error
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def resumable() -> Iterator[None]:
    """Turns the errors of a store into `JobError`: one that fails after the work has begun is no wrong input."""
    try:
        yield
    except (PlaceError, UnknownVersion):
        raise
    except StoreError as error:
        when = "once that is mended, the same command resumes" if error.lasting else "the same command resumes"
        raise JobError(f"{error}; {when}") from error
