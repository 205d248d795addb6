"""Cards by the names that torch, Ray and people give them, and what their peaks are."""

from __future__ import annotations

import pytest

from spd_core.decode.cards import CARDS, card_of
from spd_core.decode.ceilings import WEIGHT_BYTES, known_ceilings


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("H100", "NVIDIA H100"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H100 NVL", "NVIDIA H100 NVL"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 40GB"),
        ("A100-40G", "NVIDIA A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB"),
        ("A100", "NVIDIA A100 80GB"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("l40s", "NVIDIA L40S"),
        ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
        ("NVIDIA GH200 480GB", None),
        ("", None),
    ],
)
def test_names_of_devices(device: str, card: str | None):
    found = card_of(device)
    assert (found and found.name) == card


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_is_found_by_its_own_names_and_has_a_peak_at_every_precision(card):
    assert card_of(card.name) == card and all(card_of(each) == card for each in card.words)
    assert card.tflops.keys() == WEIGHT_BYTES.keys()
    assert card.tflops["bfloat16"] > card.tflops["tf32"] >= card.tflops["float32"]


def test_ceilings_are_in_units_of_one():
    at = known_ceilings("NVIDIA L4", "bfloat16")
    assert (at.name, at.flops, at.bytes_per_s) == ("NVIDIA L4", 121e12, 0.3e12)
