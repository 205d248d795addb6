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
    """Decodes a task when it is told to; whoever tells it takes two ways in turns, see `jobs.nightly.control`."""

    def warm_up(self, *tasks: TrialTask) -> None:
        """Decodes as little of each as there can be.

        Raises:
            OutOfMemory: a batch does not fit.
        """
        for task in tasks:
            self.run(task.model_copy(update={"limit_s": 0.0}))

    def load(self) -> float:
        """Of the machine, over the last minute."""
        return os.getloadavg()[0]

    def turn(self, task: TrialTask) -> Turn:
        """One decoding.

        Raises:
            OutOfMemory: a batch does not fit.
        """
        began = time.process_time()
        trial = self.run(task)
        return Turn(trial.images, trial.seconds, time.process_time() - began)
