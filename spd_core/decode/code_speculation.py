"""Speculative decoding over codes: chains and static trees, every acceptance rule, images that advance independently.

One round of an image:

1. Draft a tree of codes: the children of a node are drawn from the draft's distribution there, without repetition.
2. Run the target once over all nodes.
3. Test the children of node 0 in turn, then those of the first that stands, and so on (`spd_core.accept_codes`).
4. Draw the code after the last one kept: from the residual if drafts of it were refused, else from the target.
5. An image with all of its codes leaves its slot to the next one that waits.

Under the lossless rule the codes have the target's law (Leviathan et al. 2022, arXiv:2211.17192); under a relaxed one
their law is within the expected sum of the drafts' excess.

Shape legend: B images, A slots in use, N codes of an image, T nodes of a tree, L of a level, V codes of the codebook.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

from spd_core.accept_codes import Walk, pick, relaxation, walk_tree, without
from spd_core.decode.code_drafts import CodeDraft, Eagle, SmallDraft
from spd_core.decode.codes import LawReader, own_uniforms
from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.draws import Draws, Purpose
from spd_core.law import SamplerLaw, Speculative
from spd_core.models.llamagen import EagleDraft, LlamaGen, Tree, depths


def tree_of(method: Speculative) -> Tree:
    """The draft tree of a method: its own, or a chain of gamma."""
    branches = method.tree or (1,) * method.gamma
    parents: list[int] = []
    level = [0]
    for count in branches:
        parents += [node for node in level for _ in range(count)]
        level = list(range(len(parents) - len(level) * count + 1, len(parents) + 1))
    return Tree(tuple(parents))


@cache
def _cut(tree: Tree, depth: int) -> Tree:
    """The tree down to a depth."""
    return Tree(tuple(parent for parent, deep in zip(tree.parents, tree.depth[1:], strict=True) if deep <= depth))


def decode_codes_speculative(
    target: LlamaGen,
    draft: LlamaGen | EagleDraft,
    vectors_VE: Tensor,
    law: SamplerLaw,
    method: Speculative,
    labels_B: Tensor,
    draws: Draws,
    slots: int | None = None,
) -> Decoded:
    """Samples images at ``law``, at most ``slots`` of them at once.

    Args:
        target, draft: the models.
        vectors_VE: the codes as the decoder sees them, for the rules that look at neighbours.
        law: what is sampled; of the fields that name a model family only those of codes are used.
        method: how.
        labels_B: int64 class labels; below 0: no class.
        draws: the images' random numbers.
        slots: images decoded together, at least 1; None: all.

    Raises:
        ValueError: a rule of continuous tokens.
    """
    return _Decoding(target, draft, vectors_VE, law, method, labels_B, draws, slots or len(labels_B)).run()


class _Decoding:
    """The state of a batch; `run` empties it."""

    def __init__(
        self,
        target: LlamaGen,
        draft: LlamaGen | EagleDraft,
        vectors_VE: Tensor,
        law: SamplerLaw,
        method: Speculative,
        labels: Tensor,
        draws: Draws,
        slots: int,
    ) -> None:
        self.labels, self.draws = labels, draws
        self.relax = relaxation(method.acceptance, vectors_VE)
        self.meter = Meter(labels.device)
        self.length, self.tree = target.config.block_size, tree_of(method)
        nodes, depth = 1 + len(self.tree.parents), max(self.tree.depth)
        self.active = torch.arange(len(labels), device=labels.device)[:slots]  # [A] image of each slot
        self.made = torch.zeros_like(self.active)  # [A] codes decided
        self.seated = len(self.active)  # images that have been given a slot
        self.codes = torch.zeros(len(self.active), self.length + depth + 1, dtype=torch.int64, device=labels.device)
        self.reader = LawReader(target, target, law, labels[:slots], nodes)
        self.draft: CodeDraft
        if isinstance(draft, EagleDraft):
            self.draft = Eagle(draft, self.reader.head, law, labels[:slots], nodes, depth)
        else:
            self.draft = SmallDraft(draft, law, labels[:slots], nodes)
        self.own, self.drafting, self.testing = self._uniforms(self.active)
        self.done = torch.zeros(len(labels), self.length, dtype=torch.int64, device=labels.device)
        self.rounds = torch.zeros_like(labels)
        self.records: list[DraftRecords] = []

    def run(self) -> Decoded:
        while len(self.active):
            self._round()
            ended = (self.made == self.length).nonzero()[:, 0]
            if len(ended):
                self.done[self.active[ended]] = self.codes[ended, : self.length]
                self._refill(ended)
        drafts = DraftRecords.concatenate(self.records)
        return Decoded(self.done, self.rounds.cpu(), drafts, dict(self.meter.counts), self.meter.seconds())

    def _uniforms(self, image_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the images: [R, N] for the target's own codes, [R, N, T] for drafting and for testing each node."""
        nodes = 1 + len(self.tree.parents)
        token = torch.arange(self.length, device=image_R.device).repeat(len(image_R))
        image = image_R.repeat_interleave(self.length)
        drafting, testing = (
            self.draws.fine_uniforms(purpose, image, token, nodes).view(len(image_R), self.length, nodes)
            for purpose in (Purpose.CODE_DRAFT, Purpose.ACCEPT)
        )
        return own_uniforms(self.draws, image_R, self.length), drafting, testing

    def _refill(self, free: Tensor) -> None:
        """Gives the slots ``free`` to the next images that wait; drops those that nobody waits for."""
        taken = free[: len(self.labels) - self.seated]
        images = torch.arange(self.seated, self.seated + len(taken), device=free.device)
        self.seated += len(taken)
        if len(taken):
            self.active[taken], self.made[taken] = images, 0
            self.own[taken], self.drafting[taken], self.testing[taken] = self._uniforms(images)
            for reader in (self.reader, self.draft):
                reader.restart(taken, self.labels[images])
        if len(taken) < len(free):
            going = (self.made < self.length).nonzero()[:, 0]
            self.active, self.made, self.codes = self.active[going], self.made[going], self.codes[going]
            self.own, self.drafting, self.testing = self.own[going], self.drafting[going], self.testing[going]
            for reader in (self.reader, self.draft):
                reader.keep(going)

    def _round(self) -> None:
        room_A = self.length - self.made
        room_A = torch.where(self.made < self.draft.earliest, 0, room_A)
        tree = _cut(self.tree, int(room_A.max()))
        depth = depths(tree, self.made.device)
        position_AT = self.made[:, None] + depth  # of each node; the code it reads is the one before
        uniform = self._of_nodes(self.testing, position_AT - 1)
        with self.meter.span("draft"):
            codes_AT, q_AIV = self._drafts(tree, position_AT)
        with self.meter.span("context"):
            features = self.reader.read(codes_AT, self.made, tree)
        with self.meter.span("accept"):
            p_ATV = self.reader.distribution(features, position_AT)
            walk = walk_tree(tree, codes_AT, p_ATV, q_AIV, uniform, room_A, self.relax)
        self.meter.add(target_context_calls=1, target_context_rows=codes_AT.numel() * self.reader.copies)
        self._record(tree, walk, position_AT)
        self._advance(tree, walk, codes_AT, features)

    def _of_nodes(self, table_ANT: Tensor, token_AT: Tensor) -> Tensor:
        nodes = torch.arange(token_AT.shape[1], device=token_AT.device)
        slot = torch.arange(len(table_ANT), device=token_AT.device)[:, None]
        return table_ANT[slot, token_AT.clamp(0, self.length - 1), nodes]

    def _drafts(self, tree: Tree, position_AT: Tensor) -> tuple[Tensor, Tensor]:
        """Step 1: the code of every node [A, T] and the draft's distributions after the inner nodes [A, I, V]."""
        uniform = self._of_nodes(self.drafting, position_AT - 1)
        before = (self.made - 1).clamp(min=0)[:, None]
        codes = [self.codes.gather(1, before)]
        if not tree.parents:
            return codes[0], torch.zeros(len(before), 0, self.reader.head.config.vocab_size, device=before.device)
        laws: list[Tensor] = []
        features, above = self.draft.root(self.codes, self.made), tree.levels[0]
        for level, children in itertools.pairwise(tree.levels):
            if laws:
                parents = [tree.parents[node - 1] - above[0] for node in level]
                features = self.draft.level(codes[-1], self.made, tree, level, features[:, :, parents])
                above = level
            q = self.draft.reader.distribution(features, position_AT[:, level[0] : level[-1] + 1])
            laws.append(q)
            codes.append(_children_of(q, uniform[:, children[0] : children[-1] + 1]))
            self.meter.add(draft_context_calls=1, draft_context_rows=q.shape[0] * q.shape[1] * self.reader.copies)
        return torch.cat(codes, dim=1), torch.cat(laws, dim=1)

    def _advance(self, tree: Tree, walk: Walk, codes_AT: Tensor, features: Tensor) -> None:
        """Steps 4 and 5's books: codes, caches and counts after a round."""
        position = self.made[:, None] + torch.arange(walk.path.shape[1], device=self.made.device)
        # Node 0's code is decided already and lies one before; past the last kept node anything may be written.
        self.codes.scatter_(1, position[:, 1:] - 1, codes_AT.gather(1, walk.path)[:, 1:])
        at = (self.made + walk.kept).clamp(max=self.length - 1)
        slot = torch.arange(len(at), device=at.device)
        own = pick(walk.law, self.own[slot, at])
        self.codes[slot, self.made + walk.kept] = own
        self.reader.settle(self.made, tree, walk.path)
        self.draft.settle(self.made, tree, walk.path, features)
        self.rounds[self.active] += 1
        self.made = (self.made + walk.kept + 1).clamp(max=self.length)

    def _record(self, tree: Tree, walk: Walk, position_AT: Tensor) -> None:
        row, node = walk.tested.nonzero(as_tuple=True)
        place = depths(tree, row.device)[1:][node] - 1
        columns = (getattr(walk.verdict, name)[row, node] for name in ("log_ratio", "accepted", "excess"))
        self.records.append(DraftRecords(self.active[row], position_AT[row, node + 1] - 1, place, *columns))


def _children_of(q_ALV: Tensor, uniform_AM: Tensor) -> Tensor:
    """Codes [A, M] of the children of L nodes, drawn from each node's distribution without repetition.

    All nodes of a level have the same number of children, and they stand in their parents' order.
    """
    count = uniform_AM.shape[1] // q_ALV.shape[1]
    uniform = uniform_AM.view(*q_ALV.shape[:2], count)
    codes = []
    for rank in range(count):
        code = pick(q_ALV, uniform[..., rank])
        codes.append(code)
        if rank + 1 < count:
            q_ALV = without(q_ALV, code)
    return torch.stack(codes, dim=2).flatten(1)
