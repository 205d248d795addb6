"""The SphereAR family: what the rest of the program asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor, nn

from spd_core.compare import Compared, Wishes, label_of
from spd_core.decode.ceilings import Ceilings
from spd_core.decode.log import Decoded
from spd_core.draws import Draws
from spd_core.families.causal.speculation import EVIDENCE
from spd_core.families.family import Decoding, Files, Held, Keys, every_field
from spd_core.families.head_family import HeadFamily
from spd_core.families.held import activation_bytes, guided, head_bytes
from spd_core.families.sphere.codec import SphereCodec
from spd_core.families.sphere.compare import STRIDE, compared
from spd_core.families.sphere.contexts import token_contexts
from spd_core.families.sphere.flow import LAST_LEVEL, handoff_step
from spd_core.families.sphere.model import Sphere, SphereConfig
from spd_core.families.sphere.naive import decode_sphere_naive
from spd_core.families.sphere.predict import batch_seconds
from spd_core.families.sphere.tokens import (
    SPHERE,
    SpherePath,
    decode_sphere_plain,
    decode_sphere_speculative,
    null_first,
    refused_without_handoff,
)
from spd_core.families.words import guidance_in_words
from spd_core.law import Acceptance, Auto, Choice, HeadWindow, Method, Plain, SamplerLaw, Speculative
from spd_core.models.grid import ModelConfig

if TYPE_CHECKING:
    from spd_core.decode.cost import CallTimes
    from spd_core.pairs.checkpoint import Take
    from spd_core.pairs.pair import Pair, PairCard
    from spd_core.train.loop import Recipe

#: Tokens drafted before each target pass that `method: auto` measures.
GAMMAS = (4, 8)


class SphereFamily(HeadFamily):
    """Causal models of tokens on a sphere, with a flow head whose steps have fixed stds."""

    name = "sphere"
    configs: ClassVar = {"target": SphereConfig, "draft": SphereConfig}
    keys: ClassVar = {
        "sphere": Keys("SphereAR model", "pos_for_diff.weight"),
        "sphere-vae": Keys("hyperspherical autoencoder", "post_quant_proj.weight"),
    }
    convert_options = ("vae",)
    codecs = (SphereCodec,)
    methods: ClassVar = {"plain": every_field(Plain), "speculative": every_field(Speculative) - {"tree", "drafter"}}
    evidence = EVIDENCE
    wishes = frozenset({"gamma", "stride", "delta", "radius", "head_window", "head_schedule", "head_steps"})
    columns = (
        "method", "guarantee", "images/s", "x plain", "predicted", "accepted of tested", "accepted of all",
        "tokens/target pass", "head calls/token", "head rows/token", "finish calls", "distance (95 %)",
        "label agreement",
    )  # fmt: skip
    ratios = ", predicted is what the cost model makes of measured call times and acceptance."
    law_fields = frozenset(
        {
            "head_steps", "head_schedule", "head_steps_end", "handoff_level", "cfg", "cfg_schedule", "temperature",
            "dtype",
        }
    )  # fmt: skip
    stoppable = frozenset({"plain", "speculative"})
    windows = ((12, 10, 8, 6, 4), (6, 5, 4, 3, 2))

    def build(self, config: ModelConfig) -> Sphere:
        if not isinstance(config, SphereConfig):
            raise TypeError(f"config: got {type(config).__name__}, allowed: SphereConfig")
        return Sphere(config)

    def default_method(self, card: PairCard) -> Plain:
        return Plain(head_window=card.windows[0])

    def offered(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        yield from super().offered(card, auto, windows)
        if card.draft is None:
            return
        for gamma in GAMMAS:
            for rule in (Acceptance(), *self.relaxed(auto)):
                yield Speculative(gamma=gamma, stride=STRIDE, acceptance=rule, head_window=windows[0])

    def likely(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        yield from super().likely(card, auto, windows)
        if card.draft is not None:
            for rule in (Acceptance(), *self.relaxed(auto)):
                yield Speculative(gamma=GAMMAS[0], stride=STRIDE, acceptance=rule, head_window=windows[0])

    def refused_at(self, law: SamplerLaw, method: Method) -> str | None:
        return refused_without_handoff(law, method)

    def law_in_words(self, law: SamplerLaw) -> str:
        return ", ".join([law.steps_in_words, _handed_over(law), _guidance(law), *_temperature(law), law.dtype])

    def label(self, law: SamplerLaw, method: Compared) -> str:
        return label_of(law, method) + (f", hand-off at {law.handoff_level}" if law.handoff_level else "")

    def batch_seconds(self, card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
        return batch_seconds(card, law, choice, at)

    def compared(self, card: PairCard, law: SamplerLaw, wishes: Wishes) -> list[tuple[SamplerLaw, Compared]]:
        return compared(card, law, wishes)

    def call_times(
        self, pair: Pair, law: SamplerLaw, method: Plain | Speculative, labels: Tensor, draws: Draws
    ) -> CallTimes:
        from spd_core.families.causal.calls import measure_calls

        return measure_calls(pair, law, method, labels, draws, SPHERE)

    def memory(self, config: ModelConfig, law: SamplerLaw, images: int, block: int) -> Held:
        if not isinstance(config, SphereConfig):
            return Held()
        rows, whole = guided(law, images), config.cls_token_num + config.seq_len
        return Held(
            cache=2 * config.n_layer * rows * whole * config.dim,
            # At its start an image's class positions pass together.
            activations=activation_bytes(rows * max(block, config.prefix), config.dim),
            head=head_bytes(
                law, images * (config.seq_len if law.handoff_level else 1), config.diff_dim, config.latent_dim
            ),
        )

    def decode(
        self,
        pair: Pair,
        law: SamplerLaw,
        method: Decoding,
        labels_B: Tensor,
        draws: Draws,
        slots: int,
    ) -> Decoded:
        target, draft = pair.target, pair.draft
        if isinstance(target, Sphere) and isinstance(method, Plain):
            return decode_sphere_plain(target, law, labels_B, draws, method.head_window)
        if isinstance(target, Sphere) and isinstance(draft, Sphere) and isinstance(method, Speculative):
            return decode_sphere_speculative(target, draft, law, method, labels_B, draws, slots)
        raise TypeError(f"pair {pair.card.name}: its models are not those of its card, or {method.name} is no method")

    def decode_naive(self, target: nn.Module, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
        if not isinstance(target, Sphere):
            raise TypeError(f"target: got {type(target).__name__}, allowed: Sphere")
        return decode_sphere_naive(target, law, labels_B, draws)

    def last_step(self, law: SamplerLaw) -> int:
        return handoff_step(law.head_steps, law.handoff_level) + 1

    def token_contexts(
        self, model: nn.Module, law: SamplerLaw, count: int, tokens: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(model, Sphere):
            raise TypeError(f"model: got {type(model).__name__}, allowed: Sphere")
        return token_contexts(model, law, count, tokens, labels, rng)

    def bundled(self) -> Mapping[str, tuple[SamplerLaw, Mapping[str, Recipe]]]:
        from spd_core.families.sphere.bundled import LAW, RECIPES  # training is imported by those who train

        return {"fashion-sphere": (LAW, RECIPES)}

    def convert(self, files: Files, out: Path, name: str, take: Take) -> PairCard:
        from spd_core.families.sphere.convert import convert_sphere

        return convert_sphere(files.target, files.draft, files.options.get("vae"), out, name, take)


def _handed_over(law: SamplerLaw) -> str:
    if SpherePath(law, 1).handoff < 0:
        return "clean tokens read"
    return f"hand-off at {law.handoff_level}" + (" (before the last step)" if law.handoff_level == LAST_LEVEL else "")


def _guidance(law: SamplerLaw) -> str:
    own = ", the null branch with a first token of its own" if null_first(law) else ""
    return guidance_in_words(law) + own


def _temperature(law: SamplerLaw) -> list[str]:
    return [] if law.temperature == 1 else [f"temperature {law.temperature:g}"]
