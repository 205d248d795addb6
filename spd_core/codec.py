"""Codecs between 8-bit images and tokens: what every family's have in common, and the one of pixels.

Shape legend: B images, H, W pixels, C channels, G grid side, N = G*G tokens, D token dims.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F


def patchify(maps_BCHW: Tensor, patch: int) -> Tensor:
    """Tokens [B, N, C*p*p]: row-major over patches, channel-major inside a token (c, row, column)."""
    b, c, h, w = maps_BCHW.shape
    x = maps_BCHW.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(tokens_BND: Tensor, patch: int) -> Tensor:
    """Exact inverse of `patchify` for a square grid: maps [B, C, H, W]."""
    b, n, d = tokens_BND.shape
    grid = round(n**0.5)
    x = tokens_BND.reshape(b, grid, grid, d // patch**2, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, d // patch**2, grid * patch, grid * patch)


class Codec(BaseModel):
    """How tokens become images; a card names it by its ``kind``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: The part of a pair that holds its weights, and what that is in words; empty: it has none.
    part: ClassVar[str] = ""
    part_title: ClassVar[str] = ""

    kind: str

    def network(self) -> nn.Module:
        """The network of ``part``, with its first weights."""
        raise NotImplementedError

    def image_shape(self, tokens: int) -> tuple[int, int, int]:
        """Height, width and channels of images of so many tokens."""
        raise NotImplementedError

    def images(self, tokens: Tensor, network: nn.Module | None) -> Tensor:
        """uint8 images [B, H, W, C] of tokens [B, N, D] or codes [B, N].

        Args:
            tokens: of the images.
            network: that of ``part``; None for a codec without one.
        """
        raise NotImplementedError


class PixelCodec(Codec):
    """Tokens are normalised pixel patches: pad the image to ``padded`` with black, scale, cut into patches."""

    kind: Literal["pixel"] = "pixel"
    size: int = Field(28, gt=0, le=4096, description="side of the image, pixels")
    padded: int = Field(32, gt=0, le=4096, description="side after padding, pixels")
    channels: int = Field(1, gt=0, le=4)
    patch_size: int = Field(4, gt=0, le=4096, description="pixels per token and side")
    mean: float = Field(0.22, description="subtracted from pixels in [0, 1]")
    std: float = Field(0.332, gt=0, description="divides after the mean is subtracted")

    def image_shape(self, tokens: int) -> tuple[int, int, int]:
        return self.size, self.size, self.channels

    def images(self, tokens: Tensor, network: nn.Module | None) -> Tensor:
        return self.decode(tokens)

    def encode(self, images_BHWC: Tensor) -> Tensor:
        """Tokens float32 [B, N, D] of uint8 images."""
        x = images_BHWC.permute(0, 3, 1, 2).float() / 255.0
        low = (self.padded - self.size) // 2
        high = self.padded - self.size - low
        return patchify((F.pad(x, (low, high, low, high)) - self.mean) / self.std, self.patch_size)

    def decode(self, tokens_BND: Tensor) -> Tensor:
        """uint8 images [B, H, W, C]; the padding is cut off."""
        x = unpatchify(tokens_BND.float(), self.patch_size) * self.std + self.mean
        low = (self.padded - self.size) // 2
        x = x[:, :, low : low + self.size, low : low + self.size]
        return (x * 255.0).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
