"""CSpD, continuous speculative decoding for MAR (Wang et al. 2024, arXiv:2411.11925), in two variants.

Both draft ``gamma`` iterations with the small model, run the target once over the block with the block masked, and
judge each draft by a tempered ratio of last-step Gaussians times a factor from the step variances. Guarantee: none.
A masked model gives every token of the block a context that ends where the block begins, while the draft saw the
block's earlier tokens; and a ratio of two different paths is not a density ratio. What it costs is measured, not
bounded.

``released`` keeps every decision of a block: 1. draft gamma iterations; 2. one target pass; 3. each token is accepted
or replaced on its own; nothing is rolled back, so the speed does not depend on the acceptance.
``paper`` tests in generation order: 1. and 2. as above; 3. accept up to the first refusal; 4. replace that token by a
sample of the modified distribution; 5. discard what follows and draft again from there. Images of a batch advance
independently.

Shape legend: B images, N tokens of an image, D token dims, R rows (tokens of a block), K places of a block.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from spd_core.accept.cspd import (
    RELEASED_ATTEMPTS,
    LastSteps,
    Tempered,
    log_path_factor,
    resample_modified,
    resample_released,
)
from spd_core.accept.lemma import Verdict, first_refusal
from spd_core.accept.paths import Gaussian
from spd_core.capture import recorded
from spd_core.decode.head_speculation import Lookahead
from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.draws import Draws, Purpose
from spd_core.families.mar.iterations import (
    OrderDraws,
    TokenPaths,
    TokenRows,
    contexts,
    guidance_scale,
    left_after,
    mar_step,
    mask_lengths,
    sample_rows,
)
from spd_core.families.mar.model import Mar
from spd_core.law import Cspd, SamplerLaw
from spd_core.precision import at_precision

#: Normals that the released resampler draws at once; bounds its memory.
PROPOSED_AT_ONCE = 1 << 22
#: Its attempts where asking costs nothing: nearly every token has its first proposals kept, or none.
EARLY_RUNS = (2, 98)

_SHARED = (Purpose.START, Purpose.STEP)
_OWN = (Purpose.START_TARGET, Purpose.STEP_TARGET)
#: Rows of a drafted iteration, their paths, and which iteration it is.
_Part = tuple[TokenRows, TokenPaths, int]


def decode_cspd(target: Mar, draft: Mar, law: SamplerLaw, method: Cspd, labels_B: Tensor, draws: Draws) -> Decoded:
    """Decodes a batch with CSpD; arguments as for `spd_core.families.mar.plain.decode_plain`."""
    target, draft = at_precision(target, law.dtype), at_precision(draft, law.dtype)
    variant = _released if method.variant == "released" else _paper
    ahead = {model: Lookahead.of(model.head, law, method.head_window) for model in (target, draft)}
    return variant(target, draft, law, method, labels_B, draws, ahead)


def prefill_iterations(method: Cspd, num_iter: int) -> int:
    """Iterations made by the target alone before drafting starts: those with s <= prefill * num_iter, s from 0.

    A share of exactly 0 means none (the public code would still make one).
    """
    if method.prefill == 0:
        return 0
    return min(num_iter, int(num_iter * method.prefill) + 1)


def _gaussian(paths: TokenPaths) -> Gaussian:
    return Gaussian(paths.x0, paths.last_std)


def _released(
    target: Mar,
    draft: Mar,
    law: SamplerLaw,
    method: Cspd,
    labels: Tensor,
    draws: Draws,
    ahead: dict[Mar, Lookahead | None],
) -> Decoded:
    length, meter = target.config.seq_len, Meter(labels.device)
    dims = target.config.token_dim
    ordered = OrderDraws(draws, law, length, dims, speculates=bool(method.head_window))
    order = ordered.order
    tokens = torch.zeros(len(labels), length, dims, device=labels.device)
    lengths = mask_lengths(length, law.num_iter)
    prefill = prefill_iterations(method, law.num_iter)
    block: list[_Part] = []
    records: list[DraftRecords] = []
    masked = hidden = length  # tokens not made yet; tokens the target has not judged yet
    rounds = targets = 0
    for step, (left, table) in enumerate(zip(left_after(lengths), lengths, strict=True)):
        scale, now = guidance_scale(law, length, table), law.at(step, law.num_iter)
        by_target = step < prefill
        if left < masked:
            who, model = ("target", target) if by_target else ("draft", draft)
            rows, paths = mar_step(model, now, who, tokens, ordered, masked, left, scale, labels, meter, ahead[model])
            tokens[rows.image, rows.token] = paths.x0
            masked = left
            if by_target:
                hidden, targets = masked, targets + 1
            else:
                block.append((rows, paths, step))
        if block and ((step % method.gamma == 0 and step > 0) or step == law.num_iter - 1):
            records.append(
                _judge_released(
                    target, law, method, tokens, order, hidden, block, scale, labels, draws, rounds, meter, ahead
                )
            )
            block, hidden, rounds = [], masked, rounds + 1
    per_image = torch.full((len(labels),), rounds + targets)
    return Decoded(tokens, per_image, DraftRecords.concatenate(records), dict(meter.counts), meter.seconds())


def _raster(block: list[_Part], tokens: int) -> tuple[TokenRows, TokenPaths, Tensor, Tensor]:
    """The block's rows in image-major raster order, and of each its place in the block and its iteration."""
    image, token = (torch.cat([getattr(rows, name) for rows, _, _ in block]) for name in ("image", "token"))
    at = torch.argsort(image * tokens + token)
    paths = TokenPaths.concatenate([part for _, part, _ in block], at)
    index = torch.cat([torch.full_like(rows.token, place) for place, (rows, _, _) in enumerate(block)])
    step = torch.cat([torch.full_like(rows.token, step) for rows, _, step in block])
    return TokenRows(image[at], token[at]), paths, index[at], step[at]


