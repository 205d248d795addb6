"""The codec of SphereAR's tokens: a hyperspherical autoencoder."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from spd_core.codec import Codec
from spd_core.families.sphere.vae import SphereVae, SphereVaeConfig, to_bytes

#: Images decoded at once: the last levels hold many maps of the whole image.
DECODE_IMAGES = 16


class SphereCodec(Codec):
    """Tokens are vectors of norm sqrt(D); the autoencoder's weights lie beside the card."""

    part: ClassVar[str] = "vae"
    part_title: ClassVar[str] = "autoencoder"

    kind: Literal["sphere"] = "sphere"
    vae: SphereVaeConfig = Field(default_factory=SphereVaeConfig)
    size: int = Field(0, ge=0, le=4096, description="side of the image inside what the autoencoder makes; 0: all of it")

    def network(self) -> SphereVae:
        return SphereVae(self.vae)

    def image_shape(self, tokens: int) -> tuple[int, int, int]:
        side = self.size or round(tokens**0.5) * self.vae.patch_size
        return side, side, self.vae.in_channels

    def images(self, tokens: Tensor, network: nn.Module | None) -> Tensor:
        if not isinstance(network, SphereVae):
            raise TypeError(f"codec sphere: got {type(network).__name__}, allowed: a SphereVae")
        return self.decode(tokens, network)

    @torch.inference_mode()
    def decode(self, tokens_BND: Tensor, vae: SphereVae) -> Tensor:
        """uint8 images [B, H, W, C]; what surrounds the image is cut off."""
        parts = []
        for part in tokens_BND.float().split(DECODE_IMAGES):
            made = to_bytes(vae.decode(part))
            side = self.size or made.shape[-1]
            low = (made.shape[-1] - side) // 2
            parts.append(made[:, :, low : low + side, low : low + side].permute(0, 2, 3, 1))
        return torch.cat(parts).contiguous()
