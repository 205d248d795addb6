"""Distillation: its loss is the path KL of the decoders, and a draft that learns it is accepted more often."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spd_core.decode.path import BoundHead, LawHead
from spd_core.diffusion import diffusion, step_table
from spd_core.draws import Draws
from spd_core.families.causal import distil
from spd_core.families.causal.acceptance import teacher_forced
from spd_core.families.causal.distil import DistilRecipe, anchors, loss_of
from spd_core.families.causal.model import Causal, CausalConfig
from spd_core.families.causal.recipe import handed_over
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import PathLaw, noise_above
from spd_core.families.causal.verification import draft_walk
from spd_core.law import Speculative
from spd_core.quality.intervals import mean_interval
from spd_core.train.loop import train
from spd_core.train.weights import fitted, read_weights
from tests.spd_core.test_train import KilledError, _killed_at
from tests.tiny_causal import CONFIG, LAW, fitted_causal, perturbed, tiny_causal

FINE = LAW.model_copy(update={"head_steps": 16})
COMMON = {"model": CONFIG, "target": CONFIG, "law": FINE, "stride": 3, "batch": 64, "warmup": 4, "bf16": False}


def _walks(count, seed=5):
    """Tokens of the kind that `fitted_causal` fits."""
    rng = np.random.default_rng(seed)
    walk = torch.from_numpy(rng.standard_normal((count, 4, 2), dtype=np.float32)).cumsum(dim=1) * 0.5
    return walk.tanh() * 2, torch.zeros(count, dtype=torch.int64)


@pytest.fixture(scope="module")
def pair():
    return fitted_causal(0, 200), fitted_causal(1, 60)


@pytest.fixture(scope="module")
def files(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for part, model in zip(("target", "draft"), pair, strict=True):
        save_file(model.state_dict(), folder / f"{part}.safetensors")
    return folder / "target.safetensors", folder / "draft.safetensors"


@pytest.mark.parametrize("stride", [1, 3, 5, 40])
def test_anchors_are_where_the_draft_calls_its_head(pair, stride):
    called, predict = [], BoundHead.predict

    def recorded(self, row_M, k_M, y_MD):
        called.append(int(k_M[0]))
        return predict(self, row_M, k_M, y_MD)

    path, rows = PathLaw(FINE, 4), torch.arange(3)
    noise = noise_above(Draws(torch.arange(3)), rows, rows, path, 2)
    with patch.object(BoundHead, "predict", recorded), torch.inference_mode():
        draft_walk(LawHead(pair[1].head, FINE).bind(torch.zeros(3, 16), 1.0), noise.start, path, noise, stride)
    assert anchors(FINE, stride)[0].tolist() == called


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_weights_are_growths_of_the_signal_to_noise_ratio(stride):
    abar = diffusion(FINE.head_steps, FINE.start_level).alphas_cumprod
    ratio = abar / (1 - abar)
    k, weight = anchors(FINE, stride)
    ends = [*k[1:].tolist(), PathLaw(FINE, 4).handoff]
    assert weight.tolist() == pytest.approx([ratio[end] - ratio[at] for at, end in zip(k, ends, strict=True)], rel=1e-4)
    cold = anchors(FINE.model_copy(update={"temperature": 0.5}), stride)[1]
    assert torch.allclose(cold, 4 * weight)


@pytest.mark.parametrize("stride", [1, 4, 15])
def test_holding_adds_a_constant_to_the_path_kl(stride):
    """On Gaussian data everything has a closed form: two drafts' path KLs differ as the anchors' losses do."""
    law = LAW.model_copy(update={"head_steps": 40})
    abar = diffusion(law.head_steps, law.start_level).alphas_cumprod
    signal, noise, variance = np.sqrt(abar), 1 - abar, 0.7
    square = abar * variance + noise  # E y_k^2
    gain = signal * variance / square  # the posterior mean of x0 is gain * y_k
    k_A, weight_A = (column.double().numpy() for column in anchors(law, stride))
    k_A = k_A.astype(int)
    steps = np.arange(law.head_steps - 1, PathLaw(law, 1).handoff, -1)
    held_at = k_A[(law.head_steps - 1 - steps) // stride]
    weight = anchors(law, 1)[1].double().numpy()

    def path_kl(draft):
        cross = signal[held_at] / signal[steps] * square[steps]  # E y_a y_k: y_a is y_k, faded and noised
        gap = gain[steps] ** 2 * square[steps] - 2 * gain[steps] * draft[held_at] * cross
        return (weight * (gap + draft[held_at] ** 2 * square[held_at])).sum() / 2

    def loss(draft):
        return (weight_A * (gain - draft)[k_A] ** 2 * square[k_A]).sum() / 2

    drafts = [gain * factor for factor in (1.0, 0.8, 1.3)]
    assert loss(drafts[0]) == 0
    constants = [path_kl(draft) - loss(draft) for draft in drafts]
    assert constants == pytest.approx([constants[0]] * 3, rel=1e-4)
    assert (constants[0] > 1e-3) == (stride > 1)


@torch.inference_mode()
def _brute_force(pair, law, stride, tokens, labels):
    """The path KL on noised data by the decoders' own arithmetic, the target asked at the draft's anchors."""
    rng, path = np.random.default_rng(99), PathLaw(law, tokens.shape[1])
    table = step_table(law.head_steps, law.start_level, tokens.device)
    previous = handed_over(tokens, table.timesteps[path.handoff], rng).roll(1, dims=1)
    target, draft = (LawHead(model.head, law).bind(model(previous, labels).flatten(0, 1), 1.0) for model in pair)
    rows, total = torch.arange(tokens.shape[0] * tokens.shape[1]), 0.0
    for first in range(path.first, path.handoff, -stride):
        noise = torch.from_numpy(rng.standard_normal((len(rows), tokens.shape[2]), dtype=np.float32))
        y = table.signal[first] * tokens.flatten(0, 1) + table.noise[first] * noise
        k = torch.full_like(rows, first)
        p, q = (head.predict(rows, k, y).x0 for head in (target, draft))
        for step in range(first, max(first - stride, path.handoff), -1):
            shift = draft.shift(torch.tensor(step), q, p)
            total += 0.5 * float(shift.square().sum(dim=-1).mean())
    return total


@torch.inference_mode()
def _sampled(pair, recipe, tokens, labels):
    return np.mean(
        [float(loss_of(pair[1], pair[0], tokens, labels, recipe, np.random.default_rng(s))) for s in range(4)]
    )


@pytest.mark.parametrize("stride", [1, 3])
def test_the_loss_is_the_path_kl(pair, stride):
    tokens, labels = _walks(2000)
    law = FINE.model_copy(update={"temperature": 0.8})
    recipe = DistilRecipe(**COMMON | {"law": law, "stride": stride, "head_repeats": 4, "label_drop": 0})
    expected = _brute_force(pair, law, stride, tokens, labels)
    assert _sampled(pair, recipe, tokens, labels) == pytest.approx(expected, rel=0.02)
    k, weight = anchors(law, stride)
    for mutant in (torch.full_like(weight, float(weight.mean())), weight.flip(0), 0.5 * weight):
        with patch.object(distil, "anchors", return_value=(k, mutant)):
            assert _sampled(pair, recipe, tokens, labels) != pytest.approx(expected, rel=0.1)


def test_equal_models_have_no_loss_and_no_gradient(pair, files):
    recipe = DistilRecipe(**COMMON).given(files[0], files[0])
    model = recipe.build()
    assert all(torch.equal(value, pair[0].state_dict()[name]) for name, value in model.state_dict().items())
    loss = recipe.loss(model, *_walks(64), np.random.default_rng(0))
    loss.backward()
    assert float(loss.detach()) < 1e-8
    assert all(p.grad.abs().max() < 1e-3 for p in model.parameters())
    assert float(recipe.loss(pair[1], *_walks(64), np.random.default_rng(0))) > 1e-2


def test_the_class_is_dropped_for_both_models():
    target = tiny_causal()
    blind, recipe = perturbed(target, 0.0), DistilRecipe(**COMMON | {"label_drop": 0.999})
    blind.class_emb.weight[:-1] = 0  # knows the null class only
    tokens, labels = _walks(64)
    inputs = (tokens, labels + 1)
    assert float(loss_of(blind, target, *inputs, recipe, np.random.default_rng(0))) < 1e-8
    kept = recipe.model_copy(update={"label_drop": 0.0})
    assert float(loss_of(blind, target, *inputs, kept, np.random.default_rng(0))) > 1e-3


def test_distillation_raises_the_acceptance(pair, files, tmp_path):
    recipe = DistilRecipe(**COMMON | {"steps": 80, "lr": 5e-3, "ema": 0.9}).given(*files)
    tokens, labels = _walks(1000)
    weights = train(recipe, tokens, labels, tmp_path)
    draft = fitted(Causal(CONFIG), read_weights(weights)[1], weights).eval().requires_grad_(False)
    held_out = _walks(400, seed=6)
    before, after = (teacher_forced(pair[0], model, FINE, 3, *held_out) for model in (pair[1], draft))
    assert mean_interval(after.acceptance - before.acceptance).low > 0.02
    assert mean_interval(before.path_kl - after.path_kl).low > 0


def test_equal_models_accept_everything(pair):
    found = teacher_forced(pair[0], pair[0], FINE, 1, *_walks(20))
    assert found.acceptance.shape == found.path_kl.shape == (20,)
    assert float(found.acceptance.min()) > 0.999
    assert float(found.path_kl.max()) < 1e-6


@pytest.mark.parametrize("cfg", [pytest.param(1.0, marks=pytest.mark.slow), 2.0])
def test_teacher_forced_acceptance_is_that_of_decoding(cfg):
    """An image of one token has no tokens before it, so both are the same figure."""
    config = CausalConfig(**CONFIG.model_dump() | {"img_size": 1})
    target = tiny_causal(config)
    draft, law, count = perturbed(target, 0.02), FINE.model_copy(update={"cfg": cfg}), 2000
    labels = torch.zeros(count, dtype=torch.int64)
    found = mean_interval(teacher_forced(target, draft, law, 1, torch.randn(count, 1, 2), labels).acceptance)
    with torch.inference_mode():
        decoded = decode_speculative(
            target, draft, law, Speculative(gamma=1, stride=1), labels, Draws(torch.arange(count))
        )
    rate = float(decoded.drafts.accepted.float().mean())
    assert 0.2 < rate < 0.9
    assert abs(found.value - rate) < 4 * (found.error**2 + rate * (1 - rate) / count) ** 0.5
    other = mean_interval(teacher_forced(target, draft, law, 2, torch.randn(count, 1, 2), labels).acceptance)
    assert abs(other.value - rate) > 4 * (other.error**2 + rate * (1 - rate) / count) ** 0.5


def test_a_resumed_run_is_the_same_run(files, tmp_path):
    recipe = DistilRecipe(**COMMON | {"steps": 6, "batch": 8}).given(*files)
    inputs = _walks(24)
    whole = load_file(train(recipe, *inputs, tmp_path / "whole", save_every=2))
    with _killed_at(4), pytest.raises(KilledError):
        train(recipe, *inputs, tmp_path / "cut", save_every=2)
    again = DistilRecipe(**COMMON | {"steps": 6, "batch": 8}).given(*files)
    resumed = load_file(train(again, *inputs, tmp_path / "cut", save_every=2))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_goes_on_with_its_own_weights_only(files, tmp_path):
    recipe = DistilRecipe(**COMMON | {"steps": 2, "batch": 8})
    target, draft = files
    train(recipe.given(target, draft), *_walks(24), tmp_path)
    for others, field in (((draft, draft), "target_sha256"), ((target, target), "initial_sha256")):
        with pytest.raises(ValueError, match=rf"another one.*\({field}\)"):
            train(recipe.given(*others), *_walks(24), tmp_path)
    longer = recipe.model_copy(update={"steps": 3}).given(target, draft)
    assert train(longer, *_walks(24), tmp_path).is_file()


def test_weights_that_do_not_fit_are_refused(files, tmp_path):
    recipe, (target, draft) = DistilRecipe(**COMMON), files
    with pytest.raises(ValueError, match="weights: got none"):
        recipe.build()
    with pytest.raises(ValueError, match="weights: got none"):
        recipe.loss(tiny_causal(), *_walks(8), np.random.default_rng(0))
    wide = CausalConfig(**CONFIG.model_dump() | {"head_width": 32})
    for field in ("target", "model"):
        with pytest.raises(ValueError, match="does not fit"):
            recipe.model_copy(update={field: wide}).given(target, draft)
    (tmp_path / "noise.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="not a safetensors file"):
        recipe.given(tmp_path / "noise.safetensors", draft)
    with pytest.raises(OSError):
        recipe.given(target, tmp_path / "missing.safetensors")
