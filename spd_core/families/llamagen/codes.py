"""Plain decoding of models of codes, and the reader that it shares with speculative decoding.

Shape legend: B images, A images in slots, N codes of an image, M positions of one pass, G rows per image (2 under
guidance: with the class, without), T nodes of a draft tree, V codes of the codebook, d model dims.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spd_core.accept.codes import pick, probabilities
from spd_core.capture import Captured
from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.decode.reader import CachedReader
from spd_core.decode.workspace import workspace
from spd_core.draws import Draws, Purpose
from spd_core.families.llamagen.model import CodeReader, EagleDraft, LlamaGen
from spd_core.law import SamplerLaw
from spd_core.models.kv import reach_of
from spd_core.models.tree import Tree
from spd_core.precision import at_precision


def guidance(law: SamplerLaw, position: Tensor, length: int) -> Tensor:
    """Guidance weight of each position; linear: grows with the share of the codes made."""
    share = (position + 1).float() / length if law.cfg_schedule == "linear" else torch.ones_like(position).float()
    scale = 1.0 + (law.cfg - 1.0) * share
    if law.cfg_interval >= 0:
        scale = torch.where(position <= law.cfg_interval + 1, scale, 1.0)
    return scale


class LawReader(CachedReader):
    """A model of codes at a law, with the cache of a batch.

    Args:
        model: a `LlamaGen`, or an `EagleDraft` of ``head``.
        head: gives logits.
        law: what is sampled.
        labels_A: class labels; below 0: no class.
        nodes: most positions of one pass.
    """

    def __init__(self, model: CodeReader, head: LlamaGen, law: SamplerLaw, labels_A: Tensor, nodes: int) -> None:
        self.likeliest = torch.zeros((), device=labels_A.device)  #: the largest weight in `draw`, NaN if one was NaN
        super().__init__(law, labels_A, lambda rows, dtype: model.cache(rows, nodes, dtype))
        self.model, self.head, self.law = model, head, law
        if self.low_precision:
            self.model = at_precision(model, law.dtype)
            self.head = self.model if isinstance(self.model, LlamaGen) else at_precision(head, law.dtype)
        self.context = Captured(self._read, "codes.context")
        self.head_of_one = Captured(self._pick, "codes.head")

    def start(self, labels_A: Tensor) -> None:
        super().start(labels_A)
        self.likeliest.zero_()

    def draw(self, weights_AV: Tensor, uniform_A: Tensor) -> Tensor:
        """`pick` for codes that an image is made of; `likeliest` tells afterwards whether all weights were numbers."""
        torch.maximum(self.likeliest, weights_AV.amax(), out=self.likeliest)
        return pick(weights_AV, uniform_A)

    def read(
        self,
        previous_AM: Tensor,
        first_A: Tensor,
        tree: Tree | None = None,
        nodes: Sequence[int] | None = None,
        features_GAMd: Tensor | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """Features [G, A, M, d] of the positions; arguments as for `LlamaGen` and, with features, `EagleDraft`."""
        previous, first = (self.of_rows(of) for of in (previous_AM, first_A))
        with torch.autocast(previous.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            if isinstance(self.model, EagleDraft):
                if features_GAMd is None:
                    raise ValueError("features: got none, allowed: those of the positions before")
                codes, features = self.head.tok_embeddings(previous), features_GAMd.transpose(0, 1).flatten(0, 1)
                made = self.model(codes, features, first, self.cache, tree, nodes, reach)
            else:
                made = self.model(previous, self.labels.flatten(), first, self.cache, tree, nodes, reach)
        return self.of_copies(made.float())

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

    def settle(self, made_A: Tensor, tree: Tree, path_AM: Tensor) -> None:
        """Moves the cache's entries of the accepted nodes ``path_AM`` to their positions; node 0 lies at ``made_A``."""
        if tree.is_chain:
            return  # they are there already
        source = made_A[:, None] + path_AM
        goal = made_A[:, None] + torch.arange(path_AM.shape[1], device=made_A.device)
        self.cache.move(self.of_rows(source), self.of_rows(goal))

    def _read(self, previous_AM: Tensor, first_A: Tensor, reach: int) -> tuple[Tensor, ...]:
        return (self.read(previous_AM, first_A, reach=reach),)

    def _pick(self, features_GA1d: Tensor, position_A: Tensor, uniform_A: Tensor) -> tuple[Tensor, ...]:
        return (self.draw(self.distribution(features_GA1d, position_A[:, None])[:, 0], uniform_A),)


def target_uniforms(draws: Draws, image_R: Tensor, length: int) -> Tensor:
    """[R, N] uniforms of codes that are sampled from the target: all of them in plain decoding."""
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
    key = ("codes, plain", at_precision(target, law.dtype), law, batch, labels_B.device)
    reader = workspace(key, labels_B.device, lambda: LawReader(target, target, law, labels_B, 1))
    reader.start(labels_B)
    uniforms = target_uniforms(draws, torch.arange(batch, device=labels_B.device), length)
    codes = torch.zeros(batch, length, dtype=torch.int64, device=labels_B.device)
    for position, of_all in enumerate(torch.arange(length, device=labels_B.device)[:, None].expand(-1, batch)):
        with meter.span("context"):
            (features,) = reader.context(
                codes[:, position - 1, None], of_all, reach=reach_of(position + 1, codes.device)
            )
        with meter.span("head"):
            (code,) = reader.head_of_one(features, of_all, uniforms[:, position])
            codes[:, position] = code
    meter.add(target_context_calls=length, target_context_rows=length * batch * reader.copies)
    rounds = torch.full((batch,), length)
    none, likeliest = DraftRecords.concatenate([]), reader.likeliest.clone()
    return Decoded(codes, rounds, none, dict(meter.counts), meter.seconds(), likeliest)
