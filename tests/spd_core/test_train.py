"""Training recipes: a resumed run is the same run, and the causal loss learns."""

from __future__ import annotations

import json
import re
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spd_core.families.causal.recipe import CausalRecipe, handed_over, loss_of
from spd_core.families.mar.recipe import MarRecipe
from spd_core.law import SamplerLaw
from spd_core.progress import listening
from spd_core.train import loop
from spd_core.train.loop import batches, train
from spd_core.train.recipes import LAWS, RECIPES
from spd_core.train.variance import VarianceRecipe
from tests.tiny_causal import CONFIG
from tests.tiny_pair import tiny_config

COMMON = {"steps": 6, "batch": 8, "warmup": 2, "head_repeats": 1, "bf16": False}
RUNS = [
    (CausalRecipe(model=CONFIG, **COMMON), 4, 2),
    (MarRecipe(model=tiny_config(), **COMMON), 16, 4),
]


class KilledError(Exception):
    pass


def _killed_at(step):
    """`batches` of a process that is killed when it comes to ``step``."""

    def batches_until(recipe, count, start):
        for at, index in batches(recipe, count, start):
            if at == step:
                raise KilledError
            yield at, index

    return patch.object(loop, "batches", batches_until)


@pytest.mark.parametrize(("recipe", "length", "dims"), RUNS, ids=["causal", "mar"])
def test_a_resumed_run_is_the_same_run(tmp_path, recipe, length, dims):
    tokens, labels = torch.randn(24, length, dims), torch.arange(24) % 3
    whole = load_file(train(recipe, tokens, labels, tmp_path / "whole", save_every=2))
    with _killed_at(4), pytest.raises(KilledError):
        train(recipe, tokens, labels, tmp_path / "cut", save_every=2)
    resumed = load_file(train(recipe, tokens, labels, tmp_path / "cut", save_every=2))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    curve = [json.loads(line)["step"] for line in (tmp_path / "cut" / "loss.jsonl").read_text().splitlines()]
    assert curve == [2, 4, 6]


def test_a_run_tells_its_steps_and_its_loss_from_where_it_resumes(tmp_path):
    recipe, length, dims = RUNS[0]
    tokens, labels = torch.randn(24, length, dims), torch.arange(24) % 3
    train(recipe.model_copy(update={"steps": 2}), tokens, labels, tmp_path)
    told: list[tuple[int, int, str, str]] = []
    with listening(lambda *step: told.append(step)):
        train(recipe, tokens, labels, tmp_path, save_every=4)
    assert [step[:3] for step in told] == [(done, 6, "steps") for done in (2, 3, 4, 5, 6)]
    assert told[0][3] == "" and re.fullmatch(r"loss \d+\.\d{4}", told[2][3]) and told[3][3] == told[2][3]


def test_another_recipe_is_refused(tmp_path):
    recipe, length, dims = RUNS[0]
    tokens, labels = torch.randn(24, length, dims), torch.arange(24) % 3
    train(recipe, tokens, labels, tmp_path)
    with pytest.raises(ValueError, match="another one"):
        train(recipe.model_copy(update={"lr": 0.5}), tokens, labels, tmp_path)


def test_epochs_are_permutations():
    recipe = CausalRecipe(model=CONFIG, steps=6, batch=8)
    seen = [index for _, index in batches(recipe, 24, 0)]
    assert sorted(np.concatenate(seen[:3]).tolist()) == list(range(24))
    assert [index.tolist() for _, index in batches(recipe, 24, 4)] == [index.tolist() for index in seen[4:]]


def test_the_causal_loss_is_that_of_the_velocity_and_learns():
    """A model that predicts 0 has the velocity's variance as its loss, 1 on standard normal tokens."""
    recipe = CausalRecipe(model=CONFIG, steps=1, head_repeats=16)
    torch.manual_seed(0)
    model = recipe.build()
    tokens = torch.randn(256, 4, 2)
    start = loss_of(model, tokens, torch.zeros(256, dtype=torch.int64), recipe, np.random.default_rng(0))
    assert start.item() == pytest.approx(1.0, abs=0.05)
    tokens = 0.1 * torch.randn(256, 4, 2) + 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        loss = loss_of(model, tokens, torch.zeros(256, dtype=torch.int64), recipe, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5


def test_tokens_are_handed_over_at_their_level():
    tokens = torch.full((200, 4, 2), 2.0)
    noised = handed_over(tokens, 91, np.random.default_rng(0))
    assert float(noised.std()) == pytest.approx(0.155, abs=0.01)
    assert float(noised.mean()) == pytest.approx(2 * (1 - 0.155**2) ** 0.5, abs=0.02)


def test_recipes_fit_their_laws():
    for (pair, _), recipe in RECIPES.items():
        assert isinstance(LAWS[pair], SamplerLaw)
        if isinstance(recipe, CausalRecipe):
            assert recipe.handoff_level == LAWS[pair].handoff_level
    target, draft, distil = (RECIPES["fashion-ar", part] for part in ("target", "draft", "distil"))
    assert (distil.target, distil.model, distil.law) == (target.model, draft.model, LAWS["fashion-ar"])
    for (pair, part), recipe in RECIPES.items():
        if isinstance(recipe, VarianceRecipe):
            assert (recipe.model, recipe.law) == (RECIPES[pair, part.removesuffix("-variance")].model, LAWS[pair])
            assert recipe.draft == part.startswith("draft")
    assert distil.stride == 1
    target, draft = target.build(), draft.build()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (target, draft)]
    assert 4e6 < sizes[0] < 8e6
    assert sizes[1] < sizes[0] / 6
