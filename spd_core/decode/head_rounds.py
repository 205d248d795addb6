"""Head self-speculation on a GPU: rounds of all rows, several of them recorded as one graph.

The algorithm and the random numbers are those of `spd_core.decode.head_speculation.speculate_head`; the paths are the
same up to the rounding of products of other sizes. That module drops a row at its end. Here, where the host should
rarely wait, a row that is done goes through further rounds that change nothing. The number of rounds that the last row
needs is not known beforehand. About as many are launched as the last call needed; then the host asks.

Shape legend: as for `speculate_head`; H residual proposals held for a row, C places for the steps that are returned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from spd_core.accept.lemma import accept, num_accepted, residual_acceptance
from spd_core.accept.paths import change_noise, reflect
from spd_core.capture import Captured
from spd_core.decode.path import PROPOSALS, BoundHead, HeadDraws, LawHead, PathNoise
from spd_core.draws import Draws

#: Rounds of one graph.
ROUNDS_AT_ONCE = 4


@dataclass(frozen=True)
class Rows:
    """The state of R rows between two rounds."""

    k: Tensor  #: int64 [R], the next step; below the last one: done
    y: Tensor  #: [R, D] state before it
    x0: Tensor  #: [R, D] held prediction
    v: Tensor  #: [R, D] held variance; zeros if it is not learned
    used: Tensor  #: int64 [R], how many of the H proposals are used up
    block: Tensor  #: int64 [R], number of the next block of proposals
    rounds: Tensor  #: int64 [R], rounds in which the row was not done
    stalled: Tensor  #: bool [R], a step was rejected and so were the H proposals: the row waits for the next block
    normals: Tensor  #: [R, H, D], proposals
    uniforms: Tensor  #: [R, H], of their acceptance

    def tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in FIELDS]


FIELDS = tuple(column.name for column in fields(Rows))


@dataclass(frozen=True)
class Plan:
    """What is fixed before the first round; `length` and `worth` are those of `head_speculation._plan`."""

    at_law: LawHead
    length: Tensor  #: int64 [S]
    worth: Tensor  #: bool [S]
    longest: int
    first: int
    last: int
    offset: int
    trace: bool

    @property
    def learned(self) -> bool:
        return self.at_law.learned_variance


def run_rounds(
    plan: Plan,
    head: BoundHead,
    y_RD: Tensor,
    x0_RD: Tensor,
    noise: PathNoise,
    draws: HeadDraws,
    windows: tuple[int, ...],
) -> tuple[Tensor, Tensor, list[Tensor], int]:
    """All rows from ``y_RD`` before the first step to their end.

    Args:
        plan: of the call.
        head: bound to the rows' contexts.
        y_RD: states to start from.
        x0_RD: predictions to begin with.
        noise: of the held steps.
        draws: uniforms of the tests, and the residuals' proposals.
        windows: that the plan was made for.

    Returns:
        states [R, D] and predictions [R, D] at the end, what is returned of every step [R, C, D], and the number of
        rounds.

    Raises:
        FloatingPointError: if a proposal's log ratio is not a number; the rounds would not end.
    """
    rows, dims = y_RD.shape
    normals, uniforms = y_RD.new_zeros(rows, 0, dims), y_RD.new_zeros(rows, 0)
    if plan.learned:
        normals, uniforms = draws.first_proposals(dims)
    scale = head.scale if isinstance(head.scale, Tensor) else y_RD.new_full((rows, 1), head.scale)
    width = plan.first - plan.last + 1 + plan.longest
    none = torch.zeros_like(draws.salt)
    columns = [y_RD.new_zeros(rows, width, dims) for _ in range(3 * plan.trace + plan.learned)]
    block = torch.full_like(none, uniforms.shape[1] // PROPOSALS)
    state = Rows(
        none + plan.first, y_RD, x0_RD, torch.zeros_like(y_RD), none, block, none, none.bool(), normals, uniforms
    )
    given = head.z, scale, noise.step, draws.uniforms(), draws.draws.seeds[draws.image], draws.token, draws.salt
    key = (windows, plan.first, plan.last, plan.offset, plan.trace)
    chunk = plan.at_law.captured.setdefault(key, Captured(partial(_rounds, plan=plan), "head windows"))
    expected = plan.at_law.expected.get(key, math.ceil(1.5 * (plan.first - plan.last + 1) / min(windows)))
    due, made, waits = expected, 0, 0
    while True:
        for _ in range(-(-due // ROUNDS_AT_ONCE)):
            results = chunk(*given, *state.tensors(), *columns)
            state, columns = Rows(*results[: len(FIELDS)]), list(results[len(FIELDS) :])
            made += ROUNDS_AT_ONCE
        facts = (state.k - plan.last + 1).max(), state.rounds.max(), state.y.isnan().sum()
        left, needed, broken = torch.stack(facts).tolist()
        waits += 1
        if broken:
            raise FloatingPointError("residual: the log ratio of a proposal is not a number")
        if left == 0:
            plan.at_law.expected[key] = math.ceil((expected + needed) / 2) + 1
            # Copies, for the next call writes over the graph's own.
            return state.y.clone(), state.x0.clone(), [column.clone() for column in columns], made
        # Nearly every round makes a step of every row, so the third question is nearly always the last.
        due = min(left, max(ROUNDS_AT_ONCE, expected // 4)) if waits == 1 else left


def _rounds(
    z: Tensor,
    scale: Tensor,
    noise_RKD: Tensor,
    uniform_RS: Tensor,
    seed_R: Tensor,
    token_R: Tensor,
    salt_R: Tensor,
    *state: Tensor,
    plan: Plan,
) -> tuple[Tensor, ...]:
    """Some rounds as a captured function; before the first, rows that wait for proposals get their next block."""
    head, noise = plan.at_law.bind(z, scale), PathNoise(noise_RKD[:, :0, 0], noise_RKD, plan.offset)
    rows, columns = Rows(*state[: len(FIELDS)]), [column.clone() for column in state[len(FIELDS) :]]
    if plan.learned:
        image = torch.arange(len(seed_R), device=seed_R.device)
        rows = _refilled(rows, HeadDraws(Draws(seed_R), image, token_R, salt_R, plan.at_law.law.head_steps))
    for _ in range(ROUNDS_AT_ONCE):
        rows = _round(plan, head, noise, uniform_RS, rows, columns)
    return *rows.tensors(), *columns


def _refilled(rows: Rows, draws: HeadDraws) -> Rows:
    """The next block of proposals in the last places of rows whose proposals are all used."""
    held, waits = rows.uniforms.shape[1] - PROPOSALS, rows.stalled
    normals, uniforms = draws.proposals(draws.image, rows.block, rows.y.shape[1])
    return replace(
        rows,
        normals=torch.cat([rows.normals[:, :held], normals.where(waits[:, None, None], rows.normals[:, held:])], dim=1),
        uniforms=torch.cat([rows.uniforms[:, :held], uniforms.where(waits[:, None], rows.uniforms[:, held:])], dim=1),
        used=torch.where(waits, held, rows.used),
        block=rows.block + waits.long(),
    )


def _round(plan: Plan, head: BoundHead, noise: PathNoise, uniform_RS: Tensor, rows: Rows, steps: list[Tensor]) -> Rows:
    """One round of every row, numbered as in `head_speculation`; writes its steps."""
    last, going = plan.last, rows.k >= plan.last
    row, k = torch.arange(len(rows.k), device=rows.k.device), rows.k.clamp(min=last)
    length = plan.length[k]
    ahead = torch.arange(plan.longest, device=k.device)
    k_RL = (k[:, None] - ahead).clamp(min=last)

    # 1. Roll ahead.
    held_v = rows.v[:, None].expand(-1, plan.longest, -1) if plan.learned else None
    drawn = noise.of_steps(row[:, None], k_RL)
    held_x0 = head.follow(row, k_RL, rows.x0, drawn)
    held_std = head.std(k_RL, held_v)
    after = head.roll(k_RL, rows.y, held_x0, held_std * drawn)
    before = torch.cat([rows.y[:, None], after[:, :-1]], dim=1)

    # 2. One batch.
    flat = head.predict(row[:, None].expand_as(k_RL).flatten(), k_RL.flatten(), before.flatten(0, 1))
    true_x0, true_v = flat.x0.view_as(before), None if flat.v is None else flat.v.view_as(before)

    # 3. Test.
    uniform = uniform_RS[row[:, None], k_RL]
    shift = head.shift(k_RL, held_x0, true_x0, held_std if plan.learned else None)
    if held_v is None or true_v is None:
        accepted, result_noise = reflect(drawn, shift, uniform)
        log_scale, log_ratio = shift, shift[..., 0]
    else:
        log_scale = plan.at_law.table.v_scale[k_RL][..., None] * (held_v - true_v)
        result_noise, log_ratio = change_noise(drawn, shift, log_scale)
        accepted = accept(log_ratio, uniform)
    accepted_R = torch.minimum(num_accepted(accepted), length - 1)
    end, end_k = (row, accepted_R), k - accepted_R

    # 4. The state after the round's last step.
    end_noise, used, stalled = result_noise[end], rows.used, torch.zeros_like(going)
    if plan.learned:
        rejected = ~accepted[end] & (end_k > 0) & going
        end_noise, used, stalled = _corrected(rows, rejected, end_noise, shift[end], log_scale[end], log_ratio[end])
        result_noise = result_noise.index_put(end, end_noise)
    moves = going & ~stalled
    end_x0, end_v = true_x0[end], None if true_v is None else true_v[end]
    y = head.mean(end_k, end_x0, before[end]) + head.std(end_k, end_v) * end_noise

    # 5. Go on with the newest prediction.
    x0 = end_x0 + head.moved(row, end_k, end_noise)
    if plan.learned:
        x0 = torch.where(plan.worth[end_k, None], x0, rows.x0)
    learned, traced = [] if true_v is None else [true_v], [before, true_x0, result_noise] if plan.trace else []
    # What a row that does not move finds goes behind the last step, where nobody looks.
    _store(steps, learned + traced, torch.where(moves, plan.first - k, plan.first - last + 1)[:, None] + ahead)
    return replace(
        rows,
        k=torch.where(moves, end_k - 1, rows.k),
        y=torch.where(moves[:, None], y, rows.y),
        x0=torch.where(moves[:, None], x0, rows.x0),
        v=rows.v if end_v is None else torch.where(moves[:, None], end_v, rows.v),
        used=used,
        rounds=rows.rounds + going.long(),
        stalled=stalled,
    )


def _store(columns: list[Tensor], found: list[Tensor], place_RL: Tensor) -> None:
    """Writes what was found of a round's steps at their places."""
    at = (torch.arange(len(place_RL), device=place_RL.device)[:, None], place_RL)
    for column, value in zip(columns, found, strict=True):
        column[at] = value


