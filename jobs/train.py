"""``spd train``: runs the recipes that made the bundled weights, classifier and reference statistics."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from jobs.spec import SpecError
from spd_core.codec import PixelCodec
from spd_core.data import load_fashion_mnist
from spd_core.law import Speculative
from spd_core.quality.intervals import Interval, mean_interval
from spd_core.train.acceptance import TeacherForced, teacher_forced
from spd_core.train.bundle import bundle, record_figures
from spd_core.train.distil import DistilRecipe, load_causal
from spd_core.train.mar import train
from spd_core.train.recipes import LAWS, RECIPES

_WEIGHTS = "weights.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    pairs = sorted({pair for pair, _ in RECIPES})
    parser.add_argument(
        "what", choices=[*pairs, "label-classifier", "reference"], help="a bundled pair or quality data"
    )
    parser.add_argument(
        "--part",
        choices=["target", "draft", "distil", "acceptance", "bundle", "figures"],
        help="of a pair: train one, fit the draft to the target, print what the target accepts, make the folder, "
        "or put measured figures into its card",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of checkpoint, loss curve and weights")
    parser.add_argument("--bench", metavar="FILE", help="for figures: what `spd bench --json FILE` wrote")
    parser.add_argument(
        "--printed-by", default="spd bench", metavar="COMMAND", help="for figures: the command that printed them"
    )
    parser.add_argument(
        "--target", metavar="FILE", help=f"distil, acceptance: the target's weights; default: DIR/target/{_WEIGHTS}"
    )
    parser.add_argument(
        "--from", dest="initial", metavar="FILE", help=f"distil: weights to start from; default: DIR/draft/{_WEIGHTS}"
    )
    parser.add_argument(
        "--stride",
        type=int,
        default=Speculative().stride,
        help="acceptance: steps for which the draft holds each prediction",
    )
    parser.add_argument("--n", type=int, default=200, help="acceptance: test images")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--data", metavar="DIR", help="folder of the Fashion-MNIST idx files")


def _acceptance(args: argparse.Namespace, out: Path, target: Path) -> None:
    """Prints the teacher-forced acceptance of the drafts ``OUT/draft`` and ``OUT/distil``, those that are there."""
    recipe = RECIPES.get((args.what, "distil"))
    if not isinstance(recipe, DistilRecipe):
        raise SpecError(f"--part: got acceptance for {args.what}, allowed: target, draft or bundle")
    if not 2 <= args.n <= 10_000:
        raise SpecError(f"--n: got {args.n}, allowed: 2..10000")
    if not 1 <= args.stride <= 1000:
        raise SpecError(f"--stride: got {args.stride}, allowed: 1..1000")
    runs = [run for run in ("draft", "distil") if (out / run / _WEIGHTS).is_file()]
    if not runs:
        raise SpecError(f"--out: got {out} without draft/{_WEIGHTS}, allowed: a folder with trained parts")
    images, labels = load_fashion_mnist("test", args.data)
    tokens, model = PixelCodec().encode(images[: args.n]), load_causal(recipe.target, target)
    drafts = {run: load_causal(recipe.model, out / run / _WEIGHTS) for run in runs}
    found = {
        name: teacher_forced(model, draft, LAWS[args.what], args.stride, tokens, labels[: args.n])
        for name, draft in (drafts | {"target": model}).items()
    }
    lines = [
        f"stride {args.stride}, {tokens.shape[0]} test images, {tokens.shape[0] * tokens.shape[1]} drafted tokens each",
        *acceptance_lines(found),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def acceptance_lines(found: Mapping[str, TeacherForced]) -> list[str]:
    """One line a draft, with 95 % intervals over images, and one for what a distillation gained over its draft.

    Args:
        found: by name; ``target`` is the target as its own draft, which shows what holding its predictions costs.
    """

    def words(interval: Interval, sign: str = "") -> str:
        return f"{interval.value:{sign}.4f} ({interval.low:{sign}.4f} to {interval.high:{sign}.4f})"

    lines = [
        f"{name}: acceptance {words(mean_interval(of.acceptance))}, path KL {words(mean_interval(of.path_kl))} nats"
        for name, of in found.items()
    ]
    if "draft" in found and "distil" in found:
        gained = mean_interval(found["distil"].acceptance - found["draft"].acceptance)
        lines.append(f"distil - draft, on the same noise: acceptance {words(gained, '+')}")
    return lines


def _train(args: argparse.Namespace, out: Path, target: Path) -> None:
    recipe = RECIPES.get((args.what, args.part))
    if recipe is None:
        raise SpecError(f"--part: got {args.part} for {args.what}, allowed: target, draft or bundle")
    if args.steps is not None:
        recipe = type(recipe).model_validate(recipe.model_dump() | {"steps": args.steps})
    if isinstance(recipe, DistilRecipe):
        recipe = recipe.given(target, Path(args.initial) if args.initial else out / "draft" / _WEIGHTS)
    images, labels = load_fashion_mnist("train", args.data)
    train(recipe, PixelCodec().encode(images), labels, out / args.part)


def _bundle(args: argparse.Namespace, out: Path) -> None:
    distilled = ["distil"] if (out / "distil").is_dir() else []
    runs = {run: out / run for run in ["target", "draft", *distilled]}
    bundle(args.what, runs, out / "pair", f"{platform.machine()} CPU, {args.threads} torch thread(s) a model")


def run(args: argparse.Namespace) -> int:
    """Trains, resuming what was begun; or looks at the runs below OUT, or bundles them into ``OUT/pair``."""
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    target = Path(args.target) if args.target else out / "target" / _WEIGHTS
    try:
        if args.what == "label-classifier":
            from spd_core.train.classifier import train_classifier

            train_classifier(*load_fashion_mnist("train", args.data), *load_fashion_mnist("test", args.data), out)
        elif args.what == "reference":
            from spd_core.train.reference import build_reference

            build_reference(out)
        elif args.part == "bundle":
            _bundle(args, out)
        elif args.part == "acceptance":
            _acceptance(args, out, target)
        elif args.part == "figures":
            if not args.bench:
                raise SpecError("--bench: got nothing, allowed: a file that `spd bench --json` wrote")
            record_figures(out, json.loads(Path(args.bench).read_text()), args.printed_by)
        elif args.part:
            _train(args, out, target)
        else:
            raise SpecError("--part: got nothing, allowed: target, draft, distil, acceptance, bundle or figures")
    except (OSError, ValueError) as error:
        raise SpecError(str(error)) from error
    return 0
