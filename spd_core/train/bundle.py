"""Makes a pair folder out of training runs: float16 EMA weights, hashes, the card, and its measured figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from spd_core.codec import Codec, PixelCodec
from spd_core.data import FASHION_CLASSES
from spd_core.families.registry import family_of_config
from spd_core.pairs.pair import PairCard, TunedWindows
from spd_core.train.recipes import LAWS, RECIPES

#: Fields of a recipe that the card holds already.
_ELSEWHERE = frozenset({"model", "target", "law"})
#: Runs that fit a posterior variance.
VARIANCES = ("target-variance", "draft-variance")
#: The field of a recipe that holds the hash of another run's weights.
_GIVEN = {"target": "target_sha256", "draft": "initial_sha256", "tokenizer": "tokenizer_sha256"}
#: The part of the pair that a run makes, and what the card calls the run, where they differ from the run's name. The
#: part of a codec's run is the codec's.
_PARTS = {
    "distil": "draft",
    "target-variance": "target_variance",
    "draft-variance": "draft_variance",
}
_TITLES = {
    "distil": "draft, distilled",
    "target-variance": "target's posterior variance",
    "draft-variance": "draft's posterior variance",
}


def _weights(run: Path) -> tuple[bytes, dict[str, Any]]:
    """Float16 safetensors bytes of a run's EMA weights at its last checkpoint, and the run's facts."""
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    raw = save({name: value.to(torch.float16).contiguous() for name, value in saved["ema"].items()})
    curve = [json.loads(line) for line in (run / "loss.jsonl").read_text().splitlines()]
    recipe = json.loads(saved["recipe"])
    facts = {
        "recipe": {name: value for name, value in recipe.items() if name not in _ELSEWHERE},
        "steps_done": saved["step"],
        "hours": round(saved["seconds"] / 3600, 2),
        "final_loss": round(curve[-1]["loss"], 4),
        "loss_curve": [[row["step"], round(row["loss"], 4)] for row in curve],
    }
    return raw, facts


def bundle(name: str, runs: dict[str, Path], out: Path, machine: str) -> PairCard:
    """Writes ``out/pair.json`` and ``out/<part>.safetensors`` and returns the card.

    Args:
        name: pair name; its recipes give the model configurations.
        runs: training folder of each part, ``target`` and ``draft``; ``distil``, if it is there, gives the draft's
            weights; ``target-variance`` and ``draft-variance`` their posterior variances; ``tokenizer`` and ``eagle``
            belong to a pair of codes.
        out: the pair folder.
        machine: what the training ran on, in words.

    Raises:
        ValueError: if the distillation or a variance was given other weights than those of the other runs.
    """
    made = {run: _weights(folder) for run, folder in runs.items()}
    digests = {run: hashlib.sha256(raw).hexdigest() for run, (raw, _) in made.items()}
    training = {run: {"machine": machine, **facts} for run, (_, facts) in made.items()}
    replaced = {"draft"} if "distil" in runs else set()
    codec = _codec(name, runs)
    parts = {_part_of(run, codec): run for run in runs if run not in replaced}
    sha256 = {part: digests[run] for part, run in parts.items()}
    for run in runs:
        recipe = training[run]["recipe"]
        if run in VARIANCES:
            _check_variance(run, recipe, sha256)
        for of, field in _GIVEN.items():
            if of in runs and recipe.get(field):
                _check_given(run, of, recipe[field], digests)
    out.mkdir(parents=True, exist_ok=True)
    for part, run in parts.items():
        (out / f"{part}.safetensors").write_bytes(made[run][0])
    card = PairCard(
        name=name,
        **_models(name, parts),
        codec=codec,
        class_names=FASHION_CLASSES,
        law=LAWS[name],
        reference="fashion-mnist",
        licence="MIT",
        data="Fashion-MNIST training set, 60,000 images 28x28 (Zalando Research, MIT licence)",
        sha256=sha256,
        training=training,
    )
    (out / "pair.json").write_text(card.model_dump_json(indent=1) + "\n")
    return card


def _models(name: str, parts: Mapping[str, str]) -> dict[str, Any]:
    """Family and sizes of a pair, as its card names them."""
    recipes = {part: RECIPES[name, run] for part, run in parts.items()}
    models = {part: recipes[part].model for part in ("target", "draft", "eagle") if part in recipes}
    return models | {"family": family_of_config(models["target"]).name}


def _codec(name: str, runs: Iterable[str]) -> Codec:
    """What turns the tokens of a pair with these runs into images: made by one of them, or of pixels."""
    return next((codec for run in runs if (codec := RECIPES[name, run].codec()) is not None), PixelCodec())


def _part_of(run: str, codec: Codec) -> str:
    """The part of a pair that a run makes."""
    return codec.part if run == "tokenizer" else _PARTS.get(run, run)


def _check_given(run: str, of: str, digest: str, sha256: dict[str, str]) -> None:
    if digest != sha256.get(of):
        allowed = sha256.get(of, "none")[:12]
        raise ValueError(f"{run}: was given {of} weights with sha256 {digest[:12]}, allowed: {allowed}")


def _check_variance(run: str, recipe: dict[str, Any], sha256: dict[str, str]) -> None:
    _check_given(run, "draft" if recipe["draft"] else "target", recipe["model_sha256"], sha256)


def add_variance(folder: Path, run: Path, machine: str) -> PairCard:
    """Puts the posterior variance that a run made into a pair's folder and card; the other parts stay as they are.

    Args:
        folder: of the pair.
        run: training folder of ``target-variance`` or ``draft-variance``.
        machine: what the training ran on, in words.

    Raises:
        ValueError: if the run is of another kind, or was given other weights than the pair's.
    """
    card = PairCard.model_validate_json((folder / "pair.json").read_bytes())
    raw, facts = _weights(run)
    recipe = facts["recipe"]
    if "model_sha256" not in recipe:
        raise ValueError(f"--variance: got {run}, allowed: the folder of a target-variance or draft-variance run")
    name = "draft-variance" if recipe["draft"] else "target-variance"
    _check_variance(name, recipe, card.sha256)
    (folder / f"{_PARTS[name]}.safetensors").write_bytes(raw)
    sha256 = card.sha256 | {_PARTS[name]: hashlib.sha256(raw).hexdigest()}
    training = card.training | {name: {"machine": machine, **facts}}
    return _write_card(folder, card.model_copy(update={"sha256": sha256, "training": training}))


def _training_rows(card: PairCard, parameters: dict[str, int]) -> list[str]:
    return [
        f"| {_TITLES.get(run, run)} | {parameters[_part_of(run, card.codec)] / 1e6:.2f} M "
        f"| {facts['steps_done']:,} x {facts['recipe']['batch']} {'paths' if run in VARIANCES else 'images'} "
        f"| {facts['hours']} h, {facts['machine']} | {facts['final_loss']} |"
        for run, facts in card.training.items()
    ]


def _figure_rows(card: PairCard) -> list[str]:
    """The table's lines, plain decoding with one head call a step; none if no image was looked at."""
    rows = [
        row
        for row in card.figures["bench"]["rows"]
        if row["method"] == "plain"
        and row["distance"] is not None
        and not row["settings"].get("head_window")
        and row["law"].get("head_schedule", "constant") == "constant"
    ]
    batch = max((row["batch"] for row in rows), default=0)
    lines = []
    for row in rows:
        if row["batch"] == batch:
            bounds = row["distance_interval"]
            between = f" ({bounds[0]:.1f} to {bounds[1]:.1f})" if bounds else ""
            first = f"{row['law']['num_iter']} iterations" if "num_iter" in card.of.law_fields else "plain"
            lines.append(
                f"| {first} | {row['images_per_s']:.2f} | {row['distance']:.1f}{between} | {row['floor']:.1f} "
                f"| {row['label_agreement']:.3f} | {row['n']} |"
            )
    return lines


