"""``spd convert``: turns public checkpoints into a pair folder that every other command takes by its path."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jobs.words.console import say
from jobs.words.progress import following
from spd_core.families.family import Family, Files
from spd_core.families.registry import FAMILIES
from spd_core.pairs.checkpoint import Take
from spd_core.pairs.contents import family_of_file
from spd_core.pairs.pair import PairError
from spd_core.pairs.pickles import read_file


def run(args: argparse.Namespace) -> int:
    """Checks every key and shape, then writes the folder."""
    target, out = Path(args.target), Path(args.out)
    family = family_of_file(target, read_file(target))
    heads = [*(args.heads or []), None, None]
    if len(heads) > 4:
        raise PairError(f"heads: got {len(args.heads)} numbers, allowed: one for the target and one for the draft")
    take = Take(args.weights, heads[0], heads[1], _class_names(args.class_names))
    files = Files(target, Path(args.draft) if args.draft else None, _options(args, family))
    with following("writing"):
        card = family.convert(files, out, args.name, take)
    for part, source in card.training.items():
        say(f"{part}: {source['weights']} of {source['file']}")
    say(f"{args.out}: pair {card.name} with {', '.join(sorted(card.sha256))}")
    return 0


def _options(args: argparse.Namespace, family: Family) -> dict[str, Any]:
    """The family's own arguments that were given; a text is the path of a file."""
    given = {}
    for other in FAMILIES.values():
        for name in other.convert_options:
            value = getattr(args, name, None)
            if value is not None and name not in family.convert_options:
                raise PairError(f"{name.replace('_', '-')}: got {value}, allowed: with a {other.name} target only")
            if value is not None:
                given[name] = Path(value) if isinstance(value, str) else value
    return given


def _class_names(path: str | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        return tuple(line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise PairError(f"class-names: cannot read {path}: {error}, allowed: UTF-8 text, one name a line") from error
