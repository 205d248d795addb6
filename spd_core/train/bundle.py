"""Makes a pair folder out of training runs: float16 EMA weights, hashes, the card, and its measured figures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from spd_core.codec import PixelCodec
from spd_core.data import FASHION_CLASSES
from spd_core.models.mar import MarConfig
from spd_core.pairs.pair import PairCard
from spd_core.train.recipes import LAWS, RECIPES


def _weights(run: Path) -> tuple[bytes, dict[str, Any]]:
    """Float16 safetensors bytes of a run's EMA weights at its last checkpoint, and the run's facts."""
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    raw = save({name: value.to(torch.float16).contiguous() for name, value in saved["ema"].items()})
    curve = [json.loads(line) for line in (run / "loss.jsonl").read_text().splitlines()]
    recipe = json.loads(saved["recipe"])
    facts = {
        "recipe": {name: value for name, value in recipe.items() if name != "model"},
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
        runs: training folder of each part, ``target`` and ``draft``.
        out: the pair folder.
        machine: what the training ran on, in words.
    """
    out.mkdir(parents=True, exist_ok=True)
    digests, training = {}, {}
    for part, run in runs.items():
        raw, facts = _weights(run)
        (out / f"{part}.safetensors").write_bytes(raw)
        digests[part] = hashlib.sha256(raw).hexdigest()
        training[part] = {"machine": machine, **facts}
    card = PairCard(
        name=name,
        family="mar" if isinstance(RECIPES[name, "target"].model, MarConfig) else "causal",
        target=RECIPES[name, "target"].model,
        draft=RECIPES[name, "draft"].model if "draft" in runs else None,
        codec=PixelCodec(),
        class_names=FASHION_CLASSES,
        law=LAWS[name],
        reference="fashion-mnist",
        licence="MIT",
        data="Fashion-MNIST training set, 60,000 images 28x28 (Zalando Research, MIT licence)",
        sha256=digests,
        training=training,
    )
    (out / "pair.json").write_text(card.model_dump_json(indent=1) + "\n")
    return card


def _training_rows(card: PairCard, parameters: dict[str, int]) -> list[str]:
    return [
        f"| {part} | {parameters[part] / 1e6:.2f} M | {facts['steps_done']:,} x {facts['recipe']['batch']} images "
        f"| {facts['hours']} h, {facts['machine']} | {facts['final_loss']} |"
        for part, facts in card.training.items()
    ]


def _figure_rows(card: PairCard) -> list[str]:
    rows = [row for row in card.figures["bench"]["rows"] if row["method"] == "plain"]
    batch = max(row["batch"] for row in rows)
    return [
        f"| {row['law']['num_iter']} | {row['images_per_s']:.2f} | {row['distance']:.1f} "
        f"({row['distance_interval'][0]:.1f} to {row['distance_interval'][1]:.1f}) | {row['floor']:.1f} "
        f"| {row['label_agreement']:.3f} | {row['n']} |"
        for row in rows
        if row["batch"] == batch and row["distance"] is not None
    ]


def card_as_markdown(card: PairCard, parameters: dict[str, int]) -> str:
    """The card for people, written beside pair.json; ``parameters`` counts those of each part."""
    law = card.law
    lines = [
        f"# {card.name}",
        "",
        f"Trained on {card.data}. Licence of the weights: {card.licence}.",
        "",
        f"Law: {law.num_iter} iterations, {law.head_steps} head steps from level {law.start_level}, "
        f"guidance {law.cfg:g} ({law.cfg_schedule}), temperature {law.temperature:g}, {law.dtype}.",
        "",
        "| part | parameters | training | time | final loss |",
        "|---|---|---|---|---|",
        *_training_rows(card, parameters),
        "",
        f"`spd train {card.name} --part target --out DIR` (then `draft`, then `bundle`) is the recipe; every knob and "
        "the loss curve are in `pair.json`. The last loss is the mean over the last stretch between two checkpoints.",
    ]
    if "bench" in card.figures:
        lines += [
            "",
            f"Plain decoding, measured by `{card.figures['command']}` on {card.figures['bench']['machine']['cpu']}, "
            "one thread, largest batch of the run. The distance is a Frechet distance on EfficientNet-Lite0 features "
            "(not the published FID); the floor is that of as many real test images.",
            "",
            "| iterations | images/s | distance (95 %) | floor | label agreement | n |",
            "|---|---|---|---|---|---|",
            *_figure_rows(card),
        ]
    return "\n".join(lines) + "\n"


def record_figures(folder: Path, bench: dict[str, Any], command: str) -> PairCard:
    """Puts what ``spd bench --json`` wrote into a pair's card and writes the card for people.

    Args:
        folder: of the pair.
        bench: content of the JSON file.
        command: the command that printed it.
    """
    path = folder / "pair.json"
    card = PairCard.model_validate_json(path.read_bytes())
    card = card.model_copy(update={"figures": {"command": command, "bench": bench}})
    path.write_text(card.model_dump_json(indent=1) + "\n")
    parts = {part: load_file(folder / f"{part}.safetensors") for part in card.training}
    parameters = {part: sum(tensor.numel() for tensor in weights.values()) for part, weights in parts.items()}
    (folder / "README.md").write_text(card_as_markdown(card, parameters))
    return card
