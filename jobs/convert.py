"""``spd convert``: turns public MAR checkpoints into a pair folder that every other command takes by its path."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from spd_core.pairs.convert import convert

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--target", required=True, metavar="FILE", help="checkpoint-last.pth of a public MAR model")
    parser.add_argument("--draft", metavar="FILE", help="a smaller one, for cspd")
    parser.add_argument("--vae", metavar="FILE", help="kl16.ckpt; without it no images can be made")
    parser.add_argument("--name", required=True, help="name of the pair")
    parser.add_argument("--out", required=True, metavar="DIR", help="the pair folder")


def run(args: argparse.Namespace) -> int:
    """Checks every key and shape, then writes the folder."""
    draft, vae = (Path(path) if path else None for path in (args.draft, args.vae))
    card = convert(Path(args.target), draft, vae, Path(args.out), args.name)
    log.info("%s: pair %s with %s", args.out, card.name, ", ".join(sorted(card.sha256)))
    return 0
