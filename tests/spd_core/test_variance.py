"""Posterior variance: on Gaussian tokens the fit finds the truth; which steps count; runs, and pairs that have one."""

from __future__ import annotations

import hashlib
import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from spd_core.decode.path import LawHead
from spd_core.diffusion import TRAIN_STEPS, diffusion, step_table
from spd_core.families.mar import contexts as mar_contexts
from spd_core.families.mar import iterations as decode_mar
from spd_core.families.registry import family
from spd_core.law import SamplerLaw
from spd_core.models.head import DiffusionHead
from spd_core.models.variance import PosteriorVariance
from spd_core.pairs.pair import PairError, load_pair
from spd_core.train import variance as module
from spd_core.train.loop import train
from spd_core.train.variance import (
    VarianceRecipe,
    counted_steps,
    followings,
    load_variance,
    rejection,
    shifts,
    walk_paths,
)
from tests.spd_core.test_train import KilledError, _killed_at
from tests.tiny_causal import CONFIG, LAW, make_tiny_causal_pair, tiny_causal
from tests.tiny_pair import tiny_config, tiny_mar

FINE = LAW.model_copy(update={"head_steps": 30, "temperature": 0.8})
MAR = tiny_config()
GUIDED = SamplerLaw(num_iter=8, head_steps=30, cfg=3.0)
COMMON = {"steps": 6, "batch": 8, "warmup": 2, "images": 12, "tokens": 2}
ABAR = torch.from_numpy(diffusion(TRAIN_STEPS).alphas_cumprod).float()


class _GaussianHead(DiffusionHead):
    """Exact predictions of a token N(0.3, c Q diag(lambda) Q^T), c = exp(first entry of the context).

    An embedding is [timestep, log c] + 40, where SiLU is the identity.
    """

    def __init__(self, dims, learned, context):
        super().__init__(dims, 2, dims * (1 + learned), context, 1)
        generator = torch.Generator().manual_seed(4)
        self.q = torch.linalg.qr(torch.randn(dims, dims, generator=generator))[0]
        self.scales = torch.linspace(0.1, 1.5, dims)
        nn.init.zeros_(self.cond_embed.weight)
        self.cond_embed.weight.data[1, 0] = 0.5

    def step_embeddings(self, timesteps):
        return torch.stack([torch.tensor([float(t), 0.0]) for t in timesteps]) + 40

    def fused_modulation(self):
        return nn.Identity()

    def split_modulation(self, fused):
        return fused - 40

    def covariance(self, abar, log_c):
        """[..., D, D] of the token given a state."""
        scales = self.scales * log_c.exp()[..., None]
        posterior = scales * (1 - abar) / (abar * scales + 1 - abar)
        return self.q * posterior[..., None, :] @ self.q.T

    def apply_step(self, y, modulation):
        if len(modulation) > len(y):
            y = y.repeat(2, 1)
        abar = ABAR[modulation[:, 0].round().long(), None]
        to_x0 = self.covariance(abar, modulation[:, 1]) / (1 - abar)[..., None]
        x0 = 0.3 + (to_x0 @ ((abar.sqrt() * (y - abar.sqrt() * 0.3))[..., None]))[..., 0]
        if self.out_channels == len(y[0]):
            return (abar.sqrt() * y - x0) / (1 - abar).sqrt()
        eps = (y - abar.sqrt() * x0) / (1 - abar).sqrt()
        return torch.cat([eps, -torch.ones_like(eps)], dim=-1)  # the fixed variance


def _gaussian(family):
    if family == "causal":
        recipe, model = VarianceRecipe(model=CONFIG, law=FINE), tiny_causal()
        model.head = _GaussianHead(2, False, 16)
    else:
        recipe, model = VarianceRecipe(model=MAR, law=GUIDED), tiny_mar(MAR)
        model.diffloss.net = _GaussianHead(4, True, 16)
        model.head.cond_embed.weight.data.zero_()  # guidance moves nothing then
    recipe = recipe.model_copy(update={"images": 100, "tokens": 4, "steps": 250})
    recipe._model = model.requires_grad_(False)
    shape = (300, 4, 2) if family == "causal" else (300, 16, 4)
    generator = torch.Generator().manual_seed(0)
    return recipe, torch.randn(shape, generator=generator), torch.randint(0, 3, (300,), generator=generator)


@pytest.fixture(scope="module", params=["causal", "mar"])
def gaussian(request, tmp_path_factory):
    recipe, *data = _gaussian(request.param)
    fitted = load_variance(recipe, recipe.fit(*data, tmp_path_factory.mktemp("run")))
    return recipe, fitted, walk_paths(recipe, *data, np.random.default_rng(9))


