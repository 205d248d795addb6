"""Acceptance rules, residuals and excess: pure functions of densities, shared by continuous and discrete tokens.

Shape legend: R tested draft tokens, D token dims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Proposals per row of one round of `resample_modified`; the last round picks by weight, so the loop always ends.
PROPOSAL_ROUNDS = (1, 4, 16, 64, 256, 1024)


@dataclass(frozen=True)
class Gaussian:
    """Diagonal Gaussians, one per row."""

    mean: Tensor  #: [R, D]
    std: Tensor  #: [R, D]

    def log_density(self, x: Tensor) -> Tensor:
        """[...] of x [..., D], the constant -D/2 log 2 pi left out."""
        return -(0.5 * ((x - self.mean) / self.std).square() + self.std.log()).sum(dim=-1)

    def at(self, rows: Tensor) -> Gaussian:
        return Gaussian(self.mean[rows], self.std[rows])


def accept(log_ratio_R: Tensor, uniform_R: Tensor) -> Tensor:
    """bool [R]: accepted with probability min(1, ratio)."""
    return uniform_R.log() < log_ratio_R


def first_refusal(accepted_BK: Tensor) -> Tensor:
    """int64 [B]: number of leading accepted entries in each row of a left-to-right test."""
    return accepted_BK.long().cumprod(dim=1).sum(dim=1)


def tempered_log_ratio(target: Gaussian, draft: Gaussian, x_RD: Tensor, inner_temperature: float) -> Tensor:
    """log p(x)/q(x) [R] of the last step, distances measured in ``inner_temperature`` stds (CSpD's released code).

    The normalisers keep the true stds, as in the public code; with one temperature on both sides it cancels anyway.
    """
    t = ((x_RD - target.mean) / (target.std * inner_temperature)).square()
    d = ((x_RD - draft.mean) / (draft.std * inner_temperature)).square()
    return (0.5 * (d - t) + draft.std.log() - target.std.log()).sum(dim=-1)


def thinning(target: Gaussian, draft: Gaussian, log_factor_R: Tensor, y_RD: Tensor) -> Tensor:
    """Probability [R] that keeps a proposal y ~ p: (1 - q(y) / (F p(y)))_+ with the true last-step Gaussians."""
    log_ratio = draft.log_density(y_RD) - target.log_density(y_RD) - log_factor_R
    return -torch.expm1(log_ratio.clamp(max=0.0))


def resample_released(
    target: Gaussian,
    draft: Gaussian,
    log_factor_R: Tensor,
    propose: Callable[[int], tuple[Tensor, Tensor]],
    max_rounds: int = 100,
    zeros: bool = True,
) -> tuple[Tensor, int]:
    """CSpD's released resampler: rounds of proposals for all rows until each row had one kept, at most 100.

    A later kept proposal replaces an earlier one, as in the public code.

    Args:
        target, draft: last-step Gaussians of the R refused rows' own paths.
        log_factor_R: log F of each row.
        propose: attempt -> (normals [R, D], uniforms [R]).
        max_rounds: when to give up.
        zeros: a row that never had a proposal kept becomes zeros, as in the public code; else the target's mean.

    Returns:
        values [R, D] and the number of rounds.
    """
    result = torch.zeros_like(target.mean) if zeros else target.mean.clone()
    resolved = torch.zeros(len(result), dtype=torch.bool, device=result.device)
    for attempt in range(max_rounds):
        normals, uniforms = propose(attempt)
        y = torch.addcmul(target.mean, target.std, normals)
        kept = thinning(target, draft, log_factor_R, y) > uniforms
        result = torch.where(kept[:, None], y, result)
        resolved |= kept
        if bool(resolved.all()):
            return result, attempt + 1
    return result, max_rounds


def resample_modified(
    target: Gaussian,
    draft: Gaussian,
    log_factor_R: Tensor,
    propose: Callable[[Tensor, int, int], tuple[Tensor, Tensor]],
) -> Tensor:
    """A sample [R, D] of the modified distribution Norm[(F p - q)_+] of each row (CSpD, section 3.4), always.

    Acceptance-rejection from p in growing rounds. Should a row refuse all of them, its last round's proposals are
    weighed by their thinning probabilities and one is drawn in proportion (sampling importance resampling). Where every
    weight is zero (F p below q wherever p has mass: the modified distribution has none either) the proposal with the
    largest p/q is taken.

    Args:
        target, draft: last-step Gaussians.
        log_factor_R: log F of each row.
        propose: (rows [M] still open, attempt, count) -> (normals [M, count, D], uniforms [M, count]).
    """
    result = target.mean.clone()
    open_rows = torch.arange(len(result), device=result.device)
    for attempt, count in enumerate(PROPOSAL_ROUNDS):
        if not len(open_rows):
            break
        normals, uniforms = propose(open_rows, attempt, count)
        p, q = target.at(open_rows), draft.at(open_rows)
        y = torch.addcmul(p.mean[:, None], p.std[:, None], normals)
        log_ratio = (
            Gaussian(p.mean[:, None], p.std[:, None]).log_density(y)
            - Gaussian(q.mean[:, None], q.std[:, None]).log_density(y)
            + log_factor_R[open_rows, None]
        )
        keep = -torch.expm1((-log_ratio).clamp(max=0.0))
        kept = keep > uniforms
        # First kept proposal of a row; ties of argmax go to the first maximum.
        choice, found = kept.to(torch.uint8).argmax(dim=1), kept.any(dim=1)
        if attempt == len(PROPOSAL_ROUNDS) - 1:
            share = keep.cumsum(dim=1)
            drawn = torch.searchsorted(share, uniforms[:, :1] * share[:, -1:]).squeeze(1).clamp(max=count - 1)
            likeliest = log_ratio.argmax(dim=1)
            choice = torch.where(found, choice, torch.where(share[:, -1] > 0, drawn, likeliest))
            found = torch.ones_like(found)
        result[open_rows[found]] = y[found, choice[found]]
        open_rows = open_rows[~found]
    return result


def log_path_factor(draft_log_std_sum: Tensor, target_log_std_sum: Tensor) -> Tensor:
    """log of the paper's Sigma [R]: prod over noisy steps and dims of sigma_q / sigma_p (CSpD, equation 7)."""
    return (draft_log_std_sum - target_log_std_sum).sum(dim=-1)
