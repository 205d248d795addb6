"""Images without any model at a small constant cost, to measure everything around a decoder."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from spd_core.draws import Draws, Purpose

_PIXELS = 1 << 16  #: made at a time
_FALL = 1.6  #: of the texture's amplitude with frequency: its PNG is about as large as that of a photograph


def null_images(seeds_B: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 noise images [B, H, W, C] that follow from the image seeds alone.

    Args:
        seeds_B: int64 image seeds.
        shape: height, width, channels.
    """
    height, width, channels = shape
    draws, pixels = Draws(seeds_B), height * width * channels
    images = torch.arange(len(seeds_B), device=seeds_B.device)
    # Some images at a time: the generator's 64-bit words take much more memory than the pixels they become.
    some = max(1, _PIXELS // pixels)
    parts = [draws.uniforms(Purpose.START, part, torch.zeros_like(part), pixels) for part in images.split(some)]
    return (torch.cat(parts) * 256).to(torch.uint8).reshape(-1, *shape).cpu()


@lru_cache(maxsize=4)
def texture(shape: tuple[int, int, int]) -> Tensor:
    """One uint8 image [H, W, C] that costs an encoder what a photograph does: noise with a falling spectrum.

    It repeats at its edges, so every rotation of it is such an image too.
    """
    height, width, channels = shape
    generator = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    frequency[0, 0] = 1.0
    # Channels share most of what they show, as those of a photograph do.
    noise = generator.normal(size=(channels + 1, height, width))
    maps = np.fft.ifft2(np.fft.fft2(noise) / frequency**_FALL).real
    maps /= maps.std(axis=(1, 2), keepdims=True) + 1e-9
    image = np.moveaxis(maps[0] + 0.3 * maps[1:], 0, -1)
    return torch.from_numpy((128 + 50 * image).clip(0, 255).round().astype(np.uint8))


def textured_images(seeds_B: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 images [B, H, W, C], each the `texture` rotated as its seed says, which takes next to no time.

    Args:
        seeds_B: int64 image seeds.
        shape: height, width, channels.
    """
    base, (height, width, _) = texture(shape), shape
    shifts = [(seed % height, seed // height % width) for seed in seeds_B.tolist()]
    return torch.stack([torch.roll(base, shift, (0, 1)) for shift in shifts])
