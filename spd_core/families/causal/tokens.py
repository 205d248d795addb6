"""Plain decoding of causal models, and the parts that it shares with speculative decoding.

A token is made in two parts. Above the hand-off its path runs down to a state of little noise. The context network
reads that state, so tokens are made one after another. Below the hand-off the path runs on to the clean token, given
the token's context. No other token waits for that, so all tokens of an image are finished in one batch.

Shape legend: B images, N tokens of an image, M positions of one pass, G context rows per image (2 under guidance: with
the class, without), R rows (tokens being made), K steps above the hand-off, D token dims, Z context dims.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from spd_core.capture import Captured
from spd_core.decode.head_speculation import speculate_head
from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.decode.path import BoundHead, HeadDraws, LawHead, Path, PathNoise, by_steps, walk
from spd_core.decode.reader import CachedReader
from spd_core.decode.workspace import workspace
from spd_core.diffusion import handoff_step, step_table
from spd_core.draws import Draws, Purpose
from spd_core.law import SamplerLaw
from spd_core.models.kv import reach_of
from spd_core.models.sequence import SequenceModel
from spd_core.precision import at_precision

#: Tokens of an image whose noise plain decoding draws at once.
DRAWN_AHEAD = 16


@dataclass(frozen=True)
class PathLaw:
    """A token's path at a law: its steps, the step of its hand-off, and its guidance.

    Where the head steps fall along the image, tokens have different paths: each number of steps is a respacing with its
    own step nearest to the hand-off level. `at` and `parts` give them; the object itself is the path of the first
    token.
    """

    law: SamplerLaw
    tokens: int

    def at(self, position: int) -> PathLaw:
        """The path of the token at ``position``, with its number of head steps."""
        return replace(self, law=self.law.at(position, self.tokens))

    def parts(self, position_R: Tensor) -> Iterator[tuple[PathLaw, Tensor | slice]]:
        """The tokens by their number of head steps, as `spd_core.decode.path.by_steps` gives them."""
        for law, rows in by_steps(self.law, position_R, self.tokens):
            yield replace(self, law=law), rows

    def stretches(self, longest: int) -> Iterator[tuple[PathLaw, range]]:
        """The image's tokens in turn, at most ``longest`` at once and all with the same number of head steps."""
        for path, group in itertools.groupby(range(self.tokens), self.at):
            positions = list(group)
            for first in range(0, len(positions), longest):
                part = positions[first : first + longest]
                yield path, range(part[0], part[-1] + 1)

    @property
    def first(self) -> int:
        """The first step of a path."""
        return self.law.head_steps - 1

    @property
    def handoff(self) -> int:
        """The first step k below the hand-off; the state that is handed over is y_k."""
        return handoff_step(self.law.head_steps, self.law.start_level, self.law.handoff_level)

    def handed_over(self, tokens: Tensor, noise: Tensor) -> Tensor:
        """Clean tokens with the noise that they carry when they are handed over."""
        table, k = step_table(self.law.head_steps, self.law.start_level, tokens.device), self.handoff
        return table.signal[k] * tokens + table.noise[k] * noise

    def ended(self, states: Tensor) -> Tensor:
        """Tokens of the states at the end of their paths."""
        return states

    @property
    def above(self) -> int:
        """Steps above the hand-off."""
        return self.first - self.handoff

    def scale(self, position: Tensor) -> Tensor:
        """Guidance weight, one more dim than ``position``; linear: grows with the share of the tokens made."""
        share = (position + 1).float() / self.tokens
        share = share if self.law.cfg_schedule == "linear" else torch.ones_like(share)
        return (1.0 + (self.law.cfg - 1.0) * share)[..., None]


