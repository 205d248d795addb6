"""Speculative decoding over denoising paths: the target's law, with fewer of its sequential calls.

One round of an image:

1. Draft up to gamma tokens down to the hand-off, with their whole paths. The draft calls its head every ``stride``
   steps. In between it holds the predicted x0, or lets it follow the noise drawn. Either way its steps are Gaussians
   with known means.
2. Run the target's context network once over the drafts, and its head once over all states of *the drafts' paths*.
3. Test the drafts from left to right. One is accepted with probability min(1, R), R = p(path) / q(path), both taken
   on the draft's path.
4. At the first rejection, sample that token from the residual Norm[(p - q)_+] over paths, and discard the later
   drafts. If all drafts were accepted, sample a bonus token from the target, whose context for it is there already.
5. An image whose tokens are all at the hand-off gives its slot to the next one that waits. The target makes clean
   tokens of such images, of as many at a time as there are slots.

By the lemma of speculative sampling (Leviathan et al. 2022, arXiv:2211.17192), every path has the target's law given
the tokens before it, and so has its end. Images advance independently.

Shape legend: B images, A slots, N tokens of an image, D token dims, Z context dims, T tokens of a round (drafts, or
those that the target samples), F bonus tokens, M rejected drafts, P proposals for one of them, K steps above the
hand-off, G context rows per image (2 under guidance).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spd_core.accept.lemma import Verdict, num_accepted, sample_residual
from spd_core.accept.paths import ROUNDING
from spd_core.accept.rules import Couplings, Ratios, checked
from spd_core.decode.log import Decoded
from spd_core.decode.path import BoundHead, HeadDraws, LawHead, Path, PathNoise, Trace
from spd_core.decode.slots import Change, SlotDecoding, moved
from spd_core.decode.workspace import workspace
from spd_core.draws import Draws, Purpose
from spd_core.families.causal.tokens import (
    MAKING,
    Canvas,
    Making,
    Opening,
    PathLaw,
    finish,
    noise_above,
    path_above,
    previous_tokens,
    window_draws,
)
from spd_core.families.causal.verification import draft_walk, verify
from spd_core.law import SamplerLaw, Speculative
from spd_core.models.sequence import SequenceModel
from spd_core.precision import at_precision

#: Kinds of evidence that decoding over paths gives a rule.
EVIDENCE = (Ratios, Couplings)
#: Types of a `Verdict`: accepted, log ratio, excess.
TESTED = (torch.bool, torch.float32, torch.float32)
#: Most residual proposals of one token at once; attempts go on until one is accepted.
MOST_PROPOSALS = 256
#: Most proposed paths at once. They and their traces are what a residual needs memory for.
MOST_PATHS = 4096


@dataclass(frozen=True)
class Drafted:
    """Drafted tokens of a round, all with the same number of head steps; T of them."""

    path: PathLaw  #: at these tokens
    row: Tensor  #: int64 [T], slot
    place: Tensor  #: int64 [T], 0-based place in the block
    end: Tensor  #: [T, D] state at the hand-off
    trace: Trace  #: their paths; x0 is the held prediction
    z: Tensor  #: [G, T, Z] the draft's contexts


@dataclass(frozen=True)
class _Wanted:
    """Tokens of a round that the target samples, all with the same number of head steps; T of them."""

    path: PathLaw  #: at these tokens
    row: Tensor  #: int64 [T], slot
    place: Tensor  #: int64 [T], 0-based place in the block
    draft: Tensor  #: int64 [T], index of the rejected draft in `drafted`; -1: a bonus token, which replaces none
    drafted: Drafted | None  #: the round's drafts of this path
    z: Tensor  #: [G, A, places, Z] the target's contexts
    noise: _Noise  #: of the round

    def at(self, rows: Tensor | slice) -> _Wanted:
        return replace(self, row=self.row[rows], place=self.place[rows], draft=self.draft[rows])


def decode_speculative(
    target: SequenceModel,
    draft: SequenceModel,
    law: SamplerLaw,
    method: Speculative,
    labels_B: Tensor,
    draws: Draws,
    slots: int | None = None,
    making: Making = MAKING,
) -> Decoded:
    """Samples images at ``law``, at most ``slots`` of them at once.

    Caches, paths and contexts are held per slot, so memory grows with ``slots``; with the images grow their tokens and
    draft records only.

    Args:
        target, draft: the models.
        law: what is sampled; ``num_iter`` is not used.
        method: how.
        labels_B: int64 class labels; below 0: no class.
        draws: the images' random numbers.
        slots: images decoded together, at least 1; None: all.
        making: how the family's tokens are made.

    Raises:
        ValueError: a rule that is not for continuous tokens.
    """
    return _Decoding(target, draft, law, method, labels_B, draws, slots or len(labels_B), making).run()


def settle(accepted_AG: Tensor, drafted_A: Tensor, room_A: Tensor) -> Tensor:
    """What follows from the tests of a round.

    Args:
        accepted_AG: verdicts by place; padding counts as accepted.
        drafted_A: drafts of each image.
        room_A: tokens that each image still lacked before the round.

    Returns:
        int64 [3, A]: how many drafts of each image are accepted; 1 where the target samples the token after them, in
        place of a rejected draft or as a bonus; how many tokens the image advances.
    """
    accepted_A = torch.minimum(num_accepted(accepted_AG), drafted_A)
    samples_A = (accepted_A < room_A).long()
    return torch.stack([accepted_A, samples_A, accepted_A + samples_A])


def places_of(mask_R: Tensor, count: int) -> Tensor:
    """int64 [count]: where a mask is true. The caller knows the ``count``, so the host does not wait for a device."""
    return torch.nonzero_static(mask_R, size=count)[:, 0]


class _Noise:
    """The noise above the hand-off of the next ``places`` tokens of every slot.

    It is drawn at once, unless the law's head steps fall along the image: then paths differ in their number of steps.

    Args:
        draws: of the images.
        path: of the law.
        active_A, made_A: image of each slot, and how many of its tokens are decided.
        places: tokens; past the image's end they are padding.
        dims: of a token.
    """

    def __init__(self, draws: Draws, path: PathLaw, active_A: Tensor, made_A: Tensor, places: int, dims: int) -> None:
        self._draws, self._active, self._made, self._places, self._dims = draws, active_A, made_A, places, dims
        self._all: PathNoise | None = None
        if not path.law.falls:
            token = made_A[:, None] + torch.arange(places, device=made_A.device)
            self._all = noise_above(draws, active_A.repeat_interleave(places), token.flatten(), path, dims)

    def of(self, path: PathLaw, row: Tensor, place: Tensor) -> PathNoise:
        """Of tokens at ``place`` of slots ``row``, whose path is ``path``."""
        if self._all is None:
            return noise_above(self._draws, self._active[row], self._made[row] + place, path, self._dims)
        at = row * self._places + place
        return PathNoise(self._all.start[at], self._all.step[at], self._all.offset)


class _Decoding(SlotDecoding):
    """One decoding of a batch; `run` makes its images."""

    def __init__(
        self,
        target: SequenceModel,
        draft: SequenceModel,
        law: SamplerLaw,
        method: Speculative,
        labels: Tensor,
        draws: Draws,
        count: int,
        making: Making,
    ) -> None:
        self.rule = checked(method.acceptance.chosen, EVIDENCE, "continuous tokens")
        self.method, self.draws, self.count = method, draws, count
        self.length, self.dims = target.config.seq_len, target.config.token_dim
        self.path, self.making = making.path(law, self.length), making
        first = labels[:count]
        models = tuple(at_precision(model, law.dtype) for model in (target, draft))
        key = ("causal, speculative", *models, law, len(first), labels.device)
        readers = workspace(key, labels.device, lambda: [making.reader(model, law, first) for model in models])
        self.reader, self.draft_reader = readers
        super().__init__(labels, count, self.length, readers)
        self.head, self.draft_head = LawHead.of(target.head, law), LawHead.of(draft.head, law)
        self.canvas = Canvas.empty(target, len(first), self.reader.copies)  # by slot
        # Images whose tokens are all at the hand-off, and what is known of them.
        self.handed_over: list[int] = []
        self.handed_over_canvas = _of_rows(self.canvas, self.slots.image[:0])
        self.tokens = torch.zeros(len(labels), self.length, self.dims, device=labels.device)
        self._open(self.slots.working)

    def _open(self, slots: list[int]) -> None:
        """Prepares the first tokens of the images in ``slots``."""
        readers, images = (self.reader, self.draft_reader), [self.slots.images[slot] for slot in slots]
        opening = Opening(readers, self.head, slots, images, self.draws, self.method.head_window, self.meter)
        self.making.open(opening, self.path)

    def run(self) -> Decoded:
        self.run_rounds()
        while self.handed_over:
            self._finish()
        return self.decoded(self.tokens)

    def _collect(self, change: Change) -> None:
        """Step 5."""
        self.handed_over += change.images_cpu
        self.handed_over_canvas = _joined(self.handed_over_canvas, _of_rows(self.canvas, change.ended))
        if len(self.handed_over) >= self.count:
            self._finish()

    def _refill(self, change: Change) -> None:
        canvas = self.canvas
        self.canvas = Canvas(moved(canvas.states, change), moved(canvas.x0, change), moved(canvas.z, change, dim=1))
        if len(change.newcomers):
            self._open([slot for slot in self.slots.working if not self.slots.made_cpu[slot]])

    def _finish(self) -> None:
        """Makes clean tokens of images at the hand-off, in request order, of at most as many as there are slots."""
        order = sorted(range(len(self.handed_over)), key=lambda at: self.handed_over[at])
        now, later = order[: self.count], order[self.count :]
        at, images, rest = (
            torch.tensor(of, dtype=torch.int64).to(self.tokens.device)
            for of in (now, [self.handed_over[place] for place in now], later)
        )
        canvas, draws = _of_rows(self.handed_over_canvas, at), Draws(self.draws.seeds[images])
        self.tokens[images] = finish(self.head, self.path, canvas, draws, self.method.head_window, self.meter)
        self.handed_over = [self.handed_over[place] for place in later]
        self.handed_over_canvas = _of_rows(self.handed_over_canvas, rest)

    def _round(self) -> None:
        """One round; the host waits once for the tests, and once for every attempt of the residual."""
        slots, gamma = self.slots, self.method.gamma
        room_A, room = self.length - slots.made, [self.length - made for made in slots.made_cpu]
        drafted_A, drafted = room_A.clamp(max=gamma), [min(gamma, lacking) for lacking in room]
        widest = max(drafted)
        noise = _Noise(self.draws, self.path, self.slots.image, self.slots.made, widest + 1, self.dims)
        # 1. Draft.
        with self.meter.span("draft"):
            drafts = self._draft(drafted_A, drafted, noise) if widest else []
        # 2. One target pass.
        with self.meter.span("context"):
            z = self._contexts(widest + 1, room)
        # 3. Accept up to the first rejection.
        tests, known = self._tests(drafts, widest, z, noise)
        outcome = settle(tests.accepted, drafted_A, room_A)
        accepted, samples, advance = outcome.tolist()
        self._record(tests, outcome[0], drafted_A)
        # 4. Replace the first rejected draft, or sample a bonus token.
        with self.meter.span("residual"):
            row_T = places_of(outcome[1], sum(samples))
            rejected = sum(length < count for length, count in zip(accepted, drafted, strict=True))
            for path, those in self.path.parts(self.slots.made[row_T] + outcome[0][row_T]) if len(row_T) else ():
                rows = row_T[those]
                self._target_tokens(path, rows, outcome[0][rows], rejected, known.get(path), z, noise)
        # Later rounds write anew what lies behind that token in the canvas and the caches: no rollback but the count.
        now = [made + step for made, step in zip(slots.made_cpu, advance, strict=True)]
        slots.advance(self.slots.made + outcome[2], now)

    def _tests(
        self, drafts: list[Drafted], widest: int, z: Tensor, noise: _Noise
    ) -> tuple[Verdict, dict[PathLaw, tuple[Drafted, Path | None]]]:
        """Steps 2 and 3 of all drafts.

        Returns:
            verdicts [A, widest], and by path law its drafts and, under the coupled rule, the target's paths.
        """
        known: dict[PathLaw, tuple[Drafted, Path | None]] = {}
        tests = Verdict(*(torch.ones(len(self.slots), widest, dtype=of, device=z.device) for of in TESTED))
        for part in drafts:
            with self.meter.span("head"):
                verdict, coupled = self._verify(part, z, noise)
            known[part.path], at = (part, coupled), (part.row, part.place)
            for column, found in zip(vars(tests).values(), vars(verdict).values(), strict=True):
                column[at] = found
        return tests, known

    def _previous(self, first_A: Tensor, count: int) -> Tensor:
        slot = torch.arange(len(self.slots.image), device=first_A.device)
        return previous_tokens(self.canvas.states, slot, first_A, count)

    def _draft(self, drafted_A: Tensor, drafted: list[int], noise: _Noise) -> list[Drafted]:
        """Step 1. The drafts also go to the canvas, where both context networks read them."""
        parts: list[Drafted] = []
        for place in range(max(drafted)):
            # The first pass also reads the position before: after a round without rejection the draft has not seen it.
            first = self.slots.made + place if place else (self.slots.made - 1).clamp(min=0)
            count = 1 if place else 2
            furthest = self.slots.furthest + max(place, 1)
            z_read = self.draft_reader.read(self._previous(first, count), first, furthest)
            row = places_of(drafted_A > place, sum(count > place for count in drafted))
            z_all = z_read[:, row, self.slots.made[row] + place - first[row]]
            self.meter.add(draft_context_calls=1, draft_context_rows=len(self.slots.made) * count * self.reader.copies)
            for path, which in self.path.parts(self.slots.made[row] + place):
                rows, z = row[which], z_all[:, which]
                at, here = self.slots.made[rows] + place, torch.full_like(rows, place)
                drawn = noise.of(path, rows, here)
                bound = self.draft_head.at(path.law).bind(z.flatten(0, 1), path.scale(at))
                walked = draft_walk(bound, drawn.start, path, drawn, self.method.stride)
                self.canvas.states[rows, at] = walked.end
                parts.append(Drafted(path, rows, here, walked.end, walked.trace, z))
                self.meter.add(draft_head_calls=walked.calls, draft_head_rows=walked.rows * self.reader.copies)
        alike: dict[PathLaw, list[Drafted]] = {}
        for part in parts:
            alike.setdefault(part.path, []).append(part)
        return [_drafted(group) for group in alike.values()]

    def _contexts(self, places: int, room: list[int]) -> Tensor:
        """Step 2: the target's contexts [G, A, places, Z] of the drafts and of the token after them."""
        z = self.reader.read(self._previous(self.slots.made, places), self.slots.made, self.slots.furthest + places - 1)
        position = self.slots.made[:, None] + torch.arange(places, device=z.device)
        inside = sum(min(places, lacking) for lacking in room)
        row, place = torch.nonzero_static(position < self.length, size=inside).unbind(dim=1)
        # The context of a draft that will be rejected is written again in a later round.
        self.canvas.z[:, row, position[row, place]] = z[:, row, place]
        rows = len(self.slots.image) * places * self.reader.copies
        self.meter.add(target_context_calls=1, target_context_rows=rows)
        return z

    def _bind(self, path: PathLaw, z: Tensor, row: Tensor, place: Tensor) -> BoundHead:
        return self.head.at(path.law).bind(z[:, row, place].flatten(0, 1), path.scale(self.slots.made[row] + place))

    def _verify(self, drafted: Drafted, z: Tensor, noise: _Noise) -> tuple[Verdict, Path | None]:
        """Steps 2 and 3: each draft's verdict; under the coupled rule also the target's paths on the same noise."""
        if self.rule.evidence is Couplings:
            return self._couple(drafted, z, noise)
        path, row, place = drafted.path, drafted.row, drafted.place
        image, token = self.slots.image[row], self.slots.made[row] + place
        bound, trace = self._bind(path, z, row, place), drafted.trace
        verified = verify(bound, trace, path)
        self.meter.add(target_head_calls=1, target_head_rows=trace.states[..., 0].numel() * self.reader.copies)
        # What the target would hold next: its prediction at the last state, moved with the last step's noise.
        at, last = torch.arange(len(row), device=row.device), torch.full_like(row, path.handoff + 1)
        moved_by = bound.moved(at, last, trace.noise[:, -1] + verified.shift[:, -1])
        self.canvas.x0[row, token] = verified.x0[:, -1] + moved_by
        uniform = self.draws.uniforms(Purpose.ACCEPT, image, token)[:, 0]
        tested = Ratios(log_ratio=verified.log_ratio, place=place, uniform=uniform, rounding=ROUNDING)
        return self.rule.judge(tested), None

    def _couple(self, drafted: Drafted, z: Tensor, noise: _Noise) -> tuple[Verdict, Path]:
        """Steps 2 and 3 under the coupled rule, which compares the target's paths on the drafts' noise."""
        path, row, place = drafted.path, drafted.row, drafted.place
        image, token = self.slots.image[row], self.slots.made[row] + place
        draws, bound = window_draws(self.draws, image, token, path.law), self._bind(path, z, row, place)
        coupled = path_above(bound, path, noise.of(path, row, place), draws, self.method.head_window)
        self.meter.add(target_head_calls=coupled.calls, target_head_rows=coupled.rows * self.reader.copies)
        self.canvas.x0[row, token] = coupled.x0
        return self.rule.judge(Couplings(drafted=drafted.end, coupled=coupled.end)), coupled

    def _target_tokens(
        self,
        path: PathLaw,
        row_T: Tensor,
        place_T: Tensor,
        rejected: int,
        known: tuple[Drafted, Path | None] | None,
        z: Tensor,
        noise: _Noise,
    ) -> None:
        """Step 4: samples tokens from the target and writes them to the canvas.

        Args:
            path: of these tokens.
            row_T, place_T: their slots and places.
            rejected: how many of the round's tokens replace a draft.
            known: the round's drafts with this path and, under the coupled rule, the target's paths; None: no drafts.
            z: the target's contexts [G, A, places, Z].
            noise: of the round.
        """
        drafted, coupled = known or (None, None)
        index = torch.full((len(self.slots.image), z.shape[2]), -1, device=row_T.device)
        if drafted is not None:
            index[drafted.row, drafted.place] = torch.arange(len(drafted.row), device=row_T.device)
        draft_T = index[row_T, place_T]
        if self.path.law.falls:  # these are some of the round's tokens only
            rejected = int((draft_T >= 0).sum())
        rejected_M, bonus_F = places_of(draft_T >= 0, rejected), places_of(draft_T < 0, len(row_T) - rejected)
        if coupled is not None:
            row, place, draft = row_T[rejected_M], place_T[rejected_M], draft_T[rejected_M]
            self._write(row, place, coupled.end[draft], coupled.x0[draft])
            row_T, place_T, draft_T = row_T[bonus_F], place_T[bonus_F], draft_T[bonus_F]
            rejected_M, bonus_F = rejected_M[:0], torch.arange(len(row_T), device=row_T.device)
        if not len(row_T):
            return
        wanted = _Wanted(path, row_T, place_T, draft_T, drafted, z, noise)
        first = self._sample(wanted, bonus_F, rejected_M, attempt=0)
        self._write(row_T[bonus_F], place_T[bonus_F], *first[0].split(self.dims, dim=-1))
        if not len(rejected_M):
            return
        again = wanted.at(rejected_M)

        def propose(open_M: Tensor, attempt: int) -> tuple[Tensor, Tensor, Tensor]:
            if not attempt:
                return first[1:]
            every = torch.arange(len(open_M), device=open_M.device)
            return self._sample(again.at(open_M), every[:0], every, attempt)[1:]

        recovered = sample_residual(torch.arange(len(rejected_M), device=row_T.device), propose)
        self._write(again.row, again.place, *recovered.split(self.dims, dim=-1))

    def _sample(
        self, wanted: _Wanted, bonus_F: Tensor, rejected_M: Tensor, attempt: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`_sample_together` in parts of at most `MOST_PATHS` paths."""
        count = min(self.method.proposals * 4**attempt, MOST_PROPOSALS) if len(rejected_M) else 1
        most = max(1, MOST_PATHS // count)
        if len(wanted.row) <= most:
            return self._sample_together(wanted, bonus_F, rejected_M, attempt, count)
        parts = []
        for first in range(0, len(wanted.row), most):
            part = wanted.at(slice(first, first + most))
            bonus, rejected = (x[(first <= x) & (x < first + most)] - first for x in (bonus_F, rejected_M))
            parts.append(self._sample_together(part, bonus, rejected, attempt, count))
        bonus, values, log_ratio, uniforms = (torch.cat(column) for column in zip(*parts, strict=True))
        return bonus, values, log_ratio, uniforms

    def _write(self, row: Tensor, place: Tensor, end: Tensor, x0: Tensor) -> None:
        at = (row, self.slots.made[row] + place)
        self.canvas.states[at], self.canvas.x0[at] = end, x0

    def _sample_together(
        self, wanted: _Wanted, bonus_F: Tensor, rejected_M: Tensor, attempt: int, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Samples paths of the target: bonus tokens and proposals share the head calls.

        Args:
            wanted: the tokens.
            bonus_F, rejected_M: which of ``wanted`` are bonus tokens, and which replace a rejected draft.
            attempt: of the residual, from 0.
            count: P.

        Returns:
            end and prediction [F, 2 D] of each bonus token; then, for `sample_residual`, end and prediction
            [M, P, 2 D], log p/q [M, P] and uniforms [M, P] of the proposals for each rejected draft.
        """
        path, row, place = wanted.path, wanted.row, wanted.place
        image, token, device = self.slots.image[row], self.slots.made[row] + place, row.device
        drawn = wanted.noise.of(path, row[bonus_F], place[bonus_F])
        dims = (1 + path.above) * self.dims
        normals, uniforms = self.draws.proposals(
            Purpose.PATH_PROPOSAL, image[rejected_M], token[rejected_M], count, dims, attempt=attempt
        )
        normals = normals.view(-1, 1 + path.above, self.dims)
        start, step = torch.cat([drawn.start, normals[:, 0]]), torch.cat([drawn.step, normals[:, 1:]])
        # One path of each bonus token, `count` of each rejected draft.
        of = torch.cat([bonus_F, rejected_M.repeat_interleave(count)])
        number = torch.arange(count, device=device).repeat(len(rejected_M))
        salt = torch.cat([torch.zeros_like(bonus_F), 1 + attempt * MOST_PROPOSALS + number])
        head_draws = HeadDraws(self.draws, image[of], token[of], salt, path.law.head_steps)
        bound, noise = self._bind(path, wanted.z, row[of], place[of]), PathNoise(start, step, path.handoff + 1)
        made = path_above(bound, path, noise, head_draws, self.method.head_window, trace=bool(len(rejected_M)))
        self.meter.add(target_head_calls=made.calls, target_head_rows=made.rows * self.reader.copies)
        bonus, values = torch.cat([made.end, made.x0], dim=-1).split([len(bonus_F), len(normals)])
        log_ratio = torch.empty_like(uniforms)
        if made.trace is not None and wanted.drafted is not None:
            proposals = Trace(*(column[len(bonus_F) :] for column in vars(made.trace).values()))
            log_ratio = self._proposal_ratio(wanted.at(rejected_M), wanted.drafted, proposals, count)
        return bonus, values.view(len(rejected_M), count, 2 * self.dims), log_ratio, uniforms

    def _proposal_ratio(self, rejected: _Wanted, drafted: Drafted, proposals: Trace, count: int) -> Tensor:
        """log p/q [M, P] of M P proposed paths."""
        path, token = rejected.path, self.slots.made[rejected.row] + rejected.place
        z = drafted.z[:, rejected.draft].repeat_interleave(count, dim=1).flatten(0, 1)
        bound_draft = self.draft_head.at(path.law).bind(z, path.scale(token.repeat_interleave(count)))
        log_ratio = -verify(bound_draft, proposals, path, self.method.stride).log_ratio
        tested = len(log_ratio) * -(-path.above // self.method.stride)
        self.meter.add(
            draft_head_calls=1,
            draft_head_rows=tested * self.reader.copies,
            residual_proposals=len(token) * count,
        )
        return log_ratio.view(-1, count)

    def _record(self, tests: Verdict, accepted_A: Tensor, drafted_A: Tensor) -> None:
        """Logs the tests up to the first rejection."""
        place = torch.arange(tests.accepted.shape[1], device=accepted_A.device)
        if not len(place):
            return
        counts = (place <= accepted_A[:, None]) & (place < drafted_A[:, None])
        depth = tuple(range(1, len(place) + 1))
        columns = torch.stack([tests.log_ratio, tests.excess, tests.accepted, counts])
        self.log.add(self.slots.images, self.slots.made_cpu, depth, columns)


def _drafted(parts: list[Drafted]) -> Drafted:
    """The drafts of all parts, which have one path law."""
    row, place, end = (torch.cat([getattr(part, name) for part in parts]) for name in ("row", "place", "end"))
    names = ("states", "x0", "noise")
    trace = Trace(*(torch.cat([getattr(part.trace, name) for part in parts]) for name in names))
    return Drafted(parts[0].path, row, place, end, trace, torch.cat([part.z for part in parts], dim=1))


def _of_rows(canvas: Canvas, rows: Tensor) -> Canvas:
    return Canvas(canvas.states[rows], canvas.x0[rows], canvas.z[:, rows])


def _joined(first: Canvas, second: Canvas) -> Canvas:
    states, x0 = (torch.cat([getattr(canvas, name) for canvas in (first, second)]) for name in ("states", "x0"))
    return Canvas(states, x0, torch.cat([first.z, second.z], dim=1))
