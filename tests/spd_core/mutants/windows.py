"""Mutants of head self-speculation: equal and learned variances."""

from __future__ import annotations

from functools import cache

import torch
from scipy import stats
from torch import Tensor

from spd_core.accept import lemma
from spd_core.decode import head_speculation
from spd_core.decode.path import BoundHead, HeadDraws, LawHead, PathNoise
from spd_core.draws import Draws, Purpose
from spd_core.families.causal.tokens import decode_causal_plain
from tests.spd_core.mutants.base import Decoder, Mutant
from tests.spd_core.test_head_speculation import LAW as LEARNED_LAW
from tests.spd_core.test_head_speculation import _one_step, _plain, _windowed
from tests.tiny_causal import CONFIG, LAW, tiny_causal
from tests.two_samples import energy_p_value, marginal_p_value

IMAGES = 20_000
ONE = CONFIG.model_copy(update={"img_size": 1})
GUIDED = LAW.model_copy(update={"head_steps": 16, "cfg": 2.0, "temperature": 0.9})


@cache
def _of_plain() -> tuple[Tensor, Tensor]:
    return _tokens(()), _plain(LEARNED_LAW)


@torch.inference_mode()
def _tokens(windows: tuple[int, ...]) -> Tensor:
    labels, draws = torch.zeros(IMAGES, dtype=torch.int64), Draws(torch.arange(IMAGES) + 10**6 * len(windows))
    return decode_causal_plain(tiny_causal(ONE), GUIDED, labels, draws, windows).tokens[:, 0]


def _one_law(plain: Tensor, fast: Tensor) -> None:
    assert marginal_p_value(plain, fast) > 1e-5
    assert energy_p_value(plain[:2000], fast[:2000]) > 0.005


def equal_variances_keep_the_law() -> None:
    _one_law(_of_plain()[0], _tokens((5, 3)))


def learned_variances_keep_the_law() -> None:
    _one_law(_of_plain()[1], _windowed(LEARNED_LAW, (4, 3))[0].end)


def one_step_has_its_law() -> None:
    assert _one_step(20_000) > 1e-5


@torch.inference_mode()
def one_step_of_equal_stds_has_its_law() -> None:
    """One step from a held prediction that is off by a known amount: its noise under the true one is N(0, 1)."""
    count, k = IMAGES, 4
    rows, zeros = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    head = LawHead.of(tiny_causal(ONE).head, LAW)
    bound = head.bind(torch.ones(count, ONE.embed_dim), 1.0)
    y = torch.full((count, 2), 0.3)
    at = torch.full((count,), k)
    true = bound.predict(rows, at, y).x0
    held = true + 0.8 / float(head.shift_per_x0[k]) * torch.tensor([1.0, -0.5])
    draws = Draws(rows + 10**6)
    noise = PathNoise(y, draws.normals(Purpose.STEP, rows, zeros, LAW.head_steps * 2).view(count, -1, 2))
    path, _ = head_speculation.speculate_head(
        bound, k, k, noise, HeadDraws(draws, rows, zeros, zeros, LAW.head_steps), (3,), held_x0_RD=held
    )
    made = (path.end - bound.mean(at, true, y)) / bound.std(at, None)
    assert min(stats.kstest(made[:, i].numpy(), "norm").pvalue for i in range(2)) > 1e-5


def numbers_of_steps_are_independent() -> None:
    rows, zeros = torch.arange(4000), torch.zeros(4000, dtype=torch.int64)
    uniforms = HeadDraws(Draws(rows), rows, zeros, zeros, 8).uniforms()
    assert (uniforms.T.corrcoef() - torch.eye(8)).abs().max() < 0.08
    assert stats.kstest(uniforms.flatten().numpy(), "uniform").pvalue > 1e-5


CHECKS = {
    "equal step": one_step_of_equal_stds_has_its_law,
    "numbers": numbers_of_steps_are_independent,
    "equal": equal_variances_keep_the_law,
    "learned": learned_variances_keep_the_law,
    "one step": one_step_has_its_law,
}


def _always(right):
    def reflect(noise, shift, uniform):
        _, result = right(noise, shift, torch.zeros_like(uniform))
        return torch.ones(noise.shape[:-1], dtype=torch.bool), result

    return reflect


def _held_noise(right):
    def reflect(noise, shift, uniform):
        accepted, result = right(noise, shift, uniform)
        return accepted, torch.where(accepted[..., None], noise, result)

    return reflect


def _unmirrored(right):
    def reflect(noise, shift, uniform):
        accepted, result = right(noise, shift, uniform)
        return accepted, torch.where(accepted[..., None], result, noise)

    return reflect


