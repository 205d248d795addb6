"""Bars of what is under way, at the foot of a terminal; what is logged scrolls by above them."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TaskProgressColumn
from rich.text import Text

_PER_SECOND = 2  #: drawings; the decoders of a local job have the same cores
_WIDE = 100  #: columns of a terminal that has room for a long bar


class Shown(Protocol):
    """Work that can be drawn."""

    @property
    def amount(self) -> int:
        """Of it all."""

    @property
    def done(self) -> int:
        """Of it so far."""

    def line(self) -> str:
        """How far it is, in words."""


class _Words(ProgressColumn):
    """Asks the work itself, so that the time left counts down between two steps."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["work"].line(), no_wrap=True, overflow="ellipsis")


class Bars:
    """One bar for each work under way; the first one starts the drawing and the last one ends it."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._drawn = Progress(
            BarColumn(30 if console.width >= _WIDE else 12),
            TaskProgressColumn(),
            _Words(),
            console=console,
            refresh_per_second=_PER_SECOND,
            transient=True,
            redirect_stdout=False,  # results may go to a file
        )
        self._tasks: dict[int, TaskID] = {}

    def open(self, work: Shown) -> None:
        """Begins to draw a work."""
        self._tasks[id(work)] = self._drawn.add_task("", total=work.amount, completed=work.done, work=work)
        if len(self._tasks) == 1:
            self._drawn.start()

    def move(self, work: Shown) -> None:
        """Draws how far a work is by now."""
        self._drawn.update(self._tasks[id(work)], completed=work.done, total=work.amount)

    def close(self, work: Shown) -> None:
        """Wipes a work away."""
        self._drawn.remove_task(self._tasks.pop(id(work)))
        if not self._tasks:
            self._drawn.stop()
