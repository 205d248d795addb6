"""What the pretend device is asked by every decoder at true depth, by the worker's engine, and by the codecs.

A decoder is counted twice, on images of few tokens and of more; the difference, by iteration, token or round, is what
its loop asks. Widths are small, for counts do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spd_core.decode.log import Decoded
from spd_core.draws import Draws
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import decode_causal_plain
from spd_core.families.llamagen.codes import decode_codes_plain
from spd_core.families.llamagen.speculation import decode_codes_speculative
from spd_core.families.mar.cspd import decode_cspd
from spd_core.families.mar.plain import decode_plain
from spd_core.families.sphere.tokens import decode_sphere_plain, decode_sphere_speculative
from spd_core.law import Acceptance, Cspd, SamplerLaw, Speculative
from tests.gpu import models
from tests.gpu.ledger import Ledger
from tests.gpu.pretend import CUDA, RECORDER

#: Head steps that are counted: a path is one captured function, so more steps launch nothing more. 100 where they do.
STEPS = 10
#: As the public samplers run: guidance, bfloat16.
LAW = SamplerLaw(head_steps=STEPS, cfg=3.0, dtype="bfloat16")
CODE_LAW = SamplerLaw(cfg=1.75, cfg_schedule="constant", dtype="bfloat16")
CAUSAL_LAW = SamplerLaw(head_steps=STEPS, handoff_level=91, temperature=0.9)
SPHERE_LAW = SamplerLaw(head_steps=STEPS, cfg=4.6, cfg_schedule="linear", dtype="bfloat16")


#: From tokens per image side to what decodes such images; the models are made by then.
Decoding = Callable[[int], Callable[[], Decoded]]


@dataclass(frozen=True)
class Counts:
    """What one unit of a subject's work asks, and where."""

    unit: str
    ledger: Ledger
    units: int

    @property
    def launches(self) -> float:
        """Outside captured regions, a unit."""
        return self.ledger.launched / self.units

    @property
    def syncs(self) -> float:
        """A unit."""
        return self.ledger.synced / self.units


@dataclass(frozen=True)
class Subject:
    """Something whose loop is counted."""

    unit: str  #: what the loop makes, one after another
    grids: tuple[int, int]  #: tokens per image side of the two sizes that are compared
    at: Decoding

    def count(self) -> Counts:
        counted = []
        for grid in self.grids:
            decode = self.at(grid)
            decode()  # constants and captured regions are made
            with RECORDER.recording() as ledger:
                decoded = decode()
            counted.append((ledger, int(decoded.rounds.max())))
        (less, few), (more, many) = counted
        return Counts(self.unit, more - less, many - few)


def _images(count: int) -> tuple[Tensor, Draws]:
    labels = torch.arange(count, device=CUDA)
    return labels, Draws(torch.arange(count, device=CUDA) + 5)


