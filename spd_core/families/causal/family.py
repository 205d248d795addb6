"""The causal family: what the rest of the program asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor, nn

from spd_core.codec import PixelCodec
from spd_core.compare import Compared, Wishes
from spd_core.decode.ceilings import Ceilings
from spd_core.decode.log import Decoded
from spd_core.draws import Draws
from spd_core.families.causal.compare import compared
from spd_core.families.causal.contexts import token_contexts
from spd_core.families.causal.deepen import deepened
from spd_core.families.causal.model import Causal, CausalConfig
from spd_core.families.causal.naive import decode_causal_naive
from spd_core.families.causal.predict import batch_seconds
from spd_core.families.causal.speculation import EVIDENCE, decode_speculative
from spd_core.families.causal.tokens import decode_causal_plain
from spd_core.families.family import Decoding, Held, every_field
from spd_core.families.head_family import HeadFamily
from spd_core.families.held import activation_bytes, guided, head_bytes
from spd_core.families.mar.vae import KlCodec
from spd_core.families.words import guidance_in_words, path_in_words
from spd_core.law import Acceptance, Auto, Choice, HeadWindow, Method, Plain, SamplerLaw, Speculative
from spd_core.models.grid import ModelConfig

if TYPE_CHECKING:
    from spd_core.decode.cost import CallTimes
    from spd_core.pairs.pair import Pair, PairCard
    from spd_core.train.acceptance import TeacherForced
    from spd_core.train.loop import Recipe

#: Tokens drafted before each target pass, and steps the draft holds each prediction, that `method: auto` measures.
SPECULATION = ((4, 15), (8, 15))


class CausalFamily(HeadFamily):
    """Causal models of continuous tokens with a diffusion head; tokens are handed over at a level of the path."""

    name = "causal"
    configs: ClassVar = {"target": CausalConfig, "draft": CausalConfig}
    codecs = (PixelCodec, KlCodec)
    methods: ClassVar = {"plain": every_field(Plain), "speculative": every_field(Speculative) - {"tree", "drafter"}}
    evidence = EVIDENCE
    wishes = frozenset({"gamma", "stride", "delta", "radius", "deepen", "head_window", "head_schedule", "head_steps"})
    columns = (
        "method", "guarantee", "images/s", "x plain", "predicted", "accepted of tested", "accepted of all",
        "tokens/target pass", "head calls/token", "head rows/token", "finish calls", "distance (95 %)",
        "label agreement",
    )  # fmt: skip
    ratios = ", predicted is what the cost model makes of measured call times and acceptance."
    law_fields = frozenset(
        {
            "head_steps", "head_schedule", "head_steps_end", "start_level", "handoff_level", "cfg", "cfg_schedule",
            "temperature", "dtype",
        }
    )  # fmt: skip
    stoppable = frozenset({"plain", "speculative"})
    windows = ((24, 20, 16, 12, 8), (12, 10, 8, 6, 4))

    def build(self, config: ModelConfig) -> Causal:
        if not isinstance(config, CausalConfig):
            raise TypeError(f"config: got {type(config).__name__}, allowed: CausalConfig")
        return Causal(config)

    def default_method(self, card: PairCard) -> Plain:
        return Plain(head_window=card.windows[-1])

    def offered(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        yield from super().offered(card, auto, windows)
        if card.draft is None:
            return
        for gamma, stride in SPECULATION:
            for rule in (Acceptance(), *self.relaxed(auto)):
                yield Speculative(gamma=gamma, stride=stride, acceptance=rule, head_window=windows[0])
            yield Speculative(gamma=gamma, stride=stride)

    def likely(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        yield from super().likely(card, auto, windows)
        if card.draft is not None:
            gamma, stride = SPECULATION[0]
            for rule in (Acceptance(), *self.relaxed(auto)):
                yield Speculative(gamma=gamma, stride=stride, acceptance=rule, head_window=windows[0])

    def law_in_words(self, law: SamplerLaw) -> str:
        made = f"{path_in_words(law)}, hand-off at {law.handoff_level}"
        return f"{made}, {guidance_in_words(law)}, temperature {law.temperature:g}, {law.dtype}"

    def batch_seconds(self, card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
        return batch_seconds(card, law, choice, at)

    def compared(self, card: PairCard, law: SamplerLaw, wishes: Wishes) -> list[tuple[SamplerLaw, Compared]]:
        return compared(card, law, wishes)

    def deepened(self, target: nn.Module, blocks: int) -> nn.Module:
        if not isinstance(target, Causal):
            raise TypeError(f"target: got {type(target).__name__}, allowed: Causal")
        return deepened(target, blocks)

    def call_times(
        self, pair: Pair, law: SamplerLaw, method: Plain | Speculative, labels: Tensor, draws: Draws
    ) -> CallTimes | None:
        from spd_core.families.causal.calls import measure_calls

        return measure_calls(pair, law, method, labels, draws)

    def memory(self, config: ModelConfig, law: SamplerLaw, images: int, block: int) -> Held:
        if not isinstance(config, CausalConfig):
            return Held()
        rows = guided(law, images)
        return Held(
            cache=2 * config.depth * rows * (config.seq_len + 1) * config.embed_dim,
            activations=activation_bytes(rows * block, config.embed_dim),
            # All tokens of an image are finished at once, at least by the last step.
            head=head_bytes(law, images * config.seq_len, config.head_width, config.token_dim),
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
        if isinstance(target, Causal) and isinstance(method, Plain):
            return decode_causal_plain(target, law, labels_B, draws, method.head_window)
        if isinstance(target, Causal) and isinstance(draft, Causal) and isinstance(method, Speculative):
            return decode_speculative(target, draft, law, method, labels_B, draws, slots)
        raise TypeError(f"pair {pair.card.name}: its models are not those of its card, or {method.name} is no method")

    def decode_naive(self, target: nn.Module, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
        if not isinstance(target, Causal):
            raise TypeError(f"target: got {type(target).__name__}, allowed: Causal")
        return decode_causal_naive(target, law, labels_B, draws)

    def token_contexts(
        self, model: nn.Module, law: SamplerLaw, count: int, tokens: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(model, Causal):
            raise TypeError(f"model: got {type(model).__name__}, allowed: Causal")
        return token_contexts(model, law, count, tokens, labels, rng)

    def bundled(self) -> Mapping[str, tuple[SamplerLaw, Mapping[str, Recipe]]]:
        from spd_core.families.causal.bundled import LAW, RECIPES  # training is imported by those who train

        return {"fashion-ar": (LAW, RECIPES)}

    def teacher_forced(
        self,
        models: tuple[nn.Module, nn.Module],
        law: SamplerLaw,
        stride: int,
        tokens: Tensor,
        labels: Tensor,
    ) -> TeacherForced:
        from spd_core.families.causal.acceptance import teacher_forced

        target, draft = models
        if not isinstance(target, Causal) or not isinstance(draft, Causal):
            raise TypeError(f"models: got {type(target).__name__} and {type(draft).__name__}, allowed: Causal")
        return teacher_forced(target, draft, law, stride, tokens, labels)
