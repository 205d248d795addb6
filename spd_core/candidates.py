"""The methods of a pair: the one a spec means that names none, and those that `Auto` measures, at which batch sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

from spd_core.law import Acceptance, Auto, Choice, Cspd, Method, Plain, Speculative
from spd_core.pairs.pair import PairCard

#: Batch sizes of ``batch: auto``, as far as they fit into a shard.
BATCHES = (1, 4, 16, 64, 256)
#: Tokens drafted before each target pass, and steps the draft holds each prediction.
SPECULATION = ((4, 15), (8, 15))
CSPD_GAMMAS = (8, 32)
#: Codes drafted before each target pass.
CODE_GAMMAS = (2, 4, 6)


def default_method(card: PairCard) -> Plain | Cspd | Speculative:
    """What a spec without a method is decoded by: speculation in the form of the pair's family, if it has a draft."""
    if card.family == "llamagen":
        return Speculative(gamma=4, drafter=card.drafters[0]) if card.drafters else Plain()
    if card.draft is None:
        return Plain()
    return Cspd() if card.family == "mar" else Speculative(gamma=4, head_window=card.windows[0])


def _offered(card: PairCard, auto: Auto) -> Iterator[Method]:
    """Every method that could pay on the pair, whatever it promises."""
    windows = card.windows
    yield Plain()
    for window in windows:
        yield Plain(head_window=window)
    rules = [Acceptance(rule="annealed", delta=auto.delta)] if auto.delta > 1 else []
    if card.family == "llamagen":
        for gamma, drafter, rule in itertools.product(CODE_GAMMAS, card.drafters, (Acceptance(), *rules)):
            yield Speculative(gamma=gamma, drafter=drafter, acceptance=rule)
        return
    if card.draft is None:
        return
    if card.family == "mar":
        for gamma in CSPD_GAMMAS:
            yield Cspd(gamma=gamma)
            yield Cspd(gamma=gamma, head_window=windows[0])
        return
    rules += [Acceptance(rule="coupled", radius=auto.radius)] if auto.radius > 0 else []
    for gamma, stride in SPECULATION:
        yield Speculative(gamma=gamma, stride=stride)
        for rule in (Acceptance(), *rules):
            yield Speculative(gamma=gamma, stride=stride, acceptance=rule, head_window=windows[0])


def admissible(card: PairCard, auto: Auto) -> tuple[Method, ...]:
    """The methods to measure, plain decoding first.

    Args:
        card: of the pair; without a draft only plain decoding is left.
        auto: what is asked for; its guarantee is a floor, its delta and radius add the relaxed rules.
    """
    return tuple(method for method in _offered(card, auto) if auto.guarantee.admits(method.guarantee))


def choices(card: PairCard, auto: Auto, batch: int | Literal["auto"], shard: int) -> tuple[Choice, ...]:
    """Methods times batch sizes, batch by batch.

    Args:
        card, auto: as for `admissible`.
        batch: of the spec; auto: each of `BATCHES` that a shard can fill.
        shard: images of a shard; batches are cut from it.
    """
    batches = [size for size in BATCHES if size <= shard] if batch == "auto" else [batch]
    return tuple(Choice(method=method, batch=size) for size in batches for method in admissible(card, auto))
