"""The recipes of the bundled weights, one entry a model."""

from __future__ import annotations

from spd_core.families.causal.distil import DistilRecipe
from spd_core.families.causal.model import CausalConfig
from spd_core.families.causal.recipe import CausalRecipe
from spd_core.families.llamagen.model import EagleConfig, LlamaGenConfig
from spd_core.families.llamagen.recipe import DraftRecipe, EagleRecipe, LlamaGenRecipe
from spd_core.families.llamagen.vq import VqConfig
from spd_core.families.llamagen.vq_recipe import VqRecipe
from spd_core.families.mar.model import MarConfig
from spd_core.families.mar.recipe import MarRecipe
from spd_core.law import SamplerLaw
from spd_core.train.variance import VarianceRecipe


def _fashion_mar(dims: int, encoder: int, decoder: int, heads: int, head_depth: int, head_width: int) -> MarConfig:
    return MarConfig(
        img_size=32, vae_stride=1, patch_size=4, vae_embed_dim=1, class_num=10, buffer_size=8,
        encoder_embed_dim=dims, encoder_depth=encoder, encoder_num_heads=heads,
        decoder_embed_dim=dims, decoder_depth=decoder, decoder_num_heads=heads,
        diffloss_d=head_depth, diffloss_w=head_width,
    )  # fmt: skip


def _fashion_ar(dims: int, depth: int, heads: int, head_depth: int, head_width: int) -> CausalConfig:
    return CausalConfig(
        img_size=32, vae_stride=1, patch_size=4, vae_embed_dim=1, class_num=10,
        embed_dim=dims, depth=depth, num_heads=heads, head_depth=head_depth, head_width=head_width,
    )  # fmt: skip


def _fashion_vq(dim: int, layers: int, heads: int, multiple_of: int) -> LlamaGenConfig:
    return LlamaGenConfig(
        dim=dim, n_layer=layers, n_head=heads, multiple_of=multiple_of, vocab_size=512, block_size=64, num_classes=10
    )


FASHION_MAR_TARGET = _fashion_mar(256, 3, 4, 4, 3, 128)
FASHION_AR_TARGET = _fashion_ar(256, 6, 4, 6, 128)
FASHION_AR_DRAFT = _fashion_ar(128, 2, 4, 2, 128)
FASHION_VQ_TARGET = _fashion_vq(256, 8, 4, 256)

#: The law each bundled pair is meant to be sampled at. The causal pair hands its tokens over at a noise std of 0.155,
#: 90 of the 100 steps down: the level its context networks are trained with.
LAWS = {
    "fashion-mar": SamplerLaw(num_iter=64, head_steps=100, start_level=960, cfg=3.0, temperature=0.85),
    "fashion-ar": SamplerLaw(num_iter=64, head_steps=100, start_level=999, handoff_level=91, temperature=0.9),
    "fashion-vq": SamplerLaw(cfg_schedule="constant"),
}

AnyRecipe = (
    MarRecipe | CausalRecipe | DistilRecipe | VarianceRecipe | VqRecipe | LlamaGenRecipe | DraftRecipe | EagleRecipe
)
RECIPES: dict[tuple[str, str], AnyRecipe] = {
    ("fashion-mar", "target"): MarRecipe(model=FASHION_MAR_TARGET, batch=64, steps=7000, head_repeats=2, ema=0.999),
    ("fashion-mar", "draft"): MarRecipe(
        model=_fashion_mar(96, 1, 2, 3, 2, 64), batch=64, steps=10_000, head_repeats=2, ema=0.999
    ),
    ("fashion-ar", "target"): CausalRecipe(model=FASHION_AR_TARGET, batch=64, steps=6000, head_repeats=2, ema=0.999),
    ("fashion-ar", "draft"): CausalRecipe(model=FASHION_AR_DRAFT, batch=64, steps=5000, head_repeats=2, ema=0.999),
    # Starts from the draft, fitted at every step: between its calls the draft's prediction follows the noise, which is
    # learned from its own predictions at all steps.
    ("fashion-ar", "distil"): DistilRecipe(
        model=FASHION_AR_DRAFT,
        target=FASHION_AR_TARGET,
        law=LAWS["fashion-ar"],
        batch=64,
        stride=1,
        steps=1500,
        lr=5e-4,
        warmup=100,
        head_repeats=2,
        ema=0.995,
        clip=10.0,  # the loss is in nats
    ),
    ("fashion-vq", "tokenizer"): VqRecipe(
        model=VqConfig(ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=64, codebook_size=512, in_channels=1),
        batch=64,
        steps=2400,
        warmup=100,
        ema=0.995,
        clip=1.0,
        bf16=False,  # convolutions are slower in it on a CPU
    ),
    ("fashion-vq", "target"): LlamaGenRecipe(model=FASHION_VQ_TARGET, batch=64, steps=4000, ema=0.999),
    ("fashion-vq", "draft"): DraftRecipe(
        model=_fashion_vq(192, 1, 3, 64), target=FASHION_VQ_TARGET, batch=64, steps=2500, ema=0.998
    ),
    ("fashion-vq", "eagle"): EagleRecipe(
        model=EagleConfig(n_head=4), target=FASHION_VQ_TARGET, batch=64, steps=2500, ema=0.998
    ),
    ("fashion-mar", "target-variance"): VarianceRecipe(model=FASHION_MAR_TARGET, law=LAWS["fashion-mar"]),
    ("fashion-ar", "target-variance"): VarianceRecipe(model=FASHION_AR_TARGET, law=LAWS["fashion-ar"]),
    ("fashion-ar", "draft-variance"): VarianceRecipe(model=FASHION_AR_DRAFT, law=LAWS["fashion-ar"], draft=True),
}