def _truth(recipe, z):
    """[n, K, D, D]: what a unit of each step's noise moves the prediction, by the posterior covariance after it."""
    law, k = recipe.law, counted_steps(recipe)
    table, head = step_table(law.head_steps, law.start_level, torch.device("cpu")), recipe.frozen.head
    after = torch.tensor(table.timesteps)[k - 1]
    covariance = head.covariance(ABAR[after, None], head.cond_embed(z)[:, None, 1])
    return (law.temperature * table.c_x0[k] / table.fixed_std[k])[:, None, None] * covariance


def _gain(recipe, model, z):
    at_law, k = LawHead(recipe.frozen.head, recipe.law), counted_steps(recipe)
    levels = model.level_embeddings(torch.tensor(at_law.table.timesteps)[k])
    gains = at_law.gains(model, k, levels + model.condition(z)[:, None])
    return model.axes * gains[..., None, :] @ model.axes.T


def test_the_fit_finds_the_posterior_covariance(gaussian):
    recipe, fitted, paths = gaussian
    truth, found = _truth(recipe, paths.z), _gain(recipe, fitted, paths.z)
    weight = LawHead(recipe.frozen.head, recipe.law).shift_per_x0[counted_steps(recipe) - 1, None, None]

    def error(found):
        return float((weight * (found - truth)).norm() / (weight * truth).norm())

    assert error(found) < 0.08
    assert error(1.3 * found) > 0.2
    assert error(found.roll(5, dims=1)) > 0.2
    assert error(found[..., [*range(1, truth.shape[-1]), 0]]) > 0.2


def test_on_gaussian_tokens_all_movement_follows_from_the_noise(gaussian):
    recipe, fitted, paths = gaussian
    moves = (_truth(recipe, paths.z) @ paths.noise[..., None])[..., 0]
    assert (moves - paths.moved).abs().max() < 2e-3 * moves.abs().max()
    (whole,) = followings(fitted, recipe, paths, 1)
    assert whole.explained > 0.98
    assert whole.followed < 0.2 * whole.held
    colder = recipe.model_copy(update={"law": recipe.law.model_copy(update={"temperature": 0.5})})
    (wrong,) = followings(fitted, colder, paths, 1)
    assert wrong.explained < 0.95


def test_the_prior_mean_is_the_first_prediction(gaussian):
    _, fitted, paths = gaussian
    error = (fitted.prior_mean(paths.z) - paths.first).square().mean().sqrt()
    assert error < 0.3 * paths.first.square().mean().sqrt()


def test_shifts_are_the_rejection_of_the_coupling(gaussian):
    """A draw of the held transition is rejected as often as the two Gaussians differ."""
    shift = torch.tensor([0.5, 2.0])
    noise = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    log_ratio = (noise.square() - (noise + shift).square()) / 2
    assert torch.allclose(1 - log_ratio.exp().clamp(max=1).mean(dim=0), rejection(shift), atol=5e-3)
    recipe, _, paths = gaussian
    at_law, k = LawHead(recipe.frozen.head, recipe.law), counted_steps(recipe)
    expected = at_law.bind(paths.z, 1.0).shift(k - 1, paths.moved, torch.zeros(())).norm(dim=-1)
    torch.testing.assert_close(shifts(None, recipe, paths), expected, rtol=1e-4, atol=1e-4)


def test_steps_that_count():
    target, draft = VarianceRecipe(model=CONFIG, law=FINE), VarianceRecipe(model=CONFIG, law=FINE, draft=True)
    timesteps = step_table(30, 999, torch.device("cpu")).timesteps
    assert counted_steps(target).tolist() == list(range(29, 1, -1))
    last = int(counted_steps(draft)[-1])
    assert timesteps[last - 2] == min(timesteps, key=lambda t: abs(t - FINE.handoff_level))
    of_mar = counted_steps(VarianceRecipe(model=MAR, law=SamplerLaw(num_iter=8, head_steps=100)))
    assert of_mar.tolist() == list(range(96, 1, -1)), "the singular steps are made alone"


def test_masks_are_those_of_decoding():
    model = tiny_mar(MAR)
    lengths = [16, *decode_mar.mask_lengths(16, 8)]
    seen, original = [], decode_mar.contexts

    def recorded(model, law, tokens, visible, labels, counts):
        seen.append((visible, counts))
        return original(model, law, tokens, visible, labels, counts)

    rng, made = np.random.default_rng(0), []
    with patch.object(mar_contexts, "contexts", recorded), torch.inference_mode():
        tokens = torch.randn(2000, 16, 4)
        labels = torch.zeros(2000, dtype=torch.int64)
        given = module.token_contexts(family("mar"), model, GUIDED, 2, module.Images(tokens, labels), rng)
        for batch, (z, scale) in enumerate(given):
            visible, counts = seen[batch]
            iteration = torch.tensor([lengths.index(16 - int(count)) for count in counts])
            left = torch.tensor(lengths)[iteration + 1]
            assert scale[::2, 0].tolist() == pytest.approx((1 + 2 * (16 - left) / 16).tolist())
            alone = original(model, GUIDED, tokens[batch * 32, None], visible[0, : counts[0], None].T,
                             torch.zeros(1, dtype=torch.int64))  # fmt: skip
            masked = sorted(set(range(16)) - set(visible[0, : counts[0]].tolist()))
            for half, of in ((z[: len(scale)], alone.cond), (z[len(scale) :], alone.null)):
                gap = (half[:2, None] - of[0, masked]).abs().amax(dim=-1).amin(dim=1)
                assert gap.max() < 1e-4, "a row is that of a masked token, given exactly the visible ones"
            made += iteration.tolist()
    share = np.bincount(made, minlength=8) / len(made)
    expected = -np.diff([*lengths[:-1], 0]) / 16
    assert np.abs(share - expected).max() < 0.03


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for seed in (0, 1):
        save_file(tiny_causal(seed=seed).state_dict(), folder / f"{seed}.safetensors")
    return folder