def _iterations(grid: int, per_iteration: int) -> SamplerLaw:
    """A law of so many tokens an iteration on average; 64 iterations of the public 256 tokens are 4."""
    return LAW.model_copy(update={"num_iter": grid * grid // per_iteration})


def _mar(name: str, windows: tuple[int, ...] = (), batch: int = 1, steps: int = STEPS) -> Decoding:
    def at(grid: int) -> Callable[[], Decoded]:
        model = models.mar(models.mar_config(name, narrow=True, grid=grid), CUDA)
        own = _iterations(grid, 8).model_copy(update={"head_steps": steps})
        return lambda: decode_plain(model, own, *_images(batch), windows)

    return at


def _cspd(method: Cspd, names: tuple[str, str], per_iteration: int, batch: int = 1) -> Decoding:
    """Target and draft by ``names``; two of one name are the same model, so that drafts are accepted."""

    def at(grid: int) -> Callable[[], Decoded]:
        target, draft = (models.mar(models.mar_config(name, narrow=True, grid=grid), CUDA) for name in names)
        law = _iterations(grid, per_iteration)
        return lambda: decode_cspd(target, draft, law, method, *_images(batch))

    return at


def _causal(windows: tuple[int, ...] = (), batch: int = 1) -> Decoding:
    def at(grid: int) -> Callable[[], Decoded]:
        model = models.causal(models.causal_config(grid=grid), CUDA)
        law = CAUSAL_LAW.model_copy(update={"head_steps": 100 if windows else STEPS})
        return lambda: decode_causal_plain(model, law, *_images(batch), windows)

    return at


def _paths(method: Speculative, batch: int = 2) -> Decoding:
    """Speculation over paths; the draft is the target, so that some drafts are accepted and some rejected."""

    def at(grid: int) -> Callable[[], Decoded]:
        config = models.causal_config(grid=grid)
        target, draft = models.causal(config, CUDA), models.causal(config, CUDA)
        return lambda: decode_speculative(target, draft, CAUSAL_LAW, method, *_images(batch))

    return at


def _sphere(windows: tuple[int, ...] = ()) -> Decoding:
    def at(grid: int) -> Callable[[], Decoded]:
        model = models.sphere(models.sphere_config("B", grid=grid), CUDA)
        law = SPHERE_LAW.model_copy(update={"head_steps": 100 if windows else STEPS})
        return lambda: decode_sphere_plain(model, law, *_images(1), windows)

    return at


def _sphere_paths(method: Speculative) -> Decoding:
    """Speculation across SphereAR's tokens at a law with a hand-off; the draft is the target."""

    def at(grid: int) -> Callable[[], Decoded]:
        config = models.sphere_config("B", grid=grid)
        target, draft = models.sphere(config, CUDA), models.sphere(config, CUDA)
        law = SPHERE_LAW.model_copy(update={"handoff_level": 40})
        return lambda: decode_sphere_speculative(target, draft, law, method, *_images(2))

    return at


def _codes(batch: int = 1) -> Decoding:
    def at(grid: int) -> Callable[[], Decoded]:
        model = models.codes(models.code_config("XL", narrow=True, grid=grid), CUDA)
        return lambda: decode_codes_plain(model, CODE_LAW, *_images(batch))

    return at


def _speculated_codes(method: Speculative, batch: int = 2) -> Decoding:
    def at(grid: int) -> Callable[[], Decoded]:
        config = models.code_config("XL", narrow=True, grid=grid)
        target, vectors = models.codes(config, CUDA), torch.eye(config.vocab_size, device=CUDA)
        if method.drafter == "eagle":
            draft = models.eagle(config, CUDA)
        else:
            draft = models.codes(models.code_config("B", narrow=True, grid=grid), CUDA)
        return lambda: decode_codes_speculative(target, draft, vectors, CODE_LAW, method, *_images(batch))

    return at


def _annealed(**knobs: float) -> Acceptance:
    return Acceptance(rule="annealed", **knobs)


#: By name, as budgets and documents name them.
SUBJECTS: dict[str, Subject] = {
    "MAR-B plain": Subject("iteration", (4, 6), _mar("base")),
    "MAR-H plain": Subject("iteration", (4, 6), _mar("huge")),
    "MAR-B windows": Subject("iteration", (4, 6), _mar("base", windows=(8,), steps=100)),
    "MAR-B windows, batch 4": Subject("iteration", (4, 6), _mar("base", windows=(8,), batch=4, steps=100)),
    "CSpD released, H<-B": Subject(
        "block", (4, 6), _cspd(Cspd(variant="released", gamma=4, prefill=0.0), ("huge", "base"), 4)
    ),
    "CSpD paper, B<-B": Subject(
        "block", (2, 3), _cspd(Cspd(variant="paper", gamma=2, prefill=0.0), ("base", "base"), 2)
    ),
    "causal plain": Subject("token", (2, 5), _causal()),
    "causal windows": Subject("token", (2, 5), _causal(windows=(24, 20, 16, 12, 8))),
    "causal speculative": Subject("round", (2, 4), _paths(Speculative(gamma=4))),
    "causal annealed": Subject("round", (2, 4), _paths(Speculative(gamma=4, acceptance=_annealed(delta=4.0)))),
    "causal coupled": Subject(
        "round", (2, 4), _paths(Speculative(gamma=4, acceptance=Acceptance(rule="coupled", radius=0.5)))
    ),
    "SphereAR-B plain": Subject("token", (2, 3), _sphere()),
    "SphereAR-B windows": Subject("token", (2, 3), _sphere(windows=(12, 10, 8, 6, 4))),
    "SphereAR-B speculative": Subject("round", (2, 3), _sphere_paths(Speculative(gamma=4))),
    "LlamaGen-XL plain": Subject("token", (2, 4), _codes()),
    "LlamaGen-XL chain, XL<-B": Subject("round", (3, 5), _speculated_codes(Speculative(gamma=4))),
    "LlamaGen-XL tree, XL<-B": Subject("round", (3, 5), _speculated_codes(Speculative(tree=(3, 2, 1)))),
    "LlamaGen-XL EAGLE tree": Subject("round", (3, 5), _speculated_codes(Speculative(drafter="eagle", tree=(3, 2, 1)))),
}