def _judge_released(
    target: Mar,
    law: SamplerLaw,
    method: Cspd,
    tokens: Tensor,
    order: Tensor,
    hidden: int,
    block: list[_Part],
    scale: float,
    labels: Tensor,
    draws: Draws,
    number: int,
    meter: Meter,
    ahead: dict[Mar, Lookahead | None],
) -> DraftRecords:
    """Verifies one block and writes the replaced tokens to the canvas; guidance is the block's last iteration's."""
    rows, drafted, index, step = _raster(block, order.shape[1])
    guided_rows = 1 + (law.cfg != 1.0)
    with meter.span("context"):
        visible = order[:, hidden:].sort(dim=1).values
        z = contexts(target, law, tokens, visible, labels).stacked(rows)
    with meter.span("head"):
        purposes = _SHARED if method.aligned else _OWN
        own = sample_rows(target, law, z, scale, draws, rows, step, purposes, ahead[target])
    with meter.span("residual"):
        p, q = _gaussian(own), _gaussian(drafted)
        # The public code multiplies p by 1/Sigma, the inverse of the paper's factor; kept as it is.
        log_factor = -log_path_factor(drafted.log_std_sum, own.log_std_sum)
        uniforms = draws.uniforms(Purpose.ACCEPT, rows.image, rows.token, round_R=number)[:, 0]
        tested = LastSteps(target=p, draft=q, x=drafted.x0, log_factor=log_factor, uniform=uniforms)
        verdict = Tempered(inner_temperature=method.inner_temperature).judge(tested)
        accepted = verdict.accepted
        # To know that nothing was refused costs a wait for a GPU, more than to resample in vain.
        waits = recorded(tokens.device)
        if waits or not bool(accepted.all()):

            def propose(attempt_RT: Tensor) -> tuple[Tensor, Tensor]:
                tries, dims = attempt_RT.shape[1], p.mean.shape[1]
                at = (rows.image.repeat_interleave(tries), rows.token.repeat_interleave(tries))
                normals = draws.normals(Purpose.PROPOSAL, *at, dims, number, attempt_RT.flatten())
                uniforms = draws.uniforms(Purpose.PROPOSAL_KEEP, *at, 1, number, attempt_RT.flatten())
                return normals.view(-1, tries, dims), uniforms.view(-1, tries)

            runs = _runs(p.mean.numel()) if waits else EARLY_RUNS
            zeros = method.unresolved == "zeros"
            fresh, _ = resample_released(p, q, log_factor, rows.image, propose, runs, early=not waits, zeros=zeros)
            tokens[rows.image, rows.token] = torch.where(accepted[:, None], drafted.x0, fresh)
    meter.add(
        target_context_calls=1,
        target_context_rows=len(tokens) * guided_rows,
        target_head_calls=own.head_calls,
        target_head_rows=own.head_rows * guided_rows,
    )
    return _records(rows, index, verdict)


