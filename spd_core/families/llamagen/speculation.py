"""Speculative decoding over codes: chains and static trees, every acceptance rule, images that advance independently.

One round of an image:

1. Draft a tree of codes. A chain is a tree without branches. The children of a node are drawn from the draft's
   distribution after it, without repetition.
2. Run the target once over all nodes.
3. Test the children of node 0 in turn, then the children of the first one that is accepted, and so on
   (`spd_core.accept.codes`).
4. Sample the code after the last accepted node: from the residual if children of that node were rejected, else a bonus
   code from the target.
5. An image with all of its codes gives its slot to the next one that waits.

Under the lossless rule the codes have the target's law (Leviathan et al. 2022, arXiv:2211.17192); under a relaxed one
their law is within the expected sum of the drafts' excess.

A device records three functions of tensors (`Round`), for step 1, step 2, and steps 3 and 4, and launches each at once.
The host waits once a round, to learn how far the images are.

Shape legend: B images, A slots, N codes of an image, T nodes of a tree, I inner ones, D its depth, M = D + 1 positions
that a round may decide, L nodes of a level, V codes of the codebook, d model dims, G rows per image.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

from spd_core.accept.codes import CodeTest, pick, walk_tree, without
from spd_core.capture import Captured
from spd_core.decode.log import Decoded
from spd_core.decode.slots import Change, SlotDecoding, moved
from spd_core.decode.workspace import workspace
from spd_core.draws import Draws, Purpose
from spd_core.families.llamagen.codes import LawReader, target_uniforms
from spd_core.families.llamagen.drafts import CodeDraft, Eagle, SmallDraft
from spd_core.families.llamagen.model import EagleDraft, LlamaGen
from spd_core.law import SamplerLaw, Speculative
from spd_core.models.kv import reach_of
from spd_core.models.tree import Tree, depths, parents
from spd_core.precision import at_precision


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
        ValueError: a rule that is not for codes.
    """
    count, device = min(slots or len(labels_B), len(labels_B)), labels_B.device
    models = tuple(at_precision(model, law.dtype) for model in (target, draft))
    key = ("codes, speculative", *models, vectors_VE, law, method, count, device)
    work = workspace(key, device, lambda: Round(target, draft, vectors_VE, law, method, labels_B[:count]))
    return _Decoding(work, labels_B, draws, count).run()


