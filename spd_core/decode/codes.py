"""What every decoder of a model of codes is made of, and plain decoding.

Shape legend: B images, A images in slots, N codes of an image, M positions of one pass, G rows per image (2 under
guidance: with the class, without), T nodes of a draft tree, V codes of the codebook, d model dims.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spd_core.accept_codes import pick, probabilities
from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.draws import Draws, Purpose
from spd_core.law import SamplerLaw
from spd_core.models.llamagen import CodeReader, EagleDraft, LlamaGen, Tree
from spd_core.precision import at_precision


def guidance(law: SamplerLaw, position: Tensor, length: int) -> Tensor:
    """Guidance weight of each position; linear: grows with the share of the codes made."""
    share = (position + 1).float() / length if law.cfg_schedule == "linear" else torch.ones_like(position).float()
    scale = 1.0 + (law.cfg - 1.0) * share
    if law.cfg_interval >= 0:
        scale = torch.where(position <= law.cfg_interval + 1, scale, 1.0)
    return scale


class LawReader:
    """A model of codes at a law, with the cache of a batch.

    Args:
        model: a `LlamaGen`, or an `EagleDraft` of ``head``.
        head: gives logits.
        law: what is sampled.
        labels_B: class labels; below 0: no class.
        nodes: most positions of one pass.
    """

    def __init__(self, model: CodeReader, head: LlamaGen, law: SamplerLaw, labels_B: Tensor, nodes: int) -> None:
        self.low_precision = law.dtype == "bfloat16"
        self.model, self.head, self.law = model, head, law
        if self.low_precision:
            self.model = at_precision(model, law.dtype)
            self.head = self.model if isinstance(self.model, LlamaGen) else at_precision(head, law.dtype)
        self.copies = 1 + (law.cfg != 1.0)
        self.labels = torch.cat([labels_B, torch.full_like(labels_B, -1)]) if self.copies == 2 else labels_B
        self.cache = model.cache(len(self.labels), nodes, torch.bfloat16 if self.low_precision else torch.float32)

    def read(
        self,
        previous_AM: Tensor,
        first_A: Tensor,
        tree: Tree | None = None,
        nodes: Sequence[int] | None = None,
        features_GAMd: Tensor | None = None,
    ) -> Tensor:
        """Features [G, A, M, d] of the positions; arguments as for `LlamaGen` and, with features, `EagleDraft`."""
        copies = self.copies
        previous, first = previous_AM.repeat(copies, 1), first_A.repeat(copies)
        with torch.autocast(previous.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            if isinstance(self.model, EagleDraft):
                if features_GAMd is None:
                    raise ValueError("features: got none, allowed: those of the positions before")
                codes = self.head.tok_embeddings(previous)
                made = self.model(codes, features_GAMd.flatten(0, 1), first, self.cache, tree, nodes)
            else:
                made = self.model(previous, self.labels, first, self.cache, tree, nodes)
        return made.float().unflatten(0, (copies, -1))

    def distribution(self, features_GAMd: Tensor, position_AM: Tensor) -> Tensor:
        """Of the code at each position, [A, M, V]."""
        with torch.autocast(features_GAMd.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            logits = self.head.logits(features_GAMd)
        if self.copies == 1:
            return probabilities(logits[0], self.law)
        scale = guidance(self.law, position_AM, self.model.config.block_size)[..., None]
        # Where guidance is off the logits are those with the class, not a rounded sum.
        guided = torch.where(scale == 1.0, logits[0], logits[1] + scale * (logits[0] - logits[1]))
        return probabilities(guided, self.law)

    def restart(self, rows: Tensor, labels_R: Tensor) -> None:
        """Gives ``rows`` to other images, which begin at position 0; what the cache still holds is never read."""
        self.labels = self.labels.index_copy(0, rows, labels_R)

    def keep(self, rows: Tensor) -> None:
        """Drops the images that are not in ``rows``."""
        rows = self._of_copies(rows, len(self.labels) // self.copies)
        self.labels = self.labels[rows]
        self.cache.keep(rows)

    def settle(self, made_A: Tensor, tree: Tree, path_AM: Tensor) -> None:
        """Brings the kept nodes ``path_AM`` of a tree whose node 0 lies at ``made_A`` to their positions."""
        if tree.is_chain:
            return  # they are there
        source = made_A[:, None] + path_AM
        goal = made_A[:, None] + torch.arange(path_AM.shape[1], device=made_A.device)
        self.cache.move(source.repeat(self.copies, 1), goal.repeat(self.copies, 1))

    def _of_copies(self, rows: Tensor, count: int) -> Tensor:
        return torch.cat([rows + count * copy for copy in range(self.copies)])


def own_uniforms(draws: Draws, image_R: Tensor, length: int) -> Tensor:
    """[R, N] uniforms of the codes that the target draws itself."""
    token = torch.arange(length, device=image_R.device).repeat(len(image_R))
    return draws.fine_uniforms(Purpose.CODE, image_R.repeat_interleave(length), token).view(-1, length)


def decode_codes_plain(target: LlamaGen, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
    """Samples a batch of images from a target at ``law``, code after code.

    Args:
        target: the model.
        law: what is sampled; of the fields that name a model family only those of codes are used.
        labels_B: int64 class labels; below 0: no class.
        draws: the images' random numbers.
    """
    batch, length, meter = len(labels_B), target.config.block_size, Meter(labels_B.device)
    reader = LawReader(target, target, law, labels_B, 1)
    image = torch.arange(batch, device=labels_B.device)
    uniforms = own_uniforms(draws, image, length)
    codes = torch.zeros(batch, length, dtype=torch.int64, device=labels_B.device)
    for position in torch.arange(length, device=labels_B.device):
        at = position.expand(batch)
        with meter.span("context"):
            features = reader.read(codes[:, position - 1, None], at)
        with meter.span("head"):
            codes[:, position] = pick(reader.distribution(features, at[:, None])[:, 0], uniforms[:, position])
    meter.add(target_context_calls=length, target_context_rows=length * batch * reader.copies)
    rounds = torch.full((batch,), length)
    return Decoded(codes, rounds, DraftRecords.concatenate([]), dict(meter.counts), meter.seconds())
