"""The speed that the cost model predicts from a pair's call times and from what a benchmark saw of its drafts."""

from __future__ import annotations

from jobs.bench.measure import Tally
from spd_core.decode.cost import CallTimes, Drafting, plain, plain_windowed, speculative
from spd_core.law import Plain, Speculative


def predicted_speedup(
    times: CallTimes,
    alone: CallTimes,
    method: Plain | Speculative,
    tally: Tally,
    tokens: int,
    batch: int,
    fills: int,
) -> float:
    """Of a method over plain decoding at the same law, by the cost model.

    Args:
        times: of the method at this batch size.
        alone: of the method at batch 1.
        method: plain or speculative.
        tally: what was measured of its drafts.
        tokens: of an image.
        batch: images decoded together.
        fills: images that each place in the batch makes.
    """
    if isinstance(method, Plain):
        return plain(times, tokens) / plain_windowed(times, tokens)
    drafting = Drafting(tally.acceptance(method.gamma), tally.overlap, method.proposals)
    return fills * plain(times, tokens) / speculative(times, alone, drafting, tokens, batch, fills)
