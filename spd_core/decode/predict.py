"""Images per second before anything is measured: counted work of a pair's passes over the ceilings of a device.

Predictions serve to leave out what cannot be fastest, to choose windows of head self-speculation for a batch, and to
say in a plan about how long a job takes. A prediction is a lower bound on time. It leaves out the products of
attention, random numbers, the tests of windows, the codec and the host, and takes a kernel to cost what it costs in a
recorded graph.

A family says which of its methods can be predicted. For the others there is no speed before a measurement.
"""

from __future__ import annotations

import math

from spd_core.decode.ceilings import Ceilings
from spd_core.law import Choice, Plain, SamplerLaw
from spd_core.pairs.pair import PairCard, TunedWindows


def images_per_s(card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
    """Predicted speed of a choice on one device; None: it cannot be predicted.

    Args:
        card: of the pair.
        law: what is sampled.
        choice: method and batch.
        at: ceilings of the device at the law's precision.
    """
    seconds = card.of.batch_seconds(card, law, choice, at)
    return None if seconds is None else choice.batch / seconds


#: Two schedules are worth measuring side by side if their calls differ by this factor.
APART = 1.25


def windows_for(card: PairCard, law: SamplerLaw, batch: int, at: Ceilings) -> tuple[tuple[int, ...], ...]:
    """The windows of a pair that a device should decode a batch fastest with, and the next best that differ from them.

    Below the ridge rows are free and the longest windows win; above it the shortest, or none at all.
    """

    def rate(tuned: TunedWindows) -> float:
        return images_per_s(card, law, Choice(method=Plain(head_window=tuned.windows), batch=batch), at) or -math.inf

    ranked = sorted(card.tuned_windows, key=rate, reverse=True)
    others = [of for of in ranked if max(of.calls, ranked[0].calls) >= APART * min(of.calls, ranked[0].calls)]
    return tuple(tuned.windows for tuned in [*ranked[:1], *others[:1]])
