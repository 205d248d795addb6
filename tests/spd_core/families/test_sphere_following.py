"""A SphereAR head whose predictions follow the noise: variance learned, windows tuned, drafts consistent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spd_core.decode.path import LawHead
from spd_core.draws import Draws
from spd_core.families.causal.tokens import noise_above
from spd_core.families.causal.verification import draft_walk, held_predictions
from spd_core.families.sphere.blocks import on_sphere
from spd_core.families.sphere.tokens import SpherePath
from spd_core.law import SamplerLaw
from spd_core.models.variance import PosteriorVariance
from spd_core.pairs.pair import load_pair
from spd_core.train.variance import VarianceRecipe, counted_steps, followings, rejection, shifts, walk_paths
from spd_core.train.windows import tuned_windows
from tests.tiny_sphere import CONFIG, HANDOFF, PUBLIC, make_tiny_sphere_pair, tiny_sphere

LAW = PUBLIC.model_copy(update={"head_steps": 17})


def _images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    return on_sphere(torch.from_numpy(rng.standard_normal((count, 4, 3), dtype=np.float32))), torch.arange(count) % 3


def _recipe(law: SamplerLaw, draft: bool = False) -> VarianceRecipe:
    return VarianceRecipe(
        model=CONFIG, law=law, draft=draft, images=64, tokens=4, batch=64, steps=60, lr=1e-2, warmup=5, bf16=False
    )


def test_sizes_in_a_recipe_are_told_apart_from_other_families():
    again = VarianceRecipe.model_validate(_recipe(LAW).model_dump())
    assert again.model == CONFIG and again.family.name == "sphere"


def test_the_steps_that_count_end_at_the_hand_off():
    assert counted_steps(_recipe(LAW)).tolist() == list(range(16, 1, -1))
    handed = LAW.model_copy(update={"handoff_level": 40})
    assert counted_steps(_recipe(handed, draft=True)).tolist() == list(range(16, 1, -1))
    earlier = LAW.model_copy(update={"handoff_level": 220})
    assert counted_steps(_recipe(earlier, draft=True)).tolist() == list(range(16, 4, -1))


def test_what_is_learned_refuses_less(tmp_path):
    weights = tmp_path / "target.safetensors"
    save_file({key: value.contiguous() for key, value in tiny_sphere().state_dict().items()}, weights)
    recipe = _recipe(LAW).given(weights)
    recipe.fit(*_images(64), tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    variance = recipe.build()
    variance.load_state_dict(state)
    paths = walk_paths(recipe, *_images(64), np.random.default_rng(7))
    held, followed = (rejection(shifts(model, recipe, paths)).mean() for model in (None, variance))
    assert float(followed) < 0.95 * float(held)
    levels = [band.levels for band in followings(variance, recipe, paths, 3)]
    assert levels == sorted(levels, reverse=True) and levels[0][0] == 1000


@pytest.mark.parametrize("law", [PUBLIC, HANDOFF], ids=["public", "hand-off"])
def test_windows_are_tuned(law, tmp_path):
    pair = load_pair(str(make_tiny_sphere_pair(tmp_path / "spheres", law)))
    few, cheap = tuned_windows(pair, *_images(6), prices=(0.0, 0.5))
    steps = SpherePath(law, 4).above
    assert few.steps == cheap.steps == steps
    assert 1 <= few.calls < cheap.calls <= steps and steps <= cheap.rows < few.rows


@torch.inference_mode()
@pytest.mark.parametrize("stride", [1, 3])
def test_what_a_draft_held_is_found_again_on_its_path(stride):
    torch.manual_seed(0)
    head, rows = tiny_sphere().head, torch.arange(6)
    head.variance = PosteriorVariance.of(head).eval().requires_grad_(False)
    path = SpherePath(LAW.model_copy(update={"handoff_level": 40, "cfg": 1.0}), 4)
    bound = LawHead(head, path.law).bind(torch.randn(6, CONFIG.dim), 1.0)
    noise = noise_above(Draws(rows), rows, torch.zeros_like(rows), path, 3)
    walked = draft_walk(bound, noise.start, path, noise, stride)
    found = held_predictions(bound, walked.trace.states, path, stride)
    assert torch.allclose(found, walked.trace.x0, atol=1e-4)
    if stride > 1:
        assert not torch.allclose(walked.trace.x0[:, 0], walked.trace.x0[:, 1], atol=1e-4), "it follows the noise"
