"""Tunes the windows of head self-speculation to a pair: a length for each slice of the path.

Long windows save sequential calls early on the path, where predictions keep, and waste rows late, where they do not.
From plain paths comes the probability S[s, l] that the first l steps of a window begun at position s are accepted. A
round with window L ends after j + 1 steps if step j is the first rejected, and after L steps otherwise; so the expected
calls and rows of a schedule follow backwards from the path's end, and the schedule that minimises calls + price * rows
is found slice by slice.

Shape legend: R paths, K steps of them, D token dims, positions count the steps made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spd_core.decode.path import BoundHead, LawHead, Trace, steps_down, windows_by_step
from spd_core.families.head_family import head_of
from spd_core.families.registry import head_family
from spd_core.pairs.pair import Pair
from spd_core.train.variance import Images, plain_paths, token_contexts

#: Longest window considered.
LONGEST = 100
#: Slices of the path, each with a window of its own.
SLICES = 10
#: What a row may cost, in sequential calls: first where calls are all that counts, then where rows do too.
PRICES = (0.02, 0.1)
#: Prices of a row from a device that is far below its ridge to one that is above it.
LADDER = (0.0, 0.002, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
#: Tokens of each image whose paths are walked.
TOKENS = 16

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Tuned:
    """A schedule and what it should cost on one path."""

    windows: tuple[int, ...]
    calls: float
    rows: float
    steps: int  #: of the path: the calls and rows of plain decoding


def tuned_windows(
    pair: Pair, tokens_nND: Tensor, labels_n: Tensor, seed: int = 0, prices: Sequence[float] = PRICES
) -> list[Tuned]:
    """A schedule for each price of a row at the pair's law, from plain paths in the contexts of images.

    Raises:
        ValueError: a pair whose tokens no diffusion head makes.
    """
    family = head_family(pair.card.of)
    law, rng, parts = pair.card.law, np.random.default_rng(seed), []
    first = law.head_steps - 1
    last = family.last_step(law)
    at_law = LawHead(head_of(pair.target), law)
    with torch.inference_mode():
        for z, scale in token_contexts(family, pair.target, law, TOKENS, Images(tokens_nND, labels_n), rng):
            head = at_law.bind(z, scale)
            parts.append(survival(head, plain_paths(head, len(scale), first, last, rng), first))
    surviving = np.mean(parts, axis=0)
    return [tune(surviving, first, law.head_steps, price) for price in prices]


@torch.inference_mode()
def survival(head: BoundHead, trace: Trace, first: int) -> Float64:
    """S [K, L + 1]: probability that the first l = 0..L steps of a window begun at a position are accepted; 0 past the
    end.

    Args:
        head: bound to the R paths' contexts.
        trace: plain paths, their first step being ``first``; a step's acceptance probability is the overlap of the held
            and the true transition at its state, their stds taken as the fixed ones.
        first: step.
    """
    rows, count, _ = trace.states.shape
    row, k = torch.arange(rows, device=trace.states.device), steps_down(first, first - count + 1, trace.states.device)
    newest = trace.x0 + head.moved(row[:, None], k, trace.noise)
    result = np.zeros((count, LONGEST + 1))
    for start in range(count):
        ahead = slice(start, min(start + LONGEST, count))
        held = newest[:, start - 1] if start else head.prior_mean()
        predicted = head.followed(row, k[ahead], held, trace.states[:, ahead])
        distance = torch.linalg.vector_norm(head.shift(k[ahead], predicted, trace.x0[:, ahead]), dim=-1)
        surviving = torch.erfc(distance / 8**0.5).cumprod(dim=1)
        result[start, 0] = 1.0
        result[start, 1 : 1 + surviving.shape[1]] = surviving.double().mean(dim=0).cpu()
    return result


def expected(survival_KL: Float64, window_K: list[int]) -> tuple[float, float]:
    """Sequential calls and rows of a path whose window at each position is ``window_K``."""
    count = len(survival_KL)
    calls, rows = np.zeros(count + 1), np.zeros(count + 1)
    for start in range(count - 1, -1, -1):
        length = min(window_K[start], count - start)
        surviving = survival_KL[start, :length]
        ends = np.append(surviving[:-1] - surviving[1:], surviving[-1])
        after = slice(start + 1, start + length + 1)
        calls[start], rows[start] = 1 + ends @ calls[after], length + ends @ rows[after]
    return float(calls[0]), float(rows[0])


def tune(survival_KL: Float64, first: int, steps: int, price: float) -> Tuned:
    """The windows with the least expected calls + ``price`` * rows.

    Args:
        survival_KL: of `survival`.
        first: the step at position 0.
        steps: of the whole path, which the windows' slices divide.
        price: of a row, in calls.
    """
    windows = [8] * SLICES

    def cost(windows: list[int]) -> float:
        calls, rows = expected(survival_KL, _by_position(windows, first, steps, len(survival_KL)))
        return calls + price * rows

    best, better = cost(windows), True
    while better:
        better = False
        for at in range(SLICES):
            for length in range(1, LONGEST + 1):
                tried = [*windows[:at], length, *windows[at + 1 :]]
                if (found := cost(tried)) < best - 1e-9:
                    best, windows, better = found, tried, True
    calls, rows = expected(survival_KL, _by_position(windows, first, steps, len(survival_KL)))
    return Tuned(tuple(windows), calls, rows, len(survival_KL))


def _by_position(windows: list[int], first: int, steps: int, count: int) -> list[int]:
    by_step: Tensor = windows_by_step(tuple(windows), steps, torch.device("cpu"))
    return by_step[steps_down(first, first - count + 1, by_step.device)].tolist()