class Round:
    """The models at a law with their caches, and what a round computes: what does not change from batch to batch.

    Args:
        target, draft, vectors_VE, law, method: as for `decode_codes_speculative`.
        labels_A: of the images that are decoded together.
    """

    def __init__(
        self,
        target: LlamaGen,
        draft: LlamaGen | EagleDraft,
        vectors_VE: Tensor,
        law: SamplerLaw,
        method: Speculative,
        labels_A: Tensor,
    ) -> None:
        self.test, self.tree = CodeTest.of(method.acceptance, vectors_VE), tree_of(method)
        self.length, self.depth, nodes = target.config.block_size, max(self.tree.depth), 1 + len(self.tree.parents)
        self.reader = LawReader(target, target, law, labels_A, nodes)
        self.draft: CodeDraft
        if isinstance(draft, EagleDraft):
            self.draft = Eagle(draft, self.reader.head, law, labels_A, nodes, self.depth)
        else:
            self.draft = SmallDraft(draft, law, labels_A, nodes)
        self.draw = Captured(self._draw, "codes.draft")
        self.read = Captured(self._read, "codes.verification")
        self.judge = Captured(self._judge, "codes.acceptance")

    def _draw(self, codes_AN: Tensor, made_A: Tensor, uniform_AT: Tensor, tree: Tree, reach: int) -> tuple[Tensor, ...]:
        """Step 1: the code of every node [A, T] and the draft's distributions after the inner nodes [A, I, V]."""
        codes, laws = [newest(codes_AN, made_A)], list[Tensor]()
        features, above = self.draft.root(codes_AN, made_A, reach), tree.levels[0]
        for level, children in itertools.pairwise(tree.levels):
            if laws:
                parent = parents(tree, made_A.device)[level[0] - 1 : level[-1]] - above[0]
                features = self.draft.level(codes[-1], made_A, tree, level, features[:, :, parent], reach)
                above = level
            position = made_A[:, None] + depths(tree, made_A.device)[level[0] : level[-1] + 1]
            laws.append(self.draft.reader.distribution(features, position))
            codes.append(_children_of(laws[-1], uniform_AT[:, children[0] : children[-1] + 1]))
        return torch.cat(codes, dim=1), torch.cat(laws, dim=1)

    def _read(self, codes_AT: Tensor, made_A: Tensor, tree: Tree, reach: int) -> tuple[Tensor, ...]:
        """Step 2: the target's features [G, A, T, d] of every node."""
        return (self.reader.read(codes_AT, made_A, tree, reach=reach),)

    def _judge(
        self,
        features_GATd: Tensor,
        codes_AT: Tensor,
        q_AIV: Tensor,
        made_A: Tensor,
        testing_AT: Tensor,
        target_AM: Tensor,
        tree: Tree,
    ) -> tuple[Tensor, ...]:
        """Steps 3 and 4; ``target_AM`` are the uniforms of the code that the target samples, by accepted drafts.

        Returns:
            the accepted nodes [A, M] from node 0 on; the codes [A, M] that the round decides, and anything past them;
            how many codes are decided then [A]; and of the tests [4, A, T - 1] the log ratio, the excess, whether the
            draft is accepted, and whether the test counts.
        """
        p_ATV = self.reader.distribution(features_GATd, made_A[:, None] + depths(tree, made_A.device))
        room_A = torch.where(made_A < self.draft.earliest, 0, self.length - made_A)
        walk = walk_tree(tree, codes_AT, p_ATV, q_AIV, testing_AT, room_A, self.test)
        last = walk.num_accepted[:, None]
        sampled = self.reader.draw(walk.law, target_AM.gather(1, last)[:, 0])[:, None]
        accepted = torch.cat([codes_AT.gather(1, walk.path)[:, 1:], sampled], dim=1)
        codes = accepted.scatter(1, last, sampled)
        made = (made_A + walk.num_accepted + 1).clamp(max=self.length)
        tests = torch.stack([walk.verdict.log_ratio, walk.verdict.excess, walk.verdict.accepted, walk.tested])
        return walk.path, codes, made, tests


