"""Mutants of plain decoding, MAR and causal, against the direct loop."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from spd_core.decode.path import BoundHead, PathNoise
from spd_core.draws import Draws, Purpose
from spd_core.families.causal import tokens as causal
from spd_core.families.causal.model import Causal
from spd_core.families.causal.naive import decode_causal_naive
from spd_core.families.causal.tokens import ContextReader, PathLaw, decode_causal_plain
from spd_core.families.mar import iterations as mar
from spd_core.families.mar.model import Mar
from spd_core.families.mar.naive import decode_mar_naive
from spd_core.families.mar.plain import decode_plain
from tests.spd_core.mutants.base import Decoder, Mutant
from tests.tiny_causal import LAW as CAUSAL_LAW
from tests.tiny_causal import tiny_causal
from tests.tiny_pair import LAW as MAR_LAW
from tests.tiny_pair import tiny_config, tiny_mar

GUIDED = {"cfg": 2.0, "temperature": 0.8}
CAUSAL = tuple(CAUSAL_LAW.model_copy(update=change) for change in ({}, GUIDED))
MAR = tuple(MAR_LAW.model_copy(update={**change, "head_steps": 12, "start_level": 960}) for change in ({}, GUIDED))


def _inputs() -> tuple[Tensor, Draws]:
    return torch.arange(3) - 1, Draws(torch.arange(3) + 5)


@cache
@torch.inference_mode()
def _direct(family: str) -> list[Tensor]:
    if family == "causal":
        return [decode_causal_naive(tiny_causal(), law, *_inputs()).tokens for law in CAUSAL]
    return [decode_mar_naive(_mar(), law, *_inputs()).tokens for law in MAR]


@torch.inference_mode()
def causal_is_the_direct_loop() -> None:
    for law, direct in zip(CAUSAL, _direct("causal"), strict=True):
        torch.testing.assert_close(
            decode_causal_plain(tiny_causal(), law, *_inputs()).tokens, direct, rtol=1e-3, atol=1e-3
        )


@torch.inference_mode()
def mar_is_the_direct_loop() -> None:
    for law, direct in zip(MAR, _direct("mar"), strict=True):
        tokens = decode_plain(_mar(), law, *_inputs()).tokens
        torch.testing.assert_close(tokens, direct, rtol=1e-3, atol=1e-3)


def _mar() -> Mar:
    """A model whose classes, and no class, are far apart."""
    model = tiny_mar(tiny_config(2))
    model.class_emb.weight.mul_(10)
    model.head.cond_embed.weight.mul_(30)
    return model


CHECKS = {"causal": causal_is_the_direct_loop, "mar": mar_is_the_direct_loop}


def _of_image_0(right):
    return lambda draws, image, *rest, **named: right(draws, torch.zeros_like(image), *rest, **named)


def _noise(right, start=lambda x: x, step=lambda x: x):
    def made(*given, **named):
        noise = right(*given, **named)
        return PathNoise(start(noise.start), step(noise.step), noise.offset)

    return made


def _finish_by_the_noise_above(right):
    def normals(self, purpose, image, token, count, round_R=0, attempt=0):
        return right(self, purpose, image, token, count, 0 if purpose is Purpose.STEP else round_R, attempt)

    return normals


MUTANTS = (
    Mutant("every image gets the first one's noise", causal, "noise_above", _of_image_0, "causal"),
    Mutant(
        "the context reads half of the token before",
        ContextReader,
        "read",
        lambda r: lambda self, previous, *rest, **named: r(self, previous / 2, *rest, **named),
        "causal",
    ),
    Mutant(
        "start noise is that of another token",
        causal,
        "noise_above",
        lambda r: lambda d, i, t, *x: PathNoise(r(d, i, t + 1, *x).start, r(d, i, t, *x).step, r(d, i, t, *x).offset),
        "causal",
    ),
    Mutant("step noise in reverse", causal, "noise_above", lambda r: _noise(r, step=lambda x: x.flip(1)), "causal"),
    Mutant(
        "temperature on the start noise", causal, "noise_above", lambda r: _noise(r, start=lambda x: x * 0.8), "causal"
    ),
    Mutant("half the step noise", causal, "noise_above", lambda r: _noise(r, step=lambda x: x / 2), "causal"),
    Mutant("noise below the hand-off is that above it", Draws, "normals", _finish_by_the_noise_above, "causal"),
    Mutant("handed over one step late", PathLaw, "handoff", lambda r: lambda self: r(self) - 1, "causal"),
    Mutant("handed over one step early", PathLaw, "handoff", lambda r: lambda self: r(self) + 1, "causal"),
    Mutant("guidance of the token after", PathLaw, "scale", lambda r: lambda self, at: r(self, at + 1), "causal"),
    Mutant(
        "constant guidance in place of linear",
        PathLaw,
        "scale",
        lambda r: lambda self, at: torch.full_like(r(self, at), self.law.cfg),
        "causal",
    ),
    Mutant("guidance squared", PathLaw, "scale", lambda r: lambda self, at: r(self, at) ** 2, "causal"),
    Mutant(
        "guidance the wrong way round",
        BoundHead,
        "guided",
        lambda r: lambda self, out, scale: r(self, out, -scale),
        "causal",
    ),
    Mutant(
        "no temperature",
        causal,
        "walk",
        lambda r: (
            lambda head, y, first, last, noise, *rest: r(
                head,
                y,
                first,
                last,
                PathNoise(noise.start, noise.step / head.at_law.law.temperature, noise.offset),
                *rest,
            )
        ),
        "causal",
    ),
    Mutant(
        "the mean forgets the state",
        causal,
        "walk",
        lambda r: lambda head, y, *rest, **named: r(head, 0.9 * y, *rest, **named),
        "causal",
    ),
    Mutant(
        "the class is another one",
        Causal,
        "forward",
        lambda r: lambda self, tokens, labels, *rest, **named: r(self, tokens, labels.clamp(max=0), *rest, **named),
        "causal",
    ),
    Mutant(
        "MAR: guidance of the iteration before",
        mar,
        "guidance_scale",
        lambda r: lambda law, n, masked: r(law, n, min(n, 2 * masked)),
        "mar",
    ),
    Mutant(
        "MAR: orders from the front",
        mar,
        "rows_of",
        lambda r: lambda order, left, masked: r(order.flip(1), left, masked),
        "mar",
    ),
    Mutant(
        "MAR: the learned variance is the lower bound",
        mar,
        "step_log_std",
        lambda r: lambda step, v: r(step, torch.full_like(v, -1.0)),
        "mar",
    ),
    Mutant(
        "MAR: the variance is guided too",
        mar,
        "guide",
        lambda r: lambda out, scale: torch.lerp(*out.chunk(2)[::-1], scale).chunk(2, dim=-1),
        "mar",
    ),
    Mutant(
        "MAR: one iteration more than asked for",
        mar,
        "mask_lengths",
        lambda r: lambda tokens, num_iter: r(tokens, num_iter + 1),
        "mar",
    ),
    Mutant(
        "MAR: the tokens made so far are read in another order",
        Mar,
        "forward",
        lambda r: lambda self, tokens, visible, *rest, **named: r(self, tokens.flip(1), visible, *rest, **named),
        "mar",
    ),
    Mutant(
        "MAR: the last step keeps its noise",
        mar,
        "step_mean",
        lambda r: lambda step, x, eps: r(step, x, eps) + 0.1 * step.noiseless,
        "mar",
    ),
)

DECODER = Decoder("plain", CHECKS, MUTANTS)
