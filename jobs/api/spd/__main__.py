"""The command ``spd``, and ``python -m spd``: `jobs.cli`, once it is sure that this `jobs` is spd's."""

from __future__ import annotations

import sys

from spd.packages import hidden


def main() -> int:
    """Entry point; returns the exit code."""
    problem = hidden()
    if problem is not None:
        sys.stderr.write(f"spd: {problem}\n")
        return 2
    from jobs.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
