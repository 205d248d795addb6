"""Tiny random SphereAR models whose law can be sampled by the thousand, and pairs of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save

from spd_core.families.sphere.codec import SphereCodec
from spd_core.families.sphere.model import Sphere, SphereConfig
from spd_core.families.sphere.vae import SphereVae, SphereVaeConfig
from spd_core.law import SamplerLaw
from spd_core.pairs.pair import PairCard

#: 4 tokens of 3 dims.
CONFIG = SphereConfig(
    dim=16, n_layer=1, n_head=2, diff_dim=16, diff_layers=2, diff_adanln_layers=1, latent_dim=3, resolution=8,
    patch_size=4, cls_token_num=2, num_classes=3,
)  # fmt: skip
#: The public law with few steps; strong guidance, so that the null branch matters.
PUBLIC = SamplerLaw(head_steps=9, cfg=3.0, cfg_schedule="linear")
HANDOFF = PUBLIC.model_copy(update={"handoff_level": 40})
VAE = SphereVaeConfig(
    latent_dim=3, image_size=8, patch_size=4, z_channels=16, cnn_chs=(16, 16, 16), encoder_vit_layers=1,
    decoder_vit_layers=1, conv_in_channels=16, register_tokens=2, head_dim=8, in_channels=1,
)  # fmt: skip


def tiny_sphere(config: SphereConfig = CONFIG, seed: int = 0, scale: float = 0.3) -> Sphere:
    """Random weights everywhere, the context strong enough that a token's law depends on the tokens before it."""
    generator = torch.Generator().manual_seed(seed)
    model = Sphere(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * scale
        parameter.copy_(1 + drawn if "norm" in name and name.endswith("weight") else drawn)
    for name, parameter in model.head.named_parameters():
        if "norm" not in name and "cond_embed" not in name:
            parameter.mul_(0.5)  # a velocity so rough that nothing could be held is like no trained head's
    model.proj_in.weight.mul_(3.0)
    model.head.net.cond_embed.weight.mul_(2.0)
    return model


def perturbed(model: Sphere, amount: float, seed: int = 1) -> Sphere:
    """A draft: the model with noise on its weights."""
    generator = torch.Generator().manual_seed(seed)
    draft = Sphere(model.config).eval().requires_grad_(False)
    draft.load_state_dict(model.state_dict())
    for parameter in draft.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return draft


def make_tiny_sphere_pair(folder: Path, law: SamplerLaw = PUBLIC) -> Path:
    """Writes ``pair.json`` and the weights of a random target, a draft near it and an autoencoder; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    target, digests = tiny_sphere(), {}
    for part, model in (("target", target), ("draft", perturbed(target, 0.005)), ("vae", SphereVae(VAE))):
        raw = save({key: value.contiguous() for key, value in model.state_dict().items()})
        (folder / f"{part}.safetensors").write_bytes(raw)
        digests[part] = hashlib.sha256(raw).hexdigest()
    card = PairCard(
        name=folder.name, family="sphere", target=CONFIG, draft=CONFIG, law=law, licence="MIT", data="none",
        codec=SphereCodec(vae=VAE, size=6), class_names=("a", "b", "c"), sha256=digests,
    )  # fmt: skip
    (folder / "pair.json").write_text(card.model_dump_json())
    return folder
