"""The table of what was tried and what notices: docs/mutants.md."""

from __future__ import annotations

from tests.spd_core.mutants import codes, cspd, paths, plain, windows

DECODERS = (plain.DECODER, windows.DECODER, paths.DECODER, codes.DECODER, cspd.DECODER)

_HEAD = """# Mistakes that were tried

Each line is a decoder with one thing wrong. `tests/spd_core/test_mutants.py` (`pytest -m slow`) makes every mistake in
turn and runs the check named beside it, which must fail; without the mistake it must pass. `python -m
tests.spd_core.mutants` prints this page.

Mistakes of other kinds have tests of their own: random numbers used in two roles or losing bits (`test_ledger.py`,
`test_draws.py`), wrong residuals and walks by enumeration (`test_accept_codes.py`), images that depend on their slot or
batch (`test_slots.py`), intervals that do not cover (`test_certificate.py`), and re-implementations of public models
that differ from them (`test_oracle_mutants.py`).
"""


def table() -> str:
    """The page."""
    lines = [_HEAD]
    for decoder in DECODERS:
        lines += [f"## {decoder.name}: {len(decoder.mutants)}", "", "| mistake | check that notices |", "|---|---|"]
        for mutant in decoder.mutants:
            lines.append(f"| {mutant.name} | {decoder.checks[mutant.check].__name__.replace('_', ' ')} |")
        lines.append("")
    return "\n".join(lines)
