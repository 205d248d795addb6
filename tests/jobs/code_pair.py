"""A tiny random pair of codes in a folder, with both drafts near the target."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save

from spd_core.families.llamagen.model import EagleConfig, EagleDraft, LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.vq import Vq, VqCodec, VqConfig
from spd_core.law import SamplerLaw
from spd_core.pairs.pair import PairCard

CODES, LENGTH = 32, 16


def make_code_pair(
    folder: Path,
    *,
    class_names: tuple[str, ...] = ("a", "b", "c"),
    reference: str = "",
    drafts: tuple[str, ...] = ("draft", "eagle"),
) -> Path:
    """Writes ``pair.json`` and the weights, 16 codes an image of 28 x 28 pixels; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaGenConfig(
        dim=16, n_layer=1, n_head=2, vocab_size=CODES, block_size=LENGTH, num_classes=len(class_names), multiple_of=16
    )
    vq = VqConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=32, codebook_size=CODES, in_channels=1)
    eagle = EagleConfig(n_head=2, multiple_of=16)
    models = {"target": LlamaGen(config), "draft": LlamaGen(config), "eagle": EagleDraft(eagle, config), "vq": Vq(vq)}
    generator, digests = torch.Generator().manual_seed(0), {}
    for model in models.values():
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    models["draft"].load_state_dict(
        {
            name: value + 0.02 * torch.randn(value.shape, generator=generator)
            for name, value in models["target"].state_dict().items()
        }
    )
    for part, model in models.items():
        if part in ("target", "vq", *drafts):
            raw = save(model.state_dict())
            (folder / f"{part}.safetensors").write_bytes(raw)
            digests[part] = hashlib.sha256(raw).hexdigest()
    card = PairCard(
        name=folder.name,
        family="llamagen",
        target=config,
        draft=config if "draft" in drafts else None,
        eagle=eagle if "eagle" in drafts else None,
        codec=VqCodec(vq=vq, size=28, padded=32),
        class_names=class_names,
        law=SamplerLaw(cfg_schedule="constant"),
        reference=reference,
        licence="MIT",
        data="none, random weights",
        sha256=digests,
    )
    (folder / "pair.json").write_text(card.model_dump_json(indent=1))
    return folder
