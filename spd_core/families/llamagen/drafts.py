"""The two kinds of draft of a model of codes, behind one interface: a small model, and EAGLE's layer.

In every round a draft gives the features of a tree's nodes, level by level. First come those of node 0, the newest
decided position; codes are drawn from them, and the next level reads these codes.

Shape legend: A images in slots, N codes of an image, G rows per image, L nodes of a level, T of the tree, d model dims.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from spd_core.decode.slots import Change, moved
from spd_core.families.llamagen.codes import LawReader
from spd_core.families.llamagen.model import EagleDraft, LlamaGen
from spd_core.law import SamplerLaw
from spd_core.models.tree import Tree


class CodeDraft(ABC):
    """A draft model with its state of every slot."""

    #: position of the first code that it can draft
    earliest: int
    reader: LawReader

    @abstractmethod
    def root(self, codes_AN: Tensor, made_A: Tensor, reach: int) -> Tensor:
        """Features [G, A, 1, d] of the position of the next code.

        Args:
            codes_AN: the codes decided so far.
            made_A: how many they are.
            reach: slots of the cache that are read.
        """

    @abstractmethod
    def level(
        self, codes_AL: Tensor, made_A: Tensor, tree: Tree, nodes: Sequence[int], parents_GALd: Tensor, reach: int
    ) -> Tensor:
        """Features [G, A, L, d] of the nodes of one level.

        Args:
            codes_AL: their codes.
            made_A: position of node 0.
            tree, nodes: which nodes they are.
            parents_GALd: their parents' features.
            reach: slots of the cache that are read.
        """

    @abstractmethod
    def settle(self, made_A: Tensor, tree: Tree, path_AM: Tensor, features_GATd: Tensor) -> None:
        """Brings the state of every slot to the end of a round.

        Args:
            made_A: position of node 0.
            tree: of the round.
            path_AM: the accepted nodes, node 0 first.
            features_GATd: the target's features of all nodes.
        """

    def start(self, labels_A: Tensor) -> None:
        """Gives every slot to an image, which begins at position 0."""
        self.reader.start(labels_A)

    def change(self, change: Change, labels: Tensor) -> None:
        """Gives slots to other images, of ``labels`` [newcomers], and moves or gives up slots."""
        self.reader.change(change, labels)


class SmallDraft(CodeDraft):
    """A small model of codes."""

    earliest = 0

    def __init__(self, model: LlamaGen, law: SamplerLaw, labels_A: Tensor, nodes: int) -> None:
        self.reader = LawReader(model, model, law, labels_A, max(nodes, 2))

    def root(self, codes_AN: Tensor, made_A: Tensor, reach: int) -> Tensor:
        # Also reads the position before: if the last round accepted a leaf, this model has not read it.
        first = (made_A - 1).clamp(min=0)
        place = torch.arange(2, device=made_A.device)
        before = (first[:, None] + place - 1).clamp(min=0, max=codes_AN.shape[1] - 1)
        features = self.reader.read(codes_AN.gather(1, before), first, reach=reach)
        at = (made_A - first)[None, :, None, None].expand(len(features), -1, 1, features.shape[-1])
        return features.gather(2, at)

    def level(
        self, codes_AL: Tensor, made_A: Tensor, tree: Tree, nodes: Sequence[int], parents_GALd: Tensor, reach: int
    ) -> Tensor:
        return self.reader.read(codes_AL, made_A, tree, nodes, reach=reach)

    def settle(self, made_A: Tensor, tree: Tree, path_AM: Tensor, features_GATd: Tensor) -> None:
        self.reader.settle(made_A, tree, path_AM)


class Eagle(CodeDraft):
    """EAGLE's layer. It reads decided positions with the target's features, drafted ones with predicted features."""

    earliest = 1

    def __init__(
        self, model: EagleDraft, target: LlamaGen, law: SamplerLaw, labels_A: Tensor, nodes: int, depth: int
    ) -> None:
        self.most = depth + 1  # codes that a round can decide
        self.reader = LawReader(model, target, law, labels_A, max(nodes, self.most))
        config = target.config
        shape = (self.reader.copies, len(labels_A), config.block_size + nodes, config.dim)
        self._features = torch.zeros(shape, device=labels_A.device)
        self.features = self._features  # [G, A, N, d] the target's, by position

    def root(self, codes_AN: Tensor, made_A: Tensor, reach: int) -> Tensor:
        # The positions that the last round decided are read again, now with the target's features.
        first = (made_A - self.most + 1).clamp(min=1)
        place = torch.arange(self.most, device=made_A.device)
        before = (first[:, None] + place - 1).clamp(max=codes_AN.shape[1] - 1)
        index = before[None, :, :, None].expand(len(self.features), -1, -1, self.features.shape[-1])
        known = self.features.gather(2, index)
        features = self.reader.read(codes_AN.gather(1, before), first, features_GAMd=known, reach=reach)
        at = (made_A - first).clamp(min=0)[None, :, None, None].expand(len(features), -1, 1, features.shape[-1])
        return features.gather(2, at)

    def level(
        self, codes_AL: Tensor, made_A: Tensor, tree: Tree, nodes: Sequence[int], parents_GALd: Tensor, reach: int
    ) -> Tensor:
        return self.reader.read(codes_AL, made_A, tree, nodes, parents_GALd, reach)

    def settle(self, made_A: Tensor, tree: Tree, path_AM: Tensor, features_GATd: Tensor) -> None:
        place = made_A[:, None] + torch.arange(path_AM.shape[1], device=path_AM.device)
        index, goal = (
            of[None, :, :, None].expand(len(features_GATd), -1, -1, features_GATd.shape[-1]) for of in (path_AM, place)
        )
        self.features.scatter_(2, goal, features_GATd.gather(2, index))

    def start(self, labels_A: Tensor) -> None:
        super().start(labels_A)
        self.features = self._features

    def change(self, change: Change, labels: Tensor) -> None:
        super().change(change, labels)
        self.features = moved(self.features, change, dim=1)
