"""``spd train``: runs the recipes that made the bundled weights, classifier and reference statistics."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.words.errors import SpecError
from jobs.words.progress import following
from spd_core.alike import did_you_mean
from spd_core.codec import PixelCodec
from spd_core.data import load_fashion_mnist
from spd_core.families.head_family import head_of
from spd_core.families.registry import family_of_config
from spd_core.models.grid import ModelConfig
from spd_core.models.variance import PosteriorVariance
from spd_core.pairs.pair import TunedWindows, load_pair
from spd_core.quality.intervals import Interval, mean_interval
from spd_core.train.acceptance import TeacherForced
from spd_core.train.bundle import VARIANCES, add_variance, bundle, record_figures, record_windows
from spd_core.train.loop import WEIGHTS, Recipe, Runs, train
from spd_core.train.recipes import LAWS, RECIPES
from spd_core.train.variance import Following, VarianceRecipe, followings, load_variance, walk_paths
from spd_core.train.weights import fitted, read_weights
from spd_core.train.windows import LADDER, PRICES, tuned_windows


def _no_part(args: argparse.Namespace) -> SpecError:
    parts = [part for pair, part in RECIPES if pair == args.what]
    return SpecError(f"--part: got {args.part} for {args.what}, allowed: {', '.join(parts)} or bundle")


def _acceptance(args: argparse.Namespace, out: Path, target: Path) -> None:
    """Prints the teacher-forced acceptance of the drafts ``OUT/draft`` and ``OUT/distil``, those that are there."""
    if (args.what, "distil") not in RECIPES:
        raise _no_part(args)
    if not 2 <= args.n <= 10_000:
        raise SpecError(f"--n: got {args.n}, allowed: 2..10000")
    if not 1 <= args.stride <= 1000:
        raise SpecError(f"--stride: got {args.stride}, allowed: 1..1000")
    runs = [run for run in ("draft", "distil") if (out / run / WEIGHTS).is_file()]
    if not runs:
        raise SpecError(f"--out: got {out} without draft/{WEIGHTS}, allowed: a folder with trained parts")
    images, labels = load_fashion_mnist("test", args.data)
    tokens, model = PixelCodec().encode(images[: args.n]), _model(RECIPES[args.what, "target"], target)
    drafts = {run: _model(RECIPES[args.what, run], out / run / WEIGHTS) for run in runs}
    files = {run: out / run / WEIGHTS for run in runs} | {"target": target}
    for name, draft in (drafts | {"target": model}).items():
        if (variance := _variance_of(files[name], out)) is not None:
            drafts[f"{name}, following"] = copy.deepcopy(draft)
            head_of(drafts[f"{name}, following"]).variance = variance
    family = family_of_config(RECIPES[args.what, "target"].model)
    found = {
        name: family.teacher_forced((model, draft), LAWS[args.what], args.stride, tokens, labels[: args.n])
        for name, draft in (drafts | {"target": model}).items()
    }
    lines = [
        f"stride {args.stride}, {tokens.shape[0]} test images, {tokens.shape[0] * tokens.shape[1]} drafted tokens each",
        *acceptance_lines(found),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _model(recipe: Recipe, weights: Path) -> nn.Module:
    """The model that a finished run left, in eval mode."""
    sizes = recipe.model
    if not isinstance(sizes, ModelConfig):
        raise TypeError(f"recipe of a {type(sizes).__name__}, allowed: of a target or a draft")
    model = family_of_config(sizes).build(sizes)
    return fitted(model, read_weights(weights)[1], weights).eval().requires_grad_(False)


def _variance_of(weights: Path, out: Path) -> PosteriorVariance | None:
    """The posterior variance below ``out`` that was fitted to these weights, if there is one."""
    for run in VARIANCES:
        if (out / run / WEIGHTS).is_file():
            recipe = VarianceRecipe.model_validate_json((out / run / "recipe.json").read_bytes())
            if recipe.model_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest():
                return load_variance(recipe.given(weights), out / run / WEIGHTS)
    return None


def acceptance_lines(found: Mapping[str, TeacherForced]) -> list[str]:
    """One line a draft, with 95 % intervals over images, and one for what a distillation gained over its draft.

    Args:
        found: by name; ``target`` is the target as its own draft, which shows what holding its predictions costs, and
            ``following`` says that held predictions follow the noise.
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


def _train(args: argparse.Namespace, out: Path) -> None:
    recipe = RECIPES.get((args.what, args.part))
    if recipe is None:
        raise _no_part(args)
    if args.steps is not None:
        recipe = type(recipe).model_validate(recipe.model_dump() | {"steps": args.steps})
    runs = Runs(out, Path(args.target) if args.target else None, Path(args.initial) if args.initial else None)
    recipe = recipe.given_runs(runs)
    if isinstance(recipe, VarianceRecipe):
        _fit_variance(recipe, args, out / args.part)
        return
    images, labels = load_fashion_mnist("train", args.data)
    recipe, data = recipe.prepared(images, runs)
    train(recipe, data, labels, out / args.part)


