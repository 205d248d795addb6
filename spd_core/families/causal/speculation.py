"""Speculative decoding over denoising paths: the target's law, with fewer of its sequential calls.

One round of an image:

1. Draft up to gamma tokens down to the hand-off, keeping their whole paths. The draft calls its head every ``stride``
   steps and holds x0 in between, or lets it follow the noise drawn: still Gaussian steps with known means.
2. Run the target's context network once over the drafts and its head once over all states of *the drafts' own paths*.
3. Test left to right: a draft stands with probability min(1, R), R = p(path) / q(path), both on the draft's path.
4. At the first refusal, draw that token from the residual Norm[(p - q)_+] over paths and discard the later drafts. If
   nothing was refused, the target adds a token of its own: its context is there already.
5. An image whose tokens are all at the hand-off leaves its slot to the next one that waits. The target finishes the
   images that left, as many at a time as there are slots.

Marginalised to their ends, the paths give every token the target's law given the tokens before it (the lemma of
speculative sampling, Leviathan et al. 2022, arXiv:2211.17192, over paths). Images advance independently.

Shape legend: B images, A slots in use (an image each), E images that left their slots, N tokens of an image, D token
dims, Z context dims, T drafted tokens of a round, K steps above the hand-off, P proposals, G context rows per image
(2 under guidance).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from spd_core.accept.lemma import Verdict, first_refusal, sample_residual
from spd_core.accept.paths import ROUNDING, path_log_ratio
from spd_core.accept.rules import Couplings, Ratios, checked
from spd_core.capture import recorded
from spd_core.decode.kept import kept
from spd_core.decode.log import Decoded, Meter, TestLog
from spd_core.decode.path import BoundHead, HeadDraws, LawHead, Path, PathNoise, Trace, on_rows, steps_down
from spd_core.decode.slots import Change, Slots, moved
from spd_core.draws import Draws, Purpose
from spd_core.families.causal.tokens import (
    MAKING,
    Canvas,
    Making,
    Opening,
    PathLaw,
    finish,
    noise_above,
    own_draws,
    path_above,
    previous_tokens,
)
from spd_core.law import SamplerLaw, Speculative
from spd_core.models.sequence import SequenceModel
from spd_core.precision import at_precision

#: Kinds of evidence that decoding over paths gives a rule.
EVIDENCE = (Ratios, Couplings)
#: Types of a `Verdict`: accepted, log ratio, excess.
TESTED = (torch.bool, torch.float32, torch.float32)
#: Most residual proposals of one token at once; attempts go on until one is kept.
MOST_PROPOSALS = 256
#: Most proposed paths at once: they and their traces are what a residual's memory goes to.
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
    """Tokens of a round that the target draws itself, all with the same number of head steps; T of them."""

    path: PathLaw  #: at these tokens
    row: Tensor  #: int64 [T], slot
    place: Tensor  #: int64 [T], 0-based place in the block
    draft: Tensor  #: int64 [T], place of the refused draft in `drafted`; -1: there was none
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
        int64 [3, A]: how many drafts of each image stand; 1 where the target draws the token after them itself, the
        first refused one or else the one after the last draft; how many tokens the image advances.
    """
    kept_A = torch.minimum(first_refusal(accepted_AG), drafted_A)
    draws_A = (kept_A < room_A).long()
    return torch.stack([kept_A, draws_A, kept_A + draws_A])


def places_of(mask_R: Tensor, count: int) -> Tensor:
    """int64 [count]: where a mask is true, which is known to be so in ``count`` places; no device is asked."""
    return torch.nonzero_static(mask_R, size=count)[:, 0]


