"""``python -m tests.gpu.count [NAME ...] [--top 12]``: launches and host syncs of decoders at true depth, by line.

A name is any part of one of those listed without arguments. Nothing here is a time: an eager launch costs a host 5 to
8 us, a sync at least that and the wait itself.
"""

from __future__ import annotations

import argparse

import torch

from tests.gpu.pretend import RECORDER, pretend_cuda
from tests.gpu.subjects import SUBJECTS, Counts


def lines_of(counts: Counts, top: int) -> list[str]:
    """The lines of the project behind the counts, by what they ask."""
    return [*counts.ledger.top_launches(top), *counts.ledger.top_syncs(top)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; none: all")
    parser.add_argument("--top", type=int, default=12, help="lines shown of each")
    arguments = parser.parse_args()
    wanted = [name for name in SUBJECTS if all(part.lower() in name.lower() for part in arguments.names)]
    if not wanted:
        parser.error(f"names: got {' '.join(arguments.names)!r}, allowed: parts of {', '.join(SUBJECTS)}")
    torch.set_num_threads(1)
    with pretend_cuda(), torch.inference_mode():
        for name in wanted:
            RECORDER.regions.clear()
            counts = SUBJECTS[name].count()
            print(f"{name}: {counts.launches:,.1f} launches and {counts.syncs:.2f} syncs a {counts.unit}")
            print(f"    over {counts.units} {counts.unit}s:")
            for line in lines_of(counts, arguments.top):
                print(f"    {line}")
            for region, captured in RECORDER.regions.items():
                replayed = counts.ledger.replays[region] / counts.units
                print(
                    f"    captured {region}: {captured.graphs} graphs, at most {captured.launches:,} kernels, "
                    f"{replayed:.2f} replays a {counts.unit}"
                )


if __name__ == "__main__":
    main()
