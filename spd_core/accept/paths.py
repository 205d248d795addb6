"""Acceptance rules, residuals and excess: pure functions of densities, shared by continuous and discrete tokens.

The general part serves every exact and every bounded rule: draw from q, keep with a probability that only the ratio
R = p/q decides (`judge`), and where the draft is refused draw from the residual Norm[(p - q)_+] (`sample_residual`).
p and q may be laws of a token's whole denoising path or of a single step.

Shape legend: R tested draft tokens, M rows still open, P proposals of a row, K steps of a path, D token dims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spd_core.law import Acceptance

#: Proposals per row of one round of `resample_modified`; the last round picks by weight, so the loop always ends.
PROPOSAL_ROUNDS = (1, 4, 16, 64, 256, 1024)
#: Refused proposals of a row after which `sample_residual` takes the next one.
LAST_RESORT = 2**20
#: Of a path's log ratio in float32: four times the largest that a draft which is the target itself was seen to have.
ROUNDING = 2.0**-14
#: Attempts of the released resampler.
RELEASED_ATTEMPTS = 100


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


def thinning(target: Gaussian, draft: Gaussian, log_factor: Tensor, y: Tensor) -> Tensor:
    """Probability [...] that keeps y [..., D] ~ p: (1 - q(y) / (F p(y)))_+ with the true last-step Gaussians."""
    log_ratio = draft.log_density(y) - target.log_density(y) - log_factor
    return -torch.expm1(log_ratio.clamp(max=0.0))


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
    """CSpD's released resampler: attempts for all rows of an image until each had a proposal kept, at most 100.

    A later kept proposal replaces an earlier one, as in the public code on one image. The attempts are made in ``runs``
    and what they kept is read afterwards, so that nothing waits for a decision; the value is proposed once more.

    Args:
        target, draft: last-step Gaussians of the R rows' own paths.
        log_factor_R: log F of each row.
        image_R: int64, the image of each row.
        propose: attempts [R, T] -> (normals [R, T, D], uniforms [R, T]).
        runs: how many attempts are made at once, one entry after another.
        early: no further run if every row has had a proposal kept; asking for it waits for a GPU.
        zeros: a row that never had a proposal kept becomes zeros, as in the public code; else the target's mean.

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
    kept = torch.cat(parts, dim=1)
    made = attempts[: kept.shape[1]]
    # Of each image the attempts after which some row of it still had none.
    open_BT = torch.zeros(len(image_R), len(made), dtype=torch.int64, device=image_R.device)
    open_BT = open_BT.index_add(0, image_R, (kept.cumsum(dim=1) == 0).long())
    rounds_R = (1 + (open_BT > 0).sum(dim=1)).clamp(max=len(made))[image_R]
    newest = torch.where(kept & (made < rounds_R[:, None]), made, -1).amax(dim=1)
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
    """A sample [R, D] of the modified distribution Norm[(F p - q)_+] of each row (CSpD, section 3.4), always.

    Acceptance-rejection from p in growing rounds. Should a row refuse all of them, its last round's proposals are
    weighed by their thinning probabilities and one is drawn in proportion (sampling importance resampling). Where every
    weight is zero (F p below q wherever p has mass: the modified distribution has none either) the proposal with the
    largest p/q is taken.

    Args:
        target, draft: last-step Gaussians.
        log_factor_R: log F of each row.
        propose: (rows [M] still open, attempt, count) -> (normals [M, count, D], uniforms [M, count]).
        early: a row that has its sample proposes no further, which waits for a GPU; else all rows go through all
            rounds. The samples are the same.
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


@dataclass(frozen=True)
class Verdict:
    """Of R tested drafts."""

    accepted: Tensor  #: bool [R]
    log_ratio: Tensor  #: [R] log of the unclamped acceptance ratio; for the coupled rule log(radius / distance)
    excess: Tensor  #: [R] what the rule adds to the chance of standing; NaN where total variation has no bound


def path_log_ratio(noise_RKD: Tensor, shift_RKD: Tensor) -> Tensor:
    """log [R] of (the other law / the own law) of paths, both densities taken on the own path.

    Args:
        noise_RKD: (state after - own mean) / std of each step.
        shift_RKD: (own mean - other mean) / std; equal stds, so log ratio = (|n|^2 - |n + shift|^2) / 2. The shared
            start cancels.
    """
    return -(shift_RKD * (noise_RKD + 0.5 * shift_RKD)).sum(dim=(-2, -1))


def annealed_log_weights(rule: Acceptance, place_R: Tensor) -> Tensor:
    """log w [R] of drafts at ``place_R`` of their block, w = max(1, delta exp(-nu place)); 0 for every other rule.

    A weight below 1 would only lose speed. Spending the excess early is best: a late draft is tested only if the
    earlier ones were kept (COOL-SD, whose delta is this one times the mean of exp(-nu place) over the block).
    """
    if rule.rule != "annealed":
        return torch.zeros_like(place_R, dtype=torch.float32)
    return (math.log(rule.delta) - rule.nu * place_R).clamp(min=0.0)


def excess(log_ratio_R: Tensor, log_relaxed_R: Tensor) -> Tensor:
    """(f - min(1, R))_+ [R] with f = min(1, relaxed R), in [0, 1]: what a rule adds to a draft's chance of standing.

    Its mean over drafts of q is sum_x (q f - p)_+, with the lossless residual the total variation of the token's law
    from p, whenever f is at least min(1, R). What it means for an image is in `spd_core.accept.certificate`.
    """
    relaxed = log_relaxed_R.clamp(max=0.0).exp()
    return (relaxed - log_ratio_R.clamp(max=0.0).exp()).clamp(min=0.0)


def judge(log_ratio_R: Tensor, log_relaxed_R: Tensor, uniform_R: Tensor, rounding: float = 0.0) -> Verdict:
    """Keeps each draft with probability min(1, relaxed ratio); the lossless rule relaxes nothing.

    Args:
        log_ratio_R: log p/q of the draft.
        log_relaxed_R: what the rule makes of it, never less.
        uniform_R: of the test.
        rounding: error of the log ratio; one that is no farther below 0 counts as 0. The law then is off by no more
            than this times the share of drafts with such a ratio. Without it a draft that equals the target but for
            rounding is refused now and then, and hardly any proposal is ever kept in its place.
    """
    near_one = (log_relaxed_R > -rounding) & (log_relaxed_R < 0)
    accepted = accept(log_relaxed_R.masked_fill(near_one, 0.0) if rounding else log_relaxed_R, uniform_R)
    return Verdict(accepted, log_ratio_R, excess(log_ratio_R, log_relaxed_R))


def judge_coupled(rule: Acceptance, drafted_RD: Tensor, coupled_RD: Tensor) -> Verdict:
    """Keeps each draft that lies within the radius of the target's own token on the same noise.

    What is emitted, the draft or else the target's token, then lies within the radius of a sample of the target's law
    of the token given those emitted before it. That is no bound on the distance of images: the next token is compared
    with the target's given *this* one, and what is below the hand-off follows from states that differ.
    """
    distance = torch.linalg.vector_norm(drafted_RD - coupled_RD, dim=-1)
    accepted = distance <= rule.radius
    log_ratio = torch.where(accepted & (distance == 0), torch.inf, (rule.radius / distance).log())
    return Verdict(accepted, log_ratio, torch.full_like(distance, torch.nan))


def sample_residual(rows_R: Tensor, propose: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """A sample [R, ...] of the residual Norm[(p - q)_+] of each row: propose from p, keep with (1 - q/p)_+.

    Not capped where that could be seen: a capped loop returns p in its place, which puts back what the draft has
    already given. One draft costs one proposal in expectation (probability of a refusal times proposals until one is
    kept). A row that has refused `LAST_RESORT` proposals takes the next: a refusal happens with probability TV(p, q),
    and so do that many more with less than 1 / (e `LAST_RESORT`) = 4e-7 in all, whatever TV(p, q) is. A row without a
    draft has q = 0 and takes its first proposal.

    Args:
        rows_R: names of the rows, distinct and at least one; `propose` gets those still open.
        propose: (rows [M], attempt from 0) -> proposals of p [M, P, ...], log p/q [M, P] (inf: q is 0; -inf: not a
            proposal, only padding), uniforms [M, P].

    Raises:
        FloatingPointError: if a log ratio is not a number; the loop would not end.
        ValueError: if there is no row.
    """
    result, made = None, 0
    open_rows, attempt = torch.arange(len(rows_R), device=rows_R.device), 0  # as places in rows_R
    while len(open_rows):
        values, log_ratio, uniforms = propose(rows_R[open_rows], attempt)
        kept = -torch.expm1((-log_ratio).clamp(max=0.0)) > uniforms
        if made >= LAST_RESORT:
            kept |= log_ratio > -torch.inf
        made += log_ratio.shape[1]
        # Ties of argmax go to the first maximum: the first kept proposal of the row.
        found, choice = kept.to(torch.uint8).max(dim=1)
        # The one wait of an attempt: how many rows are done, and whether all could be.
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


def change_noise(noise: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """A draw of one Gaussian as a draw of another: its noise there [..., D], log [...] of other law / own law.

    Args:
        noise: (y - own mean) / own std of the draw y.
        shift: (own mean - other mean) / own std.
        log_scale: log of own std / other std.
    """
    result = log_scale.exp() * (noise + shift)
    return result, (0.5 * (noise.square() - result.square()) + log_scale).sum(dim=-1)


def reflect(noise_RD: Tensor, shift_RD: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """Reflection-maximal coupling of N(m_q, s) and N(m_p, s), exact for equal stds only.

    Args:
        noise_RD: (y - m_q) / s of the draft y.
        shift_RD: (m_q - m_p) / s.
        uniform_R: of the test.

    Returns:
        accepted bool [R], and the noise [R, D] such that m_p + s * noise is the result: of the draft itself where it is
        accepted, else of the draft's mirror image.
    """
    log_ratio = -(shift_RD * (noise_RD + 0.5 * shift_RD)).sum(dim=-1)
    accepted = uniform_R.log() <= log_ratio
    square = shift_RD.square().sum(dim=-1, keepdim=True)
    along = (shift_RD * noise_RD).sum(dim=-1, keepdim=True) / square.clamp(min=torch.finfo(square.dtype).tiny)
    return accepted, torch.where(accepted[..., None], noise_RD + shift_RD, noise_RD - 2 * along * shift_RD)
