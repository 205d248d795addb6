"""Head self-speculation: fewer sequential head calls for the same law, without a draft model.

1. Hold the head's last prediction x0 (and, if learned, its variance) and roll L steps ahead with it. Where the
   posterior variance is known (`spd_core.models.variance`), the held prediction follows the noise that is drawn.
2. Evaluate the head at all L states in one batch.
3. Test step by step with a maximal coupling of the held and the true transition. The steps before the first rejection
   are accepted.
4. Correct the rejected step by the coupling: a sample of the residual of the true transition and the held one.
5. Go on from there with the newest prediction.

Every state then has the law of the true transition given the state before, so the law of the path is untouched. Where
the variances are equal, the coupling is a reflection. Where they are learned, it is the ratio test with the residual of
the two Gaussians, which needs no head calls. The noiseless last step is a point mass. It has no test: it is always made
from the true prediction. Rows advance independently.

Shape legend: R rows (paths), A active rows, L steps of the longest window, V valid (row, step) entries, D token dims,
S all steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spd_core.accept.lemma import accept, num_accepted, sample_residual
from spd_core.accept.paths import change_noise, reflect
from spd_core.capture import recorded
from spd_core.decode.head_rounds import Plan, run_rounds
from spd_core.decode.path import (
    PROPOSALS,
    BoundHead,
    HeadDraws,
    LawHead,
    Path,
    PathNoise,
    Prediction,
    Trace,
    steps_down,
    windows_by_step,
)
from spd_core.diffusion import step_table
from spd_core.law import SamplerLaw
from spd_core.models.head import DiffusionHead

#: Above this the state is nearly pure noise and an eps prediction's x0, amplified by it, is worse than none to hold.
SINGULAR = 30.0


@dataclass(frozen=True)
class Lookahead:
    """A head with its windows, built once for all tokens of a decoding."""

    head: LawHead
    windows: tuple[int, ...]

    @staticmethod
    def of(head: DiffusionHead, law: SamplerLaw, windows: tuple[int, ...]) -> Lookahead | None:
        """None without windows: one head call a step."""
        return Lookahead(LawHead.of(head, law), windows) if windows else None


@dataclass(frozen=True)
class LogStds:
    """Learned variances along R paths, as CSpD's test needs them."""

    last: Tensor  #: [R, D] log std of the last step; of a noiseless one, what the head predicted for it
    total: Tensor  #: [R, D] sum of log std over the noisy steps, without temperature


def speculate_head(
    head: BoundHead,
    first: int,
    last: int,
    noise: PathNoise,
    draws: HeadDraws,
    windows: tuple[int, ...],
    held_x0_RD: Tensor | None = None,
    trace: bool = False,
) -> tuple[Path, LogStds]:
    """Paths from before step ``first`` to the state after step ``last``; their law is that of one head call a step.

    Args:
        head: bound to the rows' contexts.
        first, last: steps, ``first >= last``.
        noise: the states to start from, and the noise of the held steps. Each entry is used once: by the step that is
            accepted or reflected.
        draws: uniforms of the tests, and the residuals' proposals.
        windows: lengths L by slice of the whole path (`windows_by_step`).
        held_x0_RD: a prediction to begin with; None: the prior mean, which is right at pure noise.
        trace: also return the states, predictions and noise of every step.

    Returns:
        the path and its log stds (zeros for a fixed variance).
    """
    y_RD, at_law = noise.start, head.at_law
    if not recorded(y_RD.device):
        return _Descent(head, first, last, noise, draws, windows, held_x0_RD, trace).run()
    length_S, worth_S, longest = _plan(windows, *_steps_of(head), last, at_law.learned_variance, y_RD.device)
    plan = Plan(at_law, length_S, worth_S, longest, first, last, noise.offset, trace)
    x0 = head.prior_mean() if held_x0_RD is None else held_x0_RD
    ends, newest, columns, calls = run_rounds(plan, head, y_RD, x0, noise, draws, windows)
    return _paths(head, first, last, ends, newest, columns, calls, calls * len(y_RD) * longest)


