"""Files as the public checkpoints of MAR, LlamaGen and SphereAR are packed: their names, entries, keys and shapes.

The weights are random. Keys and shapes are the public ones (``tests/data/keys``), or those of a smaller model of the
same make, so that what reads such files can be tested in a moment or at true size.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from spd_core.families.sphere.blocks import rotary_table

KEYS = Path(__file__).parent / "data" / "keys"
Shapes = Mapping[str, list[int]]


def stated(model: str) -> dict[str, Any]:
    """What is known of a public file: keys with shapes, parameters, how it is packed."""
    return dict(json.loads((KEYS / f"{model}.json").read_text()))


def public_shapes(model: str) -> dict[str, list[int]]:
    """Shapes by key of a public file."""
    return dict(stated(model)["keys"])


def shapes_of(make: Callable[[], nn.Module], prefix: str = "") -> dict[str, list[int]]:
    """Shapes by key of a model, which is never allocated."""
    with torch.device("meta"):
        return {prefix + key: list(value.shape) for key, value in make().state_dict().items()}


def random_weights(shapes: Shapes) -> dict[str, Tensor]:
    """Weights with which every layer passes on about what it gets; those of a key depend on the key alone."""
    return {key: _random(key, shape) for key, shape in shapes.items()}


def _random(key: str, shape: list[int]) -> Tensor:
    if key.endswith("freqs_cis"):  # a table of the grid, the only one in a public file that is no weight
        cells, pairs, _ = shape
        side = math.isqrt(cells)
        return torch.view_as_real(rotary_table(cells - side * side, side, 2 * pairs))
    if key.endswith("codebook_used"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.full(shape, 1.0 if key.endswith("weight") else 0.0)
    return torch.empty(shape).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(crc32(key.encode())))


def _last(averaged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The last weights of a run beside their average: others, so that taking them is noticed."""
    return {key: torch.full_like(value, 9.0) for key, value in averaged.items()}


def _mar(state: dict[str, Tensor]) -> dict[str, Any]:
    arguments = argparse.Namespace(model="mar", img_size=256, num_sampling_steps="100", device="cuda")
    return {"model": _last(state), "model_ema": state, "epoch": 799, "args": arguments}


def _model(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"model": state}


def _llamagen(state: dict[str, Tensor]) -> dict[str, Any]:
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]}
    arguments = argparse.Namespace(image_size=256, mixed_precision="bf16")
    return {"model": state, "optimizer": optimizer, "steps": 300_000, "args": arguments}


def _sphere(state: dict[str, Tensor]) -> dict[str, Any]:
    # Averaging does not touch the autoencoder.
    last = {**_last(state), **{key: value for key, value in state.items() if key.startswith("vae.")}}
    arguments = argparse.Namespace(model="SphereAR", cfg_scale=4.5, ema=0.9999)
    return {"model": last, "ema": state, "optimizer": {"state": {}}, "epochs": 400, "args": arguments}


def _sphere_vae(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"model": state, "model_disc": {"weight": torch.zeros(1)}, "epochs": 50}


#: By the path that a file is downloaded to: its model in `KEYS`, and what holds the weights.
PACKED: dict[str, tuple[str, Callable[[dict[str, Tensor]], dict[str, Any]]]] = {
    "mar_base/checkpoint-last.pth": ("mar_base", _mar),
    "mar_huge/checkpoint-last.pth": ("mar_huge", _mar),
    "kl16.ckpt": ("mar_vae_kl16", _model),
    "c2i_B_256.pt": ("llamagen_gpt_b_c2i", _llamagen),
    "c2i_L_256.pt": ("llamagen_gpt_l_c2i", _llamagen),
    "vq_ds16_c2i.pt": ("llamagen_vq16", _model),
    "SphereAR_B.pt": ("sphere_b", _sphere),
    "SphereAR_L.pt": ("sphere_l", _sphere),
    "SphereAR_H.pt": ("sphere_h", _sphere),
    "vae.pt": ("sphere_vae", _sphere_vae),
}


def write(folder: Path, name: str, shapes: Shapes | None = None) -> Path:
    """Writes a file to its public path below a folder.

    Args:
        folder: where.
        name: of `PACKED`.
        shapes: by key; None: the public model's.
    """
    model, packed = PACKED[name]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(packed(random_weights(shapes or public_shapes(model))), path)
    return path
