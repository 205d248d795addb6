"""Contexts of a MAR model's head among real images, for training what follows its predictions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spd_core.families.mar.iterations import contexts, guidance_scale, mask_lengths
from spd_core.families.mar.model import Mar
from spd_core.law import SamplerLaw


def token_contexts(
    model: Mar, law: SamplerLaw, count: int, tokens: Tensor, labels: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Each image at a random iteration, drawn by the tokens that an iteration makes; rows are of masked tokens."""
    batch, length, _ = tokens.shape
    after = torch.tensor(mask_lengths(length, law.num_iter))
    before = torch.cat([torch.tensor([length]), after[:-1]])
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(length), (batch, 1)), axis=1))
    # The token at order[p] is made in the iteration that goes from more than p masked tokens to at most p.
    iteration = (before[None] > torch.from_numpy(rng.integers(0, length, (batch, 1)))).sum(dim=1) - 1
    masked, left = before[iteration], after[iteration]
    counts = length - masked
    # order[masked:] is visible; padded to the same number in each image and sorted, padding last.
    place = masked[:, None] + torch.arange(int(counts.max()))
    visible = order.gather(1, place.clamp(max=length - 1)).where(place < length, length).sort(dim=1).values
    visible = visible.where(visible < length, 0)
    z = contexts(model, law, tokens, visible, labels, counts)
    token = order.gather(1, torch.arange(count) % masked[:, None])
    image = torch.arange(batch)[:, None]
    rows = [of[image, token].flatten(0, 1) for of in (z.cond, z.null) if of is not None]
    scale = torch.tensor([guidance_scale(law, length, int(of)) for of in left])
    return torch.cat(rows), scale.repeat_interleave(count)[:, None]
