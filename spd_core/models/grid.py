"""The token grid of an image: geometry that every model family shares, under the names of the public MAR code."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TokenGrid(BaseModel):
    """How an image becomes a square of continuous tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    img_size: int = Field(256, gt=0, description="side of the square image, pixels")
    vae_stride: int = Field(16, gt=0, description="pixels per latent cell and side")
    patch_size: int = Field(1, gt=0, description="latent cells per token and side")
    vae_embed_dim: int = Field(16, gt=0, description="latent channels")

    @property
    def grid(self) -> int:
        """Tokens per image side."""
        return self.img_size // self.vae_stride // self.patch_size

    @property
    def seq_len(self) -> int:
        return self.grid**2

    @property
    def token_dim(self) -> int:
        return self.vae_embed_dim * self.patch_size**2
