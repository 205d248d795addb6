"""How SphereAR's tokens are made by the decoders of causal models: path, hand-off, guidance, the null branch's token.

At the public law the context network reads clean tokens on the sphere. A law whose ``handoff_level`` is above 0 hands a
token over earlier, at 40 just before the noiseless last step: then every step that other tokens wait for is a Gaussian
of full support, and drafts can be tested. Contexts read normalise(state); the steps below are made at the end.

Under guidance that grows from 1 the public sampler treats the two branches of token 0 as unrelated: the null branch
samples a first token of its own, and reads it in the place of the image's for as long as the image is made. It is a
hidden part of the law: drawn once for an image from the target's null law, and read by every model alike. It has the
number N, one past the image's last token, so that its random numbers are its own.

Shape legend: A slots, O images that get a slot, G context rows per image (2 under guidance), M positions of one pass,
N tokens of an image, D token dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spd_core.decode.log import Decoded
from spd_core.decode.slots import Change, moved
from spd_core.draws import Draws
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import (
    ContextReader,
    Making,
    Opening,
    PathLaw,
    decode_causal_plain,
    noise_above,
    path_above,
    window_draws,
)
from spd_core.families.sphere.blocks import on_sphere
from spd_core.families.sphere.flow import LAST_LEVEL, handoff_step, noise_left
from spd_core.families.sphere.model import Sphere
from spd_core.law import Method, SamplerLaw, Speculative
from spd_core.models.sequence import SequenceModel
from spd_core.precision import at_precision


def null_first(law: SamplerLaw) -> bool:
    """Whether the null branch has a first token of its own: its guidance weight is 1 at the image's."""
    return law.cfg != 1.0 and law.cfg_schedule == "linear"


@dataclass(frozen=True)
class SpherePath(PathLaw):
    """A token's flow path."""

    @property
    def handoff(self) -> int:
        return handoff_step(self.law.head_steps, self.law.handoff_level)

    def scale(self, position: Tensor) -> Tensor:
        """Guidance weight, one more dim than ``position``; linear: from 1 at token 0, never reaching ``cfg``."""
        share = position.float() / self.tokens
        share = share if self.law.cfg_schedule == "linear" else torch.ones_like(share)
        return (1.0 + (self.law.cfg - 1.0) * share)[..., None]

    def handed_over(self, tokens: Tensor, noise: Tensor) -> Tensor:
        left = noise_left(self.law.head_steps, self.handoff)
        return (1.0 - left) * tokens + left * noise

    def ended(self, states: Tensor) -> Tensor:
        return on_sphere(states)


class SphereReader(ContextReader):
    """The transformer at a law; its tokens may be states at the hand-off, which it brings to the sphere."""

    def __init__(self, model: SequenceModel, law: SamplerLaw, labels_A: Tensor) -> None:
        if not isinstance(model, Sphere):
            raise TypeError(f"model: got {type(model).__name__}, allowed: Sphere")
        self.sphere = at_precision(model, law.dtype)
        self.prefix = model.config.prefix
        self.own_first = null_first(law)
        self._null_AD = torch.zeros(len(labels_A), model.config.token_dim, device=labels_A.device)
        super().__init__(model, law, labels_A)

    def start(self, labels_A: Tensor) -> None:
        super().start(labels_A)
        self.null = self._null_AD  # [A, D] the null branch's first token, at the hand-off
        self._begin(torch.arange(len(labels_A), device=labels_A.device))

    def change(self, change: Change, labels: Tensor) -> None:
        super().change(change, labels)
        self.null = moved(self.null, change)

    def restart(self, slots: Tensor, labels: Tensor) -> None:
        super().restart(slots, labels)
        if len(slots):
            self._begin(slots)

    def _begin(self, slots: Tensor) -> None:
        """Writes the class positions of images that get these slots."""
        with torch.autocast(slots.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            self.sphere.begin(self.cache, self._rows(slots), self.labels[slots].flatten())

    def _read(self, previous_AMD: Tensor, first_A: Tensor, reach: int) -> tuple[Tensor, ...]:
        previous = [previous_AMD] * self.copies
        if self.own_first:
            place = first_A[:, None] + torch.arange(previous_AMD.shape[1], device=first_A.device)
            previous[1] = torch.where((place == 1)[..., None], self.null[:, None], previous_AMD)
        tokens, first = on_sphere(torch.stack(previous, dim=1).flatten(0, 1)), self.of_rows(first_A)
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            z = self.sphere(tokens, self.labels.flatten(), first, self.cache, reach).float()
        return (self.of_copies(z),)


class SphereMaking(Making):
    """Flow paths; under linear guidance an image begins with the null branch's own first token."""

    path = SpherePath
    reader = SphereReader

    def open(self, opening: Opening, path: PathLaw) -> None:
        reader, head = opening.readers[0], opening.head
        if not null_first(path.law):
            return
        device, own = reader.labels.device, path.at(0)
        slots, images = (torch.tensor(list(of), dtype=torch.int64).to(device) for of in (opening.slots, opening.images))
        token, dims = torch.full_like(images, path.tokens), head.head.in_channels
        with opening.meter.span("context"):
            # Other images' slots read a position again that holds what they will be given.
            first = torch.zeros_like(reader.labels[:, 0])
            z = reader.read(torch.zeros(len(first), 1, dims, device=device), first, 0)[1, slots, 0]
        with opening.meter.span("head"):
            noise = noise_above(opening.draws, images, token, own, dims)
            draws = window_draws(opening.draws, images, token, own.law)
            # Both rows of the guided head are the null branch's, so that its weight means nothing.
            bound = head.at(own.law).bind(z.repeat(2, 1), torch.ones(len(images), 1, device=device))
            made = path_above(bound, own, noise, draws, opening.windows)
        for each in opening.readers:
            if isinstance(each, SphereReader):
                each.null[slots] = made.end
        opening.meter.add(
            target_context_calls=1,
            target_context_rows=len(first) * reader.copies,
            target_head_calls=made.calls,
            target_head_rows=made.rows * reader.copies,
        )


SPHERE = SphereMaking()


def decode_sphere_plain(
    target: Sphere, law: SamplerLaw, labels_B: Tensor, draws: Draws, windows: tuple[int, ...] = ()
) -> Decoded:
    """Samples a batch of images; arguments as of `decode_causal_plain`."""
    return decode_causal_plain(target, law, labels_B, draws, windows, SPHERE)


def decode_sphere_speculative(
    target: Sphere,
    draft: Sphere,
    law: SamplerLaw,
    method: Speculative,
    labels_B: Tensor,
    draws: Draws,
    slots: int | None = None,
) -> Decoded:
    """Samples images by speculation across tokens; arguments as of `decode_speculative`.

    Raises:
        ValueError: at a law without a hand-off, where two models' tokens never coincide.
    """
    if complaint := refused_without_handoff(law, method):
        raise ValueError(complaint)
    return decode_speculative(target, draft, law, method, labels_B, draws, slots, SPHERE)


def refused_without_handoff(law: SamplerLaw, method: Method) -> str | None:
    """The complaint about speculation across tokens at a law that hands over clean tokens.

    Their last step adds no noise: a draft's token never is one of the target's.
    """
    if isinstance(method, Speculative) and SpherePath(law, 1).handoff < 0:
        return (
            f"method: got 'speculative' with law.handoff_level {law.handoff_level}, allowed: plain, or a law that hands"
            f" tokens over with noise (law.handoff_level {LAST_LEVEL} is before the last step)"
        )
    return None
