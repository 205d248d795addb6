"""The null method: noise images at a small constant cost, without any model, to measure everything around a decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from spd_core.draws import Draws, Purpose

_PIXELS = 1 << 16  #: made at a time


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
