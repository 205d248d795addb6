"""VQ tokenizer between images and codes (the VQ-16 of LlamaGen, Sun et al. 2024, arXiv:2406.06525), and its codec.

Modules, names and state-dict keys are those of the public checkpoint. A code is a row of the codebook; rows are
compared and decoded l2-normalised, so the length of a stored row means nothing.

Shape legend: B images, C channels, H, W pixels, h, w cells, N = h * w tokens, V codes, E code dims.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.codec import Codec
from spd_core.families.mar.vae import AttnBlock, Downsample, ResnetBlock, Upsample, norm

#: Images and pixels encoded or decoded at once; they bound the memory of the full-resolution feature maps.
MOST_IMAGES = 32
MOST_PIXELS = 8 * 256 * 256


class VqConfig(BaseModel):
    """Sizes of the tokenizer; the defaults are VQ-16."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ch: int = Field(128, gt=0, le=4096, description="channels that ch_mult multiplies")
    ch_mult: tuple[int, ...] = Field(
        (1, 1, 2, 2, 4), min_length=1, max_length=8, description="channel factor of each level"
    )
    num_res_blocks: int = Field(
        2, gt=0, le=64, description="residual blocks per encoder level; a decoder level has one more"
    )
    z_channels: int = Field(256, gt=0, le=65536, description="channels before the code space")
    codebook_size: int = Field(16384, gt=1, le=1 << 24)
    codebook_embed_dim: int = Field(8, gt=0, le=65536, description="dims of a code")
    in_channels: int = Field(3, gt=0, le=4, description="image channels")

    @property
    def stride(self) -> int:
        """Pixels per cell and side."""
        return 1 << (len(self.ch_mult) - 1)


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention at the coarsest level, then the change of resolution."""

    def __init__(self, widths: list[int], attention: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResnetBlock(a, b) for a, b in itertools.pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(b) for b in widths[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResnetBlock(channels, channels), AttnBlock(channels), ResnetBlock(channels, channels)])


class Encoder(nn.Module):
    """Images [B, C, H, W] to features [B, z_channels, h, w]."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(zip([config.ch, *widths], widths, strict=False)):
            last = level + 1 == len(widths)
            block = Level([before] + [width] * config.num_res_blocks, attention=last)
            if not last:
                block.downsample = Downsample(width)
            self.conv_blocks.append(block)
        self.mid = _middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in (*self.conv_blocks, *self.mid):
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Features [B, z_channels, h, w] to images [B, C, H, W]; ``conv_blocks[0]`` is the coarsest level."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in reversed(config.ch_mult)]
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            block = Level([before] + [width] * (config.num_res_blocks + 1), attention=level == 0)
            if level + 1 < len(widths):
                block.upsample = Upsample(width)
            self.conv_blocks.append(block)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for block in (*self.mid, *self.conv_blocks):
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Codebook(nn.Module):
    """The codes; `forward` looks them up."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0, 1.0)

    @property
    def vectors(self) -> Tensor:
        """The codes [V, E] as the decoder sees them, each of length one."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, unit_RE: Tensor) -> Tensor:
        """int64 [R] nearest codes of vectors of length one: there the nearest is the one of largest inner product."""
        return (unit_RE @ self.vectors.T).argmax(dim=-1)

    def forward(self, codes: Tensor) -> Tensor:
        """Vectors [..., E] of length one."""
        return F.normalize(self.embedding(codes), dim=-1)


class Vq(nn.Module):
    """The tokenizer: images in [-1, 1] <-> codes."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_embed_dim, config.z_channels, 1)

    def project(self, images_BCHW: Tensor) -> Tensor:
        """What is looked up in the codebook, [B, E, h, w], not normalised."""
        return self.quant_conv(self.encoder(images_BCHW))

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """int64 codes [B, h, w]."""
        z = F.normalize(self.project(images_BCHW), dim=1).permute(0, 2, 3, 1)
        return self.quantize.nearest(z.flatten(0, 2)).view(z.shape[:3])

    def decode(self, vectors_BEhw: Tensor) -> Tensor:
        """Images [B, C, H, W] of vectors of length one, not clipped."""
        return self.decoder(self.post_quant_conv(vectors_BEhw))


class VqCodec(Codec):
    """Tokens are codes in raster order; the tokenizer's weights lie beside the card."""

    part: ClassVar[str] = "vq"
    part_title: ClassVar[str] = "tokenizer"

    kind: Literal["vq"] = "vq"
    vq: VqConfig = Field(default_factory=VqConfig)
    size: int = Field(256, gt=0, le=4096, description="side of the image, pixels")
    padded: int = Field(256, gt=0, le=4096, description="side after padding with black, pixels; the tokenizer's")

    def network(self) -> Vq:
        return Vq(self.vq)

    def image_shape(self, tokens: int) -> tuple[int, int, int]:
        return self.size, self.size, self.vq.in_channels

    def images(self, tokens: Tensor, network: nn.Module | None) -> Tensor:
        if not isinstance(network, Vq):
            raise TypeError(f"codec vq: got {type(network).__name__}, allowed: a Vq")
        return self.decode(tokens, network)

    @property
    def at_once(self) -> int:
        """Images that go through the tokenizer together."""
        return max(1, min(MOST_IMAGES, MOST_PIXELS // self.padded**2))

    def scaled(self, images_BHWC: Tensor) -> Tensor:
        """Padded images [B, C, H, W] in [-1, 1] of uint8 images."""
        low = (self.padded - self.size) // 2
        high = self.padded - self.size - low
        x = images_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return F.pad(x, (low, high, low, high), value=-1.0)

    @torch.inference_mode()
    def encode(self, images_BHWC: Tensor, vq: Vq) -> Tensor:
        """Codes int64 [B, N] of uint8 images."""
        parts = [vq.encode(self.scaled(part)).flatten(1) for part in images_BHWC.split(self.at_once)]
        return torch.cat(parts)

    @torch.inference_mode()
    def decode(self, codes_BN: Tensor, vq: Vq) -> Tensor:
        """uint8 images [B, H, W, C]; the padding is cut off. Rounding is that of LlamaGen's evaluation."""
        side = self.padded // self.vq.stride
        low = (self.padded - self.size) // 2
        parts = []
        for part in codes_BN.split(self.at_once):
            vectors = vq.quantize(part).view(len(part), side, side, -1).permute(0, 3, 1, 2)
            x = vq.decode(vectors)[:, :, low : low + self.size, low : low + self.size]
            parts.append((127.5 * x + 128.0).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
        return torch.cat(parts).contiguous()
