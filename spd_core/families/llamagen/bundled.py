"""The bundled pair of codes: the law it is meant to be sampled at, and the recipes of its weights."""

from __future__ import annotations

from spd_core.families.llamagen.model import EagleConfig, LlamaGenConfig
from spd_core.families.llamagen.recipe import DraftRecipe, EagleRecipe, LlamaGenRecipe
from spd_core.families.llamagen.vq import VqConfig
from spd_core.families.llamagen.vq_recipe import VqRecipe
from spd_core.law import SamplerLaw
from spd_core.train.loop import Recipe


def _fashion_vq(dim: int, layers: int, heads: int, multiple_of: int) -> LlamaGenConfig:
    return LlamaGenConfig(
        dim=dim, n_layer=layers, n_head=heads, multiple_of=multiple_of, vocab_size=512, block_size=64, num_classes=10
    )


FASHION_VQ_TARGET = _fashion_vq(256, 8, 4, 256)

LAW = SamplerLaw(cfg_schedule="constant")

#: By run, in the order in which they are trained.
RECIPES: dict[str, Recipe] = {
    "tokenizer": VqRecipe(
        model=VqConfig(ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=64, codebook_size=512, in_channels=1),
        batch=64,
        steps=2400,
        warmup=100,
        ema=0.995,
        clip=1.0,
        bf16=False,  # convolutions are slower in it on a CPU
    ),
    "target": LlamaGenRecipe(model=FASHION_VQ_TARGET, batch=64, steps=4000, ema=0.999),
    "draft": DraftRecipe(model=_fashion_vq(192, 1, 3, 64), target=FASHION_VQ_TARGET, batch=64, steps=2500, ema=0.998),
    "eagle": EagleRecipe(model=EagleConfig(n_head=4), target=FASHION_VQ_TARGET, batch=64, steps=2500, ema=0.998),
}
