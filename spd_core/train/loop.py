"""The training loop of every model: AdamW, EMA, a loss curve, and checkpoints that a run goes on from.

Every random number is a function of (seed, step), so a resumed run is the same run.

Shape legend: n rows of the data set (images, unless the recipe says otherwise), B of a batch, N tokens, D token dims.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import BaseModel, Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spd_core.codec import Codec, PixelCodec
from spd_core.law import Settings
from spd_core.progress import tell

#: Files of a run's folder: its recipe and, at its end, the averaged weights.
RECIPE, WEIGHTS = "recipe.json", "weights.safetensors"


@dataclass(frozen=True)
class Runs:
    """Where the weights of a pair's other runs are: each in a folder of its name, unless said otherwise."""

    folder: Path
    target_file: Path | None = None
    draft_file: Path | None = None

    def weights(self, run: str) -> Path:
        """The weights that a run left."""
        return self.folder / run / WEIGHTS

    @property
    def target(self) -> Path:
        """The target's weights."""
        return self.target_file or self.weights("target")


class Recipe(Settings, ABC):
    """Every knob of a training run that all models share; written beside the weights."""

    model: BaseModel = Field(description="sizes of what is trained")
    seed: int = Field(0, ge=0)
    steps: int = Field(20_000, gt=0, description="optimiser steps")
    batch: int = Field(128, gt=0, description="images per step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate, AdamW, linear warm-up then cosine decay to zero")
    warmup: int = Field(500, ge=0, description="warm-up steps")
    weight_decay: float = Field(0.02, ge=0)
    ema: float = Field(0.9995, ge=0, lt=1, description="decay per step, shortened at the start")
    clip: float = Field(3.0, gt=0, description="largest gradient norm")
    bf16: bool = Field(True, description="autocast to bfloat16")

    #: On a CPU the backward pass of the fused attention kernel is slower than plain matrix products.
    attention: ClassVar[SDPBackend] = SDPBackend.MATH

    @abstractmethod
    def build(self) -> nn.Module:
        """The model that training starts from."""

    def given_runs(self, runs: Runs) -> Self:
        """The recipe with what it needs of the weights of other runs.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file does not hold the weights of such a model.
        """
        return self

    def prepared(self, images_nHWC: Tensor, runs: Runs) -> tuple[Self, Tensor]:
        """The recipe, and what is modelled of uint8 images: their pixels as tokens, unless a run says otherwise.

        Raises:
            OSError, ValueError: as `given_runs`.
        """
        return self, PixelCodec().encode(images_nHWC)

    def codec(self) -> Codec | None:
        """The codec that the run's weights make; None: they are no codec's."""
        return None

    @abstractmethod
    def loss(self, model: nn.Module, data_B: Tensor, given_B: Tensor, rng: np.random.Generator) -> Tensor:
        """Training loss of one batch for a model of `build`, all randomness from ``rng``.

        Args:
            model: in training mode.
            data_B: the batch's rows of what is modelled: tokens [B, N, D].
            given_B: the batch's rows of what they depend on: labels [B].
            rng: of this step.
        """


class TokenRecipe(Recipe):
    """A training run of a model of tokens."""

    label_drop: float = Field(0.1, ge=0, lt=1, description="share of images whose class is dropped (for guidance)")
    head_repeats: int = Field(4, gt=0, description="noise levels per trained token and step (diffusion_batch_mul)")


def batches(recipe: Recipe, count: int, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """(step, indices [B]) from step ``start`` on; each epoch is a permutation that depends on the seed only."""
    per_epoch = count // recipe.batch
    for step in range(start, recipe.steps):
        epoch, at = divmod(step, per_epoch)
        if at == 0 or step == start:
            order = np.random.default_rng([recipe.seed, 1, epoch]).permutation(count)
        yield step, order[at * recipe.batch : (at + 1) * recipe.batch]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def _differing(saved: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Fields in which two recipes differ, the number of steps aside."""
    names = (saved.keys() | given.keys()) - {"steps"}
    return sorted(name for name in names if saved.get(name) != given.get(name))


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    decay = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))


def _saved(recipe: Recipe, checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint of the recipe holds.

    Raises:
        ValueError: it is of another recipe.
    """
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    if other := _differing(json.loads(saved["recipe"]), recipe.model_dump(mode="json")):
        raise ValueError(
            f"recipe: got another one than that of {checkpoint} ({', '.join(other)}), allowed: a new folder or the same"
        )
    return saved


def train(recipe: Recipe, data_n: Tensor, given_n: Tensor, out: Path, save_every: int = 500) -> Path:
    """Trains to the recipe's last step and returns the path of the EMA weights (safetensors, float16).

    Resumes from ``out/checkpoint.pt`` if it is there; ``out/loss.jsonl`` holds the loss curve.

    Raises:
        ValueError: if ``out`` holds a checkpoint of another recipe (only ``steps`` may differ).
    """
    torch.manual_seed(recipe.seed)
    model = recipe.build().train()
    optimizer = _optimizer(recipe, model)
    ema = {name: p.detach().clone() for name, p in model.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, start, seconds = out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = _saved(recipe, checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        ema, start, seconds = saved["ema"], saved["step"], saved["seconds"]
    else:
        (out / "loss.jsonl").unlink(missing_ok=True)
    (out / RECIPE).write_text(recipe.model_dump_json(indent=1))

    began, losses = time.monotonic(), []
    note = ""
    tell(start, recipe.steps, "steps")
    for step, index in batches(recipe, len(data_n), start):
        rng = np.random.default_rng([recipe.seed, 2, step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bf16), sdpa_kernel(recipe.attention):
            loss = recipe.loss(model, data_n[index], given_n[index], rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        rate = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            names, values = zip(*model.state_dict().items(), strict=True)
            torch._foreach_lerp_([ema[n] for n in names], list(values), 1 - rate)
        losses.append(loss.detach())
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            spent = seconds + time.monotonic() - began
            row = {"step": step + 1, "loss": torch.stack(losses).mean().item(), "seconds": round(spent, 1)}
            losses.clear()
            with (out / "loss.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            note = f"loss {row['loss']:.4f}"
            state = {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema,
                "step": step + 1, "seconds": spent, "recipe": recipe.model_dump_json(),
            }  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        tell(step + 1, recipe.steps, "steps", note)
    weights = out / WEIGHTS
    save_file({name: value.to(torch.float16).contiguous() for name, value in ema.items()}, weights)
    return weights
