"""Words that were probably meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def did_you_mean(got: str, known: Sequence[str], leaf: bool = False) -> str:
    """``, did you mean X?`` for the most alike of the known words; empty if none is.

    Args:
        got: what was written.
        known: what there is.
        leaf: of dotted words only the last part is compared.
    """
    folded = {(word.rpartition(".")[2] if leaf else word).casefold(): word for word in reversed(known)}
    near = get_close_matches(got.casefold(), folded, n=1, cutoff=0.6)
    return f", did you mean {folded[near[0]]}?" if near else ""
