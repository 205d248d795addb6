"""`python -m tests.interleavings`: enumerates every situation of the model and of the program, and prints the sizes."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.interleavings import model, real
from tests.interleavings.explore import Found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interleavings", description=__doc__)
    parser.add_argument("--preemptions", type=int, default=2, help="switches away from an actor that could go on")
    parser.add_argument("--full", nargs="*", default=[], metavar="PLACE", help="model situations without a bound")
    parser.add_argument("--only", choices=["model", "program"], help="one of the two; default: both")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    total, began = Found(), time.monotonic()

    def tell(kind: str, name: str, found: Found) -> None:
        sys.stdout.write(f"{kind}: {found.line(name)}\n")
        sys.stdout.flush()
        for name in ("states", "steps", "deaths"):
            setattr(total, name, getattr(total, name) + getattr(found, name))
        total.violations += found.violations

    for place, situation in enumerate(model.situations() if args.only != "program" else ()):
        bound = None if str(place) in args.full else args.preemptions
        tell("model", situation.name, situation.explore(model.Rules(), bound))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        job = real.make_job(Path(folder), patch)
        for each in real.situations(job) if args.only != "model" else ():
            tell("program", each.name, each.explore(job, args.preemptions))
    sys.stdout.write(
        f"all: {total.states} states, {total.steps} steps, {total.deaths} deaths and pauses, "
        f"{len(total.violations)} violations, {time.monotonic() - began:.0f} s\n"
    )
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main())
