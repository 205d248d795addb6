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