def _runs(numbers: int) -> list[int]:
    """The attempts of the released resampler, as many at once as ``numbers`` normals an attempt allow."""
    run = min(RELEASED_ATTEMPTS, max(1, PROPOSED_AT_ONCE // max(1, numbers)))
    return [min(run, RELEASED_ATTEMPTS - start) for start in range(0, RELEASED_ATTEMPTS, run)]


def _records(rows: TokenRows, index: Tensor, verdict: Verdict) -> DraftRecords:
    return DraftRecords(rows.image, rows.token, index, verdict.log_ratio, verdict.accepted, verdict.excess)


def _paper(
    target: Mar,
    draft: Mar,
    law: SamplerLaw,
    method: Cspd,
    labels: Tensor,
    draws: Draws,
    ahead: dict[Mar, Lookahead | None],
) -> Decoded:
    length, device = target.config.seq_len, labels.device
    meter = Meter(device)
    dims = target.config.token_dim
    ordered = OrderDraws(draws, law, length, dims, speculates=bool(method.head_window))
    order = ordered.order
    tokens = torch.zeros(len(labels), length, dims, device=device)
    lengths = mask_lengths(length, law.num_iter)
    left = left_after(lengths)
    masked, targets = length, 0
    for step in range(prefill_iterations(method, law.num_iter)):
        if left[step] == masked:
            continue
        scale, now = guidance_scale(law, length, lengths[step]), law.at(step, law.num_iter)
        rows, paths = mar_step(
            target, now, "target", tokens, ordered, masked, left[step], scale, labels, meter, ahead[target]
        )
        tokens[rows.image, rows.token] = paths.x0
        masked, targets = left[step], targets + 1

    schedule = _Schedule.of(law, length, device)
    batch = _Batch(torch.full_like(labels, masked), torch.full_like(labels, targets), [masked] * len(labels))
    parts: list[tuple[DraftRecords, Tensor]] = []
    while any(batch.masked_here):
        parts.append(
            _paper_round(target, draft, law, method, tokens, order, batch, labels, draws, schedule, meter, ahead)
        )
        batch.masked_here = batch.masked.tolist()  # the one wait for a GPU
    rounds, counts = batch.rounds.cpu(), dict(meter.counts)
    records = DraftRecords.concatenate([part for part, _ in parts])
    if parts:
        records = records.at(torch.cat([tested for _, tested in parts]).cpu())
    return Decoded(tokens, rounds, records, counts, meter.seconds())


@dataclass
class _Batch:
    """How far the images of a batch are; what decides shapes is known on the host too."""

    masked: Tensor  #: int64 [B] tokens not made yet
    rounds: Tensor  #: int64 [B]
    masked_here: list[int]  #: `masked`

    def active(self) -> tuple[Tensor, list[int]]:
        """The images that are not done, int64 [A], and their masked tokens."""
        left = [masked for masked in self.masked_here if masked]
        return torch.argsort((self.masked == 0).to(torch.uint8), stable=True)[: len(left)], left


class _Schedule:
    """Where an image with m masked tokens goes next: `left[m]` after iteration `step[m]`, at guidance `scale[m]`."""

    def __init__(self, left: list[int], scale: list[float], step: list[int], device: torch.device) -> None:
        self.left_here = left
        self.left, self.step = torch.tensor(left, device=device), torch.tensor(step, device=device)
        self.scale = torch.tensor(scale, device=device)

    @classmethod
    def of(cls, law: SamplerLaw, length: int, device: torch.device) -> _Schedule:
        lengths = mask_lengths(length, law.num_iter)
        left, scale, steps = [0], [1.0], [0]
        iterations = list(zip(itertools.count(), left_after(lengths), lengths, strict=False))
        for masked in range(1, length + 1):
            step, after, table = next(entry for entry in iterations if entry[1] < masked)
            left.append(after)
            scale.append(guidance_scale(law, length, table))
            steps.append(step)
        return cls(left, scale, steps, device)


def _ragged_rows(
    order: Tensor, active: Tensor, left_A: Tensor, masked_A: Tensor, total: int
) -> tuple[TokenRows, Tensor]:
    """Rows ``order[left:masked]`` of every active image, ``total`` in all, and the place in ``active`` of each's image.

    They are image-major; images differ in how many they have.
    """
    ends = (masked_A - left_A).cumsum(0)
    row = torch.arange(total, device=order.device)
    which = torch.searchsorted(ends, row, right=True)
    place = masked_A[which] - (ends[which] - row)
    return TokenRows(active[which], order[active[which], place]), which


def _ragged_visible(order: Tensor, active: Tensor, masked_A: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Visible indices [A, V] (ascending, then padding), at ``most`` V of them, and how many of them are real [A]."""
    length = order.shape[1]
    places = torch.arange(length, device=order.device)
    known = torch.where(places >= masked_A[:, None], order[active], length)
    return known.sort(dim=1).values[:, :most].clamp(max=length - 1), length - masked_A


def _paper_round(
    target: Mar,
    draft: Mar,
    law: SamplerLaw,
    method: Cspd,
    tokens: Tensor,
    order: Tensor,
    batch: _Batch,
    labels: Tensor,
    draws: Draws,
    schedule: _Schedule,
    meter: Meter,
    ahead: dict[Mar, Lookahead | None],
) -> tuple[DraftRecords, Tensor]:
    """One draft-and-verify round of the images that are not done; writes canvas and batch in place.

    Returns:
        records of the whole blocks, and which of them were tested.
    """
    length, guided_rows = order.shape[1], 1 + (law.cfg != 1.0)
    active, start_here = batch.active()
    start_A = batch.masked[active]

    def context_rows(model: Mar, masked_A: Tensor, masked_here: list[int], rows: TokenRows, which: Tensor) -> Tensor:
        visible, counts = _ragged_visible(order, active, masked_A, length - min(masked_here))
        z = contexts(model, law, tokens[active], visible, labels[active], counts)
        return z.stacked(TokenRows(which, rows.token))

    masked_A, masked_here, parts = start_A, start_here, []
    with meter.span("draft"):
        for place in range(method.gamma):
            left_A, left_here = schedule.left[masked_A], [schedule.left_here[m] for m in masked_here]
            total = sum(masked_here) - sum(left_here)
            if not total:
                break
            rows, which = _ragged_rows(order, active, left_A, masked_A, total)
            scale, step = schedule.scale[masked_A][which][:, None], schedule.step[masked_A][which]
            z = context_rows(draft, masked_A, masked_here, rows, which)
            paths = sample_rows(draft, law, z, scale, draws, rows, step, ahead=ahead[draft], ragged=True)
            tokens[rows.image, rows.token] = paths.x0
            parts.append((rows.image, rows.token, which, scale, torch.full_like(rows.token, place), step, paths))
            masked_A, masked_here = left_A, left_here
            meter.add(
                draft_context_calls=1,
                draft_context_rows=len(active) * guided_rows,
                draft_head_calls=paths.head_calls,
                draft_head_rows=paths.head_rows * guided_rows,
            )
    # Rows in generation order, image-major: order is generated from its end, so later places come first.
    place_of = torch.argsort(order, dim=1)
    image, token, which, scale, index, step = (torch.cat(column) for column in list(zip(*parts, strict=True))[:-1])
    at = torch.argsort(which * length + (length - 1 - place_of[image, token]))
    rows, drafted = TokenRows(image[at], token[at]), TokenPaths.concatenate([part[-1] for part in parts], at)
    which, scale, index, step = which[at], scale[at], index[at], step[at]

    with meter.span("context"):
        z = context_rows(target, start_A, start_here, rows, which)
    with meter.span("head"):
        purposes = _SHARED if method.aligned else _OWN
        own = sample_rows(target, law, z, scale, draws, rows, step, purposes, ahead[target], ragged=True)
    with meter.span("residual"):
        p, q = _gaussian(own), _gaussian(drafted)
        log_factor = log_path_factor(drafted.log_std_sum, own.log_std_sum)
        round_R = batch.rounds[rows.image]
        uniforms = draws.uniforms(Purpose.ACCEPT, rows.image, rows.token, round_R=round_R)[:, 0]
        tested = LastSteps(target=p, draft=q, x=drafted.x0, log_factor=log_factor, uniform=uniforms)
        verdict = Tempered(inner_temperature=method.inner_temperature).judge(tested)
        accepted = verdict.accepted

        # Place of each row in its image's block; padding counts as accepted so that it never stops anyone.
        sizes_A, sizes_here = start_A - masked_A, [a - b for a, b in zip(start_here, masked_here, strict=True)]
        offset_A = sizes_A.cumsum(0) - sizes_A
        within = torch.arange(len(rows), device=active.device) - offset_A[which]
        grid = torch.ones(len(active), max(sizes_here), dtype=torch.bool, device=active.device)
        grid[which, within] = accepted
        kept_A = torch.minimum(first_refusal(grid), sizes_A)
        refused_A = kept_A < sizes_A
        first_A = offset_A + torch.minimum(kept_A, sizes_A - 1)
        _replace(tokens, rows, first_A, refused_A, p, q, log_factor, draws, round_R)
    batch.masked[active] = start_A - kept_A - refused_A.long()
    batch.rounds[active] += 1
    meter.add(
        target_context_calls=1,
        target_context_rows=len(active) * guided_rows,
        target_head_calls=own.head_calls,
        target_head_rows=own.head_rows * guided_rows,
    )
    return _records(rows, index, verdict), within <= kept_A[which]


def _replace(
    tokens: Tensor,
    rows: TokenRows,
    first_A: Tensor,
    refused_A: Tensor,
    p: Gaussian,
    q: Gaussian,
    log_factor: Tensor,
    draws: Draws,
    round_R: Tensor,
) -> None:
    """Writes a sample of the modified distribution over the first refused token of every image that has one.

    Args:
        first_A: the row of an image's first refusal; of an image without one, some row of it.
        refused_A: which images have one.
    """
    waits = recorded(tokens.device)
    if not waits:  # Where asking costs nothing only these are resampled.
        first_A, refused_A = first_A[refused_A], refused_A[refused_A]
        if not len(first_A):
            return
    image, token, number = rows.image[first_A], rows.token[first_A], round_R[first_A]

    def propose(open_rows: Tensor, attempt: int, count: int) -> tuple[Tensor, Tensor]:
        at, dims = (image[open_rows], token[open_rows]), p.mean.shape[1]
        normals = draws.normals(Purpose.PROPOSAL, *at, count * dims, number[open_rows], attempt)
        uniforms = draws.uniforms(Purpose.PROPOSAL_KEEP, *at, count, number[open_rows], attempt)
        return normals.view(-1, count, dims), uniforms

    fresh = resample_modified(p.at(first_A), q.at(first_A), log_factor[first_A], propose, early=not waits)
    tokens[image, token] = torch.where(refused_A[:, None], fresh, tokens[image, token])
