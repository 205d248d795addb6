"""Acceptance of CSpD (Wang et al. 2024, arXiv:2411.11925): its test, and its two samplers of a rejected token.

The test compares two Gaussians, the last step of the draft's path and the last step of the target's path. It multiplies
their ratio by a factor from the step variances. That is no ratio of two densities at one path, so nothing is known of
the law of accepted tokens: there is no guarantee, and no excess.

Shape legend: R tested draft tokens, M rows still open, P proposals of a row, T attempts, B images, D token dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from spd_core.accept.lemma import Verdict, accept, residual_acceptance
from spd_core.accept.paths import Gaussian
from spd_core.accept.rules import Evidence, Rule
from spd_core.settings import Guarantee

#: Proposals per row of one round of `resample_modified`; the last round picks by weight, so the loop always ends.
PROPOSAL_ROUNDS = (1, 4, 16, 64, 256, 1024)
#: Attempts of the released resampler.
RELEASED_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class LastSteps(Evidence):
    """Drafted tokens, and the Gaussians of the last step of the draft's path and of the target's path."""

    target: Gaussian
    draft: Gaussian
    x: Tensor  #: [R, D] the drafted tokens
    log_factor: Tensor  #: [R] log F, from the step variances
    uniform: Tensor  #: [R] of the test


class Tempered(Rule[LastSteps]):
    """CSpD's test. It belongs to the method `cspd`; a spec cannot choose it, so it is not in `RULES`.

    What replaces a rejected draft is the variant's: `resample_released` or `resample_modified`.
    """

    name = "tempered"
    summary = "with probability min(1, F p/q), p and q the last steps at a higher temperature"
    guarantee = Guarantee.NONE
    evidence = LastSteps

    inner_temperature: float = Field(gt=0.0, description="factor on the last step's std")

    def judge(self, drafts: LastSteps) -> Verdict:
        log_ratio = tempered_log_ratio(drafts.target, drafts.draft, drafts.x, self.inner_temperature)
        log_ratio = log_ratio + drafts.log_factor
        return Verdict(accept(log_ratio, drafts.uniform), log_ratio, torch.full_like(log_ratio, torch.nan))


def tempered_log_ratio(target: Gaussian, draft: Gaussian, x_RD: Tensor, inner_temperature: float) -> Tensor:
    """log p(x)/q(x) [R] of the last step, distances measured in ``inner_temperature`` stds (CSpD's released code).

    The normalisers keep the true stds, as in the public code; with one temperature on both sides it cancels anyway.
    """
    t = ((x_RD - target.mean) / (target.std * inner_temperature)).square()
    d = ((x_RD - draft.mean) / (draft.std * inner_temperature)).square()
    return (0.5 * (d - t) + draft.std.log() - target.std.log()).sum(dim=-1)


def thinning(target: Gaussian, draft: Gaussian, log_factor: Tensor, y: Tensor) -> Tensor:
    """Probability [...] of accepting y [..., D] ~ p: (1 - q(y) / (F p(y)))_+ with the true last-step Gaussians."""
    return residual_acceptance(target.log_density(y) - draft.log_density(y) + log_factor)


def resample_released(
    target: Gaussian,
    draft: Gaussian,
    log_factor_R: Tensor,
    image_R: Tensor,
    propose: Callable[[Tensor], tuple[Tensor, Tensor]],
    runs: Sequence[int] = (RELEASED_ATTEMPTS,),
    early: bool = False,
    zeros: bool = True,
) -> tuple[Tensor, Tensor]:
    """CSpD's released resampler: attempts for all rows of an image until each has an accepted proposal, at most 100.

    A later accepted proposal replaces an earlier one, as in the public code on one image. Attempts are made in
    ``runs``. Their outcomes are read after a run, so that no attempt waits for a decision. The accepted value is then
    computed once more.

    Args:
        target, draft: last-step Gaussians of R rows.
        log_factor_R: log F of each row.
        image_R: int64, the image of each row.
        propose: attempts [R, T] -> (normals [R, T, D], uniforms [R, T]).
        runs: how many attempts are made at once, one entry after another.
        early: no further run once every row has an accepted proposal; asking for that waits for a GPU.
        zeros: a row without an accepted proposal becomes zeros, as in the public code; else the target's mean.

    Returns:
        values [R, D] and the number of attempts [R] of each row's image.
    """
    p, q = (Gaussian(law.mean[:, None], law.std[:, None]) for law in (target, draft))
    attempts, parts = torch.arange(sum(runs), device=image_R.device), []
    for run in attempts.split(list(runs)):
        normals, uniforms = propose(run.expand(len(image_R), -1))
        parts.append(thinning(p, q, log_factor_R[:, None], torch.addcmul(p.mean, p.std, normals)) > uniforms)
        if early and bool(torch.cat(parts, dim=1).any(dim=1).all()):
            break
    accepted = torch.cat(parts, dim=1)
    made = attempts[: accepted.shape[1]]
    # Of each image the attempts after which one of its rows still had no accepted proposal.
    open_BT = torch.zeros(len(image_R), len(made), dtype=torch.int64, device=image_R.device)
    open_BT = open_BT.index_add(0, image_R, (accepted.cumsum(dim=1) == 0).long())
    rounds_R = (1 + (open_BT > 0).sum(dim=1)).clamp(max=len(made))[image_R]
    newest = torch.where(accepted & (made < rounds_R[:, None]), made, -1).amax(dim=1)
    normals, _ = propose(newest.clamp(min=0)[:, None])
    values = torch.addcmul(target.mean, target.std, normals[:, 0])
    never = torch.zeros_like(values) if zeros else target.mean
    return torch.where((newest >= 0)[:, None], values, never), rounds_R


def resample_modified(
    target: Gaussian,
    draft: Gaussian,
    log_factor_R: Tensor,
    propose: Callable[[Tensor, int, int], tuple[Tensor, Tensor]],
    early: bool = True,
) -> Tensor:
    """A sample [R, D] of the modified distribution Norm[(F p - q)_+] of each row (CSpD, section 3.4).

    Rejection sampling from p in rounds of growing size. For a row that rejects all proposals, one of its last round is
    drawn with weights, their acceptance probabilities (sampling importance resampling). If all weights are zero, the
    proposal with the largest p/q is taken: F p is then below q wherever p has mass, and there is no modified
    distribution.

    Args:
        target, draft: last-step Gaussians.
        log_factor_R: log F of each row.
        propose: (rows [M] still open, attempt, count) -> (normals [M, count, D], uniforms [M, count]).
        early: only rows without a sample make further proposals, which waits for a GPU; else all rows make all of
            them. The samples are the same.
    """
    result = target.mean.clone()
    open_rows = torch.arange(len(result), device=result.device)
    going = torch.ones_like(open_rows, dtype=torch.bool)  # of all rows, where none is left out
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
        probability = residual_acceptance(log_ratio)
        accepted = probability > uniforms
        # The first accepted proposal of a row; ties of argmax go to the first maximum.
        choice, found = accepted.to(torch.uint8).argmax(dim=1), accepted.any(dim=1)
        if attempt == len(PROPOSAL_ROUNDS) - 1:
            # The number that rejected proposal 0 draws here as well, so the draw depends on that rejection. The method
            # promises nothing of its law, and images that are already made rest on it.
            share = probability.cumsum(dim=1)
            drawn = torch.searchsorted(share, uniforms[:, :1] * share[:, -1:]).squeeze(1).clamp(max=count - 1)
            likeliest = log_ratio.argmax(dim=1)
            choice = torch.where(found, choice, torch.where(share[:, -1] > 0, drawn, likeliest))
            found = torch.ones_like(found)
        if early:
            result[open_rows[found]] = y[found, choice[found]]
            open_rows = open_rows[~found]
        else:
            result = torch.where((going & found)[:, None], y[open_rows, choice], result)
            going &= ~found
    return result


def log_path_factor(draft_log_std_sum: Tensor, target_log_std_sum: Tensor) -> Tensor:
    """log of the paper's Sigma [R]: prod over noisy steps and dims of sigma_q / sigma_p (CSpD, equation 7)."""
    return (draft_log_std_sum - target_log_std_sum).sum(dim=-1)
