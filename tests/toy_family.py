"""A family that is not of the product: what "Adding a family" of docs/architecture.md shows, word for word."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from spd_core.codec import PixelCodec
from spd_core.decode.log import Decoded, DraftRecords
from spd_core.draws import Draws, Purpose
from spd_core.families.family import Decoding, Family
from spd_core.law import SamplerLaw
from spd_core.models.grid import ModelConfig
from spd_core.pairs.pair import Pair


class ToyConfig(ModelConfig):
    """Sizes of a model."""

    classes: int = Field(3, gt=0)
    tokens: int = Field(4, gt=0, description="tokens of an image, a square")
    dims: int = Field(4, gt=0, description="token dims")

    @property
    def seq_len(self) -> int:
        return self.tokens


class Toy(nn.Module):
    """Every token is Gaussian around a mean that belongs to its class and place."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(config.classes, config.tokens, config.dims))


class ToyFamily(Family):
    """Models of Gaussian tokens."""

    name = "toy"
    configs: ClassVar = {"target": ToyConfig, "draft": ToyConfig}
    codecs = (PixelCodec,)
    methods: ClassVar = {"plain": frozenset()}
    law_fields = frozenset({"temperature"})

    def build(self, config: ToyConfig) -> Toy:
        return Toy(config)

    def decode(
        self, pair: Pair, law: SamplerLaw, method: Decoding, labels_B: Tensor, draws: Draws, slots: int
    ) -> Decoded:
        means = pair.target.means[labels_B]
        batch, tokens, dims = means.shape
        image, token = torch.arange(batch).repeat_interleave(tokens), torch.arange(tokens).repeat(batch)
        noise = draws.normals(Purpose.STEP, image, token, dims).view_as(means)
        rounds = torch.ones(batch, dtype=torch.int64)
        return Decoded(means + law.temperature * noise, rounds, DraftRecords.concatenate([]), {}, {})
