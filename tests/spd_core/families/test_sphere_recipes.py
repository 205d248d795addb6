"""The recipes of SphereAR: losses that are functions of (seed, step), and that reach every weight they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from spd_core.families.sphere.bundled import RECIPES
from spd_core.families.sphere.recipes import SphereRecipe, SphereVaeRecipe, padded, posteriors
from spd_core.families.sphere.vae import PowerSpherical, SphereVaeConfig
from tests.spd_core.families.test_sphere import SMALL

VAE = SphereVaeRecipe(
    model=SphereVaeConfig(
        latent_dim=4, image_size=12, patch_size=4, z_channels=16, cnn_chs=(16, 16, 16), conv_in_channels=16,
        encoder_vit_layers=1, decoder_vit_layers=1, register_tokens=1, head_dim=8, in_channels=1,
    ),
    batch=8,
    steps=3,
)  # fmt: skip
MODEL = SphereRecipe(model=SMALL, batch=8, steps=3)


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 10, 10, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tokens(count: int, kappa: float = 1e6) -> Tensor:
    mean = torch.nn.functional.normalize(torch.randn(count, 9, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    return torch.cat([mean, torch.full((count, 9, 1), kappa)], dim=-1)


@pytest.mark.parametrize(("recipe", "data"), [(VAE, images(8)), (MODEL, tokens(8))], ids=["autoencoder", "model"])
def test_a_loss_is_a_function_of_seed_and_step_and_reaches_every_weight(
    recipe: SphereVaeRecipe | SphereRecipe, data: Tensor
):
    torch.manual_seed(0)
    model, labels = recipe.build().train(), torch.arange(8) % 5
    with torch.no_grad():
        for parameter in model.parameters():  # the start may have zeros that stop gradients
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.manual_seed(3)
    first = recipe.loss(model, data, labels, np.random.default_rng([0, 2, 7]))
    torch.manual_seed(4)
    again, other = (recipe.loss(model, data, labels, np.random.default_rng([0, 2, s])) for s in (7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    first.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert still == set()


def test_the_gradient_reaches_the_concentration_through_the_sample():
    kappa = torch.full((2000,), 20.0, requires_grad=True)
    mean = torch.tensor([0.0, 1.0, 0.0]).expand(2000, -1)
    along = (PowerSpherical(mean, kappa).sample(torch.Generator().manual_seed(0)) @ mean[0]).mean()
    along.backward()
    # E cos = kappa / (kappa + D - 1)
    assert float(kappa.grad.sum()) == pytest.approx(2 / 22**2, rel=0.1)


def test_a_model_that_knows_its_token_has_no_loss_left(monkeypatch: pytest.MonkeyPatch):
    # One data point: the best velocity at x is (x1 - x) / (1 - t), and it is the target itself.
    data, seen = tokens(8)[:1].expand(8, -1, -1), []
    model = MODEL.build()
    x1 = (data[..., :-1] * 2).flatten(0, 1).repeat(MODEL.head_repeats, 1)

    def perfect(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        seen.append(t)
        return (x1 - x) / (1 - t[:, None]).clamp(min=1e-3)

    monkeypatch.setattr(model.head, "forward", perfect)
    loss = MODEL.loss(model, data, torch.zeros(8, dtype=torch.int64), np.random.default_rng(0))
    assert float(loss) < 1e-2
    assert float(seen[0].min()) < 0.01 and float(seen[0].max()) > 0.99


def test_posteriors_are_those_of_the_weights(tmp_path: Path):
    torch.manual_seed(0)
    vae = VAE.build().eval()
    save_file(dict(vae.state_dict()), tmp_path / "w.safetensors")
    _, made = posteriors(VAE, tmp_path / "w.safetensors", images(5), batch=2)
    assert made.shape == (5, 9, 5)
    with torch.no_grad():
        law = vae.posterior(padded(images(5), 12))
    assert torch.allclose(made[..., :-1], law.mean, atol=1e-5) and torch.allclose(made[..., -1], law.kappa, rtol=1e-5)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        posteriors(VAE, tmp_path / "other.safetensors", images(5))


def test_images_are_padded_with_black():
    x = padded(torch.full((1, 10, 10, 1), 255, dtype=torch.uint8), 12)
    assert x.shape == (1, 1, 12, 12) and float(x[..., 1:-1, 1:-1].min()) == 1 and float(x[..., 0, :].max()) == -1


def test_the_bundled_recipes_fit_together():
    vae, target, draft = (RECIPES[part].model for part in ("tokenizer", "target", "draft"))
    assert isinstance(vae, SphereVaeConfig)
    assert vae.latent_dim == target.latent_dim == draft.latent_dim and vae.grid == target.grid == draft.grid
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in RECIPES[part].build().parameters()) for part in ("target", "draft")]
    assert 4e6 < sizes[0] < 8e6 and sizes[1] < sizes[0] / 6
