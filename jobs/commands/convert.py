"""``spd convert``: turns public checkpoints into a pair folder that every other command takes by its path."""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs.words.console import say
from spd_core.families.llamagen.convert import convert_llamagen
from spd_core.families.mar.convert import convert
from spd_core.pairs.checkpoint import Take
from spd_core.pairs.contents import WORDS, kind_of
from spd_core.pairs.pair import PairError
from spd_core.pairs.pickles import read_file

#: Arguments that one family alone has.
_OWN = {"mar": ("vae",), "llamagen": ("vq", "image_size")}


def run(args: argparse.Namespace) -> int:
    """Checks every key and shape, then writes the folder."""
    target, out = Path(args.target), Path(args.out)
    draft, vae, vq = (Path(path) if path else None for path in (args.draft, args.vae, args.vq))
    family = kind_of(target, read_file(target))
    if family not in _OWN:
        raise PairError(
            f"target: got {target}, which is {WORDS[family]}, allowed: {WORDS['mar']} or {WORDS['llamagen']}"
        )
    heads = [*(args.heads or []), None, None]
    if len(heads) > 4:
        raise PairError(f"heads: got {len(args.heads)} numbers, allowed: one for the target and one for the draft")
    take = Take(args.weights, heads[0], heads[1], _class_names(args.class_names))
    for other, own in _OWN.items():
        for field in own:
            if other != family and (got := getattr(args, field)) is not None:
                raise PairError(f"{field.replace('_', '-')}: got {got}, allowed: with a {other} target only")
    if family == "mar":
        card = convert(target, draft, vae, out, args.name, take=take)
    else:
        card = convert_llamagen(target, draft, vq, out, args.name, args.image_size, take=take)
    for part, source in card.training.items():
        say(f"{part}: {source['weights']} of {source['file']}")
    say(f"{args.out}: pair {card.name} with {', '.join(sorted(card.sha256))}")
    return 0


def _class_names(path: str | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        return tuple(line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise PairError(f"class-names: cannot read {path}: {error}, allowed: UTF-8 text, one name a line") from error
