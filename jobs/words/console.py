"""What a command has found out goes to standard output; what it is doing meanwhile is logged to standard error."""

from __future__ import annotations

import logging
import sys
from typing import TextIO


def say(text: str) -> None:
    """Writes a result and a line break to standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class LogHandler(logging.StreamHandler[TextIO]):
    """Logs to standard error as it is now: while bars are drawn it is another, which writes above them."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _stream: TextIO) -> None:
        """The base class sets it once."""
