"""Measures the call times of a causal pair at a law, the inputs of `spd_core.decode.cost`.

Every call is timed as the decoders make it, in the contexts of decoded images. Its times are taken at places spread
over the image, because windows reach further where a token is easy. Calls take turns, so that a change of the machine's
speed meets all of them.

Shape legend: B images of the batch, N tokens, G context rows per image, R rows, D token dims, P proposals.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spd_core.decode import decode
from spd_core.decode.cost import CallTimes
from spd_core.decode.log import Meter
from spd_core.decode.path import BoundHead, HeadDraws, LawHead, Path, PathNoise
from spd_core.draws import Draws, Purpose
from spd_core.families.causal.tokens import (
    DRAWN_AHEAD,
    MAKING,
    Canvas,
    ContextReader,
    Making,
    PathLaw,
    finish,
    noise_above,
    path_above,
    previous_tokens,
    window_draws,
)
from spd_core.families.causal.verification import draft_walk, verify
from spd_core.law import Plain, SamplerLaw, Speculative
from spd_core.models.sequence import SequenceModel

if TYPE_CHECKING:
    from spd_core.pairs.pair import Pair

#: Places of an image at which calls are timed, and how often at each after a first time that does not count.
PLACES, REPEATS = 8, 3
Calls = dict[str, Callable[[], object]]


@torch.inference_mode()
def measure_calls(
    pair: Pair,
    law: SamplerLaw,
    method: Plain | Speculative,
    labels: Tensor,
    draws: Draws,
    making: Making = MAKING,
) -> CallTimes:
    """Means over `PLACES` places of the image and `REPEATS` each.

    They are not medians. Where other processes share the machine, a short call is interrupted now and then; its median
    would leave out a cost that a decoding of hundreds of such calls pays.

    Args:
        pair: of models that make tokens in turn.
        law: what is sampled.
        method: gives windows and, if speculative, gamma, stride and proposals; its acceptance rule is not used.
        labels, draws: of the images decoded together.
        making: how the family's tokens are made.

    Raises:
        TypeError: for a pair of another family.
    """
    model = _Decoded(pair, law, method, labels, draws, making)
    places = [_timed(model.at(place), pair.device) for place in model.places()]
    mean = {name: statistics.fmean(seconds[name] for seconds in places) for name in places[0]}
    mean |= _timed(model.whole(), pair.device)
    noise = mean.pop("noise") / model.ahead
    windowed = {
        "head_windowed": mean.get("head_windowed", mean["head"]) + noise,
        "finish_windowed": mean.get("finish_windowed", mean["finish"]),
    }
    return CallTimes(**{**mean, **windowed, "head": mean["head"] + noise})


def _now(device: torch.device) -> float:
    """Seconds on a steady clock once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _timed(calls: Calls, device: torch.device) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + REPEATS):
        for name, call in calls.items():
            began = _now(device)
            call()
            spent[name].append(_now(device) - began)
    return {name: statistics.fmean(seconds[1:]) for name, seconds in spent.items()}


