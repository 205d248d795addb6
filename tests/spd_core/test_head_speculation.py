"""Head self-speculation with a learned variance and a noiseless last step: the MAR head."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from scipy import stats
from torch import nn

from spd_core.decode import decode, head_speculation
from spd_core.decode import path as path_module
from spd_core.decode.path import BoundHead, HeadDraws, LawHead, PathNoise, steps_down, windows_by_step
from spd_core.diffusion import diffusion, step_log_std, step_mean
from spd_core.draws import Draws, Purpose
from spd_core.law import Cspd, Plain, SamplerLaw
from spd_core.models.head import DiffusionHead
from spd_core.pairs.pair import load_pair
from tests.tiny_pair import make_tiny_pair
from tests.two_samples import energy_p_value, marginal_p_value

ROWS = 20_000
LAW = SamplerLaw(head_steps=12, start_level=960)
SINGULAR = LAW.model_copy(update={"start_level": 999, "temperature": 0.8})


class AnalyticHead(LawHead):
    """The eps of data N(0.5, 0.3^2), with a variance that swings with the state; its embedding of a step is abar."""

    def __init__(self, law):
        super().__init__(DiffusionHead(2, 1, 4, 1, 1).requires_grad_(False), law)
        nn.init.zeros_(self.head.cond_embed.weight)
        self.step_embeddings = self.table.signal.square()[:, None]

    def modulate(self, embedding):
        return embedding

    def evaluate(self, y, abar):
        eps = (1 - abar).sqrt() * (y - abar.sqrt() * 0.5) / (abar * 0.09 + 1 - abar)
        return torch.cat([eps, 2 * torch.tanh(1.5 * y)], dim=-1)


def _plain(law, seed=0):
    """The reference: one head call a step, in a loop of its own."""
    head, generator = AnalyticHead(law), torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 2, generator=generator)
    process = diffusion(law.head_steps, law.start_level)
    for step in process.path:
        eps, v = head.evaluate(x, head.step_embeddings[step.k]).chunk(2, dim=-1)
        x = step_mean(step, x, eps)
        if not step.noiseless:
            noise = torch.randn(ROWS, 2, generator=generator)
            x = x + step_log_std(step, v).exp() * law.temperature * noise
    return x


def _windowed(law, windows, count=ROWS):
    rows, zeros = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    draws = Draws(rows + 10**6)
    noise = PathNoise(
        draws.normals(Purpose.START, rows, zeros, 2),
        draws.normals(Purpose.STEP, rows, zeros, law.head_steps * 2).view(count, -1, 2),
    )
    bound = AnalyticHead(law).bind(torch.zeros(count, 1), 1.0)
    head_draws = HeadDraws(draws, rows, zeros, zeros, law.head_steps)
    return head_speculation.speculate_head(bound, law.head_steps - 1, 0, noise, head_draws, windows)


def test_a_path_does_not_depend_on_how_many_proposals_are_held():
    law = LAW.model_copy(update={"head_steps": 40})
    with patch.object(path_module, "PROPOSALS", 8), patch.object(head_speculation, "PROPOSALS", 8):
        few, _ = _windowed(law, (10,), count=16)
        many, _ = _windowed(law, (10,), count=200)
    assert torch.allclose(few.end, many.end[:16], atol=1e-4)


@pytest.mark.parametrize("law", [LAW, SINGULAR], ids=["from 960", "from 999"])
@pytest.mark.parametrize("windows", [(4, 3), (1,), (12,)], ids=str)
def test_learned_variances_keep_the_law(law, windows):
    path, log_stds = _windowed(law, windows)
    plain = _plain(law)
    assert marginal_p_value(plain, path.end) > 1e-3
    assert energy_p_value(plain[:2000], path.end[:2000]) > 1e-3
    assert log_stds.total.isfinite().all()
    if windows == (1,):
        assert path.calls == law.head_steps
        assert path.rows == law.head_steps * ROWS
    else:
        assert path.rows > law.head_steps * ROWS


def test_reflection_with_learned_variances_is_caught():
    """The mutant couples by reflection although the held and the true transition differ in their stds."""
    right = BoundHead.shift
    # At the noiseless step the shift would be infinite; the step is taken from the true prediction anyway.
    with (
        patch.object(BoundHead, "equal_stds", True),
        patch.object(BoundHead, "shift", lambda *a: right(*a).nan_to_num(0.0, 0.0, 0.0)),
    ):
        path, _ = _windowed(LAW, (12,))
    assert path.end.isfinite().all()
    assert marginal_p_value(_plain(LAW), path.end) < 1e-6


def test_a_capped_residual_is_caught():
    def capped(rows, propose):
        values, log_ratio, uniforms = propose(rows, 0)
        kept = -torch.expm1((-log_ratio).clamp(max=0.0)) > uniforms
        kept[:, 1:] = False
        return values[torch.arange(len(rows)), kept.to(torch.uint8).argmax(dim=1)]

    with patch.object(head_speculation, "sample_residual", capped):
        path, _ = _windowed(LAW, (4, 3))
    assert marginal_p_value(_plain(LAW), path.end) < 1e-6


def test_proposals_used_twice_are_caught():
    """The mutant begins with a path's first proposal again at each rejection."""
    residuals = head_speculation._Residuals
    right = residuals.draw

    def from_the_first(self, *rejected):
        self.used.zero_()
        return right(self, *rejected)

    with patch.object(residuals, "draw", from_the_first):
        path, _ = _windowed(LAW, (12,))
    assert marginal_p_value(_plain(LAW), path.end) < 1e-6


