"""Seconds of a whole decoding of MAR from some of its iterations: a large model at a large batch needs minutes for all.

Iterations differ in the tokens that are visible and in those that are made, both along a smooth schedule. So stretches
of consecutive iterations are timed at some places of it, on random tokens, and summed by the trapezoid rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spd_core.decode.head_speculation import Lookahead
from spd_core.decode.log import Meter
from spd_core.draws import Draws
from spd_core.families.mar import cspd
from spd_core.families.mar.iterations import (
    OrderDraws,
    TokenPaths,
    guidance_scale,
    left_after,
    mar_step,
    mask_lengths,
    rows_of,
)
from spd_core.families.mar.model import Mar
from spd_core.law import Cspd, SamplerLaw
from spd_core.precision import arithmetic, at_precision
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
        self.model = at_precision(model, law.dtype)
        self.ahead = Lookahead.of(self.model.head, law, windows)
        self.length, self.dims = model.config.seq_len, model.config.token_dim
        self.lengths = mask_lengths(self.length, law.num_iter)
        self.left = left_after(self.lengths)
        self.before = [self.length, *self.left[:-1]]
        self.labels = torch.arange(batch, device=check.device) % model.config.class_num
        self.draws = draws(torch.arange(batch, device=check.device) + 3)
        self.tokens = torch.randn(batch, self.length, self.dims, device=check.device)
        self.meter = Meter(check.device)
        #: iterations that make tokens
        self.steps = [step for step in range(law.num_iter) if self.left[step] < self.before[step]]

    def scale(self, step: int) -> float:
        return guidance_scale(self.law, self.length, self.lengths[step])

    def run(self, steps: Sequence[int]) -> None:
        """The iterations; the canvas stays as it is."""
        ordered = OrderDraws(self.draws, self.law, self.length, self.dims, speculates=self.ahead is not None)
        with arithmetic(self.law.dtype):
            for step in steps:
                now = self.law.at(step, self.law.num_iter)
                mar_step(
                    self.model, now, "target", self.tokens, ordered, self.before[step], self.left[step],
                    self.scale(step), self.labels, self.meter, self.ahead,
                )  # fmt: skip

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
        drafted = [at for at in self.steps if first <= at <= step]
        order = self.draws.orders(self.length)
        block = []
        for at in drafted:
            rows = rows_of(order, self.left[at], self.before[at])
            shape = (len(rows), self.dims)
            made = (torch.randn(shape, device=order.device), torch.ones(shape, device=order.device))
            block.append((rows, TokenPaths(made[0], 0.01 * made[1], made[0]), at))

        def verify() -> None:
            with arithmetic(self.law.dtype):
                cspd._judge_released(
                    self.model, self.law, method, self.tokens, order, self.before[drafted[0]], block, self.scale(step),
                    self.labels, self.draws, 0, self.meter, {self.model: None},
                )  # fmt: skip

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
