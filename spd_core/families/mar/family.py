"""The MAR family: what the rest of the program asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from spd_core.codec import PixelCodec
from spd_core.decode.log import Decoded
from spd_core.draws import Draws
from spd_core.families.family import Decoding, Family, Held, Part, every_field
from spd_core.families.head_parts import attach_variances, variance_parts
from spd_core.families.held import activation_bytes, guided, head_bytes
from spd_core.families.mar.cspd import decode_cspd
from spd_core.families.mar.model import Mar, MarConfig
from spd_core.families.mar.plain import decode_plain
from spd_core.families.mar.vae import KlCodec
from spd_core.law import Auto, Cspd, HeadWindow, Method, Plain, SamplerLaw
from spd_core.models.grid import ModelConfig

if TYPE_CHECKING:
    from spd_core.pairs.pair import Pair, PairCard

#: Draft iterations before each target pass that `method: auto` measures.
GAMMAS = (8, 32)


class MarFamily(Family):
    """Masked autoregressive models of continuous tokens with a diffusion head."""

    name = "mar"
    title = "MAR model"
    configs: ClassVar = {"target": MarConfig, "draft": MarConfig}
    codecs = (PixelCodec, KlCodec)
    methods: ClassVar = {"plain": every_field(Plain), "cspd": every_field(Cspd)}
    law_fields = frozenset(
        {
            "num_iter", "head_steps", "head_schedule", "head_steps_end", "start_level", "cfg", "cfg_schedule",
            "temperature", "dtype",
        }
    )  # fmt: skip
    windows = ((8,), (4,))

    def build(self, config: ModelConfig) -> Mar:
        if not isinstance(config, MarConfig):
            raise TypeError(f"config: got {type(config).__name__}, allowed: MarConfig")
        return Mar(config)

    def parts(self, card: PairCard) -> dict[str, Part]:
        return super().parts(card) | variance_parts(self, card)

    def assemble(self, parts: Mapping[str, nn.Module]) -> None:
        attach_variances(parts)

    def default_method(self, card: PairCard) -> Plain | Cspd:
        return Plain() if card.draft is None else Cspd()

    def offered(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        yield from super().offered(card, auto, windows)
        if card.draft is not None:
            for gamma in GAMMAS:
                yield Cspd(gamma=gamma)
                yield Cspd(gamma=gamma, head_window=windows[0])

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