def card_as_markdown(card: PairCard, parameters: dict[str, int]) -> str:
    """The card for people, written beside pair.json; ``parameters`` counts those of each part."""
    first, *later = [*card.training] or ["target"]
    commands = ", then ".join(f"`{part}`" for part in [*later, "bundle"])
    lines = [
        f"# {card.name}",
        "",
        f"Trained on {card.data}. Licence of the weights: {card.licence}.",
        "",
        f"Law: {card.of.law_in_words(card.law)}.",
        "",
        "| part | parameters | training | time | final loss |",
        "|---|---|---|---|---|",
        *_training_rows(card, parameters),
        "",
        f"`spd train {card.name} --part {first} --out DIR` (then {commands}) is the recipe; "
        "every knob and the loss curve are in `pair.json`. The last loss is the mean over the last stretch between two "
        "checkpoints.",
    ]
    if "distil" in card.training:
        lines += [
            "",
            "`distil` fits the draft to its target. Its loss is the KL of a token's path above the hand-off in nats, "
            "without what holding a prediction costs.",
        ]
    if card.training.keys() & set(VARIANCES):
        lines += [
            "",
            "A posterior variance says how far a prediction that is held over several steps moves with their noise. "
            "Its loss is the mean chance that the next step is rejected, and that of steps from the prior mean on.",
        ]
    figures = _figure_rows(card) if "bench" in card.figures else []
    if figures:
        lines += [
            "",
            f"Plain decoding, measured by `{card.figures['command']}` on {card.figures['bench']['machine']['cpu']}, "
            "one thread, largest batch of the run. The distance is a Frechet distance on EfficientNet-Lite0 features "
            "(not the published FID); the floor is that of as many real test images.",
            "",
            "| decoding | images/s | distance (95 %) | floor | label agreement | n |",
            "|---|---|---|---|---|---|",
            *figures,
        ]
    return "\n".join(lines) + "\n"


