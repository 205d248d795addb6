"""The MAR family: what the rest of the program asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor, nn

from spd_core.codec import PixelCodec
from spd_core.compare import Compared, Wishes
from spd_core.decode.ceilings import Ceilings
from spd_core.decode.log import Decoded
from spd_core.draws import Draws
from spd_core.families.family import Decoding, Files, Held, Keys, every_field
from spd_core.families.head_family import HeadFamily
from spd_core.families.held import activation_bytes, guided, head_bytes
from spd_core.families.mar.compare import compared
from spd_core.families.mar.contexts import token_contexts
from spd_core.families.mar.cspd import decode_cspd
from spd_core.families.mar.model import Mar, MarConfig
from spd_core.families.mar.naive import decode_mar_naive
from spd_core.families.mar.plain import decode_plain
from spd_core.families.mar.predict import batch_seconds
from spd_core.families.mar.vae import KlCodec
from spd_core.families.words import guidance_in_words, path_in_words
from spd_core.law import Auto, Choice, Cspd, HeadWindow, Method, Plain, SamplerLaw
from spd_core.models.grid import ModelConfig

if TYPE_CHECKING:
    from spd_core.pairs.checkpoint import Take
    from spd_core.pairs.pair import Pair, PairCard
    from spd_core.train.loop import Recipe

#: Draft iterations before each target pass that `method: auto` measures.
GAMMAS = (8, 32)


class MarFamily(HeadFamily):
    """Masked autoregressive models of continuous tokens with a diffusion head."""

    name = "mar"
    configs: ClassVar = {"target": MarConfig, "draft": MarConfig}
    keys: ClassVar = {
        "mar": Keys("MAR model", "diffloss.net.input_proj.weight"),
        "vae": Keys("KL autoencoder", "post_quant_conv.weight", lacks="quantize.embedding.weight"),
    }
    convert_options = ("vae",)
    codecs = (PixelCodec, KlCodec)
    methods: ClassVar = {"plain": every_field(Plain), "cspd": every_field(Cspd)}
    wishes = frozenset({"gamma", "ablation", "num_iter", "paper_gamma", "head_window", "head_schedule", "head_steps"})
    columns = (
        "method", "guarantee", "iterations", "images/s", "x plain", "x full", "predicted", "accepted of tested",
        "accepted of all", "tokens/target pass", "head calls/token", "head rows/token", "distance (95 %)",
        "label agreement",
    )  # fmt: skip
    ratios = " (same iterations), x full against plain at the first row's iterations."
    law_fields = frozenset(
        {
            "num_iter", "head_steps", "head_schedule", "head_steps_end", "start_level", "cfg", "cfg_schedule",
            "temperature", "dtype",
        }
    )  # fmt: skip
    stoppable = frozenset({"plain"})
    windows = ((8,), (4,))

    def build(self, config: ModelConfig) -> Mar:
        if not isinstance(config, MarConfig):
            raise TypeError(f"config: got {type(config).__name__}, allowed: MarConfig")
        return Mar(config)

    def default_method(self, card: PairCard) -> Plain:
        return Plain(head_window=card.windows[-1])

    def offered(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        yield from super().offered(card, auto, windows)
        if card.draft is not None:
            for gamma in GAMMAS:
                yield Cspd(gamma=gamma)
                yield Cspd(gamma=gamma, head_window=windows[0])

    def likely(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        yield from super().likely(card, auto, windows)
        if card.draft is not None:
            yield Cspd(gamma=GAMMAS[-1])

    def law_in_words(self, law: SamplerLaw) -> str:
        made = f"{law.num_iter} iterations, {path_in_words(law)}"
        return f"{made}, {guidance_in_words(law)}, temperature {law.temperature:g}, {law.dtype}"

    def batch_seconds(self, card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
        return batch_seconds(card, law, choice, at)

    def compared(self, card: PairCard, law: SamplerLaw, wishes: Wishes) -> list[tuple[SamplerLaw, Compared]]:
        return compared(card, law, wishes)

    def memory(self, config: ModelConfig, law: SamplerLaw, images: int, block: int) -> Held:
        if not isinstance(config, MarConfig):
            return Held()
        width = max(config.encoder_embed_dim, config.decoder_embed_dim)
        tokens = min(config.seq_len, max(1, -(-config.seq_len * 2 // law.num_iter)))
        return Held(
            activations=activation_bytes(guided(law, images) * (config.seq_len + config.buffer_size), width),
            head=head_bytes(law, images * tokens, config.diffloss_w, config.token_dim),
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
        if isinstance(target, Mar) and isinstance(method, Plain):
            return decode_plain(target, law, labels_B, draws, method.head_window)
        if isinstance(target, Mar) and isinstance(draft, Mar) and isinstance(method, Cspd):
            return decode_cspd(target, draft, law, method, labels_B, draws)
        raise TypeError(f"pair {pair.card.name}: its models are not those of its card, or {method.name} is no method")

    def decode_naive(self, target: nn.Module, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
        if not isinstance(target, Mar):
            raise TypeError(f"target: got {type(target).__name__}, allowed: Mar")
        return decode_mar_naive(target, law, labels_B, draws)

    def token_contexts(
        self, model: nn.Module, law: SamplerLaw, count: int, tokens: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(model, Mar):
            raise TypeError(f"model: got {type(model).__name__}, allowed: Mar")
        return token_contexts(model, law, count, tokens, labels, rng)

    def convert(self, files: Files, out: Path, name: str, take: Take) -> PairCard:
        from spd_core.families.mar.convert import convert

        return convert(files.target, files.draft, files.options.get("vae"), out, name, take=take)

    def bundled(self) -> Mapping[str, tuple[SamplerLaw, Mapping[str, Recipe]]]:
        from spd_core.families.mar.bundled import LAW, RECIPES  # training is imported by those who train

        return {"fashion-mar": (LAW, RECIPES)}
