"""Speed of this tree against another checkout, interleaved: ``python -m tests.speed_against --before PATH``.

Two processes, one of each tree, take turns at the same decoding, so that whatever else the machine does meets both.
Printed for each way of decoding, above 1 where this tree is faster: the median of the ratios of neighbouring turns, and
the ratio of the fastest turns, which a busy machine disturbs least. One start of two processes is not enough: where
their memory happens to lie moves a ratio by several percent for as long as they live, so both are started anew a few
times; of the starts the median is printed, with the lowest and the highest. ``--before`` this very tree shows how wide
that is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROWS = {
    "plain, batch 1": ("fashion-mar", "Plain()", 1),
    "plain, batch 8": ("fashion-mar", "Plain()", 8),
    "head windows, batch 1": ("fashion-mar", "Plain(head_window=pair.card.windows[0])", 1),
    "cspd released, batch 8": ("fashion-mar", "Cspd(gamma=8)", 8),
    "cspd paper, batch 4": ("fashion-mar", "Cspd(variant='paper', gamma=4)", 4),
    "causal plain, batch 1": ("fashion-ar", "Plain()", 1),
    "causal windows, batch 1": ("fashion-ar", "Plain(head_window=pair.card.windows[0])", 1),
    "causal windows, batch 8": ("fashion-ar", "Plain(head_window=pair.card.windows[0])", 8),
    "causal speculative, batch 1": ("fashion-ar", "Speculative(gamma=4, head_window=pair.card.windows[0])", 1),
    "causal speculative, batch 4": ("fashion-ar", "Speculative(gamma=8)", 4),
    "codes plain, batch 1": ("fashion-vq", "Plain()", 1),
    "codes plain, batch 8": ("fashion-vq", "Plain()", 8),
    "codes chain, batch 1": ("fashion-vq", "Speculative(gamma=4)", 1),
    "codes chain, batch 8": ("fashion-vq", "Speculative(gamma=4)", 8),
    "codes tree, batch 8": ("fashion-vq", "Speculative(tree=(2, 2, 1, 1))", 8),
    "codes eagle, batch 1": ("fashion-vq", "Speculative(gamma=4, drafter='eagle')", 1),
    "codes eagle tree, batch 8": ("fashion-vq", "Speculative(tree=(3, 2, 1), drafter='eagle')", 8),
}
_WORKER = """
import sys, time, torch
from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.law import Cspd, Plain, Speculative
from spd_core.pairs.pair import load_pair
torch.set_num_threads(1)
pair = load_pair({pair!r})
law = pair.card.law.model_copy(update={{"num_iter": {iterations}}})
labels, seeds = torch.arange({batch}) % 10, torch.arange({batch})
for _ in sys.stdin:
    began = time.process_time()
    decode(pair, law, {method}, labels, Draws(seeds))
    print(time.process_time() - began, flush=True)
"""


def _started(tree: Path, row: tuple[str, str, int], iterations: int) -> subprocess.Popen[str]:
    pair, method, batch = row
    code = _WORKER.format(pair=pair, method=method, batch=batch, iterations=iterations)
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, cwd=tree, stdin=-1, stdout=-1, text=True)


def _turn(process: subprocess.Popen[str]) -> float:
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def ratios(before: Path, row: tuple[str, str, int], turns: int, iterations: int) -> tuple[float, float]:
    """CPU seconds of the other tree over those of this one: median of neighbouring turns, and of the fastest ones."""
    trees = (before.resolve(), Path(__file__).parents[1])
    processes = [_started(tree, row, iterations) for tree in trees]
    try:
        for process in processes:
            _turn(process)  # what is made at the first call
        spent: list[tuple[float, float]] = []
        for turn in range(turns):
            order = processes if turn % 2 else processes[::-1]
            taken = {process: _turn(process) for process in order}
            spent.append((taken[processes[0]], taken[processes[1]]))
        other, this = zip(*spent, strict=True)
        return statistics.median(a / b for a, b in spent), min(other) / min(this)
    finally:
        for process in processes:
            process.kill()


def main() -> None:
    """Prints a line a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="root of the other checkout")
    parser.add_argument("--turns", type=int, default=3, help="of each start")
    parser.add_argument("--starts", type=int, default=5, help="of the two processes")
    parser.add_argument("--iterations", type=int, default=16, help="of an image")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    given = parser.parse_args()
    for name in given.rows:
        starts = [ratios(given.before, ROWS[name], given.turns, given.iterations) for _ in range(given.starts)]
        told = (f"{statistics.median(of):.3f} ({min(of):.3f}-{max(of):.3f})" for of in zip(*starts, strict=True))
        sys.stdout.write(f"{name:26} median {next(told)}, fastest {next(told)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
