"""The public sampler's loop around the transformer: what plain decoding is measured against (`spd_core.decode.naive`).

Every step runs the whole head on both branches, its time embedding and modulations included; the transformer has its
cache. Weights, law and random numbers are those of plain decoding, so the tokens are too, up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spd_core.decode.log import Decoded, Meter
from spd_core.decode.naive import decoded_naively
from spd_core.decode.path import LawHead
from spd_core.draws import Draws, Purpose
from spd_core.families.causal.tokens import Opening, PathLaw, noise_above, previous_tokens
from spd_core.families.sphere.flow import flow_path, step
from spd_core.families.sphere.head import guided
from spd_core.families.sphere.model import Sphere
from spd_core.families.sphere.tokens import SPHERE, SpherePath, SphereReader
from spd_core.law import SamplerLaw
from spd_core.precision import at_precision


@torch.inference_mode()
def decode_sphere_naive(target: Sphere, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
    """Samples a batch of images by the direct loop; arguments as of `decode_sphere_plain`."""
    target = at_precision(target, law.dtype)
    meter, path = Meter(labels_B.device), SpherePath(law, target.config.seq_len)
    batch, length, dims = len(labels_B), target.config.seq_len, target.config.token_dim
    reader, images = SphereReader(target, law, labels_B), torch.arange(batch, device=labels_B.device)
    SPHERE.open(Opening([reader], LawHead(target.head, law), range(batch), range(batch), draws, (), meter), path)
    states, clean = (torch.zeros(batch, length, dims, device=labels_B.device) for _ in range(2))
    for position in range(length):
        at, own = torch.full_like(images, position), path.at(position)
        with meter.span("context"):
            z = reader.read(previous_tokens(states, images, at, 1), at)[:, :, 0]
        walk = _Walk(target, own, z, own.scale(at))
        with meter.span("head"):
            drawn = noise_above(draws, images, at, own, dims)
            states[:, position] = walk(drawn.start, drawn.step, own.first)
        below = own.handoff + 1
        with meter.span("finish"):
            noise = draws.normals(Purpose.STEP, images, at, below * dims, round_R=1) if below else drawn.step[:, :0]
            clean[:, position] = walk(states[:, position], noise.view(batch, below, dims), own.handoff)
        meter.add(target_context_calls=1, target_head_calls=own.above, target_head_rows=own.above * len(z) * batch)
        meter.add(finish_head_calls=below, finish_head_rows=below * len(z) * batch)
    return decoded_naively(path.ended(clean), length, meter)


class _Walk:
    """A token's steps of a batch, from a state before some step on; the noise [R, K, D] is in the order of k."""

    def __init__(self, target: Sphere, path: PathLaw, z_GRZ: Tensor, scale: Tensor) -> None:
        self.head, self.z, self.scale, self.temperature = target.head, z_GRZ, scale, path.law.temperature
        self.flow = flow_path(path.law.head_steps - 1)

    def __call__(self, x: Tensor, noise_RKD: Tensor, first: int) -> Tensor:
        for place, drawn in enumerate(noise_RKD.flip(1).unbind(dim=1), self.flow.steps - 1 - first):
            x = step(self.flow, place, x, self._velocity(place, x), drawn * self.temperature)
        return x

    def _velocity(self, place: int, x: Tensor) -> Tensor:
        t = torch.full((len(x),), self.flow.t[place], device=x.device)
        found = [self.head(x, t, z) for z in self.z]
        return found[0] if len(found) == 1 else guided(found[0], found[1], self.scale)