def _fit_variance(recipe: VarianceRecipe, args: argparse.Namespace, out: Path) -> None:
    """Trains and prints what following the noise is worth on test images."""
    if not 1 <= args.n <= 10_000:
        raise SpecError(f"--n: got {args.n}, allowed: 1..10000")
    images, labels = load_fashion_mnist("train", args.data)
    fitted = load_variance(recipe, recipe.fit(PixelCodec().encode(images), labels, out))
    images, labels = load_fashion_mnist("test", args.data)
    tested = recipe.model_copy(update={"images": args.n})
    paths = walk_paths(tested, PixelCodec().encode(images), labels, np.random.default_rng([recipe.seed, 4]))
    bands, whole = (followings(fitted, recipe, paths, count) for count in (6, 1))
    lines = [f"{len(paths.z)} paths among {args.n} test images", *following_lines([*bands, *whole])]
    sys.stdout.write("\n".join(lines) + "\n")


def following_lines(bands: Sequence[Following]) -> list[str]:
    """One line a band of levels: what the noise explains of a prediction's movement, and what that is worth."""
    return [
        f"levels {of.levels[0]} to {of.levels[1]}: {of.explained:.2f} of the squared movement explained, "
        f"chance that the next step is rejected {of.held:.4f} held, {of.followed:.4f} followed"
        for of in bands
    ]


def _windows(args: argparse.Namespace, folder: Path) -> None:
    """Tunes the pair in ``folder`` on training images, writes its card and prints what the schedules should cost."""
    if not 1 <= args.n <= 10_000:
        raise SpecError(f"--n: got {args.n}, allowed: 1..10000")
    images, labels = load_fashion_mnist("train", args.data)
    pair = load_pair(str(folder), draft=False)
    prices = sorted({*PRICES, *LADDER})
    tuned = tuned_windows(pair, PixelCodec().encode(images[: args.n]), labels[: args.n], prices=prices)
    ladder = [
        TunedWindows(price=price, windows=entry.windows, calls=entry.calls, rows=entry.rows, steps=entry.steps)
        for price, entry in zip(prices, tuned, strict=True)
    ]
    record_windows(folder, [entry.windows for entry in ladder if entry.price in PRICES], ladder)
    lines = [
        f"price {entry.price:g}, windows {'/'.join(map(str, entry.windows))}: {entry.calls:.2f} calls, "
        f"{entry.rows / entry.steps:.2f} x the rows of plain decoding's {entry.steps} steps"
        for entry in ladder
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _machine(args: argparse.Namespace) -> str:
    return f"{platform.machine()} CPU, {args.threads} torch thread(s) a model"


def _bundle(args: argparse.Namespace, out: Path) -> None:
    runs = [run for pair, run in RECIPES if pair == args.what and (out / run).is_dir()]
    bundle(args.what, {run: out / run for run in runs}, out / "pair", _machine(args))


def _figures(path: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"--bench: got {path!r}, allowed: a file that `spd bench --json` wrote") from error
    return found


def run(args: argparse.Namespace) -> int:
    """Trains, resuming what was begun; or looks at the runs below OUT, or bundles them into ``OUT/pair``."""
    known = [*sorted({pair for pair, _ in RECIPES}), "label-classifier", "reference"]
    if args.what not in known:
        near = did_you_mean(args.what, known)
        raise SpecError(f"what: got {args.what!r}, allowed: {', '.join(known)}{near}")
    if not 1 <= args.threads <= 1024:
        raise SpecError(f"--threads: got {args.threads}, allowed: 1 to 1,024")
    if args.steps is not None and not 1 <= args.steps <= 10**9:
        raise SpecError(f"--steps: got {args.steps}, allowed: 1 to 1,000,000,000")
    torch.set_num_threads(args.threads)
    try:
        with following(" ".join(part for part in (args.what, args.part) if part)):
            _run(args, Path(args.out))
    except (OSError, ValueError) as error:
        raise SpecError(str(error)) from error
    return 0


def _run(args: argparse.Namespace, out: Path) -> None:
    target = Path(args.target) if args.target else out / "target" / WEIGHTS
    if args.what == "label-classifier":
        from spd_core.train.classifier import train_classifier

        train_classifier(*load_fashion_mnist("train", args.data), *load_fashion_mnist("test", args.data), out)
    elif args.what == "reference":
        from spd_core.train.reference import build_reference

        build_reference(out)
    elif args.part == "bundle":
        _bundle(args, out)
    elif args.part == "add":
        if not args.variance:
            raise SpecError("--variance: got nothing, allowed: the folder of a target-variance or draft-variance run")
        add_variance(out, Path(args.variance), _machine(args))
    elif args.part == "windows":
        _windows(args, out)
    elif args.part == "acceptance":
        _acceptance(args, out, target)
    elif args.part == "figures":
        if not args.bench:
            raise SpecError("--bench: got nothing, allowed: a file that `spd bench --json` wrote")
        record_figures(out, _figures(args.bench), args.printed_by)
    elif args.part:
        _train(args, out)
    else:
        raise SpecError("--part: got nothing, allowed: one of its choices, see --help")
