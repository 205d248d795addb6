"""The worker that measures two ways of decoding in turns: what a nightly speed is held against."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from workers.records import TrialTask
from workers.trial import Trier


@dataclass(frozen=True)
class Turn:
    """One decoding of one of the two."""

    images: float  #: of images that were cut off, the share of their tokens that was made
    seconds: float  #: of the clock
    cpu_seconds: float  #: of all threads of this process

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


class Controller(Trier):
    """Decodes the same requests in two ways in turns, so that whatever else the machine does meets both."""

    def take_turns(self, first: TrialTask, second: TrialTask, turns: int) -> tuple[list[Turn], list[Turn], float]:
        """The turns of both, in the order A B, B A, A B and so on, after a warm-up, and the machine's load.

        Args:
            first, second: the two.
            turns: of each.

        Raises:
            OutOfMemory: a batch does not fit.
        """
        for task in (first, second):
            self.run(task.model_copy(update={"limit_s": 0.0}))
        told: tuple[list[Turn], list[Turn]] = ([], [])
        for turn in range(turns):
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                told[place].append(self._turn((first, second)[place]))
        return *told, os.getloadavg()[0]

    def _turn(self, task: TrialTask) -> Turn:
        began = time.process_time()
        trial = self.run(task)
        return Turn(trial.images, trial.seconds, time.process_time() - began)