class _Decoded:
    """A batch of decoded images with all of its contexts, in which any call of a decoding can be made at any place.

    Calls are named as the fields of `CallTimes`; "noise" is that of plain decoding, for ``ahead`` tokens at once. Where
    the head's steps fall along the image, a call makes those of its first token.
    """

    def __init__(
        self,
        pair: Pair,
        law: SamplerLaw,
        method: Plain | Speculative,
        labels: Tensor,
        draws: Draws,
        making: Making,
    ) -> None:
        target, draft = pair.target, pair.draft
        if not isinstance(target, SequenceModel) or not (draft is None or isinstance(draft, SequenceModel)):
            raise TypeError(f"call times of models that make tokens in turn, got family {pair.card.family}")
        self.draws, self.method, self.windows = draws, method, method.head_window
        self.path, self.dims = making.path(law, target.config.seq_len), target.config.token_dim
        self.ahead = min(DRAWN_AHEAD, self.path.tokens)
        self.image = torch.arange(len(labels), device=labels.device)
        tokens = decode(pair, law, Plain(head_window=self.windows), labels, self.draws).tokens
        self.states = self._handed_over(tokens, int(draws.seeds[0]))
        self.reader, self.head = making.reader(target, law, labels), LawHead(target.head, law)
        self.z = self._read(self.reader, 0, self.path.tokens)  # [G, B, N, Z], which also fills the cache
        if isinstance(method, Speculative) and draft is not None:
            self.draft_reader, self.draft_head = making.reader(draft, law, labels), LawHead(draft.head, law)
            self.draft_z = self._read(self.draft_reader, 0, self.path.tokens)

    def places(self) -> list[int]:
        """Where the calls are timed: from the first token to the last one at which a whole block begins."""
        gamma = self.method.gamma if isinstance(self.method, Speculative) else 0
        last = max(0, self.path.tokens - 1 - gamma)
        return sorted({round(share * last / (PLACES - 1)) for share in range(PLACES)})

    def whole(self) -> Calls:
        """Calls made once for all tokens of the batch."""
        image, token = self._block(0, self.path.tokens)
        path = self.path.at(0)
        row, k = torch.arange(len(token), device=token.device), torch.full_like(token, path.handoff)
        newest = self._bind(path, self.head, self.z, image, token).predict(row, k, self.states.flatten(0, 1)).x0
        canvas = Canvas(self.states, newest.view_as(self.states), self.z)

        def run(windows: tuple[int, ...]) -> Tensor:
            return finish(self.head, self.path, canvas, self.draws, windows, Meter(token.device))

        windowed: Calls = {"finish_windowed": partial(run, self.windows)} if self.windows else {}
        return {"finish": partial(run, ()), **windowed}

    def at(self, place: int) -> Calls:
        """Calls made for one token of every image, or for a block that begins there."""
        path = self.path.at(place)
        noise = self._noise(path, place, 1)
        calls: Calls = {
            "noise": lambda: self._noise(path, place, self.ahead),
            "context": lambda: self._read(self.reader, place, 1),
            "head": lambda: self._token_path(path, place, noise, ()),
        }
        if self.windows:
            calls["head_windowed"] = lambda: self._token_path(path, place, noise, self.windows)
        if isinstance(self.method, Speculative):
            calls |= self._of_a_round(path, place, self.method)
        return calls

    def _of_a_round(self, path: PathLaw, place: int, method: Speculative) -> Calls:
        image, token = self._block(place, max(1, method.gamma))
        noise = self._noise(path, place, max(1, method.gamma))
        trace = draft_walk(self._bind_draft(path, image, token), noise.start, path, noise, method.stride).trace
        first, one = self._block(place, 1), self._noise(path, place, 1)
        count = method.proposals
        many = (first[0].repeat_interleave(count), first[1].repeat_interleave(count))
        salt = 1 + torch.arange(count, device=token.device).repeat(len(self.image))

        def draft() -> None:
            z = self._read(self.draft_reader, place, 1)
            bound = self.draft_head.at(path.law).bind(z.flatten(0, 2), path.scale(first[1]))
            draft_walk(bound, one.start, path, one, method.stride)

        def verification() -> None:
            self._noise(path, place, method.gamma + 1)
            self._read(self.reader, place, method.gamma + 1)
            verify(self._bind(path, self.head, self.z, image, token), trace, path)

        def propose() -> None:
            normals, _ = self.draws.proposals(Purpose.PATH_PROPOSAL, *first, count, (1 + path.above) * self.dims)
            normals = normals.reshape(-1, 1 + path.above, self.dims)
            drawn = PathNoise(normals[:, 0], normals[:, 1:], path.handoff + 1)
            head_draws = HeadDraws(self.draws, many[0], many[1], salt, path.law.head_steps)
            bound = self._bind(path, self.head, self.z, *many)
            made = path_above(bound, path, drawn, head_draws, self.windows, trace=True).trace
            if made is not None:
                verify(self._bind_draft(path, *many), made, path, method.stride)

        return {"drafted": draft, "verification": verification, "residual": propose}

    def _handed_over(self, tokens_BND: Tensor, seed: int) -> Tensor:
        """The tokens with the noise they carry when they are handed over."""
        noise = torch.randn(tokens_BND.shape, generator=torch.Generator().manual_seed(seed)).to(tokens_BND.device)
        return self.path.at(0).handed_over(tokens_BND, noise)

    def _read(self, reader: ContextReader, place: int, count: int) -> Tensor:
        first = torch.full_like(self.image, place)
        return reader.read(previous_tokens(self.states, self.image, first, count), first)

    def _block(self, place: int, count: int) -> tuple[Tensor, Tensor]:
        """Image and token [R] of ``count`` tokens from ``place`` on, at most to the image's end, image-major."""
        token = torch.arange(place, min(place + count, self.path.tokens), device=self.image.device)
        return self.image.repeat_interleave(len(token)), token.repeat(len(self.image))

    def _noise(self, path: PathLaw, place: int, count: int) -> PathNoise:
        return noise_above(self.draws, *self._block(place, count), path, self.dims)

    def _bind(self, path: PathLaw, head: LawHead, z: Tensor, image_R: Tensor, token_R: Tensor) -> BoundHead:
        return head.at(path.law).bind(z[:, image_R, token_R].flatten(0, 1), path.scale(token_R))

    def _bind_draft(self, path: PathLaw, image_R: Tensor, token_R: Tensor) -> BoundHead:
        return self._bind(path, self.draft_head, self.draft_z, image_R, token_R)

    def _token_path(self, path: PathLaw, place: int, noise: PathNoise, windows: tuple[int, ...]) -> Path:
        image, token = self._block(place, 1)
        head_draws = window_draws(self.draws, image, token, path.law)
        return path_above(self._bind(path, self.head, self.z, image, token), path, noise, head_draws, windows)
