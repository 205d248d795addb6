"""Acceptance of drafted codes: sampling from tables of probabilities, and the tests along a draft tree.

Rules and their ratios are those of `spd_core.accept.rules`. This module knows what they test, and in which order.

Several drafts of one token, siblings in a tree, are tested in turn. After a rejection the next is tested against the
residual; it was itself drawn from q without the siblings before it. That is exact for the lossless rule (recursive
rejection sampling, arXiv:2402.14160).

Shape legend: A images, I inner nodes of a tree, T all of its nodes, C most children of a node, V codes, k neighbours, R
rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spd_core.accept.lemma import Verdict
from spd_core.accept.rules import CodeRatios, RatioRule, checked
from spd_core.law import Acceptance, SamplerLaw
from spd_core.models.tree import Tree, depths, parents, ranks

#: Kinds of evidence that decoders of codes give a rule.
EVIDENCE = (CodeRatios,)


def probabilities(logits: Tensor, law: SamplerLaw) -> Tensor:
    """Distribution [..., V] over codes: temperature, then top-k, then top-p of what is left, as in LlamaGen.

    Top-k keeps every code as likely as the k-th; top-p keeps the first code that passes the threshold as well.
    """
    logits = logits / law.temperature
    if 0 < law.top_k < logits.shape[-1]:
        lowest = logits.topk(law.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if law.top_p < 1.0:
        ordered, index = logits.sort(descending=True)
        likely = ordered.softmax(dim=-1)
        beyond = likely.cumsum(dim=-1) - likely > law.top_p
        logits = logits.masked_fill(beyond.scatter(-1, index, beyond), -torch.inf)
    return logits.softmax(dim=-1)


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """The code [...] at a uniform number [...] in [0, 1) of weights [..., V]; never one of weight zero.

    Exact inversion of the weights rounded to multiples of 2**-52: sums of integers below 2**53 are exact in float64
    whatever order a device adds them in. A sum of up to 2 is allowed, so the weights need not be normalised.
    """
    reached = (weights.double() * 2.0**52).round_().cumsum(dim=-1)
    goal = uniform.double()[..., None] * reached[..., -1:]
    return torch.searchsorted(reached, goal, right=True)[..., 0].clamp(max=weights.shape[-1] - 1)


def without(weights: Tensor, code: Tensor) -> Tensor:
    """Weights [..., V] of a draw that must not give ``code`` [...] again, normalised; all 0 where nothing is left."""
    left = weights.scatter(-1, code[..., None], 0.0)
    total = left.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, left / total, 0.0)


@lru_cache(maxsize=8)  # a search costs as much as decoding some codes; the key is the tensor object
def neighbours(vectors_VE: Tensor, k: int) -> Tensor:
    """int64 [V, k]: each code's nearest other codes, nearest first, by the vectors that the decoder sees."""
    k = min(k, len(vectors_VE) - 1)
    parts = []
    for start in range(0, len(vectors_VE), 1024):
        distance = torch.cdist(vectors_VE[start : start + 1024].double(), vectors_VE.double())
        own = torch.arange(start, start + len(distance), device=distance.device)
        distance[torch.arange(len(distance), device=distance.device), own] = torch.inf
        parts.append(distance.topk(k, largest=False).indices)
    return torch.cat(parts)


@dataclass(frozen=True)
class CodeTest:
    """A rule as it tests drafted codes."""

    rule: RatioRule[Any]
    nearest: Tensor | None  #: int64 [V, k], see `CodeRatios`

    @staticmethod
    def of(acceptance: Acceptance, vectors_VE: Tensor) -> CodeTest:
        """The test of a rule.

        Args:
            acceptance: the rule.
            vectors_VE: the codes as the decoder sees them, for a rule that looks at neighbours.

        Raises:
            ValueError: the rule is not for codes.
        """
        rule = checked(acceptance.chosen, EVIDENCE, "codes")
        if not isinstance(rule, RatioRule):
            raise TypeError(f"rule {rule.name}: a rule on ratios is a RatioRule")
        return CodeTest(rule, neighbours(vectors_VE, rule.neighbours) if rule.neighbours else None)

    def ratios(self, p: Tensor, q_at: Tensor, code: Tensor, place: Tensor, uniform: Tensor) -> CodeRatios:
        """The evidence of R drafts; arguments as the fields of `CodeRatios`."""
        p_at = p.gather(-1, code[..., None])[..., 0]
        log_ratio = (p_at / q_at).log()
        return CodeRatios(
            log_ratio=log_ratio, place=place, uniform=uniform, p=p, q_at=q_at, code=code, nearest=self.nearest
        )


