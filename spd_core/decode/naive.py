"""The public MAR sampler as a direct loop: what plain decoding is measured against, so that it is no straw man.

A translation of ``DiffLoss.sample`` and ``GaussianDiffusion.p_sample_loop`` of the public code (arXiv:2406.11838; the
diffusion part is that of arXiv:2102.09672): every step copies its entries of the schedule from numpy to the device one
by one, runs the whole head including its modulations, and works under guidance on both halves of the stacked rows.
Weights, law and random numbers are those of plain decoding, so the tokens are too, up to rounding. The transformers are
called as plain decoding calls them, the causal one with its KV cache and all tokens below the hand-off in one batch:
only the sampler is naive.

Shape legend: B images, N tokens of an image, R rows (tokens being made), R' head rows (R, under guidance 2 R: with the
class, without), S head steps, D token dims, Z context dims.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.diffusion import Float64, diffusion
from spd_core.draws import Draws, Purpose
from spd_core.families.causal.model import Causal
from spd_core.families.causal.tokens import ContextReader, PathLaw, noise_above, previous_tokens
from spd_core.families.mar.iterations import contexts, guidance_scale, left_after, mask_lengths, rows_of
from spd_core.families.mar.model import Mar
from spd_core.law import SamplerLaw
from spd_core.models.head import DiffusionHead
from spd_core.precision import arithmetic, at_precision


def _extract(schedule: Float64, k_R: Tensor, like: Tensor) -> Tensor:
    """Entries ``k_R`` of a schedule in the shape of ``like`` (the public ``_extract_into_tensor``)."""
    entries = torch.from_numpy(np.ascontiguousarray(schedule)).to(k_R.device)[k_R].float()
    return entries[:, None] + torch.zeros_like(like)


class NaiveSampler:
    """The public diffusion sampler for a head at a law; a learned variance is MAR's, a fixed one the causal family's.

    Args:
        head: predicts eps and the variance, or with a fixed variance the velocity.
        law: head steps, start level, guidance, temperature.
    """

    def __init__(self, head: DiffusionHead, law: SamplerLaw) -> None:
        self.head = head
        self.law = law
        self.process = diffusion(law.head_steps, law.start_level)

    def __call__(
        self, y_RD: Tensor, z: Tensor, scale: float | Tensor, noise_RKD: Tensor, first: int, last: int
    ) -> Tensor:
        """States [R, D] after step ``last`` of paths at ``y_RD`` before step ``first``.

        Args:
            y_RD: states.
            z: contexts [R', Z].
            scale: guidance weight, one number or one per row [R, 1].
            noise_RKD: standard normals; entry k - last belongs to step k.
            first, last: respaced steps, descending.
        """
        copies = len(z) // len(y_RD)
        y = torch.cat([y_RD] * copies)
        for step in range(first, last - 1, -1):
            k = torch.tensor([step] * len(y), device=y.device)
            noise = torch.cat([noise_RKD[:, step - last]] * copies)
            y = self._step(y, k, z, scale, noise)
        return y[: len(y_RD)]

    def _step(self, y: Tensor, k: Tensor, z: Tensor, scale: float | Tensor, noise: Tensor) -> Tensor:
        p, dims = self.process, y.shape[1]
        out = self._head(y, torch.tensor(p.timesteps, device=k.device)[k], z, scale)
        if out.shape[1] == 2 * dims:
            eps, v = out.split(dims, dim=1)
            small, large = _extract(p.posterior_log_variance_clipped, k, y), _extract(p.log_betas, k, y)
            share = (v + 1) / 2
            log_variance = share * large + (1 - share) * small
            x0 = _extract(p.sqrt_recip_alphas_cumprod, k, y) * y - _extract(p.sqrt_recipm1_alphas_cumprod, k, y) * eps
        else:
            log_variance = _extract(p.posterior_log_variance_clipped, k, y)
            signal, sigma = np.sqrt(p.alphas_cumprod), np.sqrt(1 - p.alphas_cumprod)
            x0 = _extract(signal, k, y) * y - _extract(sigma, k, y) * out
        mean = _extract(p.posterior_mean_coef1, k, y) * x0 + _extract(p.posterior_mean_coef2, k, y) * y
        noisy = (k != 0).float()[:, None]
        return mean + noisy * torch.exp(0.5 * log_variance) * noise * self.law.temperature

    def _head(self, y: Tensor, t: Tensor, z: Tensor, scale: float | Tensor) -> Tensor:
        """The head's output for all rows, under guidance with the guided prediction in both halves."""
        if self.law.cfg == 1.0:
            return self.head(y, t, z)
        dims = y.shape[1]
        out = self.head(torch.cat([y[: len(y) // 2]] * 2), t, z)
        cond, null = out[:, :dims].chunk(2)
        guided = null + scale * (cond - null)
        return torch.cat([torch.cat([guided, guided]), out[:, dims:]], dim=1)


@torch.inference_mode()
def decode_naive(target: Mar | Causal, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
    """Samples a batch of images from the target at ``law`` by the direct loop; its time is what matters.

    Args:
        target: the model.
        law: what is sampled.
        labels_B: int64 class labels; below 0: no class.
        draws: the images' random numbers.
    """
    with arithmetic(law.dtype):
        if isinstance(target, Mar):
            return _decode_mar(at_precision(target, law.dtype), law, labels_B, draws)
        return _decode_causal(at_precision(target, law.dtype), law, labels_B, draws)


def _decode_mar(target: Mar, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
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
    return _decoded(tokens, iterations, meter)


def _decode_causal(target: Causal, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
    meter, path = Meter(labels_B.device), PathLaw(law, target.config.seq_len)
    batch, length, dims = len(labels_B), target.config.seq_len, target.config.token_dim
    reader, images = ContextReader(target, law, labels_B), torch.arange(batch, device=labels_B.device)
    states, read = torch.zeros(batch, length, dims, device=labels_B.device), []
    for position in range(length):
        at = torch.full_like(images, position)
        with meter.span("context"):
            read.append(reader.read(previous_tokens(states, images, at, 1), at)[:, :, 0])
        own = path.at(position)
        sampler = NaiveSampler(target.head, own.law)
        with meter.span("head"):
            drawn, z = noise_above(draws, images, at, own, dims), read[-1].flatten(0, 1)
            made = sampler(drawn.start, z, own.scale(at), drawn.step, own.first, drawn.offset)
        states[:, position] = made
        meter.add(target_context_calls=1, target_head_calls=own.above, target_head_rows=own.above * len(z))
    image, token = images.repeat_interleave(length), torch.arange(length, device=images.device).repeat(batch)
    contexts_GRZ, handed = torch.stack(read, dim=2).flatten(1, 2), states.flatten(0, 1)
    clean = torch.empty_like(handed)
    for own, rows in path.parts(token):
        below, sampler = own.handoff + 1, NaiveSampler(target.head, own.law)
        with meter.span("finish"):
            noise = draws.normals(Purpose.STEP, image[rows], token[rows], below * dims, round_R=1)
            noise, z = noise.view(-1, below, dims), contexts_GRZ[:, rows].flatten(0, 1)
            clean[rows] = sampler(handed[rows], z, own.scale(token[rows]), noise, own.handoff, 0)
        meter.add(finish_head_calls=below, finish_head_rows=below * len(z))
    return _decoded(clean.view(batch, length, dims), length, meter)


def _decoded(tokens: Tensor, rounds: int, meter: Meter) -> Decoded:
    passes, none = torch.full((len(tokens),), rounds), DraftRecords.concatenate([])
    return Decoded(tokens, passes, none, dict(meter.counts), meter.seconds())