class _Descent:
    """The rounds of R rows; arguments as for `speculate_head`."""

    def __init__(
        self,
        head: BoundHead,
        first: int,
        last: int,
        noise: PathNoise,
        draws: HeadDraws,
        windows: tuple[int, ...],
        held_x0_RD: Tensor | None,
        trace: bool,
    ) -> None:
        y_RD, self.learned = noise.start, head.at_law.learned_variance
        rows, dims = y_RD.shape
        device = y_RD.device
        self.head, self.first, self.last, self.noise, self.trace = head, first, last, noise, trace
        self.length_S, self.worth_S, longest = _plan(windows, *_steps_of(head), last, self.learned, device)
        self.uniform_RS = draws.uniforms()
        head.hoist(first, last)
        self.ends, self.newest = torch.empty_like(y_RD), torch.empty_like(y_RD)
        # What is returned of every step, in the order the steps are made. A round also writes what lies beyond its end:
        # the next round overwrites that, and what lies beyond the last step is cut off.
        wide, count = first - last + 1 + longest, 3 * trace + self.learned
        self.columns = [torch.zeros(rows, wide, dims, device=device) for _ in range(count)]
        self.calls = self.evaluations = 0
        # Of the active rows: which they are, their next step, state and held prediction.
        self.row, self.k = torch.arange(rows, device=device), torch.full((rows,), first, device=device)
        self.y, self.x0 = y_RD, head.prior_mean() if held_x0_RD is None else held_x0_RD
        self.v = torch.zeros_like(y_RD) if self.learned else None
        self.places = torch.arange(max(rows, longest), device=device)
        self.residuals = None if head.equal_stds else _Residuals(draws, dims)

    def run(self) -> tuple[Path, LogStds]:
        while len(self.row):
            self._round()
        return _paths(
            self.head, self.first, self.last, self.ends, self.newest, self.columns, self.calls, self.evaluations
        )

    def _round(self) -> None:
        """One round of the active rows."""
        head, row, y = self.head, self.row, self.y
        length_A = self.length_S[self.k]
        ahead = self.places[: int(length_A.max())]
        k_AL = (self.k[:, None] - ahead).clamp(min=self.last)

        # 1. Hold the prediction and roll ahead.
        held_v = None if self.v is None else self.v[:, None].expand(-1, len(ahead), -1)
        drawn = self.noise.of_steps(row[:, None], k_AL)
        held_x0 = head.follow(row, k_AL, self.x0, drawn)
        held_std = head.std(k_AL, held_v)
        after = head.roll(k_AL, y, held_x0, held_std * drawn)
        before = torch.cat([y[:, None], after[:, :-1]], dim=1)

        # 2. Evaluate all states in one batch.
        true, evaluated = _evaluated(head, row, k_AL, before, length_A)
        self.calls, self.evaluations = self.calls + 1, self.evaluations + evaluated

        # 3. Test. The round ends with the first rejected step, or with the window's last; what lies beyond is not read.
        shift = head.shift(k_AL, held_x0, true.x0, held_std if self.learned else None)
        accepted, result_noise, log_scale = self._tested(k_AL, drawn, shift, held_v, true.v)
        accepted_A = torch.minimum(num_accepted(accepted), length_A - 1)
        end, end_k = (self.places[: len(row)], accepted_A), self.k - accepted_A

        # 4. Correct a rejected step. What a coupling returns is the noise of the step under the true prediction; of a
        # reflection it is right whether the step is accepted or rejected. The noiseless step uses none.
        end_x0, end_v = true.x0[end], None if true.v is None else true.v[end]
        if self.residuals is not None:
            rejected = (~accepted[end] & (end_k > 0)).nonzero()[:, 0]
            if len(rejected):
                at = (rejected, accepted_A[rejected])
                result_noise[at] = self.residuals.draw(row[rejected], shift[at], log_scale[at])
        end_noise = result_noise[end]
        self.y = head.mean(end_k, end_x0, before[end]) + head.std(end_k, end_v) * end_noise

        # 5. Go on with the newest prediction.
        moved_x0 = end_x0 + head.moved(row, end_k, end_noise)
        self.x0 = torch.where(self.worth_S[end_k, None], moved_x0, self.x0) if self.learned else moved_x0
        self.v = end_v
        found = [true.v] if true.v is not None else []
        self._store(found + ([before, true.x0, result_noise] if self.trace else []), ahead)
        self._advance(end_k)

    def _tested(
        self, k_AL: Tensor, drawn: Tensor, shift: Tensor, held_v: Tensor | None, true_v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step 3: verdicts [A, L], the noise under the true prediction, and if learned log of held over true std."""
        uniform_AL = self.uniform_RS[self.row[:, None], k_AL]
        if self.residuals is None or held_v is None or true_v is None:
            return *reflect(drawn, shift, uniform_AL), shift
        log_scale = self.head.at_law.table.v_scale[k_AL][..., None] * (held_v - true_v)
        result_noise, log_ratio = change_noise(drawn, shift, log_scale)
        return accept(log_ratio, uniform_AL), result_noise, log_scale

    def _store(self, found: list[Tensor], ahead: Tensor) -> None:
        """Writes a round's steps to the columns that are returned."""
        if found:
            place = (self.row[:, None], (self.first - self.k)[:, None] + ahead)
            for column, values in zip(self.columns, found, strict=True):
                column[place] = values

    def _advance(self, end_k: Tensor) -> None:
        """Goes on behind the steps ``end_k``; rows that made the last step are done."""
        self.k, going = end_k - 1, end_k > self.last
        if bool(going.all()):
            return
        done = self.row[~going]
        self.ends[done], self.newest[done] = self.y[~going], self.x0[~going]
        self.row, self.k, self.y, self.x0 = self.row[going], self.k[going], self.y[going], self.x0[going]
        self.v = None if self.v is None else self.v[going]


def _steps_of(head: BoundHead) -> tuple[int, int]:
    """Head steps of the whole path, and the level it starts at."""
    return head.at_law.law.head_steps, head.at_law.law.start_level


def _paths(
    head: BoundHead,
    first: int,
    last: int,
    ends: Tensor,
    newest: Tensor,
    columns: list[Tensor],
    calls: int,
    evaluations: int,
) -> tuple[Path, LogStds]:
    """The result; ``columns`` are the variances, if they are learned, then those of a trace, if one was asked for."""
    columns = [column[:, : first - last + 1] for column in columns]
    log_stds = LogStds(torch.zeros_like(ends), torch.zeros_like(ends))
    if head.at_law.learned_variance:
        log_std = head.log_std(steps_down(first, last, ends.device), columns.pop(0))
        log_stds = LogStds(log_std[:, -1], log_std[:, : first - max(last, 1) + 1].sum(dim=1))
    return Path(ends, newest, calls, evaluations, Trace(*columns) if columns else None), log_stds


@lru_cache(maxsize=256)
def _plan(
    windows: tuple[int, ...], steps: int, start_level: int, last: int, learned: bool, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Of each step k the length of a window begun there, int64 [S], and whether its prediction is worth holding [S].

    The third result is the longest length. A window ends at ``last``. Where the variance is learned, the window of a
    singular step is that step alone, and its prediction is not worth holding.
    """
    length = torch.minimum(
        windows_by_step(windows, steps, device), torch.arange(1 - last, steps + 1 - last, device=device)
    )
    singular = step_table(steps, start_level, device).sqrt_recip >= SINGULAR if learned else length < 0
    length = torch.where(singular, 1, length)
    return length, ~singular, int(length.max())


def _evaluated(
    head: BoundHead, row_A: Tensor, k_AL: Tensor, before: Tensor, length_A: Tensor
) -> tuple[Prediction, int]:
    """Predictions [A, L, D] at the states inside the windows, elsewhere 0, and the number of these states."""
    longest = k_AL.shape[1]
    if len(row_A) == 1 or int(length_A.min()) == longest:
        flat = head.predict(row_A[:, None].expand_as(k_AL).flatten(), k_AL.flatten(), before.flatten(0, 1))
        return Prediction(flat.x0.view_as(before), None if flat.v is None else flat.v.view_as(before)), k_AL.numel()
    which, step = (torch.arange(longest, device=k_AL.device) < length_A[:, None]).nonzero(as_tuple=True)
    flat = head.predict(row_A[which], k_AL[which, step], before[which, step])
    x0 = torch.zeros_like(before).index_put_((which, step), flat.x0)
    v = None if flat.v is None else torch.zeros_like(before).index_put_((which, step), flat.v)
    return Prediction(x0, v), len(which)


class _Residuals:
    """Samples of the residual Norm[(p - q)_+] of single steps with learned variances, as noise of p.

    Both transitions are known Gaussians, so proposals cost no head call. The proposals of a path are one stream. The
    residual of a rejected step takes the first proposal that it accepts. Nothing depends yet on those behind it, so the
    path's next rejected step goes on there.

    Args:
        draws: of the R rows.
        dims: token dims.
    """

    def __init__(self, draws: HeadDraws, dims: int) -> None:
        self.draws, self.dims = draws, dims
        normals, uniforms = draws.first_proposals(dims)
        self.normals, self.uniforms = normals.clone(), uniforms.clone()  # [R, H, D], [R, H]
        self.places = torch.arange(uniforms.shape[1], device=uniforms.device)
        self.used = torch.zeros_like(draws.salt)  # [R] how many of the H are used up
        self.block = torch.full_like(draws.salt, uniforms.shape[1] // PROPOSALS)  # [R] the next to draw

    def draw(self, row_M: Tensor, shift_MD: Tensor, log_scale_MD: Tensor) -> Tensor:
        """[M, D] for rejected steps of rows ``row_M``.

        Args:
            row_M: distinct rows.
            shift_MD: (mean of q - mean of p) / std of q.
            log_scale_MD: log of std of q / std of p.
        """
        back = -shift_MD * log_scale_MD.exp()

        def propose(at: Tensor, attempt: int) -> tuple[Tensor, Tensor, Tensor]:
            row = row_M[at]
            if attempt:
                self._refill(row)
            _, log_inverse = change_noise(self.normals[row], back[at, None], -log_scale_MD[at, None])
            log_ratio = (-log_inverse).masked_fill(self.places < self.used[row, None], -torch.inf)
            return self.places.expand_as(log_ratio), log_ratio, self.uniforms[row]

        place = sample_residual(torch.arange(len(row_M), device=row_M.device), propose)
        self.used[row_M] = place + 1
        return self.normals[row_M, place]

    def _refill(self, row: Tensor) -> None:
        """Draws the next block of proposals for rows that have used up theirs, and puts it into the last places."""
        normals, uniforms = self.draws.proposals(row, self.block[row], self.dims)
        self.normals[row, -PROPOSALS:], self.uniforms[row, -PROPOSALS:] = normals, uniforms
        self.used[row] = len(self.places) - PROPOSALS
        self.block[row] += 1
