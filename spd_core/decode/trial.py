"""Measures how fast a method decodes, from a part of the work where the whole would take too long.

Plain and speculative decoders ask for the start noise of a token's path before they make the token, and once more if
its draft was discarded. So a `Draws` that counts these requests knows how far the decoding is, and can stop it. CSpD
cannot be stopped, for half an image may be drafted before the target sees any of it. Nor can decoders of codes, which
draw all of an image's random numbers at its start.

Shape legend: n images of the trial, N tokens of an image, R rows of one request for noise.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from spd_core.decode import decode
from spd_core.draws import Draws, Purpose
from spd_core.law import Choice, Null, SamplerLaw, Speculative
from spd_core.pairs.pair import Pair


@dataclass(frozen=True)
class Trial:
    """How many images were made, and in how many seconds."""

    images: float  #: an image that was cut off counts by the share of its tokens that was made
    seconds: float
    whole: bool = True  #: no image was cut off

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


class OutOfTime(Exception):
    """The time of the trial is up. It is no error."""


class Stopwatch(Draws):
    """Draws that count the tokens made. They raise `OutOfTime` once the time is up and at least one token is made.

    Args:
        seeds_n: int64 image seeds.
        tokens: N.
        until: `time.perf_counter` at which the time is up.
    """

    def __init__(self, seeds_n: Tensor, tokens: int, until: float) -> None:
        super().__init__(seeds_n)
        self.made = 0  #: tokens decided at the newest request
        self.at = time.perf_counter()  #: when that was
        self._until = until
        # The last column is for the padding of speculative decoding, which draws past an image's end.
        self._asked = torch.zeros(len(seeds_n), tokens + 1, dtype=torch.bool, device=seeds_n.device)

    def normals(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int,
        round_R: Tensor | int = 0,
        attempt: Tensor | int = 0,
    ) -> Tensor:
        """As `Draws.normals`.

        Raises:
            OutOfTime: see the class.
        """
        if purpose is Purpose.START:
            self._listen(image_R, token_R)
        return super().normals(purpose, image_R, token_R, count, round_R, attempt)

    def _listen(self, image_R: Tensor, token_R: Tensor) -> None:
        at = (image_R, token_R.clamp(max=self._asked.shape[1] - 1))
        self._asked[at] = False
        # Reading the number waits for a GPU, so the time is taken after it.
        self.made = int(self._asked[:, :-1].sum())
        self.at = time.perf_counter()
        self._asked[at] = True
        if self.made and self.at > self._until:
            raise OutOfTime


def try_out(pair: Pair, law: SamplerLaw, choice: Choice, labels_n: Tensor, seeds_n: Tensor, limit_s: float) -> Trial:
    """Decodes images as a worker would, until all are made or the time is up; a first part is made in any case.

    Args:
        pair: loaded models.
        law: what is sampled.
        choice: method and batch.
        labels_n, seeds_n: int64 labels and seeds of the images, on the pair's device.
        limit_s: seconds.

    Raises:
        ValueError: the method makes no tokens, or has no decoder for this pair.
    """
    method, tokens = choice.method, pair.card.target.seq_len
    if isinstance(method, Null):
        raise ValueError("method: got 'null', allowed: a method that makes tokens")
    # Speculative decoding refills its slots from all images; the others take one batch after another.
    size, slots = (len(labels_n), choice.batch) if isinstance(method, Speculative) else (choice.batch, None)
    began, images = time.perf_counter(), 0
    until = began + limit_s if method.name in pair.card.of.stoppable else math.inf
    for labels, seeds in zip(labels_n.split(size), seeds_n.split(size), strict=True):
        draws = Stopwatch(seeds, tokens, until)
        try:
            decode(pair, law, method, labels, draws, slots)
        except OutOfTime:
            return Trial(images + draws.made / tokens, draws.at - began, whole=False)
        images += len(labels)
        if pair.device.type == "cuda":
            torch.cuda.synchronize(pair.device)
        if time.perf_counter() - began > limit_s:
            break
    return Trial(images, time.perf_counter() - began)