class _Decoding(SlotDecoding):
    """One decoding of a batch; `run` makes its images."""

    def __init__(self, work: Round, labels: Tensor, draws: Draws, count: int) -> None:
        super().__init__(labels, count, work.length, (work.reader, work.draft))
        self.work, self.draws = work, draws
        self.target_uniforms, self.uniforms = self._uniforms(self.slots.image)
        wide = work.length + work.depth + 1
        self.codes = torch.zeros(count, wide, dtype=torch.int64, device=labels.device)  # past an image's end: anything
        self.done = torch.zeros(len(labels), work.length, dtype=torch.int64, device=labels.device)

    def run(self) -> Decoded:
        self.run_rounds()
        return self.decoded(self.done, self.work.reader.likeliest.clone())

    def _round(self) -> None:
        """One round; the host waits once, when the slots advance."""
        work, made_A = self.work, self.slots.made
        tree, reach = self._tree(), reach_of(self.slots.furthest + 1 + len(work.tree.parents), made_A.device)
        target_AM, drafting_AT, testing_AT = self._of_nodes(tree)
        codes_AT, q_AIV = newest(self.codes, made_A), target_AM.new_zeros(len(made_A), 0, 0)
        # 1. Draft.
        with self.meter.span("draft"):
            if tree.parents:
                codes_AT, q_AIV = work.draw(self.codes, made_A, drafting_AT, tree=tree, reach=reach)
        # 2. One target pass.
        with self.meter.span("context"):
            (features,) = work.read(codes_AT, made_A, tree=tree, reach=reach)
        with self.meter.span("accept"):
            # 3. Accept along the tree, 4. sample the code after the last accepted one.
            path, codes_AM, made, tests = work.judge(
                features, codes_AT, q_AIV, made_A, testing_AT, target_AM, tree=tree
            )
            self.codes.scatter_(1, made_A[:, None] + _counting(codes_AM), codes_AM)
            # Bring the accepted nodes to their positions in the caches; later rounds write anew what lies behind them.
            work.reader.settle(made_A, tree, path)
            work.draft.settle(made_A, tree, path, features)
        self._count(tree, tests)
        self.slots.advance(made.clone())

    def _tree(self) -> Tree:
        """The draft tree, cut to the most drafts that any image can still use."""
        made_cpu, earliest = (self.slots.made_cpu[slot] for slot in self.slots.working), self.work.draft.earliest
        return _cut(self.work.tree, max(0 if made < earliest else self.work.length - made for made in made_cpu))

    def _uniforms(self, image_R: Tensor) -> tuple[Tensor, Tensor]:
        """Of R images: [R, N] for codes that the target samples, [2, R, N, T] for drafting and testing each node."""
        nodes = 1 + len(self.work.tree.parents)
        token = torch.arange(self.work.length, device=image_R.device).repeat(len(image_R))
        image = image_R.repeat_interleave(self.work.length)
        both = [
            self.draws.fine_uniforms(purpose, image, token, nodes).view(len(image_R), self.work.length, nodes)
            for purpose in (Purpose.CODE_DRAFT, Purpose.ACCEPT)
        ]
        return target_uniforms(self.draws, image_R, self.work.length), torch.stack(both)

    def _of_nodes(self, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """Uniforms [A, M] of the target's code by accepted drafts, and [A, T] of drafting and of testing each node."""
        slot, node = (
            torch.arange(count, device=self.target_uniforms.device)
            for count in (len(self.slots), 1 + len(tree.parents))
        )
        made, last = self.slots.made[:, None], self.work.length - 1
        position = (made + torch.arange(max(tree.depth) + 1, device=made.device)).clamp(max=last)
        token = (made + depths(tree, made.device) - 1).clamp(0, last)
        drafting, testing = self.uniforms[:, slot[:, None], token, node].unbind()
        return self.target_uniforms[slot[:, None], position], drafting, testing

    def _count(self, tree: Tree, tests: Tensor) -> None:
        """Counts calls and logs tests of a round, before its slots advance."""
        slots, copies = self.slots, self.work.reader.copies
        levels = tree.levels[:-1] if tree.parents else ()
        self.meter.add(target_context_calls=1, target_context_rows=(1 + len(tree.parents)) * len(slots) * copies)
        if levels:
            rows = sum(map(len, levels)) * len(slots) * copies
            self.meter.add(draft_context_calls=len(levels), draft_context_rows=rows)
            self.log.add(slots.images, slots.made_cpu, tree.depth[1:], tests)

    def _collect(self, change: Change) -> None:
        """Step 5."""
        self.done[change.images] = self.codes[change.ended, : self.work.length]

    def _refill(self, change: Change) -> None:
        if len(change.taken):
            self.target_uniforms[change.taken], self.uniforms[:, change.taken] = self._uniforms(change.newcomers)
        self.target_uniforms, self.codes = moved(self.target_uniforms, change), moved(self.codes, change)
        self.uniforms = moved(self.uniforms, change, dim=1)


def newest(codes_AN: Tensor, made_A: Tensor) -> Tensor:
    """The newest decided code [A, 1] of every image; anything where no code is decided."""
    return codes_AN.gather(1, (made_A - 1).clamp(min=0)[:, None])


def _counting(like_AM: Tensor) -> Tensor:
    return torch.arange(like_AM.shape[1], device=like_AM.device)


def _children_of(q_ALV: Tensor, uniform_AM: Tensor) -> Tensor:
    """Codes [A, M] of the children of L nodes, drawn from each node's distribution without repetition.

    All nodes of a level have the same number of children; siblings lie side by side, in the order of their parents.
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
