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

import torch
from torch import Tensor

from spd_core.accept import (
    RELEASED_ATTEMPTS,
    Gaussian,
    accept,
    first_refusal,
    log_path_factor,
    resample_modified,
    resample_released,
    tempered_log_ratio,
)
from spd_core.capture import recorded
from spd_core.decode.head_speculation import Lookahead
from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.decode.mar import (
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
from spd_core.draws import Draws, Purpose
from spd_core.law import Cspd, SamplerLaw
from spd_core.models.mar import Mar
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
    """Decodes a batch with CSpD; arguments as for `spd_core.decode.plain.decode_plain`."""
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
        log_ratio = tempered_log_ratio(p, q, drafted.x0, method.inner_temperature) + log_factor
        uniforms = draws.uniforms(Purpose.ACCEPT, rows.image, rows.token, round_R=number)[:, 0]
        accepted = accept(log_ratio, uniforms)
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
    return _records(rows, index, log_ratio, accepted)


def _runs(numbers: int) -> list[int]:
    """The attempts of the released resampler, as many at once as ``numbers`` normals an attempt allow."""
    run = min(RELEASED_ATTEMPTS, max(1, PROPOSED_AT_ONCE // max(1, numbers)))
    return [min(run, RELEASED_ATTEMPTS - start) for start in range(0, RELEASED_ATTEMPTS, run)]


def _records(rows: TokenRows, index: Tensor, log_ratio: Tensor, accepted: Tensor) -> DraftRecords:
    return DraftRecords(rows.image, rows.token, index, log_ratio, accepted, torch.full_like(log_ratio, torch.nan))


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
    masked_B = torch.full_like(labels, masked)
    rounds_B = torch.full_like(labels, targets)
    records: list[DraftRecords] = []
    active = torch.arange(len(labels), device=device) if masked else labels[:0]
    while len(active):
        records.append(
            _paper_round(
                target,
                draft,
                law,
                method,
                tokens,
                order,
                active,
                masked_B,
                rounds_B,
                labels,
                draws,
                schedule,
                meter,
                ahead,
            )
        )
        active = active[masked_B[active] > 0]
    return Decoded(tokens, rounds_B.cpu(), DraftRecords.concatenate(records), dict(meter.counts), meter.seconds())


class _Schedule:
    """Where an image with m masked tokens goes next: `left[m]` after iteration `step[m]`, at guidance `scale[m]`."""

    def __init__(self, left: Tensor, scale: Tensor, step: Tensor) -> None:
        self.left = left
        self.scale = scale
        self.step = step

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
        return cls(*(torch.tensor(column, device=device) for column in (left, scale, steps)))


def _ragged_rows(order: Tensor, active: Tensor, left_A: Tensor, masked_A: Tensor) -> TokenRows:
    """Rows ``order[left:masked]`` of every active image, image-major; images differ in how many they have."""
    places = torch.arange(order.shape[1], device=order.device)
    inside = (places >= left_A[:, None]) & (places < masked_A[:, None])
    which, place = inside.nonzero(as_tuple=True)
    return TokenRows(active[which], order[active[which], place])


def _ragged_visible(order: Tensor, active: Tensor, masked_A: Tensor) -> tuple[Tensor, Tensor]:
    """Visible indices [A, V] (ascending, then padding) and how many of them are real [A]."""
    length = order.shape[1]
    counts = length - masked_A
    places = torch.arange(length, device=order.device)
    known = torch.where(places >= masked_A[:, None], order[active], length)
    return known.sort(dim=1).values[:, : int(counts.max())].clamp(max=length - 1), counts


def _paper_round(
    target: Mar,
    draft: Mar,
    law: SamplerLaw,
    method: Cspd,
    tokens: Tensor,
    order: Tensor,
    active: Tensor,
    masked_B: Tensor,
    rounds_B: Tensor,
    labels: Tensor,
    draws: Draws,
    schedule: _Schedule,
    meter: Meter,
    ahead: dict[Mar, Lookahead | None],
) -> DraftRecords:
    """One draft-and-verify round of the active images; writes canvas, masked_B and rounds_B in place."""
    length, guided_rows = order.shape[1], 1 + (law.cfg != 1.0)
    local = torch.zeros_like(labels)
    local[active] = torch.arange(len(active), device=active.device)

    def context_rows(model: Mar, masked_A: Tensor, rows: TokenRows) -> Tensor:
        visible, counts = _ragged_visible(order, active, masked_A)
        z = contexts(model, law, tokens[active], visible, labels[active], counts)
        return z.stacked(TokenRows(local[rows.image], rows.token))

    start_A = masked_B[active]
    masked_A, parts = start_A, []
    with meter.span("draft"):
        for place in range(method.gamma):
            left_A = schedule.left[masked_A]
            rows = _ragged_rows(order, active, left_A, masked_A)
            if not len(rows):
                break
            scale = schedule.scale[masked_A][local[rows.image]][:, None]
            z = context_rows(draft, masked_A, rows)
            step = schedule.step[masked_A][local[rows.image]]
            paths = sample_rows(draft, law, z, scale, draws, rows, step, ahead=ahead[draft])
            tokens[rows.image, rows.token] = paths.x0
            parts.append((rows, paths, scale, torch.full_like(rows.token, place), step))
            masked_A = left_A
            meter.add(
                draft_context_calls=1,
                draft_context_rows=len(active) * guided_rows,
                draft_head_calls=paths.head_calls,
                draft_head_rows=paths.head_rows * guided_rows,
            )
    # Rows in generation order, image-major: order is generated from its end, so later places come first.
    place_of = torch.argsort(order, dim=1)
    image, token = (torch.cat([getattr(part[0], name) for part in parts]) for name in ("image", "token"))
    at = torch.argsort(local[image] * length + (length - 1 - place_of[image, token]))
    rows = TokenRows(image[at], token[at])
    drafted = TokenPaths.concatenate([part[1] for part in parts], at)
    scale, index, step = (torch.cat(column)[at] for column in list(zip(*parts, strict=True))[2:])

    with meter.span("context"):
        z = context_rows(target, start_A, rows)
    with meter.span("head"):
        purposes = _SHARED if method.aligned else _OWN
        own = sample_rows(target, law, z, scale, draws, rows, step, purposes, ahead[target])
    with meter.span("residual"):
        p, q = _gaussian(own), _gaussian(drafted)
        log_factor = log_path_factor(drafted.log_std_sum, own.log_std_sum)
        log_ratio = tempered_log_ratio(p, q, drafted.x0, method.inner_temperature) + log_factor
        round_R = rounds_B[rows.image]
        uniforms = draws.uniforms(Purpose.ACCEPT, rows.image, rows.token, round_R=round_R)[:, 0]
        accepted = accept(log_ratio, uniforms)

        # Place of each row in its image's block; padding counts as accepted so that it never stops anyone.
        sizes_A = start_A - masked_A
        offset_A = sizes_A.cumsum(0) - sizes_A
        within = torch.arange(len(rows), device=active.device) - offset_A[local[rows.image]]
        grid = torch.ones(len(active), int(sizes_A.max()), dtype=torch.bool, device=active.device)
        grid[local[rows.image], within] = accepted
        kept_A = torch.minimum(first_refusal(grid), sizes_A)
        refused_A = kept_A < sizes_A
        first = (offset_A + kept_A)[refused_A]

        def propose(open_rows: Tensor, attempt: int, count: int) -> tuple[Tensor, Tensor]:
            here = first[open_rows]
            at = (rows.image[here], rows.token[here])
            dims = p.mean.shape[1]
            normals = draws.normals(Purpose.PROPOSAL, *at, count * dims, round_R[here], attempt)
            uniforms = draws.uniforms(Purpose.PROPOSAL_KEEP, *at, count, round_R[here], attempt)
            return normals.view(-1, count, dims), uniforms

        if len(first):
            fresh = resample_modified(p.at(first), q.at(first), log_factor[first], propose)
            tokens[rows.image[first], rows.token[first]] = fresh
    masked_B[active] = start_A - kept_A - refused_A.long()
    rounds_B[active] += 1
    meter.add(
        target_context_calls=1,
        target_context_rows=len(active) * guided_rows,
        target_head_calls=own.head_calls,
        target_head_rows=own.head_rows * guided_rows,
    )
    tested = within <= kept_A[local[rows.image]]
    rows = TokenRows(rows.image[tested], rows.token[tested])
    return _records(rows, index[tested], log_ratio[tested], accepted[tested])