def record_windows(folder: Path, windows: Sequence[tuple[int, ...]], ladder: Sequence[TunedWindows] = ()) -> PairCard:
    """Puts tuned schedules of head self-speculation into a pair's card.

    Args:
        folder: of the pair.
        windows: the pair's own, that of fewest calls first.
        ladder: those tuned at several prices of a row.
    """
    path = folder / "pair.json"
    tuned = [entry.model_dump(mode="json") for entry in ladder]
    changed = {"head_windows": windows, "tuned_windows": tuned}
    card = PairCard.model_validate(json.loads(path.read_bytes()) | changed)
    path.write_text(card.model_dump_json(indent=1) + "\n")
    return card


def record_figures(folder: Path, bench: dict[str, Any], command: str) -> PairCard:
    """Puts what ``spd bench --json`` wrote into a pair's card and writes the card for people.

    Args:
        folder: of the pair.
        bench: content of the JSON file.
        command: the command that printed it.

    Raises:
        ValueError: if the content is of another kind.
    """
    if not isinstance(bench, dict) or "rows" not in bench or "machine" not in bench:
        raise ValueError("--bench: got another file, allowed: one that `spd bench --json` wrote")
    card = PairCard.model_validate_json((folder / "pair.json").read_bytes())
    return _write_card(folder, card.model_copy(update={"figures": {"command": command, "bench": bench}}))


def _write_card(folder: Path, card: PairCard) -> PairCard:
    """The card for programs and, beside it, the one for people."""
    (folder / "pair.json").write_text(card.model_dump_json(indent=1) + "\n")
    parts = {part: load_file(folder / f"{part}.safetensors") for part in card.sha256}
    parameters = {part: sum(tensor.numel() for tensor in weights.values()) for part, weights in parts.items()}
    (folder / "README.md").write_text(card_as_markdown(card, parameters))
    return card
