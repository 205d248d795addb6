"""The bundled pair ``fashion-sphere``: the law it is meant to be sampled at, and the recipes of its weights."""

from __future__ import annotations

from spd_core.families.sphere.model import SphereConfig
from spd_core.families.sphere.recipes import SphereRecipe, SphereVaeRecipe
from spd_core.families.sphere.vae import SphereVaeConfig
from spd_core.law import SamplerLaw
from spd_core.train.loop import Recipe

#: The public sampler's: 100 steps with noise and one without, clean tokens read.
LAW = SamplerLaw(head_steps=101)


def _sizes(dim: int, layers: int, heads: int, head_width: int, head_blocks: int) -> SphereConfig:
    return SphereConfig(
        dim=dim, n_layer=layers, n_head=heads, diff_dim=head_width, diff_layers=head_blocks, diff_adanln_layers=2,
        latent_dim=16, resolution=32, patch_size=4, cls_token_num=4, num_classes=10,
    )  # fmt: skip


#: By run, in the order in which they are trained.
RECIPES: dict[str, Recipe] = {
    "tokenizer": SphereVaeRecipe(
        model=SphereVaeConfig(
            latent_dim=16, image_size=32, patch_size=4, z_channels=128, cnn_chs=(32, 64, 128), conv_in_channels=32,
            encoder_vit_layers=2, decoder_vit_layers=3, register_tokens=2, head_dim=32, in_channels=1,
        ),
        batch=64,
        steps=4000,
        warmup=200,
        ema=0.998,
        clip=1.0,
    ),
    "target": SphereRecipe(model=_sizes(256, 6, 4, 128, 6), batch=64, steps=6000, head_repeats=2, ema=0.999),
    "draft": SphereRecipe(model=_sizes(128, 2, 4, 128, 2), batch=64, steps=5000, head_repeats=2, ema=0.999),
}  # fmt: skip
