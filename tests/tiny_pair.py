"""A tiny random pair in a folder, for tests that need models but not their quality."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save

from spd_core.codec import PixelCodec
from spd_core.families.mar.model import Mar, MarConfig
from spd_core.law import SamplerLaw
from spd_core.pairs.pair import PairCard

CLASSES = ("T-shirt/top", "Trouser", "Bag")
LAW = SamplerLaw(num_iter=8, head_steps=4)
CODEC = PixelCodec(size=6, padded=8, channels=1, patch_size=2)


def tiny_config(depth: int = 1, codec: PixelCodec = CODEC, classes: int = len(CLASSES)) -> MarConfig:
    """A MAR of 16 dims a transformer, one token per patch of the codec."""
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("embed_dim", 16), ("depth", depth), ("num_heads", 2))
    }
    return MarConfig(
        img_size=codec.padded,
        vae_stride=codec.patch_size,
        vae_embed_dim=codec.channels * codec.patch_size**2,
        class_num=classes,
        buffer_size=2,
        diffloss_d=1,
        diffloss_w=16,
        **sides,
    )


def tiny_mar(config: MarConfig, seed: int = 0) -> Mar:
    """Random weights everywhere: the initialisation's zeros would make every output the same."""
    generator = torch.Generator().manual_seed(seed)
    model = Mar(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def make_tiny_pair(
    folder: Path,
    *,
    seed: int = 0,
    law: SamplerLaw = LAW,
    class_names: tuple[str, ...] = CLASSES,
    codec: PixelCodec = CODEC,
    draft: bool = True,
    reference: str = "",
) -> Path:
    """Writes ``pair.json`` and the weights of a random target and draft; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = {"target": tiny_config(2, codec, len(class_names))}
    if draft:
        configs["draft"] = tiny_config(1, codec, len(class_names))
    digests = {}
    for index, (part, config) in enumerate(configs.items()):
        raw = save(tiny_mar(config, seed + index).state_dict())
        (folder / f"{part}.safetensors").write_bytes(raw)
        digests[part] = hashlib.sha256(raw).hexdigest()
    card = PairCard(
        name=folder.name,
        family="mar",
        target=configs["target"],
        draft=configs.get("draft"),
        codec=codec,
        class_names=class_names,
        law=law,
        reference=reference,
        licence="MIT",
        data="none, random weights",
        sha256=digests,
    )
    (folder / "pair.json").write_text(json.dumps(card.model_dump(mode="json"), indent=1))
    return folder
