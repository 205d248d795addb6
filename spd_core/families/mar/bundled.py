"""The bundled MAR pair: the law it is meant to be sampled at, and the recipes of its weights."""

from __future__ import annotations

from spd_core.families.mar.model import MarConfig
from spd_core.families.mar.recipe import MarRecipe
from spd_core.law import SamplerLaw
from spd_core.train.loop import Recipe
from spd_core.train.variance import VarianceRecipe


def _fashion_mar(dims: int, encoder: int, decoder: int, heads: int, head_depth: int, head_width: int) -> MarConfig:
    return MarConfig(
        img_size=32, vae_stride=1, patch_size=4, vae_embed_dim=1, class_num=10, buffer_size=8,
        encoder_embed_dim=dims, encoder_depth=encoder, encoder_num_heads=heads,
        decoder_embed_dim=dims, decoder_depth=decoder, decoder_num_heads=heads,
        diffloss_d=head_depth, diffloss_w=head_width,
    )  # fmt: skip


FASHION_MAR_TARGET = _fashion_mar(256, 3, 4, 4, 3, 128)

LAW = SamplerLaw(num_iter=64, head_steps=100, start_level=960, cfg=3.0, temperature=0.85)

#: By run, in the order in which they are trained.
RECIPES: dict[str, Recipe] = {
    "target": MarRecipe(model=FASHION_MAR_TARGET, batch=64, steps=7000, head_repeats=2, ema=0.999),
    "draft": MarRecipe(model=_fashion_mar(96, 1, 2, 3, 2, 64), batch=64, steps=10_000, head_repeats=2, ema=0.999),
    "target-variance": VarianceRecipe(model=FASHION_MAR_TARGET, law=LAW),
}