@dataclass(frozen=True)
class Walk:
    """Which drafts of a tree are accepted, of A images."""

    path: Tensor  #: int64 [A, 1 + D]: accepted nodes from node 0 on; past the last one it is repeated
    num_accepted: Tensor  #: int64 [A] length of the accepted path, node 0 not counted
    law: Tensor  #: [A, V] of the code that follows the last accepted one, unnormalised
    verdict: Verdict  #: of every node but 0, [A, T - 1]
    tested: Tensor  #: bool [A, T - 1]: nodes whose test decides the path


def _without_drafts(p_ATV: Tensor) -> Walk:
    none = p_ATV.new_zeros(len(p_ATV), 0)
    none_accepted = torch.zeros(len(p_ATV), dtype=torch.int64, device=p_ATV.device)
    return Walk(none_accepted[:, None], none_accepted, p_ATV[:, 0], Verdict(none.bool(), none, none), none.bool())


def walk_tree(
    tree: Tree,
    codes_AT: Tensor,
    p_ATV: Tensor,
    q_AIV: Tensor,
    uniform_AT: Tensor,
    room_A: Tensor,
    test: CodeTest,
) -> Walk:
    """Tests all drafts of a tree and follows those that are accepted.

    Args:
        tree: its inner nodes come before its leaves.
        codes_AT: the code of every node; that of node 0 is not looked at.
        p_ATV: the target's distribution after each node.
        q_AIV: the draft's after each inner node, from which its first child was drawn; its other children were drawn
            from what was left of it.
        uniform_AT: of the tests; that of node 0 is not used.
        room_A: depth of the deepest nodes that lie within each image.
        test: the rule.
    """
    device, inner = codes_AT.device, q_AIV.shape[1]
    if not inner:
        return _without_drafts(p_ATV)
    depth, image = depths(tree, device), torch.arange(len(codes_AT), device=device)
    law, q = p_ATV[:, :inner], q_AIV
    shape = (len(codes_AT), len(tree.parents))
    accepted, tested = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(2))
    log_ratio, excess = (p_ATV.new_zeros(shape) for _ in range(2))
    itself = torch.arange(codes_AT.shape[1], device=device).expand_as(codes_AT)
    following = itself  # [A, T] the child that is accepted, or else the node itself
    for rank in ranks(tree, inner, device):
        # 1. The next child of every node, while no child before it is accepted. A child that q could not have given,
        # because there are fewer codes than children, is no draft.
        code, at = codes_AT[:, rank.child], rank.child - 1
        p, drawn = rank.of(law), rank.of(q)
        q_at = drawn.gather(2, code[..., None])[..., 0]
        undecided = following[:, rank.node] == rank.node
        real = (q_at > 0) & (depth[rank.node] < room_A[:, None]) & undecided
        # 2. Its test.
        place = (depth[rank.child] - 1).expand_as(code)
        verdict = test.rule.judge(test.ratios(p, q_at, code, place, uniform_AT[:, rank.child]))
        accepts = verdict.accepted & real
        following = following.index_copy(1, rank.node, torch.where(accepts, rank.child, following[:, rank.node]))
        accepted[:, at], log_ratio[:, at] = accepts, verdict.log_ratio
        excess[:, at], tested[:, at] = verdict.excess, real
        # 3. The residual, for the next child or for the code that follows the node.
        rejected = (real & ~accepts)[..., None]
        law = rank.put(law, torch.where(rejected, test.rule.residual(p, drawn), p))
        q = rank.put(q, without(drawn, code)) if rank.others else q
    path = [torch.zeros_like(image)]
    for _ in range(max(tree.depth)):
        path.append(following.gather(1, path[-1][:, None])[:, 0])
    path_AM, last = torch.stack(path, dim=1), path[-1]
    after = torch.where((last < inner)[:, None], law[image, last.clamp(max=inner - 1)], p_ATV[image, last])
    looked_at = (path_AM[:, :, None] == parents(tree, device)).any(dim=1)
    return Walk(path_AM, depth[last], after, Verdict(accepted, log_ratio, excess), tested & looked_at)
