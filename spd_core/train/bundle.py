"""Makes a pair folder out of training runs: float16 EMA weights, hashes and the card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from spd_core.codec import PixelCodec
from spd_core.data import FASHION_CLASSES
from spd_core.law import SamplerLaw
from spd_core.pairs.pair import PairCard
from spd_core.train.recipes import RECIPES

FASHION_LAW = SamplerLaw(num_iter=64, head_steps=100, start_level=960, cfg=3.0, temperature=0.85)


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
        family="mar",
        target=RECIPES[name, "target"].model,
        draft=RECIPES[name, "draft"].model if "draft" in runs else None,
        codec=PixelCodec(),
        class_names=FASHION_CLASSES,
        law=FASHION_LAW,
        reference="fashion-mnist",
        licence="MIT",
        data="Fashion-MNIST training set, 60,000 images 28x28 (Zalando Research, MIT licence)",
        sha256=digests,
        training=training,
    )
    (out / "pair.json").write_text(card.model_dump_json(indent=1) + "\n")
    return card