def draft_walk(head: BoundHead, y_TD: Tensor, path: PathLaw, noise: PathNoise, stride: int) -> Path:
    """The draft's paths to the hand-off, one head call every ``stride`` steps."""
    steps = {"first": path.first, "handoff": path.handoff, "stride": stride}
    if recorded(y_TD.device):
        made = on_rows("draft path", _drafted_path, head, y_TD, noise, **steps)
    else:
        made = _drafted_path(head, y_TD, noise, **steps)
    trace, calls = Trace(*made[1:]), -(-path.above // stride)
    return Path(made[0], trace.x0[:, -1], calls, calls * len(y_TD), trace)


def _drafted_path(
    head: BoundHead, y_TD: Tensor, noise: PathNoise, first: int, handoff: int, stride: int
) -> tuple[Tensor, ...]:
    """End, and states, held predictions and noise of every step."""
    rows = torch.arange(len(y_TD), device=y_TD.device)
    y, parts = y_TD, []
    for start in range(first, handoff, -stride):
        k = steps_down(start, max(start - stride, handoff) + 1, y.device).expand(len(rows), -1)
        drawn = noise.of_steps(rows[:, None], k)
        x0 = head.follow(rows, k, head.predict(rows, k[:, 0], y).x0, drawn)
        after = head.roll(k, y, x0, head.std(k, None) * drawn)
        parts.append((torch.cat([y[:, None], after[:, :-1]], dim=1), x0, drawn))
        y = after[:, -1]
    return y, *(torch.cat(column, dim=1) for column in zip(*parts, strict=True))


def held_predictions(head: BoundHead, states_TKD: Tensor, path: PathLaw, stride: int) -> Tensor:
    """The x0 [T, K, D] that the draft would hold on given paths: one head call over every stride-th state."""
    rows, count, dims = states_TKD.shape
    k = steps_down(path.first, path.handoff + 1, states_TKD.device)
    calls = len(k[::stride])
    row = torch.arange(rows, device=k.device).repeat_interleave(calls)
    x0 = head.predict(row, k[::stride].repeat(rows), states_TKD[:, ::stride].flatten(0, 1)).x0
    # The last stride may be shorter; what it is padded with is cut off again.
    padding = calls * stride - count
    states = F.pad(states_TKD, (0, 0, 0, padding)).view(rows * calls, stride, dims)
    steps = F.pad(k, (0, padding), value=path.handoff + 1).view(calls, stride).repeat(rows, 1)
    held = head.followed(row, steps, x0, states)
    return held.reshape(rows, calls * stride, dims)[:, :count]


def predictions(head: BoundHead, states_TKD: Tensor, path: PathLaw) -> Tensor:
    """The target's x0 [T, K, D] at every state of given paths: one head call."""
    return held_predictions(head, states_TKD, path, 1)


class _Noise:
    """The noise of the next ``places`` tokens of every slot above their hand-offs; drawn at once if it can be.

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


class _Decoding:
    """Images on their way through the slots."""

    def __init__(
        self,
        target: SequenceModel,
        draft: SequenceModel,
        law: SamplerLaw,
        method: Speculative,
        labels: Tensor,
        draws: Draws,
        slots: int,
        making: Making,
    ) -> None:
        self.law, self.method, self.labels, self.draws, self.slots = law, method, labels, draws, slots
        self.rule = checked(method.acceptance.chosen, EVIDENCE, "continuous tokens")
        self.meter = Meter(labels.device)
        self.length, self.dims = target.config.seq_len, target.config.token_dim
        self.path, self.making = making.path(law, self.length), making
        self.books = Slots(len(labels), slots, self.length, labels.device)
        first = labels[: len(self.books)]
        models = tuple(at_precision(model, law.dtype) for model in (target, draft))
        key = ("causal, speculative", *models, law, len(first), labels.device)
        readers = kept(key, labels.device, lambda: [making.reader(model, law, first) for model in models])
        self.reader, self.draft_reader = readers
        for reader in readers:
            reader.start(first)
        self.head, self.draft_head = LawHead.of(target.head, law), LawHead.of(draft.head, law)
        self.canvas = Canvas.empty(target, len(first), self.reader.copies)  # by slot
        self.left: list[int] = []  # [E] images still to be finished
        self.left_canvas = _of_rows(self.canvas, self.books.image[:0])
        self.tokens = torch.zeros(len(labels), self.length, self.dims, device=labels.device)
        self.log = TestLog()
        self._open(self.books.working)

    def _open(self, slots: list[int]) -> None:
        """What images in ``slots`` need before their first tokens."""
        readers, images = (self.reader, self.draft_reader), [self.books.images[slot] for slot in slots]
        opening = Opening(readers, self.head, slots, images, self.draws, self.method.head_window, self.meter)
        self.making.open(opening, self.path)

    @property
    def active(self) -> Tensor:
        """int64 [A], image of each slot."""
        return self.books.image

    @property
    def made(self) -> Tensor:
        """int64 [A], tokens decided."""
        return self.books.made

    def run(self) -> Decoded:
        while self.books.working:
            self._round()
            change = self.books.change()
            if change is not None:
                self._change(change)
        while self.left:
            self._finish()
        rounds, counts = torch.tensor(self.books.rounds), dict(self.meter.counts)
        return Decoded(self.tokens, rounds, self.log.records(), counts, self.meter.seconds())

    def _change(self, change: Change) -> None:
        """Step 5."""
        self.left += change.gone
        self.left_canvas = _joined(self.left_canvas, _of_rows(self.canvas, change.ended))
        if len(self.left) >= self.slots:
            self._finish()
        for reader in (self.reader, self.draft_reader):
            reader.change(change, self.labels[change.newcomers])
        canvas = self.canvas
        self.canvas = Canvas(moved(canvas.states, change), moved(canvas.x0, change), moved(canvas.z, change, dim=1))
        if len(change.newcomers):
            self._open([slot for slot in self.books.working if not self.books.known[slot]])

    def _finish(self) -> None:
        """Finishes those images that have left, in request order, as many as there are slots."""
        order = sorted(range(len(self.left)), key=lambda at: self.left[at])
        now, later = order[: self.slots], order[self.slots :]
        at, images, rest = (
            torch.tensor(of, dtype=torch.int64).to(self.tokens.device)
            for of in (now, [self.left[place] for place in now], later)
        )
        canvas, draws = _of_rows(self.left_canvas, at), Draws(self.draws.seeds[images])
        self.tokens[images] = finish(self.head, self.path, canvas, draws, self.method.head_window, self.meter)
        self.left, self.left_canvas = [self.left[place] for place in later], _of_rows(self.left_canvas, rest)

    def _round(self) -> None:
        """One round; the host waits once for the tests, and once for every try of the residuals."""
        books, gamma = self.books, self.method.gamma
        room_A, room = self.length - self.made, [self.length - made for made in books.known]
        drafted_A, drafted = room_A.clamp(max=gamma), [min(gamma, lacking) for lacking in room]
        widest = max(drafted)
        noise = _Noise(self.draws, self.path, self.active, self.made, widest + 1, self.dims)
        # 1. Draft.
        with self.meter.span("draft"):
            drafts = self._draft(drafted_A, drafted, noise) if widest else []
        # 2. One target pass.
        with self.meter.span("context"):
            z = self._contexts(widest + 1, room)
        # 3. Accept up to the first refusal.
        tests, known = self._tests(drafts, widest, z, noise)
        outcome = settle(tests.accepted, drafted_A, room_A)
        kept, draws, advance = outcome.tolist()
        self._record(tests, outcome[0], drafted_A)
        # 4. Replace the first refused token, or add one.
        with self.meter.span("residual"):
            row_T = places_of(outcome[1], sum(draws))
            refused = sum(stood < count for stood, count in zip(kept, drafted, strict=True))
            for path, those in self.path.parts(self.made[row_T] + outcome[0][row_T]) if len(row_T) else ():
                rows = row_T[those]
                self._own_tokens(path, rows, outcome[0][rows], refused, known.get(path), z, noise)
        # What lies behind that token, in the canvas and the caches, is written anew: only the count goes on.
        now = [made + step for made, step in zip(books.known, advance, strict=True)]
        books.advance(self.made + outcome[2], now)

    def _tests(
        self, drafts: list[Drafted], widest: int, z: Tensor, noise: _Noise
    ) -> tuple[Verdict, dict[PathLaw, tuple[Drafted, Path | None]]]:
        """Steps 2b and 3 of all drafts: verdicts [A, widest], and of each path its drafts and `_verify`'s paths."""
        known: dict[PathLaw, tuple[Drafted, Path | None]] = {}
        tests = Verdict(*(torch.ones(len(self.books), widest, dtype=of, device=z.device) for of in TESTED))
        for part in drafts:
            with self.meter.span("head"):
                verdict, own = self._verify(part, z, noise)
            known[part.path], at = (part, own), (part.row, part.place)
            for column, found in zip(vars(tests).values(), vars(verdict).values(), strict=True):
                column[at] = found
        return tests, known

    def _previous(self, first_A: Tensor, count: int) -> Tensor:
        slot = torch.arange(len(self.active), device=first_A.device)
        return previous_tokens(self.canvas.states, slot, first_A, count)

    def _draft(self, drafted_A: Tensor, drafted: list[int], noise: _Noise) -> list[Drafted]:
        """Step 1; the drafts also go to the canvas, where both context networks read them."""
        parts: list[Drafted] = []
        for place in range(max(drafted)):
            # The first pass also reads the position before: after a round without refusal the draft has not seen it.
            first = self.made + place if place else (self.made - 1).clamp(min=0)
            count = 1 if place else 2
            furthest = self.books.furthest + max(place, 1)
            z_read = self.draft_reader.read(self._previous(first, count), first, furthest)
            row = places_of(drafted_A > place, sum(count > place for count in drafted))
            z_all = z_read[:, row, self.made[row] + place - first[row]]
            self.meter.add(draft_context_calls=1, draft_context_rows=len(self.made) * count * self.reader.copies)
            for path, which in self.path.parts(self.made[row] + place):
                rows, z = row[which], z_all[:, which]
                at, here = self.made[rows] + place, torch.full_like(rows, place)
                own = noise.of(path, rows, here)
                bound = self.draft_head.at(path.law).bind(z.flatten(0, 1), path.scale(at))
                walked = draft_walk(bound, own.start, path, own, self.method.stride)
                self.canvas.states[rows, at] = walked.end
                if walked.trace is not None:
                    parts.append(Drafted(path, rows, here, walked.end, walked.trace, z))
                self.meter.add(draft_head_calls=walked.calls, draft_head_rows=walked.rows * self.reader.copies)
        alike: dict[PathLaw, list[Drafted]] = {}
        for part in parts:
            alike.setdefault(part.path, []).append(part)
        return [_drafted(group) for group in alike.values()]

    def _contexts(self, places: int, room: list[int]) -> Tensor:
        """Step 2a: the target's contexts [G, A, places, Z] of the drafts and of the token after them."""
        z = self.reader.read(self._previous(self.made, places), self.made, self.books.furthest + places - 1)
        position = self.made[:, None] + torch.arange(places, device=z.device)
        inside = sum(min(places, lacking) for lacking in room)
        row, place = torch.nonzero_static(position < self.length, size=inside).unbind(dim=1)
        # Later drafts may fall; their contexts are then written again in a later round.
        self.canvas.z[:, row, position[row, place]] = z[:, row, place]
        rows = len(self.active) * places * self.reader.copies
        self.meter.add(target_context_calls=1, target_context_rows=rows)
        return z

    def _bind(self, path: PathLaw, z: Tensor, row: Tensor, place: Tensor) -> BoundHead:
        return self.head.at(path.law).bind(z[:, row, place].flatten(0, 1), path.scale(self.made[row] + place))

    def _verify(self, drafted: Drafted, z: Tensor, noise: _Noise) -> tuple[Verdict, Path | None]:
        """Steps 2b and 3: each draft's own verdict; for the coupled rule also the target's paths on the same noise."""
        if self.rule.evidence is Couplings:
            return self._couple(drafted, z, noise)
        path, row, place = drafted.path, drafted.row, drafted.place
        image, token = self.active[row], self.made[row] + place
        bound = self._bind(path, z, row, place)
        trace = drafted.trace
        x0 = predictions(bound, trace.states, path)
        self.meter.add(target_head_calls=1, target_head_rows=x0.shape[0] * x0.shape[1] * self.reader.copies)
        k = steps_down(path.first, path.handoff + 1, x0.device)
        shift = bound.shift(k, trace.x0, x0)
        news = bound.moved(torch.arange(len(row), device=k.device), k[-1], trace.noise[:, -1] + shift[:, -1])
        self.canvas.x0[row, token] = x0[:, -1] + news
        log_ratio = path_log_ratio(trace.noise, shift)
        uniform = self.draws.uniforms(Purpose.ACCEPT, image, token)[:, 0]
        tested = Ratios(log_ratio=log_ratio, place=place, uniform=uniform, rounding=ROUNDING)
        return self.rule.judge(tested), None

    def _couple(self, drafted: Drafted, z: Tensor, noise: _Noise) -> tuple[Verdict, Path]:
        """Steps 2b and 3 with the target's own paths on the drafts' noise."""
        path, row, place = drafted.path, drafted.row, drafted.place
        image, token = self.active[row], self.made[row] + place
        own = own_draws(self.draws, image, token, path.law)
        bound = self._bind(path, z, row, place)
        coupled = path_above(bound, path, noise.of(path, row, place), own, self.method.head_window)
        self.meter.add(target_head_calls=coupled.calls, target_head_rows=coupled.rows * self.reader.copies)
        self.canvas.x0[row, token] = coupled.x0
        return self.rule.judge(Couplings(drafted=drafted.end, coupled=coupled.end)), coupled

    def _own_tokens(
        self,
        path: PathLaw,
        row_T: Tensor,
        place_T: Tensor,
        refused: int,
        known: tuple[Drafted, Path | None] | None,
        z: Tensor,
        noise: _Noise,
    ) -> None:
        """Step 4: tokens at ``place_T`` of slots ``row_T`` from the target itself, written to the canvas.

        ``path`` is theirs, and so are the drafts and, by the coupled rule, the target's own paths, if there are any. Of
        the round's tokens ``refused`` were drafted in vain.
        """
        drafted, coupled = known or (None, None)
        index = torch.full((len(self.active), z.shape[2]), -1, device=row_T.device)
        if drafted is not None:
            index[drafted.row, drafted.place] = torch.arange(len(drafted.row), device=row_T.device)
        draft_T = index[row_T, place_T]  # -1: there was no draft
        if self.path.law.falls:  # these are some of the round's tokens only
            refused = int((draft_T >= 0).sum())
        with_draft, without = places_of(draft_T >= 0, refused), places_of(draft_T < 0, len(row_T) - refused)
        if coupled is not None:
            row, place, draft = row_T[with_draft], place_T[with_draft], draft_T[with_draft]
            self._write(row, place, coupled.end[draft], coupled.x0[draft])
            row_T, place_T, draft_T = row_T[without], place_T[without], draft_T[without]
            with_draft, without = with_draft[:0], torch.arange(len(row_T), device=row_T.device)
        if not len(row_T):
            return
        wanted = _Wanted(path, row_T, place_T, draft_T, drafted, z, noise)

        def propose(open_T: Tensor, attempt: int) -> tuple[Tensor, Tensor, Tensor]:
            # A token without a draft takes its first proposal.
            fresh, again = (
                (without, with_draft) if attempt == 0 else (without[:0], torch.arange(len(open_T), device=z.device))
            )
            asked = wanted.at(open_T)
            count = min(self.method.proposals * 4**attempt, MOST_PROPOSALS) if len(again) else 1
            most = max(1, MOST_PATHS // count)
            if len(open_T) <= most:
                return self._propose(asked, fresh, again, attempt, count)
            made = []
            for first in range(0, len(open_T), most):
                new, old = (x[(first <= x) & (x < first + most)] - first for x in (fresh, again))
                made.append(self._propose(asked.at(slice(first, first + most)), new, old, attempt, count))
            values, log_ratio, keep = (torch.cat(column) for column in zip(*made, strict=True))
            return values, log_ratio, keep

        made = sample_residual(torch.arange(len(row_T), device=row_T.device), propose)
        self._write(row_T, place_T, *made.split(self.dims, dim=-1))

    def _write(self, row: Tensor, place: Tensor, end: Tensor, x0: Tensor) -> None:
        at = (row, self.made[row] + place)
        self.canvas.states[at], self.canvas.x0[at] = end, x0

    def _propose(
        self, wanted: _Wanted, fresh: Tensor, refused: Tensor, attempt: int, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Target paths for `sample_residual`: ``count`` for a refused draft, its own path for a token without one.

        ``fresh`` and ``refused`` are the places in ``wanted`` of those without and with a draft.
        """
        path, row, place = wanted.path, wanted.row, wanted.place
        image, token, device = self.active[row], self.made[row] + place, row.device
        own = wanted.noise.of(path, row[fresh], place[fresh])
        dims = (1 + path.above) * self.dims
        normals, uniforms = self.draws.proposals(
            Purpose.PATH_PROPOSAL, image[refused], token[refused], count, dims, attempt=attempt
        )
        normals = normals.view(-1, 1 + path.above, self.dims)
        proposed = PathNoise(
            torch.cat([own.start, normals[:, 0]]), torch.cat([own.step, normals[:, 1:]]), path.handoff + 1
        )
        # Rows of the paths: tokens without a draft once, refused ones `count` times.
        of = torch.cat([fresh, refused.repeat_interleave(count)])
        number = torch.arange(count, device=device).repeat(len(refused))
        salt = torch.cat([torch.zeros_like(fresh), 1 + attempt * MOST_PROPOSALS + number])
        head_draws = HeadDraws(self.draws, image[of], token[of], salt, path.law.head_steps)
        bound = self._bind(path, wanted.z, row[of], place[of])
        ours = path_above(bound, path, proposed, head_draws, self.method.head_window, trace=bool(len(refused)))
        self.meter.add(target_head_calls=ours.calls, target_head_rows=ours.rows * self.reader.copies)
        log_ratio = torch.full((len(row), count), -torch.inf, device=device)
        log_ratio[fresh, 0] = torch.inf
        values = torch.zeros(len(row), count, 2 * self.dims, device=device)
        made = torch.cat([ours.end, ours.x0], dim=-1)
        values[fresh, 0] = made[: len(fresh)]
        keep = torch.full((len(row), count), 0.5, device=device)
        if len(refused) and wanted.drafted is not None and ours.trace is not None:
            values[refused] = made[len(fresh) :].view(len(refused), count, -1)
            keep[refused] = uniforms
            columns = (ours.trace.states, ours.trace.x0, ours.trace.noise)
            proposals = Trace(*(column[len(fresh) :] for column in columns))
            log_ratio[refused] = self._proposal_ratio(wanted.at(refused), wanted.drafted, proposals, count, bound)
        return values, log_ratio, keep

    def _proposal_ratio(
        self, refused: _Wanted, drafted: Drafted, proposals: Trace, count: int, bound: BoundHead
    ) -> Tensor:
        """log p/q [T, count] of proposed paths [T * count]; ``bound`` is the target's head."""
        path, token = refused.path, self.made[refused.row] + refused.place
        z = drafted.z[:, refused.draft].repeat_interleave(count, dim=1).flatten(0, 1)
        bound_draft = self.draft_head.at(path.law).bind(z, path.scale(token.repeat_interleave(count)))
        held = held_predictions(bound_draft, proposals.states, path, self.method.stride)
        k = steps_down(path.first, path.handoff + 1, token.device)
        inverse = path_log_ratio(proposals.noise, bound.shift(k, proposals.x0, held))
        tested = held.shape[0] * -(-held.shape[1] // self.method.stride)
        self.meter.add(
            draft_head_calls=1,
            draft_head_rows=tested * self.reader.copies,
            residual_proposals=len(token) * count,
        )
        return -inverse.view(-1, count)

    def _record(self, tests: Verdict, kept_A: Tensor, drafted_A: Tensor) -> None:
        place = torch.arange(tests.accepted.shape[1], device=kept_A.device)
        if not len(place):
            return
        counts = (place <= kept_A[:, None]) & (place < drafted_A[:, None])
        depth = tuple(range(1, len(place) + 1))
        columns = torch.stack([tests.log_ratio, tests.excess, tests.accepted, counts])
        self.log.add(self.books.images, self.books.known, depth, columns)


def _drafted(parts: list[Drafted]) -> Drafted:
    """The drafts of all parts, of one path."""
    row, place, end = (torch.cat([getattr(part, name) for part in parts]) for name in ("row", "place", "end"))
    names = ("states", "x0", "noise")
    trace = Trace(*(torch.cat([getattr(part.trace, name) for part in parts]) for name in names))
    return Drafted(parts[0].path, row, place, end, trace, torch.cat([part.z for part in parts], dim=1))


def _of_rows(canvas: Canvas, rows: Tensor) -> Canvas:
    return Canvas(canvas.states[rows], canvas.x0[rows], canvas.z[:, rows])


def _joined(first: Canvas, second: Canvas) -> Canvas:
    states, x0 = (torch.cat([getattr(canvas, name) for canvas in (first, second)]) for name in ("states", "x0"))
    return Canvas(states, x0, torch.cat([first.z, second.z], dim=1))
