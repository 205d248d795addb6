"""``python -m tests.gpu [--out DIR] [--budget 540] [--smoke]``: the device check, see docs/gpu.md.

Exit code 0: nothing failed and nothing was found wrong; 1: something was, its rows say what.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tests.gpu.check import around, ceilings, codes, correctness, mar
from tests.gpu.check.run import Check, Part, run_parts

#: In order of value; weights are about the seconds that each needs on an H100.
PARTS = [
    Part("ceilings", 8, ceilings.ceilings),
    Part("oracles", 10, correctness.oracles),
    Part("MAR plain", 90, mar.plain),
    Part("LlamaGen plain", 50, codes.plain),
    Part("LlamaGen speculation", 40, codes.speculation),
    Part("tokens", 60, correctness.tokens),
    Part("laws", 60, correctness.laws),
    Part("CSpD Table 1", 70, mar.cspd_table),
    Part("head self-speculation", 40, mar.windows),
    Part("direct loop", 20, mar.direct_loop),
    Part("honest rows", 40, mar.honest),
    Part("profile", 20, around.where_time_goes),
    Part("codecs", 12, around.codecs),
]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of device_check.json")
    parser.add_argument("--budget", type=float, help="seconds; 540, for the smoke run an hour")
    parser.add_argument("--smoke", action="store_true", help="everything at toy size, on a CPU too")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    if not given.smoke and not given.device.startswith("cuda"):
        parser.error(f"device: got {given.device}, allowed without --smoke: a GPU")
    given.out.mkdir(parents=True, exist_ok=True)
    check = Check(
        torch.device(given.device), given.out, given.budget or (3600.0 if given.smoke else 540.0), given.smoke
    )
    sound = run_parts(check, PARTS)
    print(f"{'sound' if sound else 'NOT sound'}: {len(check.rows)} rows in {given.out / 'device_check.json'}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
