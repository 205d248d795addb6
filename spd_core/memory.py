"""What a batch needs of a device's memory: a model of the largest moment of decoding, term by term.

Only what grows with the batch or is large is counted. The terms follow from sizes alone, so that they hold for a pair
whose weights are elsewhere; the constants are counts of tensors alive at once, held against measured peaks by a test.

What one model holds its family says: `spd_core.families.family.Family.memory`.
"""

from __future__ import annotations

from dataclasses import dataclass

from spd_core.law import Method, Null, Plain, SamplerLaw
from spd_core.pairs.pair import PairCard, part_sizes

_FLOAT = 4  #: bytes; activations and caches
#: Bytes of a key's or value's number in the cache.
_KEPT = {"float32": 4, "tf32": 4, "bfloat16": 2}


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
    block = 1 + (0 if isinstance(method, Plain) else getattr(method, "gamma", 0))  # positions of a target pass
    held = [card.of.memory(config, law, batch, block) for config in models]
    cache = sum(of.cache for of in held) * _KEPT[law.dtype]
    return BatchMemory(weights, cache, max(of.activations for of in held), held[0].head)
