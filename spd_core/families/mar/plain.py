"""Plain decoding: the target alone (MAR's sampling loop, arXiv:2406.11838)."""

from __future__ import annotations

import torch
from torch import Tensor

from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.draws import Draws
from spd_core.families.mar.iterations import OrderDraws, Sampler, mar_step, schedule
from spd_core.families.mar.model import Mar
from spd_core.law import SamplerLaw


def decode_plain(
    target: Mar, law: SamplerLaw, labels_B: Tensor, draws: Draws, windows: tuple[int, ...] = ()
) -> Decoded:
    """Samples a batch of images from the target at ``law``.

    Args:
        target: the model.
        law: what is sampled; ``num_iter`` above the number of tokens only adds empty iterations, which are skipped.
        labels_B: int64 class labels; below 0: no class.
        draws: the images' random numbers.
        windows: of head self-speculation; none: one head call a step.
    """
    length, dims = target.config.seq_len, target.config.token_dim
    meter = Meter(labels_B.device)
    sampler = Sampler.of(target, law, "target", meter, windows)
    ordered = OrderDraws(draws, law, length, dims, speculates=bool(windows))
    tokens = torch.zeros(len(labels_B), length, dims, device=labels_B.device)
    iterations = [iteration for iteration in schedule(law, length) if iteration.left < iteration.masked]
    for iteration in iterations:
        rows, paths = mar_step(sampler, iteration, tokens, ordered, labels_B)
        tokens[rows.image, rows.token] = paths.x0
    rounds = torch.full((len(labels_B),), len(iterations))
    return Decoded(tokens, rounds, DraftRecords.concatenate([]), dict(meter.counts), meter.seconds())