def _corrected(
    rows: Rows, rejected_R: Tensor, noise_RD: Tensor, shift_RD: Tensor, log_scale_RD: Tensor, log_ratio_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Step 4 where the variance is learned.

    Returns:
        noise [R, D] of every row, from the residual if it was rejected; proposals used up [R]; which rows are stalled.
    """
    place, found = _first_accepted(rows.normals, rows.uniforms, rows.used, shift_RD, log_scale_RD)
    row = torch.arange(len(place), device=place.device)
    noise_RD = torch.where((rejected_R & found)[:, None], rows.normals[row, place], noise_RD)
    # A ratio that is not a number would keep a row waiting for ever; its state tells the host.
    broken = log_ratio_R.isnan()
    noise_RD = noise_RD.masked_fill(broken[:, None], torch.nan)
    return noise_RD, torch.where(rejected_R & found, place + 1, rows.used), rejected_R & ~found & ~broken


def _first_accepted(
    normals_RHD: Tensor, uniform_RH: Tensor, used_R: Tensor, shift_RD: Tensor, log_scale_RD: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each row the first proposal that is not used up and that the residual accepts, and whether there is one."""
    back = -shift_RD * log_scale_RD.exp()
    _, log_inverse = change_noise(normals_RHD, back[:, None], -log_scale_RD[:, None])
    accepted = residual_acceptance(-log_inverse) > uniform_RH
    accepted = accepted & (torch.arange(uniform_RH.shape[1], device=used_R.device) >= used_R[:, None])
    found, place = accepted.to(torch.uint8).max(dim=1)
    return place, found.bool()
