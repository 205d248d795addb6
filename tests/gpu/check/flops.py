"""Floating-point operations of the products of one image, and bytes that one pass must read: what a ceiling is of.

Formulas, not measurements: two operations a multiply-add, weights' products and attention; norms and sums are not
counted.
"""

from __future__ import annotations

from spd_core.families.llamagen.model import LlamaGenConfig
from spd_core.families.mar.iterations import left_after, mask_lengths
from spd_core.families.mar.model import MarConfig
from spd_core.law import SamplerLaw


def mar_image(config: MarConfig, law: SamplerLaw) -> float:
    """Operations of an image of MAR decoded plainly."""
    tokens, rows = config.seq_len, 1 + (law.cfg != 1.0)
    lengths = mask_lengths(tokens, law.num_iter)
    before, total = tokens, 0.0
    for step, left in enumerate(left_after(lengths)):
        if left == before:
            continue
        total += rows * _transformer(config, tokens - before)
        total += rows * (before - left) * law.steps_at(step, law.num_iter) * _head(config)
        before = left
    return total


def _transformer(config: MarConfig, visible: int) -> float:
    """Of one pass over one row of the batch."""
    total = 0.0
    for dims, depth, length in (
        (config.encoder_embed_dim, config.encoder_depth, config.buffer_size + visible),
        (config.decoder_embed_dim, config.decoder_depth, config.buffer_size + config.seq_len),
    ):
        weights = (4 + 2 * config.mlp_ratio) * dims * dims
        total += depth * length * (2 * weights + 4 * length * dims)
    return total


def _head(config: MarConfig) -> float:
    """Of one call for one row, its modulations included."""
    width = config.diffloss_w
    return 2.0 * width * width * (config.diffloss_d * (2 + 3) + 2)


def codes_token(config: LlamaGenConfig, rows: int) -> float:
    """Operations of one token of LlamaGen for ``rows`` rows, guidance's counted."""
    weights = config.n_layer * (4 * config.dim**2 + 3 * config.dim * config.ffn_dim)
    return 2.0 * rows * (weights + config.vocab_size * config.dim)


def codes_bytes(config: LlamaGenConfig, rows: int, width: int = 2) -> float:
    """Bytes that the pass of an average token reads: every weight once, and half a full cache of keys and values."""
    weights = config.n_layer * (4 * config.dim**2 + 3 * config.dim * config.ffn_dim) + config.vocab_size * config.dim
    cache = rows * config.n_layer * 2 * config.dim * config.block_size / 2
    return width * (weights + cache)
