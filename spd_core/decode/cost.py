"""Cost model of a causal pair: how long plain and speculative decoding take, from measured times of their calls.

A batch of B images is decoded by a handful of calls. Each is one sequential piece of work for the whole batch. The
model counts how often each call runs, and adds up. Its inputs are measured call times (`CallTimes`) and the measured
acceptance of the drafts; it has no constants. Beside a measured table it is a check: where they disagree, one is wrong.

Verification evaluates the target at least as often as plain decoding does. On a device that is already compute-bound no
exact method can win. The model shows that: the verification of gamma tokens then costs as much as gamma tokens decoded
plainly.

Left out are the bookkeeping of a round, the shorter blocks at an image's end, and what a residual's later attempts cost
above its first, which makes fewer proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CallTimes:
    """Measured seconds of one call for a batch, its random numbers included.

    ``head`` and ``finish`` call the head once a step, as plain decoding does. ``head_windowed`` and ``finish_windowed``
    do the same work by head self-speculation; without windows they equal the other two.
    """

    context: float  #: one pass of the target's context network, one token of every image
    head: float  #: the target's head down to the hand-off for one token of every image, one head call a step
    head_windowed: float  #: the work of `head`, with the method's windows
    finish: float  #: the target's head below the hand-off, all tokens of every image at once, one head call a step
    finish_windowed: float  #: the work of `finish`, with the method's windows
    drafted: float = 0.0  #: one drafted token of every image: the draft's context pass and its head calls
    verification: float = 0.0  #: one context pass over gamma drafts and the next token, one head call over all states
    residual: float = 0.0  #: proposals for a rejected token of every image, once, and their test


@dataclass(frozen=True)
class Drafting:
    """What a round of speculative decoding drafts, and how it fares."""

    #: By place of the block: share of the drafts accepted, where those before were accepted.
    acceptance: Sequence[float]
    overlap: float  #: mean of min(1, R) over the tested drafts: 1 - total variation, whatever the rule
    proposals: int  #: residual proposals of a rejected token made at once


def leading_accepted(acceptance: Sequence[float]) -> list[float]:
    """Probability that at least 0, 1, ..., gamma drafts of a round are accepted, one after another."""
    return [1.0, *np.cumprod(acceptance).tolist()]


def tokens_per_round(acceptance: Sequence[float]) -> float:
    """Expected tokens of a round: the drafts before the first rejection, and the one that the target samples."""
    return sum(leading_accepted(acceptance))


def rounds_needed(acceptance: Sequence[float], tokens: int, slots: int, fills: int = 1) -> float:
    """Expected rounds until every slot has made its images.

    Rounds and slots are taken to be independent, and every slot to make the same number of images one after another. In
    decoding, the next image goes to the slot that is free first, so the slots end closer together.

    Args:
        acceptance: of the drafts by place.
        tokens: of an image; a round does not reach into the next image.
        slots: images decoded together.
        fills: images a slot makes.
    """
    advance = -np.diff([*leading_accepted(acceptance), 0.0])  # of 1, 2, ..., gamma + 1 tokens
    states = np.arange(tokens * fills + 1)  # tokens that a slot lacks
    room = (states - 1) % tokens + 1  # of them in the image at hand
    moves = np.zeros((len(states), len(states)))
    for step, probability in enumerate(advance, start=1):
        np.add.at(moves, (states[1:], states[1:] - np.minimum(step, room[1:])), probability)
    lacking = np.zeros(len(states))
    lacking[-1] = 1.0
    expected = 0.0
    for _ in states[1:]:  # at least one token a round
        expected += 1.0 - lacking[0] ** slots
        lacking = lacking @ moves + np.eye(1, len(states))[0] * lacking[0]
    return float(expected)


def residual_attempts(drafting: Drafting, slots: int) -> float:
    """Expected attempts until each rejected token of a round has an accepted proposal, given that a token was rejected.

    The probability that a proposal is accepted is the total variation between draft and target. Each attempt makes four
    times the proposals of the one before.
    """
    rejected = max(1.0, slots * (1.0 - leading_accepted(drafting.acceptance)[-1]))
    open_share, proposals, attempts = 1.0, drafting.proposals, 0.0
    while open_share > 1e-9:
        attempts += 1.0 - (1.0 - open_share) ** rejected
        open_share *= drafting.overlap**proposals
        proposals *= 4
    return attempts


def plain(times: CallTimes, tokens: int) -> float:
    """Seconds of a batch decoded plainly, one head call a step."""
    return tokens * (times.context + times.head) + times.finish


def plain_windowed(times: CallTimes, tokens: int) -> float:
    """Seconds of a batch decoded plainly, with the method's windows."""
    return tokens * (times.context + times.head_windowed) + times.finish_windowed


def _round(times: CallTimes, drafting: Drafting, slots: int) -> float:
    """Seconds of a round in which all slots are at work.

    It drafts gamma tokens and verifies them. It ends with a sample of the residual or, if all drafts were accepted,
    with a bonus token.
    """
    all_accepted = leading_accepted(drafting.acceptance)[-1]
    ending = all_accepted * times.head_windowed
    if all_accepted < 1.0:
        ending += (1.0 - all_accepted) * residual_attempts(drafting, slots) * times.residual
    return len(drafting.acceptance) * times.drafted + times.verification + ending


def speculative(
    times: CallTimes, alone: CallTimes, drafting: Drafting, tokens: int, slots: int, fills: int = 1
) -> float:
    """Seconds of ``fills`` images a slot decoded speculatively.

    Towards the end slots are empty. The cost of a round is taken as a constant plus a cost for each slot at work; both
    follow from the call times with one slot and with all of them.

    Args:
        times: with all slots.
        alone: with one slot.
        drafting: what is drafted.
        tokens: of an image.
        slots: images decoded together.
        fills: images a slot makes.
    """
    one, every = _round(alone, drafting, 1), _round(times, drafting, slots)
    per_slot = (every - one) / (slots - 1) if slots > 1 else 0.0
    rounds = rounds_needed(drafting.acceptance, tokens, slots, fills)
    slot_rounds = slots * rounds_needed(drafting.acceptance, tokens, 1, fills)
    return rounds * (one - per_slot) + slot_rounds * per_slot + fills * times.finish_windowed
