"""``spd train``: runs the recipes that made the bundled weights, classifier and reference statistics."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

from jobs.spec import SpecError
from spd_core.codec import PixelCodec
from spd_core.data import load_fashion_mnist
from spd_core.train.bundle import bundle, record_figures
from spd_core.train.mar import train
from spd_core.train.recipes import RECIPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    pairs = sorted({pair for pair, _ in RECIPES})
    parser.add_argument(
        "what", choices=[*pairs, "label-classifier", "reference"], help="a bundled pair or quality data"
    )
    parser.add_argument(
        "--part", choices=["target", "draft", "bundle"], help="of a pair: train one, or make its folder"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of checkpoint, loss curve and weights")
    parser.add_argument("--bench", metavar="FILE", help="for figures: what `spd bench --json FILE` wrote")
    parser.add_argument(
        "--printed-by", default="spd bench", metavar="COMMAND", help="for figures: the command that printed them"
    )
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--data", metavar="DIR", help="folder of the Fashion-MNIST idx files")


def run(args: argparse.Namespace) -> int:
    """Trains, or bundles ``OUT/target`` and ``OUT/draft`` into ``OUT/pair``; resumes what was begun."""
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    try:
        if args.what == "label-classifier":
            from spd_core.train.classifier import train_classifier

            train_classifier(*load_fashion_mnist("train", args.data), *load_fashion_mnist("test", args.data), out)
        elif args.what == "reference":
            from spd_core.train.reference import build_reference

            build_reference(out)
        elif args.part == "bundle":
            runs = {part: out / part for part in ("target", "draft")}
            bundle(args.what, runs, out / "pair", f"{platform.machine()} CPU, {args.threads} torch thread(s) a model")
        elif args.part == "figures":
            if not args.bench:
                raise SpecError("--bench: got nothing, allowed: a file that `spd bench --json` wrote")
            record_figures(out, json.loads(Path(args.bench).read_text()), args.printed_by)
        elif args.part:
            recipe = RECIPES[args.what, args.part]
            if args.steps is not None:
                recipe = type(recipe).model_validate(recipe.model_dump() | {"steps": args.steps})
            images, labels = load_fashion_mnist("train", args.data)
            train(recipe, PixelCodec().encode(images), labels, out / args.part)
        else:
            raise SpecError("--part: got nothing, allowed: target, draft, bundle or figures")
    except (OSError, ValueError) as error:
        raise SpecError(str(error)) from error
    return 0
