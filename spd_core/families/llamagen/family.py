"""The LlamaGen family: what the rest of the program asks of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from spd_core.accept.codes import EVIDENCE
from spd_core.compare import Compared, Wishes
from spd_core.decode.ceilings import Ceilings
from spd_core.decode.log import Decoded
from spd_core.draws import Draws
from spd_core.families.family import Decoding, Family, Files, Held, Keys, Part, every_field
from spd_core.families.held import FLOAT, activation_bytes, guided
from spd_core.families.llamagen.codes import decode_codes_plain
from spd_core.families.llamagen.compare import compared, label, series
from spd_core.families.llamagen.model import EagleConfig, EagleDraft, LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.predict import batch_seconds
from spd_core.families.llamagen.speculation import decode_codes_speculative
from spd_core.families.llamagen.vq import Codebook, Vq, VqCodec
from spd_core.families.words import guidance_in_words
from spd_core.law import Acceptance, Auto, Choice, HeadWindow, Method, Plain, SamplerLaw, Speculative
from spd_core.models.grid import ModelConfig

if TYPE_CHECKING:
    from spd_core.pairs.checkpoint import Take
    from spd_core.pairs.pair import Pair, PairCard
    from spd_core.train.loop import Recipe

#: Codes drafted before each target pass that `method: auto` measures.
GAMMAS = (2, 4, 6)
#: Those that are measured where few methods are: a short chain for large batches, a longer one for small ones.
FEW_GAMMAS = (3, 6)


class LlamaGenFamily(Family):
    """Causal models of discrete codes; a pair may have a small draft, an EAGLE draft, or both."""

    name = "llamagen"
    configs: ClassVar = {"target": LlamaGenConfig, "draft": LlamaGenConfig, "eagle": EagleConfig}
    keys: ClassVar = {
        "llamagen": Keys("class-conditional LlamaGen model", "tok_embeddings.weight", texts=True),
        "vq": Keys("VQ tokenizer", "quantize.embedding.weight"),
    }
    convert_options = ("vq", "image_size")
    codecs = (VqCodec,)
    methods: ClassVar = {
        "plain": frozenset(),
        "speculative": every_field(Speculative) - {"stride", "proposals", "head_window"},
    }
    evidence = EVIDENCE
    wishes = frozenset({"gamma", "tree", "drafter", "delta", "nu", "lam", "lantern_delta", "plot"})
    columns = (
        "method", "guarantee", "images/s", "x plain", "x lossless", "accepted length", "step compression", "acceptance",
        "excess per token", "certificate (95 %)", "distance (95 %)", "label agreement", "ms a pass: draft", "target",
        "test",
    )  # fmt: skip
    ratios = (
        ", x lossless against the fastest lossless speculation. Accepted length: codes an image gets per target pass, "
        "the target's own included. Step compression: plain's target passes over a batch to the row's. Acceptance: of "
        "every verified draft."
    )
    fills = 4
    lossless_alike = True
    law_fields = frozenset({"cfg", "cfg_schedule", "cfg_interval", "temperature", "top_k", "top_p", "dtype"})
    results = 2

    def build(self, config: ModelConfig) -> LlamaGen:
        if not isinstance(config, LlamaGenConfig):
            raise TypeError(f"config: got {type(config).__name__}, allowed: LlamaGenConfig")
        return LlamaGen(config)

    def parts(self, card: PairCard) -> dict[str, Part]:
        found, eagle, target = super().parts(card), card.eagle, card.target
        if isinstance(eagle, EagleConfig) and isinstance(target, LlamaGenConfig):
            found["eagle"] = Part(lambda: EagleDraft(eagle, target), of_draft=True)
        return found

    def default_method(self, card: PairCard) -> Plain | Speculative:
        return Speculative(gamma=4, drafter=card.drafters[0]) if card.drafters else Plain()

    def offered(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        yield from super().offered(card, auto, windows)
        for gamma, drafter, rule in itertools.product(GAMMAS, card.drafters, (Acceptance(), *self.relaxed(auto))):
            yield Speculative(gamma=gamma, drafter=drafter, acceptance=rule)

    def likely(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        yield from super().likely(card, auto, windows)
        for gamma, drafter, rule in itertools.product(
            FEW_GAMMAS, card.drafters[:1], (Acceptance(), *self.relaxed(auto))
        ):
            yield Speculative(gamma=gamma, drafter=drafter, acceptance=rule)

    def law_in_words(self, law: SamplerLaw) -> str:
        late = f" up to code {law.cfg_interval + 2}" if law.cfg_interval >= 0 and law.cfg != 1 else ""
        cut = f"top-k {law.top_k or 'off'}, top-p {law.top_p:g}"
        return f"{guidance_in_words(law)}{late}, temperature {law.temperature:g}, {cut}, {law.dtype}"

    def batch_seconds(self, card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
        return batch_seconds(card, law, choice, at)

    def compared(self, card: PairCard, law: SamplerLaw, wishes: Wishes) -> list[tuple[SamplerLaw, Compared]]:
        return compared(card, law, wishes)

    def label(self, law: SamplerLaw, method: Compared) -> str:
        return label(law, method)

    def series(self, method: Speculative) -> str:
        return series(method)

    def memory(self, config: ModelConfig, law: SamplerLaw, images: int, block: int) -> Held:
        if not isinstance(config, LlamaGenConfig):
            return Held()
        rows = guided(law, images)
        # Logits, their probabilities and the sorted copies of top-k and top-p are wider than any layer.
        logits = 6 * FLOAT * rows * block * config.vocab_size
        return Held(
            cache=2 * config.n_layer * rows * (config.block_size + block) * config.dim,
            activations=activation_bytes(rows * block, config.dim) + logits,
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
        target = pair.target
        if isinstance(target, LlamaGen) and isinstance(method, Plain):
            return decode_codes_plain(target, law, labels_B, draws)
        if isinstance(target, LlamaGen) and isinstance(method, Speculative):
            draft, vectors = _draft(pair, method), _vectors(_tokenizer(pair, method).quantize)
            return decode_codes_speculative(target, draft, vectors, law, method, labels_B, draws, slots)
        raise TypeError(f"pair {pair.card.name}: its models are not those of its card, or {method.name} is no method")

    def convert(self, files: Files, out: Path, name: str, take: Take) -> PairCard:
        from spd_core.families.llamagen.convert import convert_llamagen

        vq, side = files.options.get("vq"), files.options.get("image_size")
        return convert_llamagen(files.target, files.draft, vq, out, name, side, take=take)

    def bundled(self) -> Mapping[str, tuple[SamplerLaw, Mapping[str, Recipe]]]:
        from spd_core.families.llamagen.bundled import LAW, RECIPES  # training is imported by those who train

        return {"fashion-vq": (LAW, RECIPES)}


def _draft(pair: Pair, method: Speculative) -> LlamaGen | EagleDraft:
    draft = pair.drafter(method.drafter)
    if not isinstance(draft, LlamaGen | EagleDraft):
        raise TypeError(f"pair {pair.card.name}: its {method.drafter} is not the model of its card")
    return draft


def _tokenizer(pair: Pair, method: Speculative) -> Vq:
    found = pair.parts.get("vq")
    if not isinstance(found, Vq):
        raise ValueError(f"pair: {pair.card.name} has no tokenizer, allowed with {method.name}: a pair with one")
    return found


@lru_cache(maxsize=8)
def _vectors(codebook: Codebook) -> Tensor:
    """The codes as the decoder sees them: one tensor for every batch, by which their neighbours are remembered."""
    return codebook.vectors