class _Wider(AnalyticHead):
    """A head that says a variance far above the held one."""

    def evaluate(self, y, abar):
        return torch.cat([super().evaluate(y, abar)[:, :2], torch.ones_like(y)], dim=-1)


def _one_step(count=50_000):
    """Smallest p-value of one step's noise, made from a held prediction of another mean and std, against N(0, 1)."""
    rows, zeros, k = torch.arange(count), torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.int64)
    draws, y = Draws(rows + 10**6), torch.full((count, 2), 0.3)
    step = draws.normals(Purpose.STEP, rows, zeros, LAW.head_steps * 2).view(count, -1, 2)
    bound = _Wider(LAW).bind(torch.zeros(count, 1), 1.0)
    head_draws = HeadDraws(draws, rows, zeros, zeros, LAW.head_steps)
    path, _ = head_speculation.speculate_head(
        bound, 1, 1, PathNoise(y, step), head_draws, (4,), held_x0_RD=torch.full((count, 2), 0.45)
    )
    true = bound.predict(rows, k, y)
    noise = (path.end - bound.mean(k, true.x0, y)) / bound.std(k, true.v)
    tests = [(noise[:, 0], stats.norm), (noise[:, 1], stats.norm), (noise.square().sum(dim=1), stats.chi2(2))]
    return min(stats.kstest(values.numpy(), law.cdf).pvalue for values, law in tests)


def test_one_step_from_another_mean_and_std_has_its_law():
    assert _one_step() > 1e-3


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_wrong_scale_in_the_residual_is_caught(factor):
    residuals = head_speculation._Residuals
    right = residuals.draw

    def scaled(self, row, shift, log_scale):
        return right(self, row, shift, factor * log_scale)

    with patch.object(residuals, "draw", scaled):
        assert _one_step() < 1e-6


def test_the_fused_modulation_is_that_of_the_head():
    head = DiffusionHead(3, 16, 6, 5, 2)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    y, t, z = torch.randn(7, 3), torch.tensor([0, 5, 90, 300, 301, 800, 999]), torch.randn(7, 5)
    with torch.inference_mode():
        law_head = LawHead(head, SamplerLaw(head_steps=1000))
        out = law_head.evaluate(y, law_head.modulate(law_head.step_embeddings[t] + head.cond_embed(z)))
        assert torch.allclose(out, head(y, t, z), rtol=1e-4, atol=1e-4)


def test_a_trace_is_the_path():
    rows, zeros = torch.arange(50), torch.zeros(50, dtype=torch.int64)
    law, draws = SamplerLaw(head_steps=8), Draws(rows)
    head = LawHead(DiffusionHead(2, 8, 2, 3, 1), law)
    for parameter in head.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    noise = PathNoise(
        draws.normals(Purpose.START, rows, zeros, 2), draws.normals(Purpose.STEP, rows, zeros, 16).view(50, 8, 2)
    )
    with torch.inference_mode():
        bound = LawHead(head.head, law).bind(torch.randn(50, 3), 1.0)
        path, _ = head_speculation.speculate_head(
            bound, 7, 2, noise, HeadDraws(draws, rows, zeros, zeros, 8), (3,), trace=True
        )
        k = steps_down(7, 2, path.end.device)
        made = bound.mean(k, path.trace.x0, path.trace.states) + bound.std(k, None) * path.trace.noise
    assert torch.allclose(made[:, :-1], path.trace.states[:, 1:], atol=1e-4)
    assert torch.allclose(made[:, -1], path.end, atol=1e-4)
    assert torch.equal(path.x0, path.trace.x0[:, -1])


def test_windows_cut_the_path_into_equal_slices():
    assert windows_by_step((5, 3), 8, torch.device("cpu")).tolist() == [3, 3, 3, 3, 5, 5, 5, 5]
    assert windows_by_step((7,), 3, torch.device("cpu")).tolist() == [7, 7, 7]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    make_tiny_pair(folder)
    return load_pair(str(folder))


@pytest.mark.parametrize(
    "method",
    [
        Plain(head_window=(4, 2)),
        Cspd(gamma=3, head_window=(4, 2)),
        Cspd(variant="paper", gamma=3, aligned=False, head_window=(3,)),
    ],
    ids=["plain", "released", "paper"],
)
def test_every_mar_decoder_takes_windows(pair, method):
    law = SamplerLaw(num_iter=8, head_steps=12, start_level=900, cfg=2.0)
    labels, draws = torch.arange(4) % 3, Draws(torch.arange(4))
    together = decode(pair, law, method, labels, draws)
    without = decode(pair, law, method.model_copy(update={"head_window": ()}), labels, draws)
    assert torch.isfinite(together.tokens).all()
    assert together.counts["target_head_calls"] < without.counts["target_head_calls"]
    alone = torch.cat([decode(pair, law, method, labels[i : i + 1], Draws(torch.tensor([i]))).tokens for i in range(4)])
    assert torch.allclose(together.tokens, alone, atol=1e-3)
