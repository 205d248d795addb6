"""``python -m tests.gpu.count [PART ...] [--top 12] [--write | --tables]``: launches and host syncs by line.

Decoders are of true depth. A part is any part of a name; all parts must be in it. Nothing here is a time: an eager
launch costs a host 5 to 8 us, a sync at least that and the wait itself.
"""

from __future__ import annotations

import argparse

import torch

from tests.gpu.budgets import COUNTED, read_budgets, write_budgets
from tests.gpu.pretend import RECORDER, pretend_cuda
from tests.gpu.subjects import Counts
from tests.gpu.tables import budget_table, card_table, prediction_table


def _show(name: str, counts: Counts, top: int) -> None:
    print(f"{name}: {counts.launches:,.1f} launches and {counts.syncs:.2f} syncs a {counts.unit}; of {counts.units}:")
    for line in (*counts.ledger.top_launches(top), *counts.ledger.top_syncs(top)):
        print(f"    {line}")
    for region, captured in RECORDER.regions.items():
        replays = counts.ledger.replays[region] / counts.units
        graphs = f"{captured.graphs} graphs of at most {captured.launches:,} kernels"
        print(f"    captured {region}: {graphs}, {replays:.2f} replays a {counts.unit}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.count", description=__doc__)
    parser.add_argument("parts", nargs="*", help="of names; none: everything")
    parser.add_argument("--top", type=int, default=12, help="lines shown of each")
    parser.add_argument("--write", action="store_true", help="make the counts the new budgets")
    parser.add_argument("--tables", action="store_true", help="print the tables of docs/gpu.md; count nothing")
    arguments = parser.parse_args()
    if arguments.tables:
        print(budget_table(read_budgets()), prediction_table(), card_table(), sep="\n\n")
        return
    wanted = [name for name in COUNTED if all(part.lower() in name.lower() for part in arguments.parts)]
    if not wanted:
        parser.error(f"parts: got {' '.join(arguments.parts)!r}, allowed: parts of {'; '.join(COUNTED)}")
    torch.set_num_threads(1)
    with pretend_cuda(), torch.inference_mode():
        for name in wanted:
            RECORDER.regions.clear()
            counts = COUNTED[name].count()
            _show(name, counts, arguments.top)
            if arguments.write:
                write_budgets({name: counts})


if __name__ == "__main__":
    main()
