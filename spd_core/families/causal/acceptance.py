"""Teacher-forced acceptance: the share of its drafts that a target would accept, given real tokens before each.

It is a quick figure of a pair, measured on many tokens at once. In decoding the tokens before a draft are generated,
not real, and later drafts of a block are tested only if the earlier ones were accepted. `spd bench` measures that.

Shape legend: n images, N tokens, D token dims, Z context dims, R rows (tokens of a batch), K steps above the hand-off.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spd_core.accept.lemma import acceptance_probability
from spd_core.decode.path import BoundHead, LawHead
from spd_core.diffusion import respaced_timesteps
from spd_core.draws import Draws, image_seed
from spd_core.families.causal.model import Causal
from spd_core.families.causal.recipe import handed_over
from spd_core.families.causal.tokens import ContextReader, PathLaw, noise_above, previous_tokens
from spd_core.families.causal.verification import draft_walk, verify
from spd_core.law import SamplerLaw
from spd_core.progress import told
from spd_core.train.acceptance import TeacherForced

#: Images whose paths are held in memory at once.
IMAGES = 8


@torch.inference_mode()
def teacher_forced(
    target: Causal, draft: Causal, law: SamplerLaw, stride: int, tokens_nND: Tensor, labels_n: Tensor, seed: int = 0
) -> TeacherForced:
    """Drafts every token of every image once, given the image's own tokens at the hand-off level.

    Args:
        target, draft: the pair.
        law: what is sampled.
        stride: steps for which the draft holds each prediction.
        tokens_nND: held-out images; two drafts measured on the same ones and with one seed share all their noise.
        labels_n: of the images.
        seed: of the noise.
    """
    level = respaced_timesteps(law.head_steps, law.start_level)[PathLaw(law, tokens_nND.shape[1]).handoff]
    states = handed_over(tokens_nND, level, np.random.default_rng(seed))
    draws = Draws(torch.tensor([image_seed(seed, str(image)) for image in range(len(tokens_nND))]))
    parts = [
        _of_images(target, draft, law, stride, states, labels_n, draws, image)
        for image in told(torch.arange(len(tokens_nND)).split(IMAGES), "batches")
    ]
    return TeacherForced(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _of_images(
    target: Causal,
    draft: Causal,
    law: SamplerLaw,
    stride: int,
    states_nND: Tensor,
    labels_n: Tensor,
    draws: Draws,
    image_B: Tensor,
) -> tuple[Tensor, Tensor]:
    """Acceptance and path KL [B] of some of the images."""
    length, dims = states_nND.shape[1:]
    path = PathLaw(law, length)
    first = torch.zeros_like(image_B)
    previous = previous_tokens(states_nND, image_B, first, length)
    token = torch.arange(length).repeat(len(image_B))

    def bound(model: Causal) -> BoundHead:
        z = ContextReader(model, law, labels_n[image_B]).read(previous, first)
        return LawHead(model.head, law).bind(z.flatten(0, 2), path.scale(token))

    noise = noise_above(draws, image_B.repeat_interleave(length), token, path, dims)
    trace = draft_walk(bound(draft), noise.start, path, noise, stride).trace
    verified = verify(bound(target), trace, path)
    accepted = acceptance_probability(verified.log_ratio)
    # The mean of the log ratio's noisy part is zero, so it is left out.
    path_kl = 0.5 * verified.shift.square().sum(dim=(-2, -1))
    return accepted.view(-1, length).mean(dim=1), path_kl.view(-1, length).mean(dim=1)
