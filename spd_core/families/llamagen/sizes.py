"""The sizes of a LlamaGen model and of its tokenizer from the shapes of their weights, as far as they tell."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from spd_core.families.llamagen.model import LlamaGenConfig
from spd_core.families.llamagen.vq import VqConfig
from spd_core.pairs.sizes import Shapes, State, heads_of, no_model

#: Attention heads by width, of the public models and of those that their code defines beside them. No weight tells.
LLAMAGEN_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}


def llamagen_config(path: Path, state: State, heads: int | None) -> LlamaGenConfig:
    """Sizes of a LlamaGen model but for the image's, which no weight tells.

    Raises:
        PairError: shapes that no such model has.
    """
    of = Shapes(path, state)
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
        raise no_model(path, error) from error


def vq_config(path: Path, state: State) -> VqConfig:
    """Sizes of a VQ tokenizer: VQ-16, VQ-8 and others of their make.

    Raises:
        PairError: shapes that no such model has.
    """
    of = Shapes(path, state)
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
        raise no_model(path, error) from error
