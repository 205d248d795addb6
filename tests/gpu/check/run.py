"""The frame of the device check: parts in order of value, a share of the time for each, every row kept at once."""

from __future__ import annotations

import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


@dataclass
class Check:
    """A run of the check on one device.

    Args:
        device: where everything runs.
        out: folder of ``device_check.json``.
        budget: seconds from now.
        smoke: toy sizes, to see that everything runs.
    """

    device: torch.device
    out: Path
    budget: float
    smoke: bool
    rows: list[Row] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    deadline: float = field(init=False)  #: of the part that is running
    part: str = ""

    def __post_init__(self) -> None:
        self.deadline = self.began + self.budget

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def late(self) -> bool:
        """Whether the part's time is up."""
        return time.perf_counter() > self.deadline

    def row(self, **values: Any) -> None:
        """Prints a result and writes all of them, so a time limit from outside loses only what was not measured."""
        at = round(time.perf_counter() - self.began, 1)
        self.rows.append({"part": self.part, "at_s": at, **values})
        print(json.dumps(self.rows[-1]), flush=True)
        path = self.out / "device_check.json"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps({"machine": machine(self.device), "smoke": self.smoke, "rows": self.rows}))
        unfinished.replace(path)

    def now(self) -> float:
        """Seconds, when everything that was launched is done."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, function: Callable[[], object], repeats: int = 3) -> float:
        """Median seconds of a call, after one that is not counted: it compiles, captures and allocates."""
        function()
        took = []
        for _ in range(1 if self.smoke else repeats):
            began = self.now()
            function()
            took.append(self.now() - began)
        return sorted(took)[len(took) // 2]

    @contextmanager
    def peak(self) -> Iterator[Callable[[], float]]:
        """Within it, gives the most GiB of the device's memory so far; 0 on a CPU."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        yield lambda: round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2) if self.on_gpu else 0.0

    def tried(self, label: Row, function: Callable[[], Row]) -> Row | None:
        """A row of a function's results; out of memory or time is a row of its own, and None."""
        if self.late:
            self.row(**label, skipped="no time left for this part")
            return None
        try:
            made = function()
        except torch.OutOfMemoryError:
            self.row(**label, skipped="out of memory")
            torch.cuda.empty_cache()
            return None
        self.row(**label, **made)
        return made


@dataclass(frozen=True)
class Part:
    """Some of the check."""

    name: str
    weight: float  #: share of the time, against the other parts' weights
    run: Callable[[Check], None]


def run_parts(check: Check, parts: list[Part]) -> bool:
    """Runs the parts in order; what one does not use is the later ones'. True if none failed."""
    sound = True
    for at, part in enumerate(parts):
        now = time.perf_counter()
        left = check.began + check.budget - now
        check.part = part.name
        check.deadline = now + left * part.weight / sum(later.weight for later in parts[at:])
        try:
            with torch.inference_mode():
                part.run(check)
        except Exception as error:  # a failed part must not cost the others
            sound = False
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error}"[:300]
            check.row(error=said, where=f"{Path(where.filename).name}:{where.lineno}")
        if check.on_gpu:
            torch.cuda.empty_cache()
    return sound and not any(row.get("ok") is False for row in check.rows)


def machine(device: torch.device) -> Row:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
