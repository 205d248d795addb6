"""Sizes of models: what every family states of them, and the grid of continuous tokens under MAR's public names."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ModelConfig(BaseModel):
    """Sizes of a model, as a pair's card holds them; a family derives its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def seq_len(self) -> int:
        """Tokens of an image."""
        raise NotImplementedError


class TokenGrid(ModelConfig):
    """How an image becomes a square of continuous tokens."""

    img_size: int = Field(256, gt=0, le=4096, description="side of the square image, pixels")
    vae_stride: int = Field(16, gt=0, le=1024, description="pixels per latent cell and side")
    patch_size: int = Field(1, gt=0, le=1024, description="latent cells per token and side")
    vae_embed_dim: int = Field(16, gt=0, le=4096, description="latent channels")

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
