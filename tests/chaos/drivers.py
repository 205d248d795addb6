"""Drivers as processes of their own, forked from one that has imported everything: only what is killed starts anew."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")


def preload() -> None:
    """Starts the process that drivers are forked from; the environment of now is theirs."""
    _context.set_forkserver_preload(["jobs.cli", "jobs.run.driver", "ray", "s3fs", "tests.chaos.drivers"])


def _main(spec: str, log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.setsid()
    from jobs.cli import main

    sys.exit(main(["generate", spec]))


class Driver:
    """`spd generate SPEC`.

    Args:
        spec: path of the spec file.
        log: its output is appended to this file.
    """

    def __init__(self, spec: Path, log: Path) -> None:
        self._process: ForkServerProcess = _context.Process(target=_main, args=(str(spec), str(log)))
        self._log, self._from = log, log.stat().st_size if log.exists() else 0
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, negative by signal."""
        return self._process.exitcode

    def wait(self, seconds: float) -> int | None:
        """Exit code, or None if it still runs."""
        self._process.join(seconds)
        return self._process.exitcode

    def last_line(self) -> str:
        """The end of what this driver said."""
        with self._log.open("rb") as file:
            file.seek(self._from)
            lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