def _shifted_mirror(right):
    def reflect(noise, shift, uniform):
        accepted, result = right(noise, shift, uniform)
        return accepted, torch.where(accepted[..., None], result, result + shift)

    return reflect


def _fresh_for_everything(right):
    def reflect(noise, shift, uniform):
        accepted, result = right(noise, shift, uniform)
        return accepted, torch.where(accepted[..., None], result, result.roll(1, 0))

    return reflect


def _first(rows, propose):
    return propose(rows, 0)[0][:, 0]


MUTANTS = (
    Mutant("every step is accepted", head_speculation, "reflect", _always, "equal"),
    Mutant(
        "an accepted step keeps the held prediction's noise", head_speculation, "reflect", _held_noise, "equal step"
    ),
    Mutant("a rejected step is not mirrored", head_speculation, "reflect", _unmirrored, "equal"),
    Mutant("the mirror image is shifted too", head_speculation, "reflect", _shifted_mirror, "equal"),
    Mutant(
        "a rejected step takes another row's mirror image", head_speculation, "reflect", _fresh_for_everything, "equal"
    ),
    Mutant(
        "means compared the wrong way round",
        head_speculation,
        "reflect",
        lambda r: lambda noise, shift, u: r(noise, -shift, u),
        "equal",
    ),
    Mutant("shift in half stds", BoundHead, "shift", lambda r: lambda self, *a, **k: r(self, *a, **k) / 2, "equal"),
    Mutant(
        "the square root of the ratio",
        head_speculation,
        "reflect",
        lambda r: lambda noise, shift, u: r(noise, shift, u**2),
        "equal",
    ),
    Mutant(
        "one uniform for all steps of a path",
        HeadDraws,
        "uniforms",
        lambda r: lambda self: r(self)[:, :1].expand(-1, self.steps),
        "numbers",
    ),
    Mutant(
        "a round ends one step after its first rejection",
        head_speculation,
        "num_accepted",
        lambda r: lambda accepted: (r(accepted) + 1).clamp(max=accepted.shape[1]),
        "equal",
    ),
    Mutant(
        "rejections are passed over",
        head_speculation,
        "num_accepted",
        lambda r: lambda accepted: torch.full_like(r(accepted), accepted.shape[1]),
        "equal",
    ),
    Mutant(
        "the roll forgets the noise's share of the way",
        BoundHead,
        "roll",
        lambda r: lambda self, k, y, x0, noise: r(self, k, y, x0, 0.8 * noise),
        "equal",
    ),
    Mutant(
        "true means from another row's context",
        BoundHead,
        "predict",
        lambda r: lambda self, row, k, y: r(self, row, k, 0.95 * y),
        "equal",
    ),
    Mutant(
        "learned: every step is accepted",
        head_speculation,
        "accept",
        lambda r: lambda ratio, u: torch.ones_like(u, dtype=torch.bool),
        "learned",
    ),
    Mutant(
        "learned: a rejected step takes a sample of p", head_speculation, "sample_residual", lambda r: _first, "learned"
    ),
    Mutant(
        "learned: the ratio without its stds",
        head_speculation,
        "change_noise",
        lambda r: lambda n, s, g: (r(n, s, g)[0], r(n, s, g)[1] - g.sum(dim=-1)),
        "one step",
    ),
    Mutant(
        "learned: noise not rescaled",
        head_speculation,
        "change_noise",
        lambda r: lambda n, s, g: (n + s, r(n, s, g)[1]),
        "one step",
    ),
    Mutant(
        "learned: scale inverted", head_speculation, "change_noise", lambda r: lambda n, s, g: r(n, s, -g), "one step"
    ),
    Mutant(
        "learned: accepted by q/p, not by the residual", lemma.torch, "expm1", lambda r: lambda x: -x.exp(), "one step"
    ),
    Mutant(
        "learned: the residual's shift has the other sign",
        head_speculation._Residuals,
        "draw",
        lambda r: lambda self, row, shift, scale: r(self, row, -shift, scale),
        "one step",
    ),
    Mutant(
        "learned: the residual's scale is q over p",
        head_speculation._Residuals,
        "draw",
        lambda r: lambda self, row, shift, scale: r(self, row, shift, -scale),
        "one step",
    ),
    Mutant(
        "learned: the held variance counts as the true one",
        BoundHead,
        "std",
        lambda r: lambda self, k, v: r(self, k, None if v is None else 0.5 * v),
        "learned",
    ),
)

DECODER = Decoder("windows (head self-speculation)", CHECKS, MUTANTS)
