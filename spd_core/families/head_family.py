"""What families whose tokens a diffusion head makes have in common, beside `Family`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from spd_core.diffusion import handoff_step
from spd_core.families.family import Family, Part
from spd_core.law import SamplerLaw
from spd_core.models.grid import ModelConfig
from spd_core.models.head import Head
from spd_core.models.variance import PosteriorVariance

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard

_SUFFIX = "_variance"


class HeadFamily(Family):
    """A family of models with a diffusion head, beside whose weights a pair may have posterior variances."""

    def last_step(self, law: SamplerLaw) -> int:
        """The last step of a token's path before the token is handed over."""
        return handoff_step(law.head_steps, law.start_level, law.handoff_level) + 1

    @abstractmethod
    def token_contexts(
        self, model: nn.Module, law: SamplerLaw, count: int, tokens: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """What a head is given for ``count`` tokens of each image, as decoding would meet them.

        Args:
            model: of this family.
            law: what is sampled.
            count: tokens of each image.
            tokens: of the images [B, N, D].
            labels: of the images [B].
            rng: which tokens, and the noise on those before them.

        Returns:
            contexts [R, Z] (under guidance [2 R, Z], with the class first) and guidance weights [R, 1].
        """

    def parts(self, card: PairCard) -> dict[str, Part]:
        def variance(config: ModelConfig, of_draft: bool) -> Part:
            return Part(lambda: PosteriorVariance.of(head_of(self.build(config))), of_draft, optional=True, small=True)

        models = {"target": card.target, "draft": card.draft}
        return super().parts(card) | {
            f"{of}{_SUFFIX}": variance(config, of == "draft") for of, config in models.items() if config is not None
        }

    def assemble(self, parts: Mapping[str, nn.Module]) -> None:
        for name, variance in parts.items():
            if name.endswith(_SUFFIX) and isinstance(variance, PosteriorVariance):
                head_of(parts[name.removesuffix(_SUFFIX)]).variance = variance


def head_of(model: nn.Module) -> Head:
    """The head of a model of continuous tokens.

    Raises:
        TypeError: it has none.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, Head):
        raise TypeError(f"model: got {type(model).__name__}, allowed: one with a diffusion head")
    return head
