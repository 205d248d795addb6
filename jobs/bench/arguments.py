"""Arguments of ``spd bench`` and what is refused among them."""

from __future__ import annotations

import argparse
import math

from pydantic import ValidationError

from jobs.bench.plot import check_plot
from jobs.words.errors import SpecError
from jobs.words.files import check_file
from spd_core.families.family import Family
from spd_core.families.registry import FAMILIES
from spd_core.law import Speculative
from spd_core.pairs.pair import load_card

#: Whole numbers from 1 to these.
_MOST = {
    "num_iter": 65_536,
    "gamma": 4096,
    "paper_gamma": 4096,
    "head_window": 1000,
    "stride": 1000,
    "batch": 65_536,
    "fills": 10_000,
    "repeats": 10_000,
    "processes": 1024,
    "threads": 1024,
    "deepen": 1000,
}


def families_for(wish: str) -> str:
    """The families for whose pairs an argument means something."""
    *others, last = (name for name, family in FAMILIES.items() if wish in family.wishes)
    return f"{', '.join(others)} or {last}" if others else last


def _check_family(args: argparse.Namespace, family: Family) -> None:
    for name in sorted({wish for each in FAMILIES.values() for wish in each.wishes}):
        value = getattr(args, name, None)
        if value is not None and name not in family.wishes:
            flag, got = f"--{name.replace('_', '-')}", "set" if value is True else value
            allowed = f"a pair of the {families_for(name)} family"
            raise SpecError(f"{flag}: got {got} for {args.pair}, allowed: {allowed}")


def _check_range(args: argparse.Namespace, name: str, least: float, most: float = math.inf) -> None:
    values = getattr(args, name)
    for value in values if isinstance(values, list) else [values]:
        if value is not None and not least <= value <= most:
            allowed = f"{least:g} or more" if most == math.inf else f"{least:,.15g} to {most:,.15g}"
            raise SpecError(f"--{name.replace('_', '-')}: got {value}, allowed: {allowed}")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses values out of range, flags of another family and files that cannot be written.

    Raises:
        SpecError, PairError: wrong input.
    """
    for name, most in _MOST.items():
        _check_range(args, name, 1, most)
    for name in ("delta", "lam"):
        _check_range(args, name, 1, 1e6)
    for name in ("radius", "nu"):
        _check_range(args, name, 0)
    _check_range(args, "lantern_delta", 0, 1)
    if args.n != 0 and args.n < 2:
        raise SpecError(f"--n: got {args.n}, allowed: 0 (speed only) or at least 2")
    check_files(args)
    card = load_card(args.pair)
    _check_family(args, card.of)
    if args.drafter and args.drafter not in card.drafters:
        raise SpecError(f"--drafter: got {args.drafter!r}, allowed: {' or '.join(card.drafters) or 'none'}")


def check_files(args: argparse.Namespace) -> None:
    """Refuses files that cannot be written.

    Raises:
        SpecError: wrong input.
    """
    for name in ("json", "markdown", "plot"):
        check_file(f"--{name}", getattr(args, name))
    if args.plot:
        check_plot(args.plot)


def parse_tree(text: str) -> tuple[int, ...]:
    """Branches by level of a text such as 2,1,1,1.

    Raises:
        SpecError: another text.
    """
    try:
        return Speculative.model_validate({"tree": text.split(",")}).tree
    except ValidationError as error:
        raise SpecError(f"--tree: got {text!r}, allowed: branches by level, such as 2,1,1,1") from error
