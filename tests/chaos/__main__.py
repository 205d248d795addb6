"""`python -m tests.chaos --kills 200 --out table.md`: kills everything a job runs on and counts what is lost."""

from __future__ import annotations

import argparse
import logging
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills to survive")
    parser.add_argument("--out", type=Path, help="file for the table; it is printed in any case")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the kills")
    parser.add_argument("--port", type=int, default=22000, help="first of 200 free ports")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for name in ("botocore", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from tests.chaos.harness import Harness, table  # the environment is read when Ray is imported, in the drivers alone

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended on the way out
    # Ray puts sockets below it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="spdc-", dir="/tmp"))
    began = time.monotonic()
    harness = Harness(folder, args.port, args.seed)
    try:
        harness.start()
        harness.run(args.kills)
    finally:
        harness.stop()
        text = table(harness.tally, time.monotonic() - began)
        sys.stdout.write(text)
        if args.out:
            args.out.write_text(text)
    if harness.tally.wrong or harness.tally.complaints or harness.tally.holes:
        sys.stderr.write(f"logs are in {folder}\n")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
