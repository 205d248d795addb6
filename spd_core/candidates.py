"""The methods of a pair that `Auto` measures, and at which batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from spd_core.decode.ceilings import Ceilings
from spd_core.decode.predict import images_per_s, windows_for
from spd_core.law import Auto, Choice, Method, Plain, SamplerLaw
from spd_core.pairs.pair import PairCard

#: Batch sizes of ``batch: auto``, as far as they fit into a shard.
BATCHES = (1, 4, 16, 64, 256)
#: Share of the best predicted speed below which a predicted choice is not measured.
PROMISING = 0.4


def admissible(
    card: PairCard, auto: Auto, windows: Sequence[tuple[int, ...]] | None = None, law: SamplerLaw | None = None
) -> tuple[Method, ...]:
    """The methods to measure, plain decoding first.

    Args:
        card: of the pair; without a draft only plain decoding is left.
        auto: what is asked for; its guarantee is a floor, its delta and radius add the relaxed rules.
        windows: of head self-speculation, the best first; None: the pair's own.
        law: what is sampled; None: any that the pair can be sampled at.
    """
    ways = card.of.likely if auto.candidates == "few" else card.of.offered
    offered = ways(card, auto, windows or card.windows)
    possible = [method for method in offered if law is None or card.of.refused_at(law, method) is None]
    return tuple(method for method in possible if auto.guarantee.admits(method.guarantee))


def choices(
    card: PairCard,
    auto: Auto,
    batch: int | Literal["auto"],
    shard: int,
    law: SamplerLaw | None = None,
    at: Ceilings | None = None,
) -> tuple[Choice, ...]:
    """Methods times batch sizes, batch by batch.

    Args:
        card, auto: as for `admissible`.
        batch: of the spec; auto: each of `BATCHES` that a shard can fill.
        shard: images of a shard; batches are cut from it.
        law: what is sampled; None: the pair's own.
        at: the device, if it is known; then windows are sized to each batch, and what cannot be fastest is left out.
    """
    sizes, law = _sizes(batch, shard), law or card.law
    if at is None:
        # Of an unknown device, the pair's own windows and those for the dearest rows, which a large batch may need.
        windows = dict.fromkeys([*card.windows, *(tuned.windows for tuned in card.tuned_windows[-1:])])
        methods = admissible(card, auto, tuple(windows), law)
        return tuple(Choice(method=method, batch=size) for size in sizes for method in methods)
    offered = [
        Choice(method=method, batch=size)
        for size in sizes
        for method in admissible(card, auto, windows_for(card, law, size, at), law)
    ]
    rates = {choice: images_per_s(card, law, choice, at) for choice in offered}
    best = max(offered, key=lambda choice: rates[choice] or 0.0)
    kept = {choice for choice, rate in rates.items() if rate is None or rate >= PROMISING * (rates[best] or 0.0)}
    # A prediction is no measurement: plain decoding, one head call a step, is held against it.
    kept.add(Choice(method=Plain(), batch=best.batch))
    return tuple(choice for choice in offered if choice in kept)


def all_choices(card: PairCard, auto: Auto, batch: int | Literal["auto"], shard: int) -> tuple[Choice, ...]:
    """What `choices` may give on any device; arguments as there."""
    windows = dict.fromkeys([*card.windows, *(tuned.windows for tuned in card.tuned_windows)])
    # Speculative decoding takes the first.
    orders = [[first, *windows] for first in windows] or [[]]
    methods = dict.fromkeys(method for order in orders for method in admissible(card, auto, order))
    return tuple(Choice(method=method, batch=size) for size in _sizes(batch, shard) for method in methods)


def _sizes(batch: int | Literal["auto"], shard: int) -> list[int]:
    return [size for size in BATCHES if size <= shard] if batch == "auto" else [batch]
