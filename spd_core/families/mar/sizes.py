"""The sizes of a MAR model and of its autoencoder from the shapes of their weights, as far as they tell."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from spd_core.families.mar.model import MarConfig
from spd_core.families.mar.vae import KlVaeConfig
from spd_core.pairs.pair import PairError
from spd_core.pairs.sizes import Shapes, State, heads_of, no_model

#: Attention heads by width, of the public models and of those that their code defines beside them. No weight tells.
MAR_HEADS = {768: 12, 1024: 16, 1280: 16}


def mar_config(path: Path, state: State, heads: int | None, vae: KlVaeConfig) -> MarConfig:
    """Sizes of a MAR model: any depth, width, head, number of classes and grid.

    Args:
        path: of the file, for errors.
        state: the weights.
        heads: attention heads, of a model whose width is no public one.
        vae: the autoencoder, which fixes what a token is.

    Raises:
        PairError: shapes that no such model has.
    """
    of = Shapes(path, state)
    width, tokens = of.dim("fake_latent", -1), of.dim("diffusion_pos_embed_learned", 1)
    decoder_width, token_dim = of.dim("mask_token", -1), of.dim("z_proj.weight", 1)
    side, patch = math.isqrt(tokens), math.isqrt(max(1, token_dim // vae.embed_dim))
    if side * side != tokens:
        raise PairError(f"checkpoint: {path} does not fit, {tokens} tokens an image, allowed: a square")
    if patch * patch * vae.embed_dim != token_dim:
        raise PairError(
            f"checkpoint: {path} does not fit, tokens of {token_dim} numbers, allowed: {vae.embed_dim} latent channels "
            "times a square of cells"
        )
    try:
        return MarConfig(
            img_size=side * patch * vae.stride,
            vae_stride=vae.stride,
            patch_size=patch,
            vae_embed_dim=vae.embed_dim,
            encoder_embed_dim=width,
            encoder_depth=of.count("encoder_blocks.#."),
            encoder_num_heads=heads_of(path, width, MAR_HEADS, heads),
            decoder_embed_dim=decoder_width,
            decoder_depth=of.count("decoder_blocks.#."),
            decoder_num_heads=heads_of(path, decoder_width, MAR_HEADS, heads),
            mlp_ratio=of.dim("encoder_blocks.0.mlp.fc1.weight", 0) / width,
            class_num=of.dim("class_emb.weight", 0),
            buffer_size=of.dim("encoder_pos_embed_learned", 1) - tokens,
            diffloss_d=of.count("diffloss.net.res_blocks.#."),
            diffloss_w=of.dim("diffloss.net.input_proj.weight", 0),
        )
    except ValidationError as error:
        raise no_model(path, error) from error


def vae_config(path: Path, state: State) -> KlVaeConfig:
    """Sizes of a KL autoencoder.

    Raises:
        PairError: shapes that no such model has.
    """
    of = Shapes(path, state)
    width, levels = of.dim("encoder.conv_in.weight", 0), of.count("encoder.down.#.block.")
    resolution = KlVaeConfig().resolution
    try:
        return KlVaeConfig(
            ch=width,
            ch_mult=tuple(of.dim(f"encoder.down.{n}.block.0.conv1.weight", 0) // width for n in range(levels)),
            num_res_blocks=of.count("encoder.down.0.block.#."),
            embed_dim=of.dim("post_quant_conv.weight", 0),
            in_channels=of.dim("encoder.conv_in.weight", 1),
            resolution=resolution,
            attn_resolutions=tuple(
                resolution >> n for n in range(levels) if of.has(f"encoder.down.{n}.attn.0.norm.weight")
            ),
        )
    except ValidationError as error:
        raise no_model(path, error) from error
