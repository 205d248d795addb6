"""Acceptance of drafted codes: relaxed ratios, residuals and trees, as pure functions of distributions over codes.

A drafted code x of q stands with probability min(1, relaxed ratio) (`spd_core.accept.paths.judge`):

- lossless: p(x) / q(x);
- annealed: w p(x) / q(x), w >= 1 falling along the block (COOL-SD);
- lantern, lantern++: (p(x) + S(x)) / q(x), S the target's mass on the longest prefix of x's k nearest codes that stays
  within delta, or within (lam - 1) p(x) (LANTERN, arXiv:2410.03355; LANTERN++, arXiv:2502.06352).

Every one of these is at least min(1, p/q), so for all of them the residual Norm[(p - q f)_+] of a refused draft is the
lossless one, Norm[(p - q)_+], and the token's law is within sum_x (q f - p)_+ of p. (The published residual of LANTERN,
that of p with the neighbours' mass moved onto the refused code, is as far from p, but another one for each code.)

Several drafts of one token, siblings in a tree, are tested in turn: after a refusal the next one is tested against the
residual, and is itself drawn from q without those before it. That is exact for the lossless rule (recursive rejection
sampling, arXiv:2402.14160).

Shape legend: A images, I inner nodes of a tree, T all of its nodes, C most children of a node, V codes, k neighbours, R
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spd_core.accept.paths import Verdict, annealed_log_weights, judge
from spd_core.law import Acceptance, SamplerLaw
from spd_core.models.tree import Tree, depths, parents, ranks

#: What a rule makes of a log ratio: (p [R, V], q(x) [R], codes x [R], log p(x)/q(x) [R], place [R]) -> [R].
Relaxation = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Norm[(p - q)_+] [..., V]; p itself where nothing is left, which is where p equals q and no draft is refused."""
    left = (p - q).clamp(min=0.0)
    total = left.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, left / total, p)


def without(weights: Tensor, code: Tensor) -> Tensor:
    """Weights [..., V] of a draw that must not give ``code`` [...] again, normalised; all 0 where nothing is left."""
    left = weights.scatter(-1, code[..., None], 0.0)
    total = left.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, left / total, 0.0)


@lru_cache(maxsize=8)  # a search costs as much as decoding some codes; the tensor's identity is the key
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


def neighbour_mass(rule: Acceptance, p_RV: Tensor, code_R: Tensor, order_Vk: Tensor) -> Tensor:
    """S [R] of rule lantern or lantern++: p on the longest prefix of the code's neighbours within its budget."""
    masses = p_RV.gather(1, order_Vk[code_R]).cumsum(dim=1)
    own = p_RV.gather(1, code_R[:, None])
    budget = torch.full_like(own, rule.delta) if rule.rule == "lantern" else (rule.lam - 1.0) * own
    return torch.where(masses <= budget, masses, 0.0).amax(dim=1)


def relaxation(rule: Acceptance, vectors_VE: Tensor) -> Relaxation:
    """What a rule makes of log ratios.

    Args:
        rule: any but coupled.
        vectors_VE: the codes as the decoder sees them; only the neighbourly rules look at them.

    Raises:
        ValueError: the rule is for continuous tokens only.
    """
    if rule.rule == "coupled":
        raise ValueError("acceptance.rule: got 'coupled', allowed for codes: lossless, annealed, lantern, lantern++")
    if not rule.neighbourly:
        return lambda p, q_at, code, log_ratio, place: log_ratio + annealed_log_weights(rule, place)
    order = neighbours(vectors_VE, rule.k)

    def relaxed(p: Tensor, q_at: Tensor, code: Tensor, log_ratio: Tensor, place: Tensor) -> Tensor:
        mass = neighbour_mass(rule, p, code, order)
        return ((p.gather(1, code[:, None])[:, 0] + mass) / q_at).log()

    return relaxed


@dataclass(frozen=True)
class Walk:
    """Which drafts of a tree stand, of A images."""

    path: Tensor  #: int64 [A, 1 + D]: kept nodes from node 0 on; past the last one it is repeated
    kept: Tensor  #: int64 [A] drafts kept
    law: Tensor  #: [A, V] unnormalised: of the code that follows the last kept one
    verdict: Verdict  #: of every node but 0, [A, T - 1]
    tested: Tensor  #: bool [A, T - 1]: those whose test the result rests on


def _without_drafts(p_ATV: Tensor) -> Walk:
    none = p_ATV.new_zeros(len(p_ATV), 0)
    kept = torch.zeros(len(p_ATV), dtype=torch.int64, device=p_ATV.device)
    return Walk(kept[:, None], kept, p_ATV[:, 0], Verdict(none.bool(), none, none), none.bool())


def walk_tree(
    tree: Tree,
    codes_AT: Tensor,
    p_ATV: Tensor,
    q_AIV: Tensor,
    uniform_AT: Tensor,
    room_A: Tensor,
    relax: Relaxation,
) -> Walk:
    """Tests all drafts of a tree and follows those that stand.

    Args:
        tree: its inner nodes come before its leaves.
        codes_AT: the code of every node; that of node 0 is not looked at.
        p_ATV: the target's distribution after each node.
        q_AIV: the draft's after each inner node, from which its first child was drawn; its other children were drawn
            from what was left of it.
        uniform_AT: of the tests; that of node 0 is not used.
        room_A: deepest node that is a draft at all in each image.
        relax: the rule.
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
    following = itself  # [A, T] the child that stands, or else the node itself
    for rank in ranks(tree, inner, device):
        # 1. The next child of every node that has one, while none before it stands. What q could not have given, there
        # being fewer codes than children, is no draft.
        code, at = codes_AT[:, rank.child], rank.child - 1
        p, drawn = rank.of(law), rank.of(q)
        p_at, q_at = (of.gather(2, code[..., None])[..., 0] for of in (p, drawn))
        undecided = following[:, rank.node] == rank.node
        real = (q_at > 0) & (depth[rank.node] < room_A[:, None]) & undecided
        # 2. Its test.
        ratio = (p_at / q_at).log()
        place = (depth[rank.child] - 1).expand_as(code)
        flat = (p.flatten(0, 1), q_at.flatten(), code.flatten(), ratio.flatten(), place.flatten())
        verdict = judge(ratio, relax(*flat).view_as(ratio), uniform_AT[:, rank.child])
        stands = verdict.accepted & real
        following = following.index_copy(1, rank.node, torch.where(stands, rank.child, following[:, rank.node]))
        accepted[:, at], log_ratio[:, at], excess[:, at], tested[:, at] = stands, ratio, verdict.excess, real
        # 3. What is left for the next child, or for the code that follows the node.
        refused = (real & ~stands)[..., None]
        law = rank.put(law, torch.where(refused, residual(p, drawn), p))
        q = rank.put(q, without(drawn, code)) if rank.others else q
    path = [torch.zeros_like(image)]
    for _ in range(max(tree.depth)):
        path.append(following.gather(1, path[-1][:, None])[:, 0])
    path_AM, last = torch.stack(path, dim=1), path[-1]
    after = torch.where((last < inner)[:, None], law[image, last.clamp(max=inner - 1)], p_ATV[image, last])
    looked_at = (path_AM[:, :, None] == parents(tree, device)).any(dim=1)
    return Walk(path_AM, depth[last], after, Verdict(accepted, log_ratio, excess), tested & looked_at)
