"""Pages of simulated nights, to look at: ``python -m tests.pictures FOLDER`` writes trend.html and compare.html."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from jobs.job.requirements import Requirements
from jobs.nightly.pages import pages_of
from jobs.nightly.record import Control, Night
from jobs.nightly.verdict import compare, judge
from tests.jobs.nights_tree import thirty_nights

#: Levels and relative noise of figures that change in nothing but noise.
NOISY = {
    "frechet": (337.0, 0.01),
    "label_agreement": (0.92, 0.004),
    "images_per_s": (40.0, 0.15),
    "load": (2.0, 0.2),
    "cost_per_1000": (0.02, 0.1),
}
ERRORS = {"frechet": 0.015, "label_agreement": 0.004, "speed_over_plain": 0.02}


def simulated() -> list[Night]:
    """Thirty nights with a drop of 8 % in speed from night 24 on, and noise in the other figures."""
    rng = np.random.default_rng(3)
    nights = []
    for night in thirty_nights(0.08):
        noisy = {name: level * (1 + rng.normal(0, noise)) for name, (level, noise) in NOISY.items()}
        rates = tuple(noisy["images_per_s"] * share for share in (1.0, 0.96, 1.03, 0.99))
        control = Control(
            method=rates, plain=tuple(rate / night.figures["speed_over_plain"] for rate in rates), method_cpu=0.02,
            plain_cpu=0.05, images=32, load=noisy["load"], device="cpu", machine="a machine, 2 usable cores",
        )  # fmt: skip
        figures = {**night.figures, **noisy, "images_per_s_per_worker": noisy["images_per_s"] / 2}
        nights.append(night.model_copy(update={"figures": figures, "errors": ERRORS, "control": control}))
    return nights


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    nights = simulated()
    pages = pages_of("trend", judge(nights, Requirements()), nights)
    worse = {**nights[-1].figures, "frechet": 402.0}
    spec = {**nights[-1].spec, "law": {"temperature": 1.3}}
    pair = nights[0], nights[-1].model_copy(update={"figures": worse, "spec": spec, "fingerprint": "e" * 64})
    pages |= pages_of("compare", compare(*pair, Requirements()), pair)
    for name, page in pages.items():
        (folder / name).write_bytes(page)


if __name__ == "__main__":
    main()
