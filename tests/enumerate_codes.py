"""The law of speculative decoding over codes, enumerated: every drafted code, every outcome of a test, the last draw.

The mathematics is the product's: `_children_of` draws the drafts, the walk tests them and names the law of the code
that follows, the rule gives every test's probability. What is here chooses the uniform numbers and adds up
probabilities, in float64.

Shape legend: V codes, A enumerated cases of a round, T nodes of a tree, I inner ones.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spd_core.accept.certificate import log_weights
from spd_core.accept.codes import CodeTest, Walk, walk_tree
from spd_core.accept.lemma import Verdict, acceptance_probability
from spd_core.accept.rules import CodeRatios, RatioRule
from spd_core.families.llamagen.speculation import _children_of, _cut
from spd_core.models.tree import Tree


@dataclass(frozen=True)
class Toy:
    """Target and draft as tables: of the code at position m, [V^m, V] by the codes before it read as a number."""

    p: tuple[Tensor, ...]
    q: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        return len(self.p)

    @property
    def codes(self) -> int:
        return self.p[0].shape[1]

    def law(self) -> Tensor:
        """The target's law of all codes, [V^L] by the codes read as a number."""
        law = torch.ones(1, dtype=torch.float64)
        for table in self.p:
            law = (law[:, None] * table).flatten()
        return law

    def after(self, tables: tuple[Tensor, ...], prefix: Tensor, place: int) -> Tensor:
        """Distributions [..., V] at a place, after prefixes [...]; past the last code they mean nothing."""
        if place < self.length:
            return tables[place][prefix]
        return torch.full((*prefix.shape, self.codes), 1.0 / self.codes, dtype=torch.float64)


@dataclass(frozen=True)
class Outcome:
    """What speculative decoding does to a toy."""

    law: Tensor  #: [V^L]
    certificate: float  #: expected sum of the tested drafts' excess
    accepted: float  #: probability that the first draft of the first round stands

    def distance(self, toy: Toy) -> float:
        """Total variation from the target's law."""
        return float((self.law - toy.law()).abs().sum()) / 2


Drawing = Callable[[Tensor, Tensor], Tensor]
Walking = Callable[[Tree, Tensor, Tensor, Tensor, Tensor, Tensor, CodeTest], Walk]


class Watched:
    """A rule whose probabilities of keeping a draft are noted."""

    def __init__(self, rule: RatioRule, chances: list[Tensor]) -> None:
        self.rule, self.chances = rule, chances

    def judge(self, drafts: CodeRatios) -> Verdict:
        self.chances.append(acceptance_probability(self.rule.log_relaxed(drafts)))
        return self.rule.judge(drafts)

    def residual(self, p: Tensor, q: Tensor) -> Tensor:
        return self.rule.residual(p, q)


def random_toy(codes: int, length: int, seed: int, sharpness: float = 1.5, agreement: float = 1.0) -> Toy:
    """Distributions whose logits are normal; the draft's are the target's and as much of its own."""
    generator = torch.Generator().manual_seed(seed)

    def logits(place: int) -> Tensor:
        return torch.randn(codes**place, codes, generator=generator, dtype=torch.float64) * sharpness

    p = [logits(place) for place in range(length)]
    q = [agreement * of_target + logits(place) for place, of_target in enumerate(p)]
    return Toy(tuple(x.softmax(dim=-1) for x in p), tuple(x.softmax(dim=-1) for x in q))


def drawn_children(q_V: Tensor, count: int, draw: Drawing = _children_of) -> dict[tuple[int, ...], float]:
    """Probability of each sequence of ``count`` children of a node.

    A child is drawn from what its elder siblings left of q: whatever subset that is, its shares of [0, 1] end at one of
    the points below, so the draw is constant between two of them.
    """
    codes = len(q_V)
    rows = [q_V]
    if count > 1:
        gone = itertools.chain.from_iterable(itertools.combinations(range(codes), n) for n in range(1, count))
        keep = torch.ones(codes, dtype=torch.float64)
        rows += [q_V * keep.index_fill(0, torch.tensor(some), 0.0) for some in gone]
    ends = torch.cat([row.cumsum(dim=0) / row.sum() for row in rows if row.sum() > 0])
    ends = torch.cat([ends.new_tensor([0.0, 1.0]), ends]).clamp(0, 1).unique()
    cells = [(float(a + b) / 2, float(b - a)) for a, b in itertools.pairwise(ends) if b - a > 1e-15]
    grid = list(itertools.product(cells, repeat=count))
    uniform = torch.tensor([[middle for middle, _ in point] for point in grid], dtype=torch.float64)
    children = draw(q_V.expand(len(grid), 1, codes), uniform)
    shares: dict[tuple[int, ...], float] = {}
    for drawn, point in zip(children.tolist(), grid, strict=True):
        weight = 1.0
        for _, width in point:
            weight *= width
        shares[tuple(drawn)] = shares.get(tuple(drawn), 0.0) + weight
    return shares


