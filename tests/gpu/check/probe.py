"""Seconds of a whole decoding of MAR from some of its iterations: a large model at a large batch needs minutes for all.

Iterations differ in the tokens that are visible and in those that are made, both along a smooth schedule. So stretches
of consecutive iterations are timed at some places of it, on random tokens, and summed by the trapezoid rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spd_core.decode.log import Meter
from spd_core.draws import Draws
from spd_core.families.mar import cspd
from spd_core.families.mar.iterations import OrderDraws, Sampler, TokenPaths, mar_step, rows_of, schedule
from spd_core.families.mar.model import Mar
from spd_core.law import Cspd, SamplerLaw
from spd_core.precision import arithmetic
from tests.gpu.check.run import Check

#: Consecutive iterations timed together: noise is drawn for several of them at once.
STRETCH = 3


class MarProbe:
    """A MAR at a law and batch, any iteration of which can be run.

    Args:
        check: the run.
        model: the target or draft.
        law: what is sampled.
        batch: images decoded together.
        windows: of head self-speculation.
        draws: random numbers from seeds.
    """

    def __init__(
        self,
        check: Check,
        model: Mar,
        law: SamplerLaw,
        batch: int,
        windows: tuple[int, ...] = (),
        draws: Callable[[Tensor], Draws] = Draws,
    ) -> None:
        self.check, self.law = check, law
        self.windows = windows
        self.length, self.dims = model.config.seq_len, model.config.token_dim
        self.schedule = schedule(law, self.length)
        self.labels = torch.arange(batch, device=check.device) % model.config.class_num
        self.draws = draws(torch.arange(batch, device=check.device) + 3)
        self.tokens = torch.randn(batch, self.length, self.dims, device=check.device)
        self.sampler = Sampler.of(model, law, "target", Meter(check.device), windows)
        #: iterations that make tokens
        self.steps = [of.step for of in self.schedule if of.left < of.masked]

    def run(self, steps: Sequence[int]) -> None:
        """The iterations; the canvas stays as it is."""
        ordered = OrderDraws(self.draws, self.law, self.length, self.dims, speculates=bool(self.windows))
        with arithmetic(self.law.dtype):
            for step in steps:
                mar_step(self.sampler, self.schedule[step], self.tokens, ordered, self.labels)

    def places(self, count: int) -> list[int]:
        """Indices into `steps` at which stretches begin, first and last among them."""
        last = max(0, len(self.steps) - STRETCH)
        return sorted({round(last * place / max(1, count - 1)) for place in range(count)})

    def seconds(self, count: int = 4) -> list[tuple[int, float]]:
        """(index into `steps`, seconds of an iteration) at some places."""
        timed = []
        for place in self.places(count):
            stretch = self.steps[place : place + STRETCH]
            seconds = self.check.timed(lambda stretch=stretch: self.run(stretch), repeats=2)
            timed.append((place, seconds / len(stretch)))
        return timed

    def verification(self, step: int, gamma: int, method: Cspd) -> float:
        """Seconds of released CSpD's verification of the ``gamma`` iterations that end with ``step``.

        Drafts are made up, random: the time does not depend on them.
        """
        first = max(self.steps[0], step - gamma + 1)
        drafted = [self.schedule[at] for at in self.steps if first <= at <= step]
        model, plainly = self.sampler.model, method.model_copy(update={"head_window": ()})
        batch = cspd.Released(model, model, self.law, plainly, self.labels, self.draws)
        block = []
        for of in drafted:
            rows = rows_of(batch.order, of.left, of.masked)
            shape = (len(rows), self.dims)
            made = (torch.randn(shape, device=batch.order.device), torch.ones(shape, device=batch.order.device))
            block.append((rows, TokenPaths(made[0], 0.01 * made[1], made[0]), of.step))

        def verify() -> None:
            with arithmetic(self.law.dtype):
                batch.judge(block, drafted[0].masked, self.schedule[step].scale, 0)

        return self.check.timed(verify, repeats=2)


def summed(timed: list[tuple[int, float]], first: int, count: int) -> float:
    """Seconds of iterations ``first`` to ``count`` - 1, linear between the places that were timed and level beyond."""
    total = 0.0
    for at in range(first, count):
        below = max((pair for pair in timed if pair[0] <= at), default=timed[0])
        above = min((pair for pair in timed if pair[0] >= at), default=timed[-1])
        span = above[0] - below[0]
        total += below[1] + (above[1] - below[1]) * ((at - below[0]) / span if span else 0.0)
    return total
