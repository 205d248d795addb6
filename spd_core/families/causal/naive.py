"""The public sampler around a causal transformer: `spd_core.decode.naive`.

The transformer has its KV cache, and all tokens below the hand-off are made in one batch, as in plain decoding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spd_core.decode.log import Decoded, Meter
from spd_core.decode.naive import NaiveSampler, decoded_naively
from spd_core.draws import Draws, Purpose
from spd_core.families.causal.model import Causal
from spd_core.families.causal.tokens import ContextReader, PathLaw, noise_above, previous_tokens
from spd_core.law import SamplerLaw
from spd_core.precision import at_precision


@torch.inference_mode()
def decode_causal_naive(target: Causal, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
    """Samples a batch of images by the direct loop; arguments as of `decode_causal_plain`."""
    target = at_precision(target, law.dtype)
    meter, path = Meter(labels_B.device), PathLaw(law, target.config.seq_len)
    batch, length, dims = len(labels_B), target.config.seq_len, target.config.token_dim
    reader, images = ContextReader(target, law, labels_B), torch.arange(batch, device=labels_B.device)
    states, read = torch.zeros(batch, length, dims, device=labels_B.device), []
    for position in range(length):
        at = torch.full_like(images, position)
        with meter.span("context"):
            read.append(reader.read(previous_tokens(states, images, at, 1), at)[:, :, 0])
        part = path.at(position)
        sampler = NaiveSampler(target.head, part.law)
        with meter.span("head"):
            drawn, z = noise_above(draws, images, at, part, dims), read[-1].flatten(0, 1)
            made = sampler(drawn.start, z, part.scale(at), drawn.step, part.first, drawn.offset)
        states[:, position] = made
        meter.add(target_context_calls=1, target_head_calls=part.above, target_head_rows=part.above * len(z))
    image, token = images.repeat_interleave(length), torch.arange(length, device=images.device).repeat(batch)
    contexts_GRZ, handed = torch.stack(read, dim=2).flatten(1, 2), states.flatten(0, 1)
    clean = torch.empty_like(handed)
    for part, rows in path.parts(token):
        below, sampler = part.handoff + 1, NaiveSampler(target.head, part.law)
        with meter.span("finish"):
            noise = draws.normals(Purpose.STEP, image[rows], token[rows], below * dims, round_R=1)
            noise, z = noise.view(-1, below, dims), contexts_GRZ[:, rows].flatten(0, 1)
            clean[rows] = sampler(handed[rows], z, part.scale(token[rows]), noise, part.handoff, 0)
        meter.add(finish_head_calls=below, finish_head_rows=below * len(z))
    return decoded_naively(clean.view(batch, length, dims), length, meter)
