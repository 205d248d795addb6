"""Tiny random models of codes whose law can be sampled by the thousand: 4 codes of 4, and a pair on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from spd_core.families.llamagen.model import EagleConfig, EagleDraft, LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.vq import Vq, VqCodec, VqConfig
from spd_core.law import SamplerLaw
from spd_core.pairs.pair import PairCard

CONFIG = LlamaGenConfig(dim=16, n_layer=2, n_head=2, vocab_size=4, block_size=4, num_classes=3, multiple_of=16)
LAW = SamplerLaw(cfg_schedule="constant")
#: 6x6 images in 16 codes of 8.
CODEC = VqCodec(
    vq=VqConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, codebook_size=8, codebook_embed_dim=3, in_channels=1
    ),
    size=6,
    padded=8,
)


def _filled(model: nn.Module, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def tiny_codes(config: LlamaGenConfig = CONFIG, seed: int = 2, scale: float = 0.25) -> LlamaGen:
    """Random weights; the context is strong enough that a code's law depends on the codes before it."""
    model = LlamaGen(config).eval().requires_grad_(False)
    _filled(model, seed, scale)
    return model


def smaller(target: LlamaGen, amount: float = 0.05, seed: int = 1) -> LlamaGen:
    """A draft: the target's first layer and what is no layer, with noise on the weights."""
    draft = LlamaGen(target.config.model_copy(update={"n_layer": 1})).eval().requires_grad_(False)
    draft.load_state_dict({k: v for k, v in target.state_dict().items() if k in draft.state_dict()})
    generator = torch.Generator().manual_seed(seed)
    for parameter in draft.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return draft


def tiny_eagle(target: LlamaGen, seed: int = 4, scale: float = 0.2) -> EagleDraft:
    """An EAGLE draft of random weights."""
    draft = EagleDraft(EagleConfig(n_head=2, multiple_of=16), target.config).eval().requires_grad_(False)
    _filled(draft, seed, scale)
    return draft


def tiny_vq(config: VqConfig = CODEC.vq, seed: int = 3) -> Vq:
    """A tokenizer of random weights; its codebook's rows have lengths that change who is near whom."""
    torch.manual_seed(seed)
    vq = Vq(config).eval().requires_grad_(False)
    lengths = torch.linspace(0.2, 3.0, config.codebook_size)[torch.randperm(config.codebook_size)]
    vq.quantize.embedding.weight.mul_(lengths[:, None])
    return vq


def make_tiny_code_pair(folder: Path, *, eagle: bool = True, law: SamplerLaw = LAW) -> Path:
    """Writes ``pair.json`` and the weights of a random target, its drafts and a tokenizer; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG.model_copy(update={"vocab_size": CODEC.vq.codebook_size, "block_size": 16})
    target = tiny_codes(config)
    parts: dict[str, nn.Module] = {"target": target, "draft": smaller(target), "vq": tiny_vq()}
    if eagle:
        parts["eagle"] = tiny_eagle(target)
    digests = {}
    for part, model in parts.items():
        raw = save({name: value.contiguous() for name, value in model.state_dict().items()})
        (folder / f"{part}.safetensors").write_bytes(raw)
        digests[part] = hashlib.sha256(raw).hexdigest()
    card = PairCard(
        name=folder.name,
        family="llamagen",
        target=config,
        draft=config.model_copy(update={"n_layer": 1}),
        eagle=EagleConfig(n_head=2, multiple_of=16) if eagle else None,
        codec=CODEC,
        class_names=("a", "b", "c"),
        law=law,
        licence="MIT",
        data="none, random weights",
        sha256=digests,
    )
    (folder / "pair.json").write_text(card.model_dump_json())
    return folder
