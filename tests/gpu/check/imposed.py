"""Acceptance imposed from outside: random weights have none, and a speed that depends on it must be measured at some.

A decoder accepts a step or a draft if a uniform number is below a ratio, and its uniforms come from its `Draws`. So
draws that answer 0 where something is to be accepted and infinity where it is to be rejected decide every test, and the
decoder does all of its work: it drafts, verifies, tests and draws residuals as ever. What comes out has no law worth
the name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spd_core.draws import Draws, Purpose

#: Steps that fashion-mar's own head self-speculation rejected, path by path; ``python -m tests.gpu.check.pattern``
#: wrote it.
PATTERN = Path(__file__).with_name("data") / "fashion-mar-rejections.json"


class ForcedDraws(Draws):
    """Draws under which every drafted code is accepted with one probability, whatever the models say.

    Args:
        seeds_B: image seeds.
        rate: the probability that a draft is accepted when its turn has come.
    """

    def __init__(self, seeds_B: Tensor, rate: float) -> None:
        super().__init__(seeds_B)
        self.rate = rate

    def fine_uniforms(self, purpose: Purpose, image_R: Tensor, token_R: Tensor, count: int = 1) -> Tensor:
        """As ever, but those of acceptance tests are 0 or infinity."""
        uniforms = super().fine_uniforms(purpose, image_R, token_R, count)
        return _verdicts(uniforms < self.rate).to(uniforms.dtype) if purpose is Purpose.ACCEPT else uniforms


class PatternDraws(Draws):
    """Draws under which a head's steps are rejected where they were on given paths.

    Args:
        seeds_B: image seeds.
        rejected_PS: bool [P, S], paths of S steps; a token takes one of them by its place and its image.
    """

    def __init__(self, seeds_B: Tensor, rejected_PS: Tensor) -> None:
        super().__init__(seeds_B)
        self.rejected = rejected_PS.to(seeds_B.device)

    def uniforms(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int = 1,
        round_R: Tensor | int = 0,
        attempt: Tensor | int = 0,
    ) -> Tensor:
        """As ever, but those of the head's tests are 0 or infinity."""
        if purpose is not Purpose.HEAD_ACCEPT:
            return super().uniforms(purpose, image_R, token_R, count, round_R, attempt)
        path = (token_R + 31 * image_R) % len(self.rejected)
        return _verdicts(~self.rejected[path][:, :count])


def _verdicts(accepted: Tensor) -> Tensor:
    return torch.where(accepted, 0.0, torch.inf)


def recorded_pattern(schedule: int) -> tuple[tuple[int, ...], Tensor]:
    """Windows of fashion-mar's ``schedule``-th schedule, and bool [P, S] where its paths were rejected under it."""
    pattern = json.loads(PATTERN.read_text())["schedules"][schedule]
    return tuple(pattern["windows"]), as_table(pattern["rejected"], pattern["steps"])


def as_table(rejected: Sequence[Sequence[int]], steps: int) -> Tensor:
    """bool [P, S] from the rejected steps of each path."""
    table = torch.zeros(len(rejected), steps, dtype=torch.bool)
    for path, at in enumerate(rejected):
        table[path, list(at)] = True
    return table


def calls_under(windows: Tensor, rejected_PS: Tensor) -> float:
    """Mean sequential head calls of a path under a pattern, by the rule of head self-speculation.

    Args:
        windows: int64 [S], the window of a round that begins at each step.
        rejected_PS: bool [P, S].
    """
    calls = 0
    for rejected in rejected_PS.tolist():
        step = len(rejected) - 1
        while step >= 0:
            end = step - int(windows[step]) + 1
            at = next((k for k in range(step, max(end, 0) - 1, -1) if rejected[k]), max(end, 0))
            step, calls = at - 1, calls + 1
    return calls / len(rejected_PS)
