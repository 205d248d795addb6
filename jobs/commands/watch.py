"""``spd status OUTPUT --watch``: the status of an output again and again, until its job is finished."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.dataset.status import ASK_AGAIN, RECENT_S, Status
from jobs.words.console import say
from jobs.words.progress import duration
from workers.redact import redact
from workers.store import StoreError

_INTERRUPTED = 130
_DAMAGE = 5  #: damaged files that are named; `spd status` names all


class Seen:
    """The last status and what has come in its way since; drawn with the time as it is then."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.trouble = ""  #: why the last look failed; empty: it did not
        self._at = 0.0

    def look(self, call: Callable[[], Status]) -> None:
        """Looks; what cannot be read is said and is tried again at the next look."""
        try:
            self.status, self.trouble = call(), ""
        except StoreError as error:
            self.trouble = redact(" ".join(str(error).split()))
        else:
            self._at = time.monotonic()

    @property
    def age_s(self) -> float:
        """Of the status."""
        return time.monotonic() - self._at

    def left(self) -> str:
        """Time to the last commit, less what has passed since the status was read."""
        status = self.status
        if status is None or status.left_s is None:
            return "time left unknown"
        if status.committed_rows == status.rows:
            return "all images committed"
        seconds = status.left_s - self.age_s
        return f"about {duration(seconds)} left" if seconds > 0 else "a moment left"

    def line(self) -> str:
        """Everything in one line."""
        if self.trouble:
            return f"cannot be read now, trying again: {self.trouble}"
        status = self.status
        if status is None:
            return ""
        share = 100 * status.committed_rows / status.rows
        images = f"{status.committed_rows:,}/{status.rows:,} images ({share:.1f} %)"
        parts = [f"{status.committed:,}/{status.shards:,} shards", images, rate_in_words(status), self.left()]
        parts += [f"damaged: {len(status.damaged)}"] if status.damaged else []
        return ", ".join([*parts, status.state])

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        if self.status is not None:
            yield _drawing(self.status, self.left(), self.age_s)
        if self.trouble:
            yield Text(f"cannot be read now, trying again: {self.trouble}", style="yellow")


def rate_in_words(status: Status) -> str:
    """Images per second lately, and what lately is."""
    over = "over the last minute" if status.recent_s == RECENT_S else f"over the last {duration(status.recent_s)}"
    return f"{status.recent_per_s:.2f} images/s {over}"


def _drawing(status: Status, left: str, age_s: float) -> Group:
    since = status.since_last_s
    last = "no commit yet" if since is None else f"last commit {duration(since + age_s)} ago"
    share = status.committed_rows / status.rows
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=status.rows, completed=status.committed_rows, width=40),
        f"{100 * share:.1f} %",
        f"{status.committed_rows:,}/{status.rows:,} images",
    )
    counts = Table.grid(padding=(0, 3))
    states = {
        "committed": status.committed,
        "to be made": status.shards - status.committed - status.again,
        "to be made again": status.again,
        "damaged": len(status.damaged),
    }
    counts.add_row("shards", *(f"{name} {count:,}" for name, count in states.items() if count or name == "committed"))
    found: list[RenderableType] = [Text(status.output), "", bar, Text(f"{rate_in_words(status)}, {left}"), counts]
    found += [Text(f"{last}; {status.next_step.removesuffix(ASK_AGAIN)}")]
    return Group(*found, *(Text(f"damaged: {problem}", style="red") for problem in status.damaged[:_DAMAGE]))


def watch(look: Callable[[], Status], every_s: float) -> int:
    """Shows the status until the job is finished or somebody has seen enough; returns the exit code.

    A terminal gets a drawing that is brought up to date, anything else a line a look.

    Raises:
        SpecError: the output holds another job's records.
    """
    seen, console = Seen(), Console()
    drawn = sys.stdout.isatty() and not console.is_dumb_terminal
    over = Live(seen, console=console, refresh_per_second=2, redirect_stderr=sys.stderr.isatty())
    try:
        with over if drawn else nullcontext():
            while True:
                seen.look(look)
                if not drawn:
                    say(f"{datetime.now():%H:%M:%S} {seen.line()}")
                if not seen.trouble and seen.status is not None and seen.status.finished:
                    break
                time.sleep(every_s)
    except KeyboardInterrupt:
        return _INTERRUPTED
    if not drawn:
        say(seen.status.next_step)
    return 0
