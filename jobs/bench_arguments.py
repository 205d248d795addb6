"""Arguments of ``spd bench`` and what is refused among them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from pydantic import ValidationError

from jobs.bench_plot import check_plot
from jobs.spec import SpecError
from spd_core.law import Speculative
from spd_core.pairs.pair import load_card

#: Arguments that do not mean something for every family, and those for which they do.
_FAMILIES_OF = {
    **dict.fromkeys(("ablation", "num_iter", "paper_gamma"), ("mar",)),
    **dict.fromkeys(("stride", "radius", "deepen"), ("causal",)),
    **dict.fromkeys(("tree", "drafter", "nu", "lam", "lantern_delta", "plot"), ("llamagen",)),
    **dict.fromkeys(("head_window", "head_schedule", "head_steps"), ("mar", "causal")),
    "delta": ("causal", "llamagen"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--pair", default="fashion-mar", help="bundled pair or a folder that holds one")
    parser.add_argument(
        "--gamma", type=int, nargs="+", metavar="G", help="draft lengths; default 4 8, codes 2 4 6, MAR 4 8 16 32"
    )
    parser.add_argument(
        "--head-window",
        type=int,
        nargs="+",
        metavar="L",
        help="windows of head self-speculation, one a slice of the path",
    )
    parser.add_argument(
        "--ablation", action="store_true", default=None, help="MAR: noise alignment and pre-fill of cspd instead"
    )
    parser.add_argument(
        "--num-iter", type=int, nargs="+", metavar="I", help="MAR: plain decoding at these; default law's, /2, /4, /8"
    )
    parser.add_argument(
        "--paper-gamma", type=int, nargs="*", metavar="G", help="MAR: draft lengths of cspd, paper; default 8"
    )
    parser.add_argument(
        "--head-schedule",
        nargs="*",
        metavar="NAME",
        help="plain decoding with head steps that fall along the image too: linear, cosine, two-stage; default MAR "
        "linear, causal none",
    )
    parser.add_argument(
        "--head-steps",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="from and to which number they fall; default a half and a twentieth of the law's",
    )
    parser.add_argument("--stride", type=int, metavar="K", help="causal: steps the draft holds a prediction")
    parser.add_argument(
        "--delta",
        type=float,
        nargs="*",
        metavar="D",
        help="causal, codes: annealed acceptance with these; default 2 4 8 16, codes 1.25 1.5 2 3 5",
    )
    parser.add_argument("--radius", type=float, nargs="*", metavar="R", help="causal: coupled acceptance with these")
    parser.add_argument(
        "--deepen", type=int, metavar="K", help="causal: a heavier target, K idle blocks after each block; same law"
    )
    parser.add_argument(
        "--tree", nargs="*", metavar="B,B,..", help="codes: draft trees, branches by level; default 2,1,1,1 3,2,1"
    )
    parser.add_argument(
        "--drafter", choices=("draft", "eagle"), help="codes: the draft of most entries; default the pair's first"
    )
    parser.add_argument(
        "--nu", type=float, nargs="*", metavar="NU", help="codes: of the annealed rule, 0 is uniform; default 0.7 0"
    )
    parser.add_argument(
        "--lam", type=float, nargs="*", metavar="L", help="codes: of the lantern++ rule; default 1.25 1.5 2 3 5"
    )
    parser.add_argument(
        "--lantern-delta",
        type=float,
        nargs="*",
        metavar="D",
        help="codes: of the lantern rule; default 0.01 0.05 0.1 0.2",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="B", help="batch sizes")
    parser.add_argument(
        "--fills",
        type=int,
        metavar="F",
        help="batches in one timed decoding, default 1, codes 4; with more, speculative decoding refills its slots",
    )
    parser.add_argument(
        "--n", type=int, default=1000, help="images per entry for distance and agreement; 0: speed only"
    )
    parser.add_argument(
        "--quality-of",
        nargs="+",
        metavar="TEXT",
        help="distance and agreement only of entries whose name in the table is one of these, or else has it in it; "
        "default: all but those whose images have plain's law by construction: the naive loop, and of the lossless "
        "entries of codes all but the first",
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed decodings per entry and batch size")
    parser.add_argument("--processes", type=int, default=1, help="processes that make the quality images")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="job seed")
    parser.add_argument("--set", action="append", default=[], metavar="law.FIELD=VALUE", help="one field of the law")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as markdown")
    parser.add_argument(
        "--plot", metavar="FILE", help="codes: draw speed against certificate and distance; .svg or .png"
    )
    parser.add_argument("--rows", metavar="FILE", help="measure nothing: table and picture of what --json wrote")


def _check_family(args: argparse.Namespace, family: str) -> None:
    for name, families in _FAMILIES_OF.items():
        value = getattr(args, name)
        if value is not None and family not in families:
            flag, got = f"--{name.replace('_', '-')}", "set" if value is True else value
            raise SpecError(f"{flag}: got {got} for {args.pair}, allowed: a pair of the {' or '.join(families)} family")


def _check_range(args: argparse.Namespace, name: str, least: float, most: float = math.inf) -> None:
    values = getattr(args, name)
    for value in values if isinstance(values, list) else [values]:
        if value is not None and not least <= value <= most:
            allowed = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
            raise SpecError(f"--{name.replace('_', '-')}: got {value}, allowed: {allowed}")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses values out of range, flags of another family and files that cannot be written.

    Raises:
        SpecError, PairError: wrong input.
    """
    whole = (
        "num_iter",
        "gamma",
        "paper_gamma",
        "head_window",
        "stride",
        "batch",
        "fills",
        "repeats",
        "processes",
        "threads",
    )
    for name in (*whole, "delta", "deepen", "lam"):
        _check_range(args, name, 1)
    for name in ("radius", "nu"):
        _check_range(args, name, 0)
    _check_range(args, "lantern_delta", 0, 1)
    if args.n != 0 and args.n < 2:
        raise SpecError(f"--n: got {args.n}, allowed: 0 (speed only) or at least 2")
    check_files(args)
    card = load_card(args.pair)
    _check_family(args, card.family)
    if args.drafter and args.drafter not in card.drafters:
        raise SpecError(f"--drafter: got {args.drafter!r}, allowed: {' or '.join(card.drafters) or 'none'}")


def check_files(args: argparse.Namespace) -> None:
    """Refuses files that cannot be written.

    Raises:
        SpecError: wrong input.
    """
    for name in ("json", "markdown", "plot"):
        path = getattr(args, name)
        if path and not Path(path).parent.is_dir():
            raise SpecError(f"--{name}: got {path!r}, allowed: a file in a folder that exists")
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
