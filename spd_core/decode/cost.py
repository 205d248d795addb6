"""Cost model: when does which way of decoding a causal pair win, given measured times of its calls?

All times in seconds at one batch size, per token of the batch where not said otherwise. Verification evaluates the
target at least as often as plain decoding does: on a device that is already compute-bound no exact method can win,
and the model shows it, the verification of gamma tokens then costing as much as gamma tokens decoded plainly.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallTimes:
    """Measured times, seconds."""

    context: float  #: one pass of the target's context network over one token
    head: float  #: the target's head calls of one token, one a step
    head_windowed: float  #: the same by head self-speculation
    drafted: float  #: one drafted token: the draft's context pass and its head calls
    verification: float  #: one target pass over gamma drafts and one head call over all their steps
    residual: float  #: one token from the residual, until a proposal is kept


def tokens_per_round(gamma: int, acceptance: float) -> float:
    """Expected tokens of a round: the drafts before the first refusal and the target's own token after them.

    Args:
        gamma: drafts of a round.
        acceptance: probability that a draft stands given that those before it stood.
    """
    return float(sum(acceptance**place for place in range(gamma + 1)))


def plain(times: CallTimes) -> float:
    """Seconds per token of plain decoding."""
    return times.context + times.head


def plain_windowed(times: CallTimes) -> float:
    """Seconds per token of plain decoding with head self-speculation."""
    return times.context + times.head_windowed


def speculative(times: CallTimes, gamma: int, acceptance: float, windowed: bool = True) -> float:
    """Seconds per token of speculative decoding; a round ends with a residual token or, unrefused, an own token."""
    own = times.head_windowed if windowed else times.head
    stood = acceptance**gamma
    per_round = gamma * times.drafted + times.verification + (1 - stood) * times.residual + stood * own
    return per_round / tokens_per_round(gamma, acceptance)
