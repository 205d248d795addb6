"""Models of true depth and random weights, at true width or at one that a CPU runs in no time.

Launches and host syncs do not depend on widths, and the time of plain decoding does not depend on the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from spd_core.families.causal.model import Causal, CausalConfig
from spd_core.families.llamagen.model import PRESETS, EagleConfig, EagleDraft, LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.vq import Vq, VqConfig
from spd_core.families.mar.model import Mar, MarConfig, preset
from spd_core.families.mar.vae import KlVae, KlVaeConfig
from spd_core.families.sphere.model import PRESETS as SPHERE_PRESETS
from spd_core.families.sphere.model import Sphere, SphereConfig
from spd_core.pairs.pair import load_card

Module = TypeVar("Module", bound=nn.Module)

#: Channels per attention head of a narrow model.
NARROW = 4
#: KL-16 and VQ-16 at their depth, narrow.
NARROW_VAE = KlVaeConfig(ch=32)
NARROW_VQ = VqConfig(ch=32, codebook_size=64)


def mar_config(name: str, *, narrow: bool = False, grid: int = 16) -> MarConfig:
    """Sizes of a public MAR model.

    Args:
        name: base, large or huge.
        narrow: with all its layers, but narrow ones.
        grid: tokens per image side.
    """
    config = preset(name).model_copy(update={"img_size": 16 * grid})
    if not narrow:
        return config
    sides = {f"{side}_embed_dim": NARROW * config.encoder_num_heads for side in ("encoder", "decoder")}
    return config.model_copy(update={**sides, "diffloss_w": 32, "buffer_size": 4})


def code_config(name: str, *, narrow: bool = False, grid: int = 16) -> LlamaGenConfig:
    """Sizes of a public LlamaGen model; arguments as for `mar_config`."""
    sizes = {**PRESETS[name], "block_size": grid * grid}
    if narrow:
        sizes |= {"dim": NARROW * sizes["n_head"], "multiple_of": 16, "vocab_size": 64}
    return LlamaGenConfig(**sizes)


def causal_config(*, grid: int = 8) -> CausalConfig:
    """Sizes of the bundled causal target; they are small as they are."""
    config = load_card("fashion-ar").target
    assert isinstance(config, CausalConfig)
    return config.model_copy(update={"img_size": 4 * grid})


def sphere_config(name: str, *, grid: int = 16) -> SphereConfig:
    """Sizes of a public SphereAR model (B, L or H) with all its layers, but narrow ones; ``grid`` as above."""
    sizes = SPHERE_PRESETS[name]
    return SphereConfig(**sizes).model_copy(
        update={"dim": NARROW * sizes["n_head"], "diff_dim": 32, "resolution": 16 * grid, "num_classes": 10}
    )


def mar(config: MarConfig, device: torch.device, seed: int = 0) -> Mar:
    """A MAR; the zeros that its head starts with would make every prediction the same, and are filled."""
    return _filled(lambda: Mar(config), device, seed)


def codes(config: LlamaGenConfig, device: torch.device, seed: int = 0) -> LlamaGen:
    return _filled(lambda: LlamaGen(config), device, seed)


def eagle(config: LlamaGenConfig, device: torch.device, seed: int = 0) -> EagleDraft:
    own = EagleConfig(n_head=config.n_head, multiple_of=config.multiple_of)
    return _filled(lambda: EagleDraft(own, config), device, seed)


def causal(config: CausalConfig, device: torch.device, seed: int = 0) -> Causal:
    return _filled(lambda: Causal(config), device, seed)


def sphere(config: SphereConfig, device: torch.device, seed: int = 0) -> Sphere:
    return _filled(lambda: Sphere(config), device, seed)


def kl16(device: torch.device, *, narrow: bool = False) -> KlVae:
    return _filled(lambda: KlVae(NARROW_VAE if narrow else KlVaeConfig()), device, 0)


def vq16(device: torch.device, *, narrow: bool = False) -> Vq:
    return _filled(lambda: Vq(NARROW_VQ if narrow else VqConfig()), device, 0)


def _filled(make: Callable[[], Module], device: torch.device, seed: int) -> Module:
    """A module made on its device; matrices of zeros get small random numbers."""
    torch.manual_seed(seed)
    with device:
        module = make().eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.dim() > 1 and not parameter.any():
            parameter.normal_(std=0.02)
    return module
