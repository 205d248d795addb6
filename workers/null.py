"""The null method: noise images at a small constant cost, without any model, to measure everything around a decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from spd_core.draws import Draws, Purpose


def null_images(seeds_B: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 noise images [B, H, W, C] that follow from the image seeds alone.

    Args:
        seeds_B: int64 image seeds.
        shape: height, width, channels.
    """
    height, width, channels = shape
    draws, pixels = Draws(seeds_B), height * width * channels
    zero = torch.zeros(1, dtype=torch.int64, device=seeds_B.device)
    # One image at a time: the generator's 64-bit words take much more memory than the image they become.
    rows = [draws.uniforms(Purpose.START, zero + image, zero, pixels) for image in range(len(seeds_B))]
    return (torch.cat(rows) * 256).to(torch.uint8).reshape(-1, *shape).cpu()
