"""``spd convert``: turns public checkpoints into a pair folder that every other command takes by its path."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from spd_core.pairs.checkpoint import family_of
from spd_core.pairs.convert import convert
from spd_core.pairs.convert_llamagen import convert_llamagen
from spd_core.pairs.pair import PairError

log = logging.getLogger(__name__)
#: Arguments that one family alone has.
_OWN = {"mar": ("vae",), "llamagen": ("vq", "image_size")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument(
        "--target",
        required=True,
        metavar="FILE",
        help="checkpoint-last.pth of a public MAR model, or a c2i checkpoint of LlamaGen",
    )
    parser.add_argument("--draft", metavar="FILE", help="a smaller one of the same family")
    parser.add_argument("--vae", metavar="FILE", help="MAR: kl16.ckpt; without it no images can be made")
    parser.add_argument("--vq", metavar="FILE", help="LlamaGen: vq_ds16_c2i.pt; without it no images can be made")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="LlamaGen: side of the images, if neither file nor name tells"
    )
    parser.add_argument("--name", required=True, help="name of the pair")
    parser.add_argument("--out", required=True, metavar="DIR", help="the pair folder")


def run(args: argparse.Namespace) -> int:
    """Checks every key and shape, then writes the folder."""
    target, out = Path(args.target), Path(args.out)
    draft, vae, vq = (Path(path) if path else None for path in (args.draft, args.vae, args.vq))
    family = family_of(target)
    for other, own in _OWN.items():
        for field in own:
            if other != family and (got := getattr(args, field)) is not None:
                raise PairError(f"{field.replace('_', '-')}: got {got}, allowed: with a {other} target only")
    if family == "mar":
        card = convert(target, draft, vae, out, args.name)
    else:
        card = convert_llamagen(target, draft, vq, out, args.name, args.image_size)
    log.info("%s: pair %s with %s", args.out, card.name, ", ".join(sorted(card.sha256)))
    return 0
