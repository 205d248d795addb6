"""The sizes of a SphereAR model and of its autoencoder from the shapes of their weights."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from spd_core.families.sphere.model import PRESETS, SphereConfig
from spd_core.families.sphere.vae import SphereVaeConfig
from spd_core.pairs.pair import PairError
from spd_core.pairs.sizes import Shapes, State, heads_of, no_model

#: Attention heads by width, of the public models. No weight tells.
HEADS = {preset["dim"]: preset["n_head"] for preset in PRESETS.values()}


def sphere_config(path: Path, state: State, heads: int | None, vae: SphereVaeConfig) -> SphereConfig:
    """Sizes of a model.

    Args:
        path: of the file, for errors.
        state: the weights, without an autoencoder's.
        heads: attention heads, of a model whose width is no public one.
        vae: the autoencoder, which fixes how many pixels a token has.

    Raises:
        PairError: shapes that no such model has.
    """
    of = Shapes(path, state)
    width, tokens = of.dim("norm.weight", 0), of.dim("pos_for_diff.weight", 0)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise PairError(f"checkpoint: {path} does not fit, {tokens} tokens an image, allowed: a square")
    try:
        return SphereConfig(
            dim=width,
            n_layer=of.count("layers.#."),
            n_head=heads_of(path, width, HEADS, heads),
            diff_dim=of.dim("head.net.input_proj.weight", 0),
            diff_layers=of.count("head.net.res_blocks.#."),
            diff_adanln_layers=of.count("head.net.ada_ln_blocks.#."),
            latent_dim=of.dim("proj_in.weight", 1),
            resolution=side * vae.patch_size,
            patch_size=vae.patch_size,
            cls_token_num=of.dim("cls_embedding.weight", 1) // width,
            num_classes=of.dim("cls_embedding.weight", 0) - 1,
        )
    except ValidationError as error:
        raise no_model(path, error) from error


def vae_config(path: Path, state: State) -> SphereVaeConfig:
    """Sizes of a hyperspherical autoencoder; its rotary tables tell the grid and the heads.

    Raises:
        PairError: shapes that no such model has.
    """
    of = Shapes(path, state)
    levels, first = of.count("encoder.patchify.0.net.#."), of.dim("encoder.conv_in.weight", 0)
    registers = of.dim("encoder.register_token.weight", 0)
    side, patch = math.isqrt(max(0, of.dim("encoder.freqs_cis", 0) - registers)), 1 << levels
    try:
        return SphereVaeConfig(
            latent_dim=of.dim("post_quant_proj.weight", 1),
            image_size=side * patch,
            patch_size=patch,
            z_channels=of.dim("post_quant_proj.weight", 0),
            cnn_chs=(first, *(of.dim(f"encoder.patchify.0.net.{n}.shortcut.weight", 0) for n in range(levels))),
            encoder_vit_layers=of.count("encoder.layers.#."),
            decoder_vit_layers=of.count("decoder.layers.#."),
            conv_in_channels=first,
            register_tokens=registers,
            head_dim=2 * of.dim("encoder.freqs_cis", 1),
            in_channels=of.dim("encoder.conv_in.weight", 1),
        )
    except ValidationError as error:
        raise no_model(path, error) from error
