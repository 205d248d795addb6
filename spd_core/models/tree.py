"""Draft trees: how the drafted positions of a round hang together.

Shape legend: A images, T nodes of a tree, I inner ones, L of one turn, V codes of the codebook.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """Drafted positions of a round in relation to each other; a chain is a tree without branches.

    Node 0 is the newest decided position; every other node's parent comes before it.
    """

    parents: tuple[int, ...]  #: of nodes 1, 2, ...

    @property
    def depth(self) -> tuple[int, ...]:
        """Of every node [T], 0 for node 0."""
        depth = [0]
        for parent in self.parents:
            depth.append(depth[parent] + 1)
        return tuple(depth)

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Nodes by depth."""
        depth = self.depth
        return tuple(tuple(n for n, d in enumerate(depth) if d == level) for level in range(max(depth) + 1))

    def children(self, node: int) -> tuple[int, ...]:
        return tuple(n + 1 for n, parent in enumerate(self.parents) if parent == node)

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(len(self.parents)))

    @staticmethod
    def chain(length: int) -> Tree:
        """A chain of ``length`` drafts below node 0."""
        return Tree(tuple(range(length)))


# What decoding looks up of a tree in every round, by tree and device. They are ordinary tensors: they outlive a
# decoding, and are read in inference mode and out of it.


@cache
@torch.inference_mode(False)
def ancestors(tree: Tree, device: torch.device) -> Tensor:
    """bool [T, T]: node of a row sees node of a column, itself or one that it descends from."""
    sees = torch.eye(1 + len(tree.parents), dtype=torch.bool)
    for node, parent in enumerate(tree.parents, start=1):
        sees[node] |= sees[parent]
    return sees.to(device)


@cache
@torch.inference_mode(False)
def depths(tree: Tree, device: torch.device) -> Tensor:
    """int64 [T]."""
    return torch.tensor(tree.depth, device=device)


@cache
@torch.inference_mode(False)
def parents(tree: Tree, device: torch.device) -> Tensor:
    """int64 [T - 1]: of nodes 1, 2, ..."""
    return torch.tensor(tree.parents, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Rank:
    """The children that are tested in the same turn: first children, second ones, ..."""

    node: Tensor  #: int64 [L] inner nodes that have such a child
    child: Tensor  #: int64 [L]
    every: bool  #: whether all inner nodes have one
    others: bool  #: whether some have more children

    def of(self, x_AIV: Tensor) -> Tensor:
        """What belongs to the nodes, [A, L, V], of that of all inner nodes."""
        return x_AIV if self.every else x_AIV[:, self.node]

    def put(self, x_AIV: Tensor, new_ALV: Tensor) -> Tensor:
        """The same with the nodes' part replaced."""
        return new_ALV if self.every else x_AIV.index_copy(1, self.node, new_ALV)


@cache
@torch.inference_mode(False)
def ranks(tree: Tree, inner: int, device: torch.device) -> tuple[Rank, ...]:
    """Of a tree's first ``inner`` nodes, in the order of their tests."""
    children = [tree.children(node) for node in range(inner)]
    most = max(map(len, children), default=0)
    found = []
    for turn in range(most):
        nodes = [node for node, own in enumerate(children) if len(own) > turn]
        node, child = (torch.tensor(of, device=device) for of in (nodes, [children[node][turn] for node in nodes]))
        found.append(Rank(node, child, len(nodes) == inner, turn + 1 < most))
    return tuple(found)
