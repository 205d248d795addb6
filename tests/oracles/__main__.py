"""``python -m tests.oracles [-v] FILE.json ...``: exit 0 all within tolerance, 1 outside it, 2 a wrong file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.oracles import Finding, OracleError, check


def _line(finding: Finding) -> str:
    mark = "ok  " if finding.passed else "FAIL"
    return f"  {mark} {finding.key}  max error {finding.error:.2e}, {finding.share:.2g} x allowed"


def _report(path: Path, findings: list[Finding], verbose: bool) -> None:
    failed = [finding for finding in findings if not finding.passed]
    worst = max(findings, key=lambda finding: finding.share)
    if failed:
        print(f"FAIL {path.name}: {len(failed)} of {len(findings)} outputs outside tolerance")
    else:
        print(f"ok   {path.name}: {len(findings)} outputs, closest {worst.key} at {worst.share:.2g} x allowed")
    for finding in findings if verbose else failed:
        print(_line(finding))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracles", description="check oracles against our code")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="FILE.safetensors lies beside it")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line per output")
    options = parser.parse_args(arguments)
    code = 0
    for path in options.files:
        try:
            findings = check(path)
        except OracleError as error:
            print(f"{path}: {error}", file=sys.stderr)
            code = 2
            continue
        _report(path, findings, options.verbose)
        code = max(code, int(any(not finding.passed for finding in findings)))
    return code


if __name__ == "__main__":
    sys.exit(main())
