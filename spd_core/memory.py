"""What a batch needs of a device's memory: a model of the largest moment of decoding, term by term.

Only what grows with the batch or is large is counted. The terms follow from sizes alone, so that they hold for a pair
whose weights are elsewhere; the constants are counts of tensors alive at once, held against measured peaks by a test.

Shape legend: R rows of the networks (images, twice as many under guidance), N tokens, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

from spd_core.families.causal.model import CausalConfig
from spd_core.families.llamagen.model import LlamaGenConfig
from spd_core.families.mar.model import MarConfig
from spd_core.law import Method, Null, Plain, SamplerLaw
from spd_core.pairs.pair import PairCard, part_sizes

_FLOAT = 4  #: bytes; activations and caches
#: Tensors of [R, N, W] alive inside a block of MAR: the input, its norm, four widths before and four after the MLP's
#: activation, and the sum's operands.
_BLOCK = 13
#: Tensors of [rows, head width] alive inside a block of a head: modulation, norm, two of the MLP, the sum's operands.
_HEAD = 10
#: Bytes of a key's or value's number in the cache.
_KEPT = {"float32": 4, "tf32": 4, "bfloat16": 2}
_NOISE = 6  #: words of the generator alive for each random number


@dataclass(frozen=True)
class BatchMemory:
    """Bytes by what holds them."""

    weights: int
    cache: int  #: keys and values of what is decoded so far
    activations: int  #: of a transformer's pass over the batch
    head: int  #: rows of the diffusion head, with the random numbers of their paths

    @property
    def total(self) -> int:
        """A pass's activations are gone when the head runs."""
        return self.weights + self.cache + max(self.activations, self.head)


def batch_memory(card: PairCard, law: SamplerLaw, method: Method, batch: int) -> BatchMemory:
    """The largest moment of decoding ``batch`` images together.

    Args:
        card: of the pair.
        law: guidance doubles the rows; bfloat16 keeps a second copy of the weights at half their size.
        method: one with a draft needs the draft's weights and cache too.
        batch: images.
    """
    if isinstance(method, Null):
        return BatchMemory(0, 0, 0, 0)
    sizes = part_sizes(card, draft=method.uses_draft)
    weights = sum(sizes.values()) * _FLOAT
    weights += weights // 2 if law.dtype == "bfloat16" else 0
    models = [card.target, *([card.draft] if method.uses_draft and card.draft else [])]
    rows = batch * (2 if law.cfg != 1 else 1)
    block = 1 + (0 if isinstance(method, Plain) else getattr(method, "gamma", 0))  # positions of a target pass
    cache = sum(_cache(model, rows, block) for model in models) * _KEPT[law.dtype]
    activations = max(_activations(model, rows, block) for model in models)
    return BatchMemory(weights, cache, activations, _head(card.target, law, batch))


def _cache(model: MarConfig | CausalConfig | LlamaGenConfig, rows: int, block: int) -> int:
    """Numbers that are held; a pass of ``block`` positions reads them where they are."""
    if isinstance(model, MarConfig):
        return 0
    if isinstance(model, LlamaGenConfig):
        return 2 * model.n_layer * rows * (model.block_size + block) * model.dim
    return 2 * model.depth * rows * (model.seq_len + 1) * model.embed_dim


def _activations(model: MarConfig | CausalConfig | LlamaGenConfig, rows: int, block: int) -> int:
    if isinstance(model, MarConfig):
        width = max(model.encoder_embed_dim, model.decoder_embed_dim)
        return _BLOCK * rows * (model.seq_len + model.buffer_size) * width * _FLOAT
    if isinstance(model, LlamaGenConfig):
        # Logits, their probabilities and the sorted copies of top-k and top-p are wider than any layer.
        return rows * block * (_BLOCK * model.dim + 6 * model.vocab_size) * _FLOAT
    return _BLOCK * rows * block * model.embed_dim * _FLOAT


def _head(model: MarConfig | CausalConfig | LlamaGenConfig, law: SamplerLaw, batch: int) -> int:
    if isinstance(model, LlamaGenConfig):
        return 0
    if isinstance(model, MarConfig):
        tokens, width = max(1, -(-model.seq_len * 2 // law.num_iter)), model.diffloss_w
    else:
        # A causal model finishes all tokens of an image at once, at least by the last step.
        tokens, width = model.seq_len, model.head_width
    drawn = batch * min(tokens, model.seq_len)
    guided = drawn * (2 if law.cfg != 1 else 1)
    return guided * _HEAD * width * _FLOAT + drawn * law.head_steps * model.token_dim * _NOISE * _FLOAT