class Enumeration:
    """Decodes a toy in every possible way.

    Args:
        toy: target and draft.
        tree: of a round.
        test: the rule.
        cut: whether the tree is cut to the room, as when all images of a batch have as much.
        draw, walk: the product's, or a mutant.
    """

    def __init__(
        self,
        toy: Toy,
        tree: Tree,
        test: CodeTest,
        cut: bool = True,
        draw: Drawing = _children_of,
        walk: Walking = walk_tree,
    ) -> None:
        self.toy, self.tree, self.test, self.cut, self.draw, self.walk = toy, tree, test, cut, draw, walk
        self.children: dict[tuple[int, int, int], dict[tuple[int, ...], float]] = {}

    def run(self) -> Outcome:
        """The law, round by round: what a round leaves undecided is decoded by further ones."""
        toy = self.toy
        undecided = [torch.zeros(toy.codes**made, dtype=torch.float64) for made in range(toy.length + 1)]
        undecided[0] += 1.0
        certificate, accepted = 0.0, 0.0
        for made in range(toy.length):
            for prefix in range(toy.codes**made):
                share = float(undecided[made][prefix])
                if share == 0:
                    continue
                spent, first = self._round(made, prefix, share, undecided)
                certificate += spent
                accepted = first if made == 0 else accepted
        return Outcome(undecided[-1], certificate, accepted)

    def _prefixes(self) -> list[tuple[int, int]]:
        return [(made, prefix) for made in range(self.toy.length) for prefix in range(self.toy.codes**made)]

    def certified(self) -> float:
        """Expected certificate of an image (`spd_core.accept.certificate`), over all that a decoding may draw."""
        toy = self.toy
        # Of each prefix: chances and log weights of the ways that lead to it.
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        ways: defaultdict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list, {(0, 0): [(one, zero)]})
        for made, prefix in self._prefixes():
            if (made, prefix) not in ways:
                continue
            chance, weight = _merged(ways.pop((made, prefix)))
            walk, codes, happens = self._cases(made, prefix)
            logged = (walk.verdict.log_ratio, walk.verdict.accepted, walk.verdict.excess)
            of_tests = torch.from_numpy(log_weights(*(column.numpy() for column in logged)))
            of_case = torch.where(walk.tested, of_tests, 0.0).sum(dim=1)
            for row in happens.nonzero()[:, 0].tolist():
                decided, kept = prefix, int(walk.num_accepted[row])
                for node in walk.path[row, 1 : kept + 1].tolist():
                    decided = decided * toy.codes + int(codes[row, node])
                after = (chance * happens[row], weight + of_case[row])
                if made + kept == toy.length:
                    ways[toy.length, decided].append(after)
                    continue
                for code, share in enumerate((walk.law[row] / walk.law[row].sum()).tolist()):
                    if share > 0:
                        ways[made + kept + 1, decided * toy.codes + code].append((after[0] * share, after[1]))
        merged = (_merged(parts) for parts in ways.values())
        return sum(float((chance * -torch.expm1(weight.clamp(max=0.0))).sum()) for chance, weight in merged)

    def _drafts(self, tree: Tree, made: int, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
        """Every draft of a round: codes [A, T], what each node has been read after [A, T], probability [A]."""
        cases = [([0], [prefix], 1.0)]
        for node in range(1 + len(tree.parents)):
            below = tree.children(node)
            if not below:
                continue
            grown = []
            for codes, known, share in cases:
                place = made + tree.depth[node]
                for children, chance in self._children(place, known[node], len(below)).items():
                    read = [known[node] * self.toy.codes + code for code in children]
                    grown.append(([*codes, *children], [*known, *read], share * chance))
            cases = grown
        codes, known, shares = zip(*cases, strict=True)
        return torch.tensor(codes), torch.tensor(known), torch.tensor(shares, dtype=torch.float64)

    def _children(self, place: int, prefix: int, count: int) -> dict[tuple[int, ...], float]:
        key = (place, prefix if place < self.toy.length else 0, count)
        if key not in self.children:
            q = self.toy.after(self.toy.q, torch.tensor(key[1]), place)
            self.children[key] = drawn_children(q, count, self.draw)
        return self.children[key]

    def _round(self, made: int, prefix: int, share: float, undecided: list[Tensor]) -> tuple[float, float]:
        walk, codes, chance = self._cases(made, prefix)
        chance = chance * share
        self._decide(walk, made, prefix, codes, chance, undecided)
        spent = float((chance[:, None] * torch.where(walk.tested, walk.verdict.excess, 0.0)).sum())
        first = float((chance * walk.verdict.accepted[:, 0]).sum()) if walk.verdict.accepted.shape[1] else 0.0
        return spent, first

    def _cases(self, made: int, prefix: int) -> tuple[Walk, Tensor, Tensor]:
        """Every case of a round after a prefix: the walk, the codes of the nodes [A, T], and its chance [A]."""
        toy, room = self.toy, self.toy.length - made
        tree = _cut(self.tree, room) if self.cut else self.tree
        codes, known, chance = self._drafts(tree, made, prefix)
        drafts = len(tree.parents)
        # Every pattern of tests: number 0 makes a test stand wherever it may, number 1 makes it fail.
        patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=drafts)), dtype=torch.float64)
        patterns = torch.cat([torch.zeros(len(patterns), 1, dtype=torch.float64), patterns], dim=1)
        cases, ways = len(codes), len(patterns)
        codes, known, chance = (x.repeat_interleave(ways, dim=0) for x in (codes, known, chance))
        uniform = patterns.repeat(cases, 1)
        at = [made + deep for deep in tree.depth]
        inner = [node for node in range(1 + drafts) if tree.children(node)]
        p = torch.stack([toy.after(toy.p, known[:, node], at[node]) for node in range(1 + drafts)], dim=1)
        q = torch.stack([toy.after(toy.q, known[:, node], at[node]) for node in inner], dim=1) if inner else p[:, :0]
        stands: list[Tensor] = []

        test = replace(self.test, rule=Watched(self.test.rule, stands))
        walk = self.walk(tree, codes, p, q, uniform, torch.full((len(codes),), room), test)
        rank_order = [
            node
            for rank in range(max((len(tree.children(node)) for node in inner), default=0))
            for node in (tree.children(parent)[rank] for parent in inner if rank < len(tree.children(parent)))
        ]
        if rank_order:
            chance_of_test = torch.cat(stands, dim=1)[:, torch.tensor(rank_order).argsort()]
            happens = torch.where(uniform[:, 1:] == 0, chance_of_test, 1.0 - chance_of_test)
            # A test without consequence may be of a code that neither model gives; both its outcomes are one.
            happens = torch.where(walk.tested, happens, 0.5)
            chance = chance * happens.prod(dim=1)
        return walk, codes, chance

    def _decide(
        self, walk: Walk, made: int, prefix: int, codes: Tensor, chance: Tensor, undecided: list[Tensor]
    ) -> None:
        """Adds a round's cases to the law of what is undecided after it."""
        toy = self.toy
        for kept in walk.num_accepted.unique().tolist():
            rows = (walk.num_accepted == kept).nonzero()[:, 0]
            decided = torch.full((len(rows),), prefix)
            for step in range(1, kept + 1):
                decided = decided * toy.codes + codes[rows].gather(1, walk.path[rows, step, None])[:, 0]
            if made + kept == toy.length:
                undecided[-1].index_add_(0, decided, chance[rows])
                continue
            law = walk.law[rows] / walk.law[rows].sum(dim=1, keepdim=True)
            following = decided[:, None] * toy.codes + torch.arange(toy.codes)
            shares = chance[rows, None] * law
            undecided[made + kept + 1].index_add_(0, following.flatten(), shares.flatten())


def _merged(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Ways of one log weight as one."""
    chance, weight = (torch.cat(column) for column in zip(*parts, strict=True))
    weights, index = (weight * 1e10).round().div(1e10).unique(return_inverse=True)
    return torch.zeros_like(weights).index_add_(0, index, chance), weights