class ContextReader(CachedReader):
    """A causal model's context network at a law, with the cache of a batch."""

    prefix = 0  #: slots of the cache before that of token 0

    def __init__(self, model: SequenceModel, law: SamplerLaw, labels_A: Tensor) -> None:
        self.model = at_precision(model, law.dtype)
        super().__init__(law, labels_A, self.model.cache)
        self.context = Captured(self._read, "causal.context")

    def read(self, previous_AMD: Tensor, first_A: Tensor, furthest: int | None = None) -> Tensor:
        """Contexts [G, A, M, Z] of positions first, first + 1, ...; each reads the token before it.

        Args:
            previous_AMD: the tokens before.
            first_A: int64.
            furthest: where the last of these positions lies, as far as the host knows; None: anywhere.
        """
        reach = self.cache.slots if furthest is None else reach_of(self.prefix + furthest + 1, first_A.device)
        return self.context(previous_AMD, first_A, reach=reach)[0]

    def _read(self, previous_AMD: Tensor, first_A: Tensor, reach: int) -> tuple[Tensor, ...]:
        previous, first = (self.of_rows(of) for of in (previous_AMD, first_A))
        with torch.autocast(previous.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            z = self.model(previous, self.labels.flatten(), first, self.cache, reach).float()
        return (self.of_copies(z),)


def previous_tokens(states_BND: Tensor, image_A: Tensor, first_A: Tensor, count: int) -> Tensor:
    """The tokens [A, count, D] before positions first, first + 1, ...; anything where there is none."""
    before = first_A[:, None] + torch.arange(count, device=first_A.device) - 1
    return states_BND[image_A[:, None], before.clamp(0, states_BND.shape[1] - 1)]


def noise_above(draws: Draws, image_R: Tensor, token_R: Tensor, path: PathLaw, dims: int) -> PathNoise:
    """The noise above the hand-off of the tokens' paths in plain decoding, which their drafts share."""
    start = draws.normals(Purpose.START, image_R, token_R, dims)
    step = draws.normals(Purpose.STEP, image_R, token_R, path.above * dims).view(-1, path.above, dims)
    return PathNoise(start, step, path.handoff + 1)


def window_draws(draws: Draws, image_R: Tensor, token_R: Tensor, law: SamplerLaw) -> HeadDraws:
    """The random numbers of head self-speculation on these paths."""
    return HeadDraws(draws, image_R, token_R, torch.zeros_like(token_R), law.head_steps)


def path_above(
    head: BoundHead, path: PathLaw, noise: PathNoise, draws: HeadDraws, windows: tuple[int, ...], trace: bool = False
) -> Path:
    """Paths from their start to the hand-off, with head self-speculation if there are windows."""
    steps = (path.first, path.handoff + 1)
    if not windows:
        return walk(head, noise.start, *steps, noise, trace)
    return speculate_head(head, *steps, noise, draws, windows, trace=trace)[0]


@dataclass
class Canvas:
    """The tokens of a batch while they are made; decoders write it in place."""

    states: Tensor  #: [B, N, D] at the hand-off level
    x0: Tensor  #: [B, N, D] the target's newest prediction on the way there
    z: Tensor  #: [G, B, N, Z] the target's contexts

    @staticmethod
    def empty(target: SequenceModel, batch: int, copies: int) -> Canvas:
        c = target.config
        states, x0 = (torch.zeros(batch, c.seq_len, c.token_dim, device=target.device) for _ in range(2))
        return Canvas(states, x0, torch.zeros(copies, batch, c.seq_len, c.embed_dim, device=target.device))


def finish(
    head: LawHead, path: PathLaw, canvas: Canvas, draws: Draws, windows: tuple[int, ...], meter: Meter
) -> Tensor:
    """Clean tokens [B, N, D]: every path's steps below the hand-off, in one batch for each number of head steps."""
    batch, length, dims = canvas.states.shape
    device = canvas.states.device
    image = torch.arange(batch, device=device).repeat_interleave(length)
    token = torch.arange(length, device=device).repeat(batch)
    states, x0, z = canvas.states.flatten(0, 1), canvas.x0.flatten(0, 1), canvas.z.flatten(1, 2)
    clean = torch.empty_like(states)
    for part, rows in path.parts(token):
        count = part.handoff + 1
        if not count:
            clean[rows] = states[rows]
            continue
        with meter.span("finish"):
            step = draws.normals(Purpose.STEP, image[rows], token[rows], count * dims, round_R=1)
            noise = PathNoise(states[rows], step.view(-1, count, dims))
            bound = head.at(part.law).bind(z[:, rows].flatten(0, 1), part.scale(token[rows]))
            if windows:
                head_draws = window_draws(draws, image[rows], token[rows], part.law)
                ends, _ = speculate_head(
                    bound, part.handoff, 0, noise, head_draws, windows, x0[rows]
                )  # fmt: skip
            else:
                ends = walk(bound, noise.start, part.handoff, 0, noise)
            clean[rows] = ends.end
        meter.add(finish_head_calls=ends.calls, finish_head_rows=ends.rows * head.guided_rows)
    return path.ended(clean).view(batch, length, dims)


@dataclass(frozen=True)
class Opening:
    """Images that have just got their slots, and what their first tokens are prepared with."""

    readers: Sequence[ContextReader]  #: of the target, then of the draft if there is one
    head: LawHead  #: the target's
    slots: Sequence[int]
    images: Sequence[int]
    draws: Draws
    windows: tuple[int, ...]
    meter: Meter


class Making:
    """How a family's tokens are made, where families differ: paths, readers, and what an image begins with."""

    path: ClassVar[type[PathLaw]] = PathLaw
    reader: ClassVar[type[ContextReader]] = ContextReader

    def open(self, opening: Opening, path: PathLaw) -> None:
        """Prepares the first tokens of images; in most families they need nothing."""


#: Of the causal family.
MAKING = Making()


def decode_causal_plain(
    target: SequenceModel,
    law: SamplerLaw,
    labels_B: Tensor,
    draws: Draws,
    windows: tuple[int, ...] = (),
    making: Making = MAKING,
) -> Decoded:
    """Samples a batch of images from a target at ``law``, token after token.

    Args:
        target: the model.
        law: what is sampled; ``num_iter`` is not used.
        labels_B: int64 class labels; below 0: no class.
        draws: the images' random numbers.
        windows: of head self-speculation; none: one head call a step.
        making: how the family's tokens are made.
    """
    meter, batch, length = Meter(labels_B.device), len(labels_B), target.config.seq_len
    path, image = making.path(law, length), torch.arange(batch, device=labels_B.device)
    key = ("causal, plain", at_precision(target, law.dtype), law, batch, labels_B.device)
    reader = workspace(key, labels_B.device, lambda: making.reader(target, law, labels_B))
    reader.start(labels_B)
    head = LawHead.of(target.head, law)
    making.open(Opening([reader], head, range(batch), range(batch), draws, windows, meter), path)
    canvas = Canvas.empty(target, batch, reader.copies)
    for part, positions in path.stretches(DRAWN_AHEAD):
        block = torch.arange(positions.start, positions.stop, device=labels_B.device)
        images, tokens = image.repeat(len(block)), block.repeat_interleave(batch)
        drawn = noise_above(draws, images, tokens, part, canvas.x0.shape[-1])
        head_draws, part_head = window_draws(draws, images, tokens, part.law), head.at(part.law)
        head_draws = head_draws.ahead() if windows else head_draws
        for place, position in enumerate(positions):
            rows = slice(place * batch, (place + 1) * batch)
            before = canvas.states[:, max(position - 1, 0), None].contiguous()
            with meter.span("context"):
                z = reader.read(before, tokens[rows], position)[:, :, 0]
            with meter.span("head"):
                noise = PathNoise(drawn.start[rows], drawn.step[rows], drawn.offset)
                bound = part_head.bind(z.flatten(0, 1), path.scale(tokens[rows]))
                made = path_above(bound, part, noise, head_draws.of(rows), windows)
            canvas.states[:, position], canvas.x0[:, position], canvas.z[:, :, position] = made.end, made.x0, z
            meter.add(
                target_context_calls=1,
                target_context_rows=batch * reader.copies,
                target_head_calls=made.calls,
                target_head_rows=made.rows * reader.copies,
            )
    clean = finish(head, path, canvas, draws, windows, meter)
    rounds = torch.full((batch,), length)
    return Decoded(clean, rounds, DraftRecords.concatenate([]), dict(meter.counts), meter.seconds())
