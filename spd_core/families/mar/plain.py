"""Plain decoding: the target alone (MAR's sampling loop, arXiv:2406.11838)."""

from __future__ import annotations

import torch
from torch import Tensor

from spd_core.decode.head_speculation import Lookahead
from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.draws import Draws
from spd_core.families.mar.iterations import OrderDraws, guidance_scale, left_after, mar_step, mask_lengths
from spd_core.families.mar.model import Mar
from spd_core.law import SamplerLaw
from spd_core.precision import at_precision


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
    target = at_precision(target, law.dtype)
    length = target.config.seq_len
    meter, ahead = Meter(labels_B.device), Lookahead.of(target.head, law, windows)
    dims = target.config.token_dim
    ordered = OrderDraws(draws, law, length, dims, speculates=bool(windows))
    tokens = torch.zeros(len(labels_B), length, dims, device=labels_B.device)
    lengths, masked, iterations = mask_lengths(length, law.num_iter), length, 0
    for step, (left, table) in enumerate(zip(left_after(lengths), lengths, strict=True)):
        if left == masked:
            continue
        scale, now = guidance_scale(law, length, table), law.at(step, law.num_iter)
        rows, paths = mar_step(target, now, "target", tokens, ordered, masked, left, scale, labels_B, meter, ahead)
        tokens[rows.image, rows.token] = paths.x0
        masked, iterations = left, iterations + 1
    rounds = torch.full((len(labels_B),), iterations)
    return Decoded(tokens, rounds, DraftRecords.concatenate([]), dict(meter.counts), meter.seconds())
