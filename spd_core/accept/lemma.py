"""The lemma of speculative sampling (Leviathan et al. 2022, arXiv:2211.17192), each part of it once.

A draft x of q is accepted with probability min(1, R), R = p(x) / q(x). If it is rejected, the token is drawn from the
residual Norm[(p - q)_+]. The token then has the law p. p and q may be laws of a code, of a token's whole denoising path
or of a single step. A rule of `spd_core.accept.rules` puts a larger ratio in the place of R; what it adds to the
acceptance probability is the draft's excess.

Shape legend: R tested drafts, B images, K places of a block, M rows still open, P proposals of a row, V codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Rejected proposals of a row after which `sample_residual` takes the next one.
LAST_RESORT = 2**20


def acceptance_probability(log_ratio: Tensor) -> Tensor:
    """min(1, R) [...] of log R [...]: the acceptance probability of a draft."""
    return log_ratio.clamp(max=0.0).exp()


def accept(log_ratio_R: Tensor, uniform_R: Tensor) -> Tensor:
    """bool [R]: accepted with probability min(1, ratio)."""
    return uniform_R.log() < log_ratio_R


def num_accepted(accepted_BK: Tensor) -> Tensor:
    """int64 [B]: how many drafts of each block are accepted before its first rejection."""
    return accepted_BK.long().cumprod(dim=1).sum(dim=1)


def residual_acceptance(log_ratio: Tensor) -> Tensor:
    """(1 - 1/R)_+ [...] of log R = log p/q [...]: the probability that the residual accepts a proposal of p."""
    return -torch.expm1((-log_ratio).clamp(max=0.0))


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Norm[(p - q)_+] [..., V]; p itself where p equals q, for there no draft is rejected."""
    left = (p - q).clamp(min=0.0)
    total = left.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, left / total, p)


@dataclass(frozen=True)
class Verdict:
    """Of R tested drafts."""

    accepted: Tensor  #: bool [R]
    log_ratio: Tensor  #: [R] log of the unclamped acceptance ratio; for the coupled rule log(radius / distance)
    excess: Tensor  #: [R] what the rule adds to the acceptance probability; NaN: total variation has no bound


def excess(log_ratio_R: Tensor, log_relaxed_R: Tensor) -> Tensor:
    """(f - min(1, R))_+ [R] in [0, 1], f = min(1, relaxed R): what a rule adds to the acceptance probability.

    If f is at least min(1, R), the mean over drafts of q is sum_x (q f - p)_+. With the lossless residual that is the
    total variation of the token's law from p. What it means for an image is in `spd_core.accept.certificate`.
    """
    return (acceptance_probability(log_relaxed_R) - acceptance_probability(log_ratio_R)).clamp(min=0.0)


def judge(log_ratio_R: Tensor, log_relaxed_R: Tensor, uniform_R: Tensor, rounding: float = 0.0) -> Verdict:
    """Accepts each draft with probability min(1, relaxed ratio); the lossless rule relaxes nothing.

    Args:
        log_ratio_R: log p/q of the draft.
        log_relaxed_R: what the rule makes of it, never less.
        uniform_R: of the test.
        rounding: error of the log ratio. A log ratio that is no farther below 0 counts as 0; the law is then off by no
            more than this, times the share of drafts with such a ratio. Without it a draft that equals the target but
            for rounding would sometimes be rejected, and hardly any proposal would be accepted in its place.
    """
    near_one = (log_relaxed_R > -rounding) & (log_relaxed_R < 0)
    accepted = accept(log_relaxed_R.masked_fill(near_one, 0.0) if rounding else log_relaxed_R, uniform_R)
    return Verdict(accepted, log_ratio_R, excess(log_ratio_R, log_relaxed_R))


def sample_residual(rows_R: Tensor, propose: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """A sample [R, ...] of the residual Norm[(p - q)_+] of each row: propose from p, accept with (1 - q/p)_+.

    A draft costs one proposal in expectation: the probability of its rejection, TV(p, q), times the proposals until one
    is accepted. The loop is not capped where that could be seen, for a capped one returns samples of p instead of the
    residual. A row that has rejected `LAST_RESORT` proposals takes the next one. The probability that its draft and all
    of these proposals are rejected is below 1 / (e `LAST_RESORT`) = 4e-7, whatever TV(p, q) is.

    Args:
        rows_R: distinct names of the rows, at least one. `propose` gets the names of rows without a sample so far.
        propose: (rows [M], attempt from 0) -> proposals of p [M, P, ...], log p/q [M, P] (-inf: never accepted, as
            where a row has fewer proposals), uniforms [M, P].

    Raises:
        FloatingPointError: if a log ratio is not a number; the loop would not end.
        ValueError: if there is no row.
    """
    result, made = None, 0
    open_rows, attempt = torch.arange(len(rows_R), device=rows_R.device), 0  # as places in rows_R
    while len(open_rows):
        values, log_ratio, uniforms = propose(rows_R[open_rows], attempt)
        accepted = residual_acceptance(log_ratio) > uniforms
        if made >= LAST_RESORT:
            accepted |= log_ratio > -torch.inf
        made += log_ratio.shape[1]
        # Ties of argmax go to the first maximum: the first accepted proposal of the row.
        found, choice = accepted.to(torch.uint8).max(dim=1)
        # The one wait of an attempt: how many rows have a sample, and whether a ratio is not a number.
        states = torch.where(log_ratio.isnan().any(dim=1), 2, found).tolist()
        if 2 in states:
            raise FloatingPointError("residual: the log ratio of a proposal is not a number")
        done = torch.nonzero_static(found, size=sum(states))[:, 0]
        if result is None:
            result = values.new_empty(len(rows_R), *values.shape[2:])
        result[open_rows[done]] = values[done, choice[done]]
        open_rows = open_rows[torch.nonzero_static(found == 0, size=len(states) - len(done))[:, 0]]
        attempt += 1
    if result is None:
        raise ValueError("residual: got no row, allowed: at least one")
    return result