def _data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 4, 2, generator=generator), torch.arange(24) % 3


def test_a_resumed_run_is_the_same_run(weights, tmp_path):
    recipe = VarianceRecipe(model=CONFIG, law=LAW, **COMMON).given(weights / "0.safetensors")
    whole = load_file(recipe.fit(*_data(), tmp_path / "whole", save_every=2))
    with _killed_at(4), pytest.raises(KilledError):
        recipe.fit(*_data(), tmp_path / "cut", save_every=2)
    again = VarianceRecipe(model=CONFIG, law=LAW, **COMMON).given(weights / "0.safetensors")
    resumed = load_file(again.fit(*_data(), tmp_path / "cut", save_every=2))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = recipe.build().state_dict()
    assert any(not torch.equal(whole[name], start[name].half()) for name in whole)


def test_a_run_goes_on_with_its_own_weights_only(weights, tmp_path):
    recipe = VarianceRecipe(model=CONFIG, law=LAW, **COMMON)
    recipe.given(weights / "0.safetensors").fit(*_data(), tmp_path)
    with pytest.raises(ValueError, match=r"another one.*\(model_sha256\)"):
        recipe.given(weights / "1.safetensors").fit(*_data(), tmp_path)


def test_weights_that_do_not_fit_are_refused(weights):
    recipe = VarianceRecipe(model=CONFIG, law=LAW, **COMMON)
    with pytest.raises(ValueError, match="weights: got none"):
        recipe.build()
    with pytest.raises(ValueError, match="weights: got none"):
        train(recipe, torch.zeros(24, 1), torch.zeros(24), weights / "none")
    with pytest.raises(ValueError, match="does not fit"):
        VarianceRecipe(model=MAR, law=LAW, **COMMON).given(weights / "0.safetensors")
    with pytest.raises(TypeError):
        recipe.loss(nn.Linear(1, 1), *_data(), np.random.default_rng(0))


@pytest.fixture
def folder(tmp_path):
    folder = make_tiny_causal_pair(tmp_path / "pair")
    card = json.loads((folder / "pair.json").read_text())
    for part in ("target_variance", "draft_variance"):
        raw = save({name: value.contiguous() for name, value in PosteriorVariance(4, 16).state_dict().items()})
        (folder / f"{part}.safetensors").write_bytes(raw)
        card["sha256"][part] = hashlib.sha256(raw).hexdigest()
    (folder / "pair.json").write_text(json.dumps(card))
    return folder


def test_a_pair_may_have_variances(folder, tmp_path):
    pair = load_pair(str(folder))
    for part, model in (("target_variance", pair.target.head.variance), ("draft_variance", pair.draft.head.variance)):
        saved = load_file(folder / f"{part}.safetensors")
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
        assert not any(p.requires_grad for p in model.parameters())
    variance = pair.target.head.variance
    assert variance.relative(variance.condition(torch.randn(3, 16))).shape == (3, 8)
    alone = load_pair(str(folder), draft=False)
    assert alone.target.head.variance is not None and alone.draft is None
    without = load_pair(str(make_tiny_causal_pair(tmp_path / "without")))
    assert without.target.head.variance is None and without.draft.head.variance is None


@pytest.mark.parametrize("part", ["target_variance", "draft_variance"])
def test_a_variance_that_is_not_the_cards_is_refused(folder, part):
    path = folder / f"{part}.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(PairError, match=rf"{part}.safetensors has sha256 .*allowed: .*\(its card\)$"):
        load_pair(str(folder))
    path.unlink()
    with pytest.raises(PairError, match=f"cannot read .*{part}"):
        load_pair(str(folder))


def test_a_variance_of_other_sizes_is_refused(folder):
    raw = save({name: value.contiguous() for name, value in PosteriorVariance(4, 8).state_dict().items()})
    (folder / "target_variance.safetensors").write_bytes(raw)
    card = json.loads((folder / "pair.json").read_text())
    card["sha256"]["target_variance"] = hashlib.sha256(raw).hexdigest()
    (folder / "pair.json").write_text(json.dumps(card))
    with pytest.raises(PairError, match="does not fit its card"):
        load_pair(str(folder))
