"""CSpD, continuous speculative decoding for MAR (Wang et al. 2024, arXiv:2411.11925), in two variants.

Both draft ``gamma`` iterations with the small model, run the target once over the block with the block masked, and
judge each draft by a tempered ratio of last-step Gaussians times a factor from the step variances. Guarantee: none.
A masked model gives every token of the block a context that ends where the block begins, while the draft saw the
block's earlier tokens; and a ratio of two different paths is not a density ratio. What it costs is measured, not
bounded.

``released`` keeps every decision of a block: 1. draft gamma iterations; 2. one target pass; 3. each token is accepted
or replaced on its own; nothing is rolled back, so the speed does not depend on the acceptance.
``paper`` tests in generation order: 1. and 2. as above; 3. accept up to the first rejection; 4. replace that token by a
sample of the modified distribution; 5. discard what follows and draft again from there. Images of a batch advance
independently.

Shape legend: B images, N tokens of an image, D token dims, R rows (tokens of a block), K places of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
from spd_core.accept.lemma import Verdict, num_accepted
from spd_core.accept.paths import Gaussian
from spd_core.capture import recorded
from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.draws import Draws, Purpose
from spd_core.families.mar.iterations import (
    Iteration,
    OrderDraws,
    Sampler,
    TokenPaths,
    TokenRows,
    contexts,
    mar_step,
    sample_rows,
    schedule,
)
from spd_core.families.mar.model import Mar
from spd_core.law import Cspd, SamplerLaw

#: Normals that the released resampler draws at once; bounds its memory.
PROPOSED_AT_ONCE = 1 << 22
#: Its attempts where asking costs nothing: nearly every token accepts one of its first proposals, or none at all.
EARLY_RUNS = (2, 98)

_SHARED = (Purpose.START, Purpose.STEP)
_OWN = (Purpose.START_TARGET, Purpose.STEP_TARGET)
#: Rows of a drafted iteration, their paths, and which iteration it is.
_Part = tuple[TokenRows, TokenPaths, int]


def decode_cspd(target: Mar, draft: Mar, law: SamplerLaw, method: Cspd, labels_B: Tensor, draws: Draws) -> Decoded:
    """Decodes a batch with CSpD; arguments as for `spd_core.families.mar.plain.decode_plain`."""
    variant = Released if method.variant == "released" else Paper
    return variant(target, draft, law, method, labels_B, draws).run()


def prefill_iterations(method: Cspd, num_iter: int) -> int:
    """Iterations made by the target alone before drafting starts: those with s <= prefill * num_iter, s from 0.

    A share of exactly 0 means none (the public code would still make one).
    """
    if method.prefill == 0:
        return 0
    return min(num_iter, int(num_iter * method.prefill) + 1)


class _Batch(ABC):
    """A batch of images on its way through a variant.

    Args:
        target, draft: the models.
        law: what is sampled.
        method: how.
        labels_B: int64 class labels; below 0: no class.
        draws: the images' random numbers.
    """

    def __init__(self, target: Mar, draft: Mar, law: SamplerLaw, method: Cspd, labels_B: Tensor, draws: Draws) -> None:
        self.law, self.method, self.labels, self.draws = law, method, labels_B, draws
        self.meter = Meter(labels_B.device)
        self.target = Sampler.of(target, law, "target", self.meter, method.head_window)
        self.draft = Sampler.of(draft, law, "draft", self.meter, method.head_window)
        self.length, dims = target.config.seq_len, target.config.token_dim
        self.ordered = OrderDraws(draws, law, self.length, dims, speculates=bool(method.head_window))
        self.order = self.ordered.order
        self.tokens = torch.zeros(len(labels_B), self.length, dims, device=labels_B.device)
        self.schedule = schedule(law, self.length)
        self.prefilled = self.schedule[: prefill_iterations(method, law.num_iter)]
        self.rule = Tempered(inner_temperature=method.inner_temperature)
        #: of the target's start and step noise
        self.purposes = _SHARED if method.aligned else _OWN

    @abstractmethod
    def run(self) -> Decoded:
        """Decodes the batch."""

    def make(self, sampler: Sampler, iteration: Iteration) -> tuple[TokenRows, TokenPaths]:
        """One ordinary iteration of every image, written to the canvas."""
        rows, paths = mar_step(sampler, iteration, self.tokens, self.ordered, self.labels)
        self.tokens[rows.image, rows.token] = paths.x0
        return rows, paths

    def prefill(self) -> tuple[int, int]:
        """The iterations that the target makes alone: the tokens masked after them, and how many made some."""
        made = [iteration for iteration in self.prefilled if iteration.left < iteration.masked]
        for iteration in made:
            self.make(self.target, iteration)
        return (made[-1].left if made else self.length), len(made)


class Released(_Batch):
    """``released``: every token of a block is judged on its own, and nothing is rolled back."""

    def run(self) -> Decoded:
        masked, targets = self.prefill()  # masked: tokens that the target has not judged yet
        block: list[_Part] = []
        records: list[DraftRecords] = []
        for iteration in self.schedule[len(self.prefilled) :]:
            # 1. Draft.
            if iteration.left < iteration.masked:
                block.append((*self.make(self.draft, iteration), iteration.step))
            full = iteration.step % self.method.gamma == 0 and iteration.step > 0
            if block and (full or iteration is self.schedule[-1]):
                records.append(self.judge(block, masked, iteration.scale, len(records)))
                block, masked = [], iteration.left
        rounds = torch.full((len(self.labels),), len(records) + targets)
        drafts = DraftRecords.concatenate(records)
        return Decoded(self.tokens, rounds, drafts, dict(self.meter.counts), self.meter.seconds())

    def judge(self, block: list[_Part], masked: int, scale: float, number: int) -> DraftRecords:
        """Judges a block and writes the replaced tokens to the canvas.

        Args:
            block: its iterations.
            masked: tokens masked before it.
            scale: guidance weight of its last iteration, for all of it.
            number: of the block.
        """
        rows, drafted, index, step = _raster(block, self.length)
        # 2. One target pass.
        with self.meter.span("context"):
            visible = self.order[:, masked:].sort(dim=1).values
            z = contexts(self.target.model, self.law, self.tokens, visible, self.labels).stacked(rows)
        with self.meter.span("head"):
            own = sample_rows(self.target, z, scale, self.draws, rows, step, self.purposes)
        self.target.book(len(self.tokens), own)
        # 3. Accept or replace each token.
        with self.meter.span("residual"):
            p, q = _gaussian(own), _gaussian(drafted)
            # The public code multiplies p by 1/Sigma, the inverse of the paper's factor; so does this.
            log_factor = -log_path_factor(drafted.log_std_sum, own.log_std_sum)
            uniforms = self.draws.uniforms(Purpose.ACCEPT, rows.image, rows.token, round_R=number)[:, 0]
            test = LastSteps(target=p, draft=q, x=drafted.x0, log_factor=log_factor, uniform=uniforms)
            verdict = self.rule.judge(test)
            accepted = verdict.accepted
            # To know that nothing was rejected costs a wait for a GPU, more than to resample in vain.
            if recorded(self.tokens.device) or not bool(accepted.all()):
                fresh = self._resampled(rows, test, number)
                self.tokens[rows.image, rows.token] = torch.where(accepted[:, None], drafted.x0, fresh)
        return _records(rows, index, verdict)

    def _resampled(self, rows: TokenRows, test: LastSteps, number: int) -> Tensor:
        """[R, D]: what takes the place of each token of the block if it was rejected."""
        p, q = test.target, test.draft

        def propose(attempt_RT: Tensor) -> tuple[Tensor, Tensor]:
            tries, dims = attempt_RT.shape[1], p.mean.shape[1]
            at = (rows.image.repeat_interleave(tries), rows.token.repeat_interleave(tries))
            normals = self.draws.normals(Purpose.PROPOSAL, *at, dims, number, attempt_RT.flatten())
            uniforms = self.draws.uniforms(Purpose.PROPOSAL_KEEP, *at, 1, number, attempt_RT.flatten())
            return normals.view(-1, tries, dims), uniforms.view(-1, tries)

        waits = recorded(p.mean.device)
        runs = _runs(p.mean.numel()) if waits else EARLY_RUNS
        zeros = self.method.unresolved == "zeros"
        return resample_released(p, q, test.log_factor, rows.image, propose, runs, early=not waits, zeros=zeros)[0]


class Paper(_Batch):
    """``paper``: accepted up to the first rejection; images advance independently."""

    def run(self) -> Decoded:
        masked, targets = self.prefill()
        #: how far the images are, int64 [B], and their rounds; what decides shapes is known on the host too
        self.masked, self.masked_here = torch.full_like(self.labels, masked), [masked] * len(self.labels)
        self.rounds = torch.full_like(self.labels, targets)
        self.next = _Next.of(self.schedule, self.length, self.labels.device)
        parts: list[tuple[DraftRecords, Tensor]] = []
        while any(self.masked_here):
            parts.append(self._round())
            self.masked_here = self.masked.tolist()  # the one wait for a GPU
        rounds, counts = self.rounds.cpu(), dict(self.meter.counts)
        records = DraftRecords.concatenate([part for part, _ in parts])
        if parts:
            records = records.at(torch.cat([tested for _, tested in parts]).cpu())
        return Decoded(self.tokens, rounds, records, counts, self.meter.seconds())

    def _round(self) -> tuple[DraftRecords, Tensor]:
        """One round of the images that are not done; writes the canvas and how far they are.

        Returns:
            records of the whole blocks, and which of them were tested.
        """
        start = self._active()
        # 1. Draft.
        with self.meter.span("draft"):
            block = self._drafted(start)
        rows = block.rows
        # 2. One target pass.
        with self.meter.span("context"):
            z = self._contexts(self.target, start, rows, block.which)
        with self.meter.span("head"):
            own = sample_rows(self.target, z, block.scale, self.draws, rows, block.step, self.purposes, ragged=True)
        self.target.book(len(start), own)
        with self.meter.span("residual"):
            # 3. Accept up to the first rejection.
            p, q, drafted = _gaussian(own), _gaussian(block.paths), block.paths
            log_factor = log_path_factor(drafted.log_std_sum, own.log_std_sum)
            round_R = self.rounds[rows.image]
            uniforms = self.draws.uniforms(Purpose.ACCEPT, rows.image, rows.token, round_R=round_R)[:, 0]
            test = LastSteps(target=p, draft=q, x=drafted.x0, log_factor=log_factor, uniform=uniforms)
            verdict = self.rule.judge(test)
            within, accepted_A, first_A = _outcome(verdict.accepted, block)
            rejected_A = accepted_A < block.sizes
            # 4. Replace that token.
            self._replace(rows, first_A, rejected_A, test, round_R)
        # 5. What follows is drafted again.
        self.masked[start.image] = start.masked - accepted_A - rejected_A.long()
        self.rounds[start.image] += 1
        return _records(rows, block.index, verdict), within <= accepted_A[block.which]

    def _active(self) -> _Front:
        """The images that are not done."""
        left = [masked for masked in self.masked_here if masked]
        image = torch.argsort((self.masked == 0).to(torch.uint8), stable=True)[: len(left)]
        return _Front(image, self.masked[image], left)

    def _contexts(self, sampler: Sampler, at: _Front, rows: TokenRows, which: Tensor) -> Tensor:
        """Contexts of rows, of the images ``which`` of those at work, given the tokens that are not masked."""
        visible, counts = _ragged_visible(self.order, at.image, at.masked, self.length - min(at.masked_here))
        z = contexts(sampler.model, self.law, self.tokens[at.image], visible, self.labels[at.image], counts)
        return z.stacked(TokenRows(which, rows.token))

    def _drafted(self, start: _Front) -> _Block:
        """Step 1; the drafts also go to the canvas."""
        at, parts = start, []
        for place in range(self.method.gamma):
            after = _Front(at.image, self.next.left[at.masked], [self.next.left_here[m] for m in at.masked_here])
            total = sum(at.masked_here) - sum(after.masked_here)
            if not total:
                break
            rows, which = _ragged_rows(self.order, at.image, after.masked, at.masked, total)
            scale, step = self.next.scale[at.masked][which][:, None], self.next.step[at.masked][which]
            z = self._contexts(self.draft, at, rows, which)
            paths = sample_rows(self.draft, z, scale, self.draws, rows, step, ragged=True)
            self.tokens[rows.image, rows.token] = paths.x0
            self.draft.book(len(at), paths)
            parts.append((rows.image, rows.token, which, scale, torch.full_like(rows.token, place), step, paths))
            at = after
        # Rows in generation order, image-major: order is generated from its end, so later places come first.
        place_of = torch.argsort(self.order, dim=1)
        image, token, which, scale, index, step = (torch.cat(of) for of in list(zip(*parts, strict=True))[:-1])
        order = torch.argsort(which * self.length + (self.length - 1 - place_of[image, token]))
        rows, paths = TokenRows(image[order], token[order]), TokenPaths.concatenate([part[-1] for part in parts], order)
        sizes_here = [before - after for before, after in zip(start.masked_here, at.masked_here, strict=True)]
        return _Block(
            rows,
            paths,
            which[order],
            scale[order],
            index[order],
            step[order],
            start.masked - at.masked,
            max(sizes_here),
        )

    def _replace(self, rows: TokenRows, first_A: Tensor, rejected_A: Tensor, test: LastSteps, round_R: Tensor) -> None:
        """Writes a sample of the modified distribution over the first rejected token of every image that has one.

        Args:
            rows: of the block.
            first_A: the row of an image's first rejection; of an image without one, some row of it.
            rejected_A: which images have one.
            test: of the rows.
            round_R: their images' rounds.
        """
        waits = recorded(self.tokens.device)
        if not waits:  # Where asking costs nothing only these are resampled.
            first_A, rejected_A = first_A[rejected_A], rejected_A[rejected_A]
            if not len(first_A):
                return
        image, token, number = rows.image[first_A], rows.token[first_A], round_R[first_A]

        def propose(open_rows: Tensor, attempt: int, count: int) -> tuple[Tensor, Tensor]:
            at, dims = (image[open_rows], token[open_rows]), self.tokens.shape[-1]
            normals = self.draws.normals(Purpose.PROPOSAL, *at, count * dims, number[open_rows], attempt)
            uniforms = self.draws.uniforms(Purpose.PROPOSAL_KEEP, *at, count, number[open_rows], attempt)
            return normals.view(-1, count, dims), uniforms

        p, q, log_factor = test.target.at(first_A), test.draft.at(first_A), test.log_factor[first_A]
        fresh = resample_modified(p, q, log_factor, propose, early=not waits)
        self.tokens[image, token] = torch.where(rejected_A[:, None], fresh, self.tokens[image, token])


@dataclass(frozen=True)
class _Front:
    """How far the A images at work are."""

    image: Tensor  #: int64 [A]
    masked: Tensor  #: int64 [A] tokens not made yet
    masked_here: list[int]  #: the same on the host

    def __len__(self) -> int:
        return len(self.masked_here)


@dataclass(frozen=True)
class _Block:
    """The drafts of a round, in generation order, image-major."""

    rows: TokenRows
    paths: TokenPaths
    which: Tensor  #: int64 [R] place of the image among those at work
    scale: Tensor  #: [R, 1] guidance weight
    index: Tensor  #: int64 [R] iteration of the block
    step: Tensor  #: int64 [R] iteration of the schedule
    sizes: Tensor  #: int64 [A] drafts of each image
    widest: int  #: most of them


def _outcome(accepted_R: Tensor, block: _Block) -> tuple[Tensor, Tensor, Tensor]:
    """How far the images of a round get.

    Returns:
        int64 [R] place of each row in its image's block; int64 [A] accepted drafts of each image; int64 [A] the row of
        the first rejected one, of an image without one its last row.
    """
    offset_A = block.sizes.cumsum(0) - block.sizes
    within = torch.arange(len(accepted_R), device=accepted_R.device) - offset_A[block.which]
    # Padding counts as accepted, so that it never stops anyone.
    grid = torch.ones(len(block.sizes), block.widest, dtype=torch.bool, device=accepted_R.device)
    grid[block.which, within] = accepted_R
    accepted_A = torch.minimum(num_accepted(grid), block.sizes)
    return within, accepted_A, offset_A + torch.minimum(accepted_A, block.sizes - 1)


class _Next:
    """Where an image with m masked tokens goes next: `left[m]` after iteration `step[m]`, at guidance `scale[m]`."""

    def __init__(self, left: list[int], scale: list[float], step: list[int], device: torch.device) -> None:
        self.left_here = left
        self.left, self.step = torch.tensor(left, device=device), torch.tensor(step, device=device)
        self.scale = torch.tensor(scale, device=device)

    @classmethod
    def of(cls, iterations: list[Iteration], length: int, device: torch.device) -> _Next:
        following = [next(of for of in iterations if of.left < masked) for masked in range(1, length + 1)]
        left, scale = [0, *(of.left for of in following)], [1.0, *(of.scale for of in following)]
        return cls(left, scale, [0, *(of.step for of in following)], device)


def _gaussian(paths: TokenPaths) -> Gaussian:
    return Gaussian(paths.x0, paths.last_std)


def _raster(block: list[_Part], tokens: int) -> tuple[TokenRows, TokenPaths, Tensor, Tensor]:
    """The block's rows in image-major raster order, and of each its place in the block and its iteration."""
    image, token = (torch.cat([getattr(rows, name) for rows, _, _ in block]) for name in ("image", "token"))
    at = torch.argsort(image * tokens + token)
    paths = TokenPaths.concatenate([part for _, part, _ in block], at)
    index = torch.cat([torch.full_like(rows.token, place) for place, (rows, _, _) in enumerate(block)])
    step = torch.cat([torch.full_like(rows.token, step) for rows, _, step in block])
    return TokenRows(image[at], token[at]), paths, index[at], step[at]


def _runs(numbers: int) -> list[int]:
    """The attempts of the released resampler, as many at once as ``numbers`` normals an attempt allow."""
    run = min(RELEASED_ATTEMPTS, max(1, PROPOSED_AT_ONCE // max(1, numbers)))
    return [min(run, RELEASED_ATTEMPTS - start) for start in range(0, RELEASED_ATTEMPTS, run)]


def _records(rows: TokenRows, index: Tensor, verdict: Verdict) -> DraftRecords:
    return DraftRecords(rows.image, rows.token, index, verdict.log_ratio, verdict.accepted, verdict.excess)


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
