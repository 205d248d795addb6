"""Drafted paths, and what the law of another model says of them.

Decoding, call times and training figures all test drafts by these functions, so they cannot differ in what a test is.

Shape legend: T paths (a token each), K steps above the hand-off, D token dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from spd_core.accept.paths import path_log_ratio
from spd_core.capture import recorded
from spd_core.decode.path import BoundHead, PathNoise, Trace, TracedPath, on_rows, steps_down
from spd_core.families.causal.tokens import PathLaw


def draft_walk(head: BoundHead, y_TD: Tensor, path: PathLaw, noise: PathNoise, stride: int) -> TracedPath:
    """The draft's paths to the hand-off, one head call every ``stride`` steps."""
    steps = {"first": path.first, "handoff": path.handoff, "stride": stride}
    if recorded(y_TD.device):
        made = on_rows("draft path", _drafted_path, head, y_TD, noise, **steps)
    else:
        made = _drafted_path(head, y_TD, noise, **steps)
    trace, calls = Trace(*made[1:]), -(-path.above // stride)
    return TracedPath(made[0], trace.x0[:, -1], calls, calls * len(y_TD), trace)


def _drafted_path(
    head: BoundHead, y_TD: Tensor, noise: PathNoise, first: int, handoff: int, stride: int
) -> tuple[Tensor, ...]:
    """The paths' ends, and the states, held predictions and noise of every step."""
    rows = torch.arange(len(y_TD), device=y_TD.device)
    y, parts = y_TD, []
    for start in range(first, handoff, -stride):
        k = steps_down(start, max(start - stride, handoff) + 1, y.device).expand(len(rows), -1)
        drawn = noise.of_steps(rows[:, None], k)
        x0 = head.follow(rows, k, head.predict(rows, k[:, 0], y).x0, drawn)
        after = head.roll(k, y, x0, head.std(k, None) * drawn)
        parts.append((torch.cat([y[:, None], after[:, :-1]], dim=1), x0, drawn))
        y = after[:, -1]
    return y, *(torch.cat(column, dim=1) for column in zip(*parts, strict=True))


def held_predictions(head: BoundHead, states_TKD: Tensor, path: PathLaw, stride: int = 1) -> Tensor:
    """The x0 [T, K, D] of a law at the states of given paths, from one head call over every ``stride``-th state.

    A draft holds each prediction for ``stride`` steps. The target predicts at every state, which is a stride of 1.
    """
    rows, count, dims = states_TKD.shape
    k = steps_down(path.first, path.handoff + 1, states_TKD.device)
    calls = len(k[::stride])
    row = torch.arange(rows, device=k.device).repeat_interleave(calls)
    x0 = head.predict(row, k[::stride].repeat(rows), states_TKD[:, ::stride].flatten(0, 1)).x0
    # The last stride may be shorter; what it is padded with is cut off again.
    padding = calls * stride - count
    states = F.pad(states_TKD, (0, 0, 0, padding)).view(rows * calls, stride, dims)
    steps = F.pad(k, (0, padding), value=path.handoff + 1).view(calls, stride).repeat(rows, 1)
    held = head.followed(row, steps, x0, states)
    return held.reshape(rows, calls * stride, dims)[:, :count]


@dataclass(frozen=True)
class Verified:
    """What a law says of paths that another law made."""

    log_ratio: Tensor  #: [T] log density under this law minus log density under the law that made the paths
    shift: Tensor  #: [T, K, D] (mean of the step that was made - this law's mean) / std
    x0: Tensor  #: [T, K, D] this law's predictions at the states


def verify(head: BoundHead, trace: Trace, path: PathLaw, stride: int = 1) -> Verified:
    """Evaluates a law on paths of another one, by one head call over all states that it looks at.

    Both laws step with the same stds, so each step's ratio follows from its noise and the distance of the two means.

    Args:
        head: this law's, bound to the contexts of the paths' tokens.
        trace: paths of the other law.
        path: where they begin and end.
        stride: steps for which this law holds a prediction; 1: the target's, more: a draft's.
    """
    x0 = held_predictions(head, trace.states, path, stride)
    k = steps_down(path.first, path.handoff + 1, x0.device)
    shift = head.shift(k, trace.x0, x0)
    return Verified(path_log_ratio(trace.noise, shift), shift, x0)
