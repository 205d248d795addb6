"""How often steps are found in simulated histories, and how often there are none: ``python -m tests.nights``."""

from __future__ import annotations

import argparse
import time
from dataclasses import astuple, dataclass

import numpy as np

from jobs.nightly.changes import find_steps

NIGHTS, CHANGE = 30, 23  #: nights of a history; index of the first one of the drop: night 24
FIRST = 10  #: nights of the first verdict
SEASON = 0.03  #: largest effect of a weekday, as a share
NOISES = ("uniform", "normal", "student", "wide", "narrow")


@dataclass(frozen=True)
class Rates:
    """Of some histories."""

    false_alarms: float  #: histories without a drop in which any night is an alarm
    last_night: float  #: histories without a drop in which the last one is
    found: float  #: histories with a drop, and no alarm the night before it, in which one of the first five nights is
    night: float  #: histories in which the last night's alarm names the drop's first night
    size: float  #: and in which it names its size to 2 %


def noise(rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
    """Of a night, as a share: within 5 % (narrow: 2 %), or 5 % is twice its standard deviation (wide: once)."""
    if kind == "uniform":
        return rng.uniform(-0.05, 0.05, count)
    if kind == "narrow":
        return rng.uniform(-0.02, 0.02, count)
    if kind == "student":
        return 0.025 * rng.standard_t(4, count) / np.sqrt(2)
    return rng.normal(0, 0.05 if kind == "wide" else 0.025, count)


def history(rng: np.random.Generator, drop: float, kind: str = "uniform") -> np.ndarray:
    """Thirty nights of a figure around 2.4: noise, a weekly pattern, one outlier, and a drop from night 24 on."""
    nights = np.arange(NIGHTS)
    week = rng.uniform(-SEASON, SEASON, 7)
    value = 2.4 * (1 + noise(rng, kind, NIGHTS)) * (1 + week[nights % 7])
    value[nights >= CHANGE] *= 1 - drop
    value[rng.integers(NIGHTS)] *= 1 + rng.choice([-1, 1]) * rng.uniform(0.2, 0.5)
    return value


def alarm(values: np.ndarray) -> tuple[int, float] | None:
    """Night and size of the drop that the newest night stands under."""
    steps = find_steps(values, [night % 7 for night in range(len(values))])
    if not steps or steps[-1].size >= 0:
        return None
    return steps[-1].at, float(np.expm1(steps[-1].size))


def rates(seed: int, histories: int, drop: float, kind: str = "uniform") -> Rates:
    """Simulates histories twice over: with the drop and without."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(5)
    for _ in range(histories):
        still, moved = history(rng, 0.0, kind), history(rng, drop, kind)
        quiet = [alarm(still[:seen]) is not None for seen in range(FIRST, NIGHTS + 1)]
        before = alarm(moved[:CHANGE]) is not None
        found = not before and any(alarm(moved[:seen]) is not None for seen in range(CHANGE + 1, CHANGE + 6))
        night, size = alarm(moved) or (-1, 0.0)
        counts += [any(quiet), quiet[-1], found, night == CHANGE, abs(size + drop) <= 0.02]
    return Rates(*(float(share) for share in counts / histories))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=300)
    parser.add_argument("--drop", type=float, default=0.08)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--noise", nargs="+", choices=NOISES, default=["uniform"])
    args = parser.parse_args()
    columns = (
        "noise",
        "seed",
        "false alarms, any night",
        "last night",
        "found in 5 nights",
        "right night",
        "size to 2 %",
    )
    print(f"| {' | '.join(columns)} | seconds |\n|{'---|' * (len(columns) + 1)}")
    for kind in args.noise:
        for seed in args.seeds:
            began = time.perf_counter()
            rates_of = rates(seed, args.histories, args.drop, kind)
            cells = (f"{100 * share:.1f} %" for share in astuple(rates_of))
            print(f"| {kind} | {seed} | {' | '.join(cells)} | {time.perf_counter() - began:.1f} |")


if __name__ == "__main__":
    main()
