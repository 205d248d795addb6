"""GPUs that a speed can be predicted for on a machine that has none: their peaks, from the makers' data sheets.

A data sheet's peak is what no program reaches, so a time predicted from it is a bound from below. Products are dense:
sheets often state twice as much, for weights of which half are zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from spd_core.law import Precision

#: Where the figures of a card are from.
SHEET, SEEN = "its data sheet's peaks", "speeds seen on one"


@dataclass(frozen=True)
class Card:
    """What a GPU can do at most."""

    name: str
    words: tuple[str, ...]  #: any of these, all its words together, in a device's name or a Ray accelerator type
    tflops: Mapping[Precision, float]  #: TFLOP/s of large dense products
    tb_per_s: float  #: of its memory
    memory_gb: int
    source: str = SHEET

    def means(self, device: str) -> bool:
        """Whether a device's name is one of this card's."""
        told = _words(device)
        return any(_words(each) <= told for each in self.words)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def _peaks(bfloat16: float, tf32: float, float32: float) -> dict[Precision, float]:
    return {"bfloat16": bfloat16, "tf32": tf32, "float32": float32}


#: The first whose words a name holds is meant: those with more words stand before those with fewer.
CARDS = (
    Card("NVIDIA B200", ("B200",), _peaks(2250, 1125, 75), 7.7, 180),
    Card("NVIDIA H200", ("H200",), _peaks(989, 494, 67), 4.8, 141),
    Card("NVIDIA H100 NVL", ("H100 NVL",), _peaks(835, 417, 60), 3.9, 94),
    Card("NVIDIA H100 PCIe", ("H100 PCIe",), _peaks(756, 378, 51), 2.0, 80),
    # Its bfloat16 products and copies as measured on one (of peaks of 989 and 3.35), the others from its data sheet.
    Card("NVIDIA H100", ("H100",), _peaks(798, 494, 67), 3.0, 80, SEEN),
    Card("NVIDIA A100 40GB", ("A100 40GB", "A100 40G"), _peaks(312, 156, 19.5), 1.555, 40),
    Card("NVIDIA A100 80GB", ("A100",), _peaks(312, 156, 19.5), 2.039, 80),
    Card("NVIDIA L40S", ("L40S",), _peaks(362, 183, 91.6), 0.864, 48),
    Card("NVIDIA L4", ("L4",), _peaks(121, 60, 30.3), 0.3, 24),
    Card("NVIDIA A10", ("A10",), _peaks(125, 62.5, 31.2), 0.6, 24),
    Card("NVIDIA GeForce RTX 4090", ("RTX 4090",), _peaks(165, 82.6, 82.6), 1.008, 24),
)


def card_of(device: str) -> Card | None:
    """The card of a device's name (`torch.cuda.get_device_name`) or Ray accelerator type; None: it is not listed."""
    return next((card for card in CARDS if card.means(device)), None)
