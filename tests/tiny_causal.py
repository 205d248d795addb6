"""Tiny random causal models whose law can be sampled by the thousand: 4 tokens of 2 dims."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from spd_core.codec import PixelCodec
from spd_core.families.causal.model import Causal, CausalConfig
from spd_core.families.causal.recipe import CausalRecipe, loss_of
from spd_core.law import SamplerLaw
from spd_core.pairs.pair import PairCard

CONFIG = CausalConfig(
    img_size=2, vae_stride=1, patch_size=1, vae_embed_dim=2, class_num=3,
    embed_dim=16, depth=1, num_heads=2, head_depth=1, head_width=16,
)  # fmt: skip
LAW = SamplerLaw(head_steps=8, start_level=999, handoff_level=250)


def tiny_causal(config: CausalConfig = CONFIG, seed: int = 0, scale: float = 0.3) -> Causal:
    """Random weights everywhere, the context strong enough that a token's law depends on the tokens before it."""
    generator = torch.Generator().manual_seed(seed)
    model = Causal(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.input_proj.weight.mul_(3.0)
    model.head.cond_embed.weight.mul_(2.0)
    return model


def perturbed(model: Causal, amount: float, seed: int = 1) -> Causal:
    """A draft: the model with noise on its weights."""
    generator = torch.Generator().manual_seed(seed)
    draft = Causal(model.config).eval().requires_grad_(False)
    draft.load_state_dict(model.state_dict())
    for parameter in draft.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return draft


def fitted_causal(seed: int, steps: int) -> Causal:
    """A model fitted for a moment to tokens that follow one another; its predictions are worth holding."""
    recipe = CausalRecipe(model=CONFIG, handoff_level=LAW.handoff_level, head_repeats=4)
    torch.manual_seed(seed)
    model = recipe.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    labels = torch.zeros(64, dtype=torch.int64)
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        walk = torch.from_numpy(rng.standard_normal((64, 4, 2), dtype=np.float32)).cumsum(dim=1) * 0.5
        loss = loss_of(model, walk.tanh() * 2, labels, recipe, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def make_tiny_causal_pair(folder: Path) -> Path:
    """Writes ``pair.json`` and the weights of a random target and a draft near it, 9 tokens of 4 dims; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CausalConfig(
        img_size=6, vae_stride=1, patch_size=2, vae_embed_dim=1, class_num=3,
        embed_dim=16, depth=1, num_heads=2, head_depth=1, head_width=16,
    )  # fmt: skip
    target, digests = tiny_causal(config), {}
    for part, model in (("target", target), ("draft", perturbed(target, 0.005))):
        raw = save(model.state_dict())
        (folder / f"{part}.safetensors").write_bytes(raw)
        digests[part] = hashlib.sha256(raw).hexdigest()
    card = PairCard(
        name=folder.name, family="causal", target=config, draft=config, law=LAW, licence="MIT", data="none",
        codec=PixelCodec(size=6, padded=6, channels=1, patch_size=2), class_names=("a", "b", "c"), sha256=digests,
    )  # fmt: skip
    (folder / "pair.json").write_text(card.model_dump_json())
    return folder
