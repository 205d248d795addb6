"""The result of a decoder: tokens, a record of every verified draft, rounds of the images, counts and times of calls.

Shape legend: B images of a batch, N tokens, D token dims, K verified drafts of the batch.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class DraftRecords:
    """One row per verified draft token, columns of equal length K on the CPU."""

    image: Tensor  #: int64, index into the batch
    token: Tensor  #: int64, raster index of the token
    draft_index: Tensor  #: int64, 0-based place of the token in its drafted block
    log_ratio: Tensor  #: float32, log of the unclamped acceptance ratio
    accepted: Tensor  #: bool
    excess: Tensor  #: float32, what a relaxed rule adds to the acceptance probability; 0: exact; NaN: no bound

    def at(self, rows: Tensor) -> DraftRecords:
        """Those of some rows."""
        return DraftRecords(*(getattr(self, column.name)[rows] for column in fields(self)))

    @staticmethod
    def concatenate(parts: list[DraftRecords]) -> DraftRecords:
        if not parts:
            empty = torch.zeros(0, dtype=torch.int64)
            return DraftRecords(empty, empty, empty, empty.float(), empty.bool(), empty.float())
        names = ("image", "token", "draft_index", "log_ratio", "accepted", "excess")
        # Together first: every copy from a GPU is waited for.
        columns = {name: torch.cat([getattr(part, name) for part in parts]).cpu() for name in names}
        return DraftRecords(**columns)


class TestLog:
    """The tests of a decoding's rounds; they stay on its device until there are many of them, or the end.

    Shape legend: A slots, T - 1 drafts of a round.
    """

    __test__ = False

    #: numbers that may wait on the device
    MOST = 1 << 22

    def __init__(self) -> None:
        self._waiting: list[tuple[list[int], list[int], tuple[int, ...], Tensor]] = []
        self._numbers = 0
        self._records: list[DraftRecords] = []

    def add(self, images: list[int], made: list[int], depth: tuple[int, ...], tests: Tensor) -> None:
        """Logs the tests of a round.

        Args:
            images: of every slot; below 0: an empty slot.
            made: tokens of each that were decided before the round.
            depth: of every draft; that of the first draft after the decided tokens is 1.
            tests: float [4, A, T - 1]: log ratio, excess, whether the draft is accepted, whether it was tested.
        """
        self._waiting.append((list(images), list(made), depth, tests.flatten().clone()))
        self._numbers += tests.numel()
        if self._numbers > self.MOST:
            self._bring()

    def records(self) -> DraftRecords:
        """The records of all rounds, in their order."""
        self._bring()
        return DraftRecords.concatenate(self._records)

    def _bring(self) -> None:
        if not self._waiting:
            return
        arrived = torch.cat([tests for *_, tests in self._waiting]).cpu()
        parts = arrived.split([len(tests) for *_, tests in self._waiting])
        for (images, made, depth, _), tests in zip(self._waiting, parts, strict=True):
            image, first, place = (torch.tensor(of, dtype=torch.int64) for of in (images, made, depth))
            log_ratio, excess, accepted, counts = tests.view(4, len(images), len(depth))
            row, draft = ((counts > 0) & (image >= 0)[:, None]).nonzero(as_tuple=True)
            at = (row, draft)
            index = place[draft] - 1
            self._records.append(
                DraftRecords(image[row], first[row] + index, index, log_ratio[at], accepted[at] > 0, excess[at])
            )
        self._waiting, self._numbers = [], 0


@dataclass
class Meter:
    """Counts calls and splits wall time; on a GPU the spans are measured by events and summed at the end."""

    device: torch.device
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def add(self, **counts: int) -> None:
        for name, value in counts.items():
            self.counts[name] += value

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to ``name``; spans must not nest."""
        if self.device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            stop.record()
            self._events.append((name, start, stop))
        else:
            began = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Seconds by span name; waits for the GPU once."""
        if self._events:
            torch.cuda.synchronize(self.device)
            for name, start, stop in self._events:
                self._seconds[name] += start.elapsed_time(stop) / 1000.0
            self._events.clear()
        return dict(self._seconds)


@dataclass(frozen=True)
class Decoded:
    """Result of decoding B images; their order is that of the labels."""

    tokens: Tensor  #: [B, N, D] float32 (continuous) or [B, N] int64 codes
    rounds: Tensor  #: int64 [B] target passes over a block (plain: its iterations)
    drafts: DraftRecords
    counts: dict[str, int]  #: e.g. target_context_calls, target_head_calls, target_head_rows, draft_head_calls
    seconds: dict[str, float]  #: context, head, draft, residual, finish
    likeliest: Tensor | None = None  #: [] of codes: the largest weight that one was drawn by, NaN if any was NaN

    def finite(self) -> Tensor:
        """bool [], on the device of the tokens: whether all of them are numbers, or codes drawn by numbers."""
        return torch.isfinite(self.tokens if self.likeliest is None else self.likeliest).all()

    @staticmethod
    def concatenate(parts: list[Decoded]) -> Decoded:
        """The result of batches decoded one after another; at least one."""
        starts = itertools.accumulate((len(part.tokens) for part in parts[:-1]), initial=0)
        drafts = [replace(p.drafts, image=p.drafts.image + start) for p, start in zip(parts, starts, strict=True)]
        counts, seconds = Counter[str](), defaultdict[str, float](float)
        for part in parts:
            counts.update(part.counts)
            for name, spent in part.seconds.items():
                seconds[name] += spent
        tokens, rounds = torch.cat([part.tokens for part in parts]), torch.cat([part.rounds for part in parts])
        weights = [part.likeliest for part in parts if part.likeliest is not None]
        likeliest = torch.stack(weights).amax() if weights else None
        return Decoded(tokens, rounds, DraftRecords.concatenate(drafts), dict(counts), dict(seconds), likeliest)
