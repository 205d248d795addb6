"""Counts of what decoding holds in memory, in terms that families share; the constants are held against measured peaks.

Rows are those of the networks: images, twice as many under guidance.
"""

from __future__ import annotations

from spd_core.law import SamplerLaw

FLOAT = 4  #: bytes; activations and caches
#: Tensors of [rows, width] alive inside a transformer's block: the input, its norm, four widths before and four after
#: the MLP's activation, and the sum's operands.
_BLOCK = 13
#: Tensors of [rows, head width] alive inside a block of a head: modulation, norm, two of the MLP, the sum's operands.
_HEAD = 10
_NOISE = 6  #: words of the generator alive for each random number


def guided(law: SamplerLaw, rows: int) -> int:
    """Rows with those of the null class."""
    return rows * (2 if law.cfg != 1 else 1)


def activation_bytes(positions: int, width: int) -> int:
    """Of a transformer's pass over so many positions of all rows."""
    return _BLOCK * positions * width * FLOAT


def head_bytes(law: SamplerLaw, drawn: int, width: int, token_dim: int) -> int:
    """Of a diffusion head at work on ``drawn`` tokens, and of the random numbers of their paths."""
    rows = guided(law, drawn)
    return rows * _HEAD * width * FLOAT + drawn * law.head_steps * token_dim * _NOISE * FLOAT
