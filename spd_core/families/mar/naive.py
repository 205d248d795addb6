"""The public sampler around MAR's transformer: `spd_core.decode.naive`."""

from __future__ import annotations

import torch
from torch import Tensor

from spd_core.decode.log import Decoded, Meter
from spd_core.decode.naive import NaiveSampler, decoded_naively
from spd_core.draws import Draws, Purpose
from spd_core.families.mar.iterations import contexts, guidance_scale, left_after, mask_lengths, rows_of
from spd_core.families.mar.model import Mar
from spd_core.law import SamplerLaw
from spd_core.precision import at_precision


@torch.inference_mode()
def decode_mar_naive(target: Mar, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
    """Samples a batch of images by the direct loop; arguments as of `spd_core.families.mar.plain.decode_plain`."""
    target = at_precision(target, law.dtype)
    meter, length, dims = Meter(labels_B.device), target.config.seq_len, target.config.token_dim
    order = draws.orders(length)
    tokens = torch.zeros(len(labels_B), length, dims, device=labels_B.device)
    lengths, masked, iterations = mask_lengths(length, law.num_iter), length, 0
    for iteration, (left, table) in enumerate(zip(left_after(lengths), lengths, strict=True)):
        if left == masked:
            continue
        sampler = NaiveSampler(target.head, law.at(iteration, law.num_iter))
        rows, steps = rows_of(order, left, masked), sampler.law.head_steps
        with meter.span("context"):
            visible = order[:, masked:].sort(dim=1).values
            z = contexts(target, law, tokens, visible, labels_B).stacked(rows)
        with meter.span("head"):
            start = draws.normals(Purpose.START, rows.image, rows.token, dims)
            noise = draws.normals(Purpose.STEP, rows.image, rows.token, steps * dims).view(-1, steps, dims)
            made = sampler(start, z, guidance_scale(law, length, table), noise, steps - 1, 0)
        tokens[rows.image, rows.token] = made
        meter.add(target_context_calls=1, target_head_calls=steps, target_head_rows=steps * len(z))
        masked, iterations = left, iterations + 1
    return decoded_naively(tokens, iterations, meter)
