"""The tests along a draft tree, one node after the other: a second `walk_tree`, and wrong ones, each with a name.

A mistake overrides one step. The right walk is held against the product's in `test_accept_codes.py`, so a mistake here
is the same mistake there.

Shape legend: A images, T nodes of a tree, I inner ones, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spd_core.accept.codes import CodeTest, Walk, neighbours, walk_tree, without
from spd_core.accept.lemma import Verdict, residual
from spd_core.models.tree import Tree


class NodeWalk:
    """Arguments and result are those of `walk_tree`."""

    def may_be_drawn(self, q_at_A: Tensor) -> Tensor:
        """Whether the draft could have given the code at all."""
        return q_at_A > 0

    def is_open(self, decided_A: Tensor) -> Tensor:
        """Whether a child is tested, given that one before it stands."""
        return ~decided_A

    def next_node(self, stands_A: Tensor, child: int, before_A: Tensor) -> Tensor:
        """Where the walk goes on from the child's parent."""
        return torch.where(stands_A, child, before_A)

    def left_of_target(self, p_AV: Tensor, q_AV: Tensor, code_A: Tensor, others: bool) -> Tensor:
        """The law of the token once the code is rejected; ``others``: siblings are still to be tested."""
        return residual(p_AV, q_AV)

    def left_of_draft(self, q_AV: Tensor, code_A: Tensor) -> Tensor:
        """The law of the next sibling."""
        return without(q_AV, code_A)

    def law_after(self, left_ATV: Tensor, p_ATV: Tensor) -> Tensor:
        """Of the code after each node, if the walk ends there."""
        return left_ATV

    def __call__(
        self, tree: Tree, codes: Tensor, p: Tensor, q: Tensor, uniform: Tensor, room: Tensor, test: CodeTest
    ) -> Walk:
        if not q.shape[1]:
            return walk_tree(tree, codes, p, q, uniform, room, test)
        left, drawn = list(p.unbind(1)), list(q.unbind(1))
        following = torch.arange(codes.shape[1]).repeat(len(codes), 1)
        columns: dict[int, tuple[Tensor, ...]] = {}
        most = max(len(tree.children(node)) for node in range(q.shape[1]))
        for turn in range(most):
            for node in (node for node in range(q.shape[1]) if len(tree.children(node)) > turn):
                child = tree.children(node)[turn]
                code = codes[:, child]
                q_at = drawn[node].gather(1, code[:, None])[:, 0]
                tested = self.may_be_drawn(q_at) & (tree.depth[node] < room) & self.is_open(following[:, node] != node)
                place = torch.full_like(code, tree.depth[node])
                given = (left[node], q_at, code, place, uniform[:, child])
                verdict = test.rule.judge(test.ratios(*(each[:, None] for each in given)))
                stands = verdict.accepted[:, 0] & tested
                columns[child] = (stands, verdict.log_ratio[:, 0], verdict.excess[:, 0], tested)
                following[:, node] = self.next_node(stands, child, following[:, node])
                after = self.left_of_target(left[node], drawn[node], code, turn + 1 < most)
                left[node] = torch.where((tested & ~stands)[:, None], after, left[node])
                drawn[node] = self.left_of_draft(drawn[node], code)
        image, path = torch.arange(len(codes)), [torch.zeros(len(codes), dtype=torch.int64)]
        for _ in range(max(tree.depth)):
            path.append(following[image, path[-1]])
        on_path = [torch.stack([at == parent for at in path]).any(dim=0) for parent in tree.parents]
        *verdict_AT, tested_AT = (
            torch.stack(each, dim=1) for each in zip(*map(columns.get, sorted(columns)), strict=True)
        )
        law = self.law_after(torch.stack(left, dim=1), p)[image, path[-1]]
        kept = torch.tensor(tree.depth)[path[-1]]
        return Walk(torch.stack(path, dim=1), kept, law, Verdict(*verdict_AT), tested_AT & torch.stack(on_path, dim=1))


class QZeroed(NodeWalk):
    """The rejected code is taken from the draft's law, not from the target's."""

    def left_of_target(self, p_AV, q_AV, code_A, others):
        return residual(p_AV, q_AV.scatter(1, code_A[:, None], 0.0))


class NeighboursZeroed(NodeWalk):
    """The whole neighbourhood of the rejected code is taken from the target's law.

    Args:
        vectors: of the codes.
        k: size of a neighbourhood.
    """

    def __init__(self, vectors: Tensor, k: int) -> None:
        self.outside = torch.ones(len(vectors), len(vectors), dtype=torch.float64)
        self.outside.scatter_(1, neighbours(vectors, k), 0.0)

    def left_of_target(self, p_AV, q_AV, code_A, others):
        return residual(p_AV * self.outside[code_A], q_AV)


class NeighboursMoved(NodeWalk):
    """LANTERN as published: the neighbours' mass is moved onto the rejected code.

    Args:
        order: int64 [V, k], each code's neighbours.
        delta: of the rule.
    """

    def __init__(self, order: Tensor, delta: float) -> None:
        self.order, self.delta = order, delta

    def left_of_target(self, p_AV, q_AV, code_A, others):
        own, among = p_AV.gather(1, code_A[:, None]), p_AV.gather(1, self.order[code_A])
        counted = among * (among.cumsum(dim=1) <= self.delta)
        moved = p_AV.scatter(1, self.order[code_A], among - counted)
        return residual(moved.scatter(1, code_A[:, None], own + counted.sum(dim=1, keepdim=True)), q_AV)


class TargetAfterRejection(NodeWalk):
    """The code after a rejection is the target's."""

    def law_after(self, left_ATV, p_ATV):
        return p_ATV


class SiblingsAgainstOneTarget(NodeWalk):
    """Siblings are tested against the target's law, not against what those before them have left."""

    def left_of_target(self, p_AV, q_AV, code_A, others):
        return p_AV if others else residual(p_AV, q_AV)


class WithReplacement(NodeWalk):
    """Siblings are drawn without replacement and tested as if drawn with it."""

    def left_of_draft(self, q_AV, code_A):
        return q_AV


class NoStop(NodeWalk):
    """The walk goes on through a rejected draft."""

    def next_node(self, stands_A, child, before_A):
        return torch.full_like(before_A, child)


class SiblingsAfterOneThatStands(NodeWalk):
    """A sibling is tested though one before it stands, and may take its place."""

    def is_open(self, decided_A):
        return torch.ones_like(decided_A)


class Impossible(NodeWalk):
    """A code that the draft cannot have given is tested like any other."""

    def may_be_drawn(self, q_at_A):
        return torch.ones_like(q_at_A, dtype=torch.bool)
