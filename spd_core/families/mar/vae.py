"""KL autoencoder between images and continuous latents (LDM ``AutoencoderKL``), and the codec that uses it.

Modules, names and state-dict keys are those of the public KL-16 checkpoint that MAR uses (Rombach et al. 2022,
arXiv:2112.10752; Li et al. 2024, arXiv:2406.11838).

Shape legend: B images, C channels, H, W pixels, h, w latent cells, N tokens, D token dims.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.codec import Codec, patchify, unpatchify

GROUPS = 32
NORM_EPS = 1e-6
#: Bounds of a posterior's log variance.
LOGVAR_RANGE = (-30.0, 20.0)
#: Images decoded at once; bounds the memory of the full-resolution feature maps.
DECODE_IMAGES = 8


class KlVaeConfig(BaseModel):
    """Sizes of the autoencoder under the public names; the defaults are KL-16."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ch: int = Field(128, gt=0, le=4096, description="channels that ch_mult multiplies")
    ch_mult: tuple[int, ...] = Field(
        (1, 1, 2, 2, 4), min_length=1, max_length=8, description="channel factor of each level"
    )
    num_res_blocks: int = Field(
        2, gt=0, le=64, description="residual blocks per encoder level; a decoder level has one more"
    )
    embed_dim: int = Field(16, gt=0, le=4096, description="latent channels")
    in_channels: int = Field(3, gt=0, le=4, description="image channels")
    resolution: int = Field(256, gt=0, le=65536, description="nominal image side; only places the encoder's attention")
    attn_resolutions: tuple[int, ...] = Field((16,), description="nominal sides with attention in the encoder")

    @property
    def stride(self) -> int:
        """Pixels per latent cell and side."""
        return 1 << (len(self.ch_mult) - 1)


def norm(channels: int) -> nn.GroupNorm:
    """The normalisation in front of every convolution."""
    return nn.GroupNorm(GROUPS, channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    """Two times GroupNorm - swish - 3x3 convolution, added to the input (through 1x1 if the width changes)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all cells, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(out)


class Downsample(nn.Module):
    """Stride-2 convolution that pads one row and column of zeros at the bottom and right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention where there is any, then the change of resolution."""

    def __init__(self, widths: list[int], attention: bool, resample: nn.Module | None, resample_name: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in itertools.pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(b) for b in widths[1:] if attention)
        self.resample_name = resample_name if resample is not None else None
        if resample is not None:
            self.add_module(resample_name, resample)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.get_submodule(self.resample_name)(x) if self.resample_name else x


class Middle(nn.Module):
    """The coarsest part: block, attention, block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images [B, C, H, W] to features [B, 2 * embed_dim, h, w]."""

    def __init__(self, config: KlVaeConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (before, width) in enumerate(zip([config.ch, *widths], widths, strict=False)):
            attention = config.resolution // 2**level in config.attn_resolutions
            resample = Downsample(width) if level + 1 < len(widths) else None
            self.down.append(Level([before] + [width] * config.num_res_blocks, attention, resample, "downsample"))
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.embed_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents [B, embed_dim, h, w] to images [B, C, H, W]; ``up[-1]`` is the coarsest level and runs first."""

    def __init__(self, config: KlVaeConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.embed_dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for level, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            resample = Upsample(width) if level > 0 else None
            self.up.append(Level([before] + [width] * (config.num_res_blocks + 1), False, resample, "upsample"))
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over latents; each field is [B, embed_dim, h, w]."""

    mean: Tensor
    logvar: Tensor

    @staticmethod
    def from_moments(moments: Tensor) -> Posterior:
        """From [B, 2 * embed_dim, h, w]: means, then log variances, which are clamped."""
        mean, logvar = moments.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """The latent that standard-normal noise of the mean's shape stands for."""
        return self.mean + self.std * noise


class KlVae(nn.Module):
    """The autoencoder: images in [-1, 1] <-> unscaled latents."""

    def __init__(self, config: KlVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.embed_dim, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.embed_dim, 1)

    def encode(self, images_BCHW: Tensor) -> Posterior:
        return Posterior.from_moments(self.quant_conv(self.encoder(images_BCHW)))

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Images [B, C, H, W], not clipped."""
        return self.decoder(self.post_quant_conv(latents_BChw))


class KlCodec(Codec):
    """Tokens are patches of the autoencoder's latents times ``latent_scale``; the weights lie beside the card."""

    part: ClassVar[str] = "vae"
    part_title: ClassVar[str] = "autoencoder"

    kind: Literal["kl"] = "kl"
    vae: KlVaeConfig = Field(default_factory=KlVaeConfig)
    latent_scale: float = Field(0.2325, gt=0, description="one over the std of the latents; the mean is not removed")
    patch_size: int = Field(1, gt=0, le=1024, description="latent cells per token and side")

    def network(self) -> KlVae:
        return KlVae(self.vae)

    def image_shape(self, tokens: int) -> tuple[int, int, int]:
        side = round(tokens**0.5) * self.patch_size * self.vae.stride
        return side, side, self.vae.in_channels

    def images(self, tokens: Tensor, network: nn.Module | None) -> Tensor:
        if not isinstance(network, KlVae):
            raise TypeError(f"codec kl: got {type(network).__name__}, allowed: a KlVae")
        return self.decode(tokens, network)

    @torch.inference_mode()
    def encode(self, images_BHWC: Tensor, vae: KlVae, noise_BChw: Tensor) -> Tensor:
        """Tokens float32 [B, N, D]: one posterior sample of each uint8 image."""
        x = images_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return patchify(vae.encode(x).sample(noise_BChw) * self.latent_scale, self.patch_size)

    @torch.inference_mode()
    def decode(self, tokens_BND: Tensor, vae: KlVae) -> Tensor:
        """uint8 images [B, H, W, C]."""
        latents = unpatchify(tokens_BND.float(), self.patch_size) / self.latent_scale
        if latents.is_cuda:
            # The order of tensor cores' convolutions; what follows keeps it.
            latents = latents.contiguous(memory_format=torch.channels_last)
        parts = []
        for part in latents.split(DECODE_IMAGES):
            x = (vae.decode(part) + 1.0) / 2.0 * 255.0
            parts.append(x.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1))
        return torch.cat(parts).contiguous()
