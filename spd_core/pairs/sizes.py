"""The configuration of a model from the shapes of its weights, as far as they tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from spd_core.families.llamagen.model import LlamaGenConfig
from spd_core.families.llamagen.vq import VqConfig
from spd_core.families.mar.model import MarConfig
from spd_core.families.mar.vae import KlVaeConfig
from spd_core.pairs.pair import PairError

State = Mapping[str, Tensor]
#: Attention heads by width, of the public models and of those that their code defines beside them. No weight tells.
MAR_HEADS = {768: 12, 1024: 16, 1280: 16}
LLAMAGEN_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}


class _Shapes:
    """Shapes of a state dict, with errors that name the file and the key."""

    def __init__(self, path: Path, state: State) -> None:
        self._path, self._state = path, state

    def dim(self, key: str, axis: int) -> int:
        shape = tuple(self._state[key].shape) if key in self._state else ()
        if not -len(shape) <= axis < len(shape):
            got = list(shape) if key in self._state else "none"
            raise PairError(f"checkpoint: {self._path} does not fit, {key}: got {got}, allowed: a weight of the model")
        return int(shape[axis])

    def count(self, pattern: str) -> int:
        """Blocks: the numbers that stand where ``#`` does."""
        regex = re.compile(re.escape(pattern).replace(r"\#", r"(\d{1,6})"))
        return len({found[1] for key in self._state if (found := regex.match(key))})

    def has(self, key: str) -> bool:
        return key in self._state


def heads_of(path: Path, width: int, known: Mapping[int, int], asked: int | None) -> int:
    """Attention heads of a model of a width.

    Raises:
        PairError: nothing tells.
    """
    heads = asked if asked is not None else known.get(width)
    if heads is None or heads < 1 or width % heads:
        words = "a divisor of the width" if asked is not None else "a number (no weight tells it at this width)"
        raise PairError(f"heads: got {'none' if heads is None else heads} for {path}, width {width}, allowed: {words}")
    return heads


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
    of = _Shapes(path, state)
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
        raise _no_model(path, error) from error


def llamagen_config(path: Path, state: State, heads: int | None) -> LlamaGenConfig:
    """Sizes of a LlamaGen model but for the image's, which no weight tells.

    Raises:
        PairError: shapes that no such model has.
    """
    of = _Shapes(path, state)
    width, ffn = of.dim("tok_embeddings.weight", -1), of.dim("layers.0.feed_forward.w1.weight", 0)
    rounded = [step for step in (256, 128, 64, 32, 16, 8) if -(-int(8 * width / 3) // step) * step == ffn]
    try:
        return LlamaGenConfig(
            dim=width,
            n_layer=of.count("layers.#."),
            n_head=heads_of(path, width, LLAMAGEN_HEADS, heads),
            vocab_size=of.dim("tok_embeddings.weight", 0),
            num_classes=of.dim("cls_embedding.embedding_table.weight", 0) - 1,
            multiple_of=rounded[0] if rounded else 256,
        )
    except ValidationError as error:
        raise _no_model(path, error) from error


def vae_config(path: Path, state: State) -> KlVaeConfig:
    """Sizes of a KL autoencoder.

    Raises:
        PairError: shapes that no such model has.
    """
    of = _Shapes(path, state)
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
        raise _no_model(path, error) from error


def vq_config(path: Path, state: State) -> VqConfig:
    """Sizes of a VQ tokenizer: VQ-16, VQ-8 and others of their make.

    Raises:
        PairError: shapes that no such model has.
    """
    of = _Shapes(path, state)
    width, levels = of.dim("encoder.conv_in.weight", 0), of.count("encoder.conv_blocks.#.res.")
    try:
        return VqConfig(
            ch=width,
            ch_mult=tuple(of.dim(f"encoder.conv_blocks.{n}.res.0.conv1.weight", 0) // width for n in range(levels)),
            num_res_blocks=of.count("encoder.conv_blocks.0.res.#."),
            z_channels=of.dim("quant_conv.weight", 1),
            codebook_size=of.dim("quantize.embedding.weight", 0),
            codebook_embed_dim=of.dim("quantize.embedding.weight", 1),
            in_channels=of.dim("encoder.conv_in.weight", 1),
        )
    except ValidationError as error:
        raise _no_model(path, error) from error


def _no_model(path: Path, error: ValidationError) -> PairError:
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"])) or "sizes"
    return PairError(f"checkpoint: {path} does not fit, {place}: got {problem['input']!r}, allowed: a model's sizes")
