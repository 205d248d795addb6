"""The recipes of the bundled weights, one entry a model."""

from __future__ import annotations

from spd_core.models.mar import MarConfig
from spd_core.train.mar import MarRecipe


def _fashion_mar(dims: int, encoder: int, decoder: int, heads: int, head_depth: int, head_width: int) -> MarConfig:
    return MarConfig(
        img_size=32, vae_stride=1, patch_size=4, vae_embed_dim=1, class_num=10, buffer_size=8,
        encoder_embed_dim=dims, encoder_depth=encoder, encoder_num_heads=heads,
        decoder_embed_dim=dims, decoder_depth=decoder, decoder_num_heads=heads,
        diffloss_d=head_depth, diffloss_w=head_width,
    )  # fmt: skip


RECIPES: dict[tuple[str, str], MarRecipe] = {
    ("fashion-mar", "target"): MarRecipe(
        model=_fashion_mar(256, 3, 4, 4, 3, 128), batch=64, steps=7000, head_repeats=2, ema=0.999
    ),
    ("fashion-mar", "draft"): MarRecipe(
        model=_fashion_mar(96, 1, 2, 3, 2, 64), batch=64, steps=10_000, head_repeats=2, ema=0.999
    ),
}
