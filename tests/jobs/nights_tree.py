"""Records of nights for tests, without a dataset behind them."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np

from jobs.nightly.record import Night
from tests import nights

FIRST = datetime.date(2026, 11, 1)


def a_night(number: int = 0, **fields: Any) -> Night:
    """The night with this number from 0, of a job that has changed in nothing."""
    figures = {"speed_over_plain": 2.4, "acceptance": 0.75, "images": 256.0, "images_per_s": 40.0, "frechet": 337.0}
    raw: dict[str, Any] = {
        "night": FIRST + datetime.timedelta(days=number),
        "made": "2026-11-28T03:00:00.000+00:00",
        "name": "fashion",
        "output": f"out/fashion/{number}",
        "fingerprint": "f" * 64,
        "platforms": ("x86, torch 2.6",),
        "content": "c" * 64,
        "created": f"2026-11-28T02:{number:02d}:00.000+00:00",
        "commit": "abc123",
        "versions": {"spd": "0.1.0", "torch": "2.6.0"},
        "machine": "a machine",
        "device": "cpu",
        "spec": {"method": {"name": "speculative", "gamma": 8}, "output": f"out/fashion/{number}"},
        "quality_n": 256,
        "figures": {**figures, **fields.pop("figures", {})},
        "errors": {"frechet": 0.02},
        "accepted_by_place": (0.8, 0.7),
        "counts": {"rounds": 1000},
        "seconds": {"head": 10.0},
    }
    return Night.model_validate({**raw, **fields}).sealed()


def thirty_nights(drop: float, seed: int = 5) -> list[Night]:
    """Thirty nights with noise, a weekly pattern and one outlier; the drop comes with another commit."""
    values = nights.history(np.random.default_rng(seed), drop, "narrow")
    return [
        a_night(number, figures={"speed_over_plain": float(value)}, commit="abc123" if number < 23 else "def456")
        for number, value in enumerate(values)
    ]
