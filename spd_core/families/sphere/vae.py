"""The hyperspherical autoencoder: images to directions with a concentration, tokens on the sphere to images.

Modules, names and state-dict keys are those of the public checkpoint; its two rotary tables are buffers there.

Shape legend: B images, C channels, H, W pixels, N tokens, D token dims, d model dims.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.families.sphere.blocks import Block, Positions, RMSNorm, feed_forward_dims, rotary_table
from spd_core.models.linear import Linear

NORM_EPS = 1e-6
_NO_TURN = 1e-6  #: below this distance from the first axis a direction needs no reflection


class SphereVaeConfig(BaseModel):
    """Sizes of the autoencoder; the defaults are the public one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    latent_dim: int = Field(16, gt=1, description="token dims")
    image_size: int = Field(256, gt=0)
    patch_size: int = Field(16, gt=0)
    z_channels: int = Field(512, gt=0, description="width of the transformers")
    cnn_chs: tuple[int, ...] = Field((64, 64, 128, 256, 512), min_length=2, description="channels of each resolution")
    encoder_vit_layers: int = Field(6, ge=0)
    decoder_vit_layers: int = Field(12, ge=0)
    conv_in_channels: int = Field(64, gt=0)
    register_tokens: int = Field(4, ge=0, description="tokens in front of the image's that carry nothing out")
    head_dim: int = Field(64, gt=0)
    in_channels: int = Field(3, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 1 << (len(self.cnn_chs) - 1) != self.patch_size:
            raise ValueError(f"patch_size 2 ** (levels - 1) = {1 << (len(self.cnn_chs) - 1)}, got {self.patch_size}")
        if self.cnn_chs[-1] != self.z_channels or self.cnn_chs[0] != self.conv_in_channels:
            raise ValueError(f"cnn_chs from conv_in_channels to z_channels, got {self.cnn_chs}")
        if self.z_channels % self.head_dim or self.image_size % self.patch_size:
            raise ValueError("z_channels a multiple of head_dim, image_size a multiple of patch_size")
        return self

    @property
    def grid(self) -> int:
        """Tokens per image side."""
        return self.image_size // self.patch_size


def _norm(channels: int, groups: int | None = None) -> nn.GroupNorm:
    return nn.GroupNorm(groups or min(32, channels // 4), channels, eps=NORM_EPS)


class Down(nn.Module):
    """Half the resolution: a branch of two convolutions beside one of stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
            _norm(outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(inputs, outputs, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.shortcut(x)


class Up(nn.Module):
    """Twice the resolution, then a residual branch there."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _norm(inputs), nn.SiLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False),
            _norm(outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )  # fmt: skip
        self.shortcut = nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)
        self.block2 = nn.Sequential(
            _norm(outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            _norm(outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x) + self.shortcut(x)
        return x + self.block2(x)


class Levels(nn.Module):
    """A change of resolution after another."""

    def __init__(self, levels: list[Down] | list[Up]) -> None:
        super().__init__()
        self.net = nn.Sequential(*levels)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Trunk(nn.Module):
    """Register tokens in front of the image's, and bidirectional blocks over all."""

    freqs_cis: Tensor

    def __init__(self, config: SphereVaeConfig, layers: int) -> None:
        super().__init__()
        width, heads = config.z_channels, config.z_channels // config.head_dim
        self.register_token = nn.Embedding(config.register_tokens, width)
        self.layers = nn.ModuleList(Block(width, heads, feed_forward_dims(width)) for _ in range(layers))
        table = rotary_table(config.register_tokens, config.grid, config.head_dim)
        self.register_buffer("freqs_cis", torch.view_as_real(table).clone())

    def run(self, x_BNd: Tensor) -> Tensor:
        """The image's tokens after every block, [B, N, d]."""
        registers = self.register_token.weight.expand(len(x_BNd), -1, -1)
        at = Positions(torch.view_as_complex(self.freqs_cis)[None, :, None, None])
        x = torch.cat([registers, x_BNd], dim=1)
        for block in self.layers:
            x = block(x, at)
        return x[:, registers.shape[1] :]


class Encoder(Trunk):
    """Images [B, C, H, W] in [-1, 1] to features [B, N, d]."""

    def __init__(self, config: SphereVaeConfig) -> None:
        super().__init__(config, config.encoder_vit_layers)
        chs = config.cnn_chs
        self.conv_in = nn.Conv2d(config.in_channels, config.conv_in_channels, 3, 1, 1, bias=False)
        self.patchify = nn.ModuleList([Levels([Down(a, b) for a, b in itertools.pairwise(chs)])])
        self.norm = RMSNorm(config.z_channels)
        self.output = Linear(config.z_channels, config.z_channels, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.patchify[0](self.conv_in(images))
        return self.output(self.norm(self.run(cells.flatten(2).transpose(1, 2))))


class Decoder(Trunk):
    """Features [B, N, d] to images [B, C, H, W]."""

    def __init__(self, config: SphereVaeConfig) -> None:
        super().__init__(config, config.decoder_vit_layers)
        self.grid = config.grid
        chs = (config.z_channels, *reversed(config.cnn_chs[:-1]))
        width = config.z_channels
        # The public lists hold modules without parameters around these.
        self.conv_in = nn.Sequential(nn.Identity(), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.Identity())
        self.unpatchify = nn.ModuleList([nn.Identity(), Levels([Up(a, b) for a, b in itertools.pairwise(chs)])])
        self.conv_out = nn.Sequential(
            _norm(chs[-1], 16), nn.SiLU(), nn.Conv2d(chs[-1], config.in_channels, 3, 1, 1, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        cells = features.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x = self.run(self.conv_in(cells).flatten(2).transpose(1, 2))
        return self.conv_out(self.unpatchify[1](x.transpose(1, 2).unflatten(2, (self.grid, self.grid))))


@dataclass(frozen=True)
class PowerSpherical:
    """The power spherical law (De Cao & Aziz 2020, arXiv:2006.04437): density as (1 + mean . x) ** kappa."""

    mean: Tensor  #: [..., D] unit vectors
    kappa: Tensor  #: [...]

    @property
    def shape_parameters(self) -> tuple[Tensor, float]:
        """Of the Beta law of (1 + mean . x) / 2."""
        beta = (self.mean.shape[-1] - 1) / 2
        return self.kappa + beta, beta

    def at(self, beta: Tensor, direction: Tensor) -> Tensor:
        """The point that a Beta draw [...] and a normal draw [..., D - 1] of the tangent direction stand for."""
        along = (2 * beta - 1)[..., None]
        across = (1 - along.square()).clamp(min=0).sqrt() * F.normalize(direction, dim=-1)
        return _reflect(torch.cat([along, across], dim=-1), self.mean)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw [..., D]."""
        alpha, beta = self.shape_parameters
        # A Beta draw from two gamma draws; torch's own takes no generator.
        a = torch._standard_gamma(alpha, generator=generator)
        b = torch._standard_gamma(torch.full_like(alpha, beta), generator=generator)
        shape = (*self.mean.shape[:-1], self.mean.shape[-1] - 1)
        direction = torch.randn(shape, generator=generator, device=self.mean.device)
        return self.at(a / (a + b), direction)

    @property
    def _log_normaliser(self) -> Tensor:
        alpha, beta = self.shape_parameters
        log_two, log_pi = math.log(2.0), math.log(math.pi)
        return -((alpha + beta) * log_two + beta * log_pi + torch.lgamma(alpha) - torch.lgamma(alpha + beta))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density [...] on the unit sphere."""
        return self._log_normaliser + self.kappa * torch.log1p((self.mean * x).sum(dim=-1))

    def kl_to_uniform(self) -> Tensor:
        """KL divergence [...] to the uniform law on the sphere."""
        alpha, beta = self.shape_parameters
        mean_log = math.log(2.0) + torch.digamma(alpha) - torch.digamma(alpha + beta)
        half = self.mean.shape[-1] / 2
        log_area = math.log(2.0) + half * math.log(math.pi) - math.lgamma(half)
        return self._log_normaliser + self.kappa * mean_log + log_area


def _reflect(x: Tensor, mean: Tensor) -> Tensor:
    """x by the Householder reflection that brings the first axis to ``mean``."""
    first = torch.zeros_like(mean)
    first[..., 0] = 1.0
    normal = first - mean
    turned = x - 2 * (x * (unit := F.normalize(normal, dim=-1))).sum(dim=-1, keepdim=True) * unit
    return torch.where(normal.abs().sum(dim=-1, keepdim=True) < _NO_TURN, x, turned)


class SphereVae(nn.Module):
    """The autoencoder; tokens are vectors of norm sqrt(D)."""

    def __init__(self, config: SphereVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_proj = Linear(config.z_channels, config.latent_dim + 1)
        self.post_quant_proj = Linear(config.latent_dim, config.z_channels, bias=False)

    def posterior(self, images: Tensor) -> PowerSpherical:
        """Of the unit vectors of an image's tokens, [B, N, D]."""
        return self.law_of(self.encoder(images))

    def law_of(self, features: Tensor) -> PowerSpherical:
        """The posterior that encoder features stand for."""
        made = self.quant_proj(features)
        return PowerSpherical(F.normalize(made[..., :-1], dim=-1), F.softplus(made[..., -1]) + 1)

    def decode(self, tokens_BND: Tensor) -> Tensor:
        """Images [B, C, H, W], about -1 to 1, of tokens of norm sqrt(D)."""
        return self.decoder(self.post_quant_proj(tokens_BND))


def to_bytes(images: Tensor) -> Tensor:
    """uint8 of decoder outputs, as the public sampler makes them."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8)
