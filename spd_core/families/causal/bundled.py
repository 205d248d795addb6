"""The bundled causal pair: the law it is meant to be sampled at, and the recipes of its weights."""

from __future__ import annotations

from spd_core.families.causal.distil import DistilRecipe
from spd_core.families.causal.model import CausalConfig
from spd_core.families.causal.recipe import CausalRecipe
from spd_core.law import SamplerLaw
from spd_core.train.loop import Recipe
from spd_core.train.variance import VarianceRecipe


def _fashion_ar(dims: int, depth: int, heads: int, head_depth: int, head_width: int) -> CausalConfig:
    return CausalConfig(
        img_size=32, vae_stride=1, patch_size=4, vae_embed_dim=1, class_num=10,
        embed_dim=dims, depth=depth, num_heads=heads, head_depth=head_depth, head_width=head_width,
    )  # fmt: skip


FASHION_AR_TARGET = _fashion_ar(256, 6, 4, 6, 128)
FASHION_AR_DRAFT = _fashion_ar(128, 2, 4, 2, 128)

#: Tokens are handed over at a noise std of 0.155, 90 of the 100 steps down: the level that the context networks are
#: trained with.
LAW = SamplerLaw(num_iter=64, head_steps=100, start_level=999, handoff_level=91, temperature=0.9)

#: By run, in the order in which they are trained.
RECIPES: dict[str, Recipe] = {
    "target": CausalRecipe(model=FASHION_AR_TARGET, batch=64, steps=6000, head_repeats=2, ema=0.999),
    "draft": CausalRecipe(model=FASHION_AR_DRAFT, batch=64, steps=5000, head_repeats=2, ema=0.999),
    # Starts from the draft, fitted at every step: between its calls the draft's prediction follows the noise, which is
    # learned from its own predictions at all steps.
    "distil": DistilRecipe(
        model=FASHION_AR_DRAFT,
        target=FASHION_AR_TARGET,
        law=LAW,
        batch=64,
        stride=1,
        steps=1500,
        lr=5e-4,
        warmup=100,
        head_repeats=2,
        ema=0.995,
        clip=10.0,  # the loss is in nats
    ),
    "target-variance": VarianceRecipe(model=FASHION_AR_TARGET, law=LAW),
    "draft-variance": VarianceRecipe(model=FASHION_AR_DRAFT, law=LAW, draft=True),
}
