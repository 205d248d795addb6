"""Decoding of codes: its law against the enumerated one, caches, batches, both drafts, and mistakes that must fail."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from spd_core.accept import rules
from spd_core.accept.codes import CodeTest, neighbours, probabilities
from spd_core.accept.rules import Lossless
from spd_core.decode import decode
from spd_core.draws import Draws, Purpose
from spd_core.families.llamagen.codes import LawReader, decode_codes_plain, guidance
from spd_core.families.llamagen.drafts import Eagle, SmallDraft
from spd_core.families.llamagen.model import EagleConfig, EagleDraft
from spd_core.families.llamagen.speculation import decode_codes_speculative, tree_of
from spd_core.law import Acceptance, Guarantee, Plain, SamplerLaw, Speculative
from spd_core.models.kv import KvCache
from spd_core.models.tree import Tree
from spd_core.pairs.pair import load_pair
from tests.enumerate_codes import Enumeration, Toy
from tests.tiny_codes import CONFIG, LAW, make_tiny_code_pair, smaller, tiny_codes, tiny_eagle

IMAGES = 20_000
LONG = CONFIG.model_copy(update={"vocab_size": 8, "block_size": 16})
GUIDED = LAW.model_copy(update={"cfg": 2.0, "temperature": 1.1})
FILTERED = SamplerLaw(cfg=1.5, cfg_interval=3, top_k=5, top_p=0.9)
LAWS = {"plain": LAW, "guided": GUIDED, "filtered": FILTERED}
CHAIN, TREE = Speculative(gamma=3), Speculative(tree=(2, 2, 1))
VECTORS = F.normalize(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.fixture(scope="module")
def tiny():
    target = tiny_codes()
    return {"target": target, "draft": smaller(target), "eagle": tiny_eagle(target)}


@pytest.fixture(scope="module")
def long():
    target = tiny_codes(LONG)
    return {"target": target, "draft": smaller(target), "eagle": tiny_eagle(target)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return load_pair(str(make_tiny_code_pair(tmp_path_factory.mktemp("codes") / "tiny")))


def _inputs(count, first=0):
    """Labels, one of them "no class", and draws of images named by their place."""
    return torch.arange(first, first + count) % 4 - 1, Draws(torch.arange(first, first + count) + 100)


def _speculate(models, law, method, inputs, slots=None, draft=None):
    draft = models[method.drafter] if draft is None else draft
    vectors = VECTORS[: models["target"].config.vocab_size]
    with torch.inference_mode():
        return decode_codes_speculative(models["target"], draft, vectors, law, method, *inputs, slots)


def _plain(models, law, inputs):
    with torch.inference_mode():
        return decode_codes_plain(models["target"], law, *inputs)


def _using(method, **fields):
    return method.model_copy(update=fields)


# The law.


@torch.inference_mode()
def _tables(model, law, label):
    """Distributions of every code after all codes before it, from passes over whole sequences without a cache."""
    config = model.config
    codes = torch.tensor(list(itertools.product(range(config.vocab_size), repeat=config.block_size)))
    labels = torch.full((len(codes),), label)
    logits, free = (model.logits(model(codes.roll(1, dims=1), of)) for of in (labels, torch.full_like(labels, -1)))
    position = torch.arange(config.block_size)
    weight = torch.full((config.block_size,), law.cfg)
    if law.cfg_schedule == "linear":
        weight = 1 + (law.cfg - 1) * (position + 1) / config.block_size
    if law.cfg_interval >= 0:
        weight[law.cfg_interval + 2 :] = 1
    chances = probabilities((free + weight[:, None] * (logits - free)).double(), law)
    places = range(config.block_size)
    return tuple(chances[:: config.vocab_size ** (config.block_size - place), place] for place in places)


def _exact_law(target, law, label):
    """Probability [V^N] of every image."""
    return Toy(_tables(target, law, label), ()).law()


def _p_value(tokens, exact):
    """Of a chi-square test of images [n, N] against their law; outcomes of small probability count as one."""
    codes = round(len(exact) ** (1 / tokens.shape[1]))
    place = codes ** torch.arange(tokens.shape[1]).flip(0)
    counts = (tokens * place).sum(dim=1).bincount(minlength=len(exact)).double()
    expected = exact * len(tokens)
    if counts[exact == 0].any():
        return 0.0
    rare = expected < 8
    counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


def _same_label(count, seed):
    return torch.ones(count, dtype=torch.int64), Draws(torch.arange(count) + seed * 10**6)


CASES = {
    "chain": (GUIDED, Speculative(gamma=3), None),
    "tree": (LAW.model_copy(update={"top_k": 3}), Speculative(tree=(3, 2)), 6000),
    "eagle chain": (SamplerLaw(cfg=3.0, cfg_interval=1, temperature=1.3), Speculative(gamma=2, drafter="eagle"), 6000),
    "eagle tree": (GUIDED, Speculative(tree=(2, 1), drafter="eagle"), None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_law_is_the_targets(tiny, case):
    law, method, slots = CASES[case]
    decoded = _speculate(tiny, law, method, _same_label(IMAGES, 1), slots)
    assert 0.2 < decoded.drafts.accepted.float().mean() < 0.9, "the test needs both outcomes"
    assert _p_value(decoded.tokens, _exact_law(tiny["target"], law, 1)) > 1e-3


@pytest.mark.parametrize("law", [GUIDED, CASES["eagle chain"][0]], ids=["guided", "interval"])
def test_plain_decoding_has_the_law_too(tiny, law):
    tokens = _plain(tiny, law, _same_label(IMAGES, 2)).tokens
    assert _p_value(tokens, _exact_law(tiny["target"], law, 1)) > 1e-3
    other = law.model_copy(update={"temperature": law.temperature * 1.1})
    assert _p_value(tokens, _exact_law(tiny["target"], other, 1)) < 1e-6
    assert _p_value(tokens, _exact_law(tiny["target"], law, 0)) < 1e-6


RELAXED = {
    "annealed chain": (GUIDED, Speculative(gamma=3, acceptance=Acceptance(rule="annealed", delta=2.0, nu=0.3))),
    "lantern++ tree": (LAW, Speculative(tree=(2, 1), acceptance=Acceptance(rule="lantern++", k=2, lam=2.0))),
}


@pytest.mark.parametrize("case", RELAXED)
def test_relaxed_decoding_has_the_enumerated_law_and_certificate(tiny, case):
    law, method = RELAXED[case]
    toy = Toy(*(_tables(tiny[model], law, 1) for model in ("target", "draft")))
    rule = CodeTest.of(method.acceptance, VECTORS[:4].double())
    expected = Enumeration(toy, tree_of(method), rule).run()
    decoded = _speculate(tiny, law, method, _same_label(IMAGES, 4))
    assert _p_value(decoded.tokens, expected.law) > 1e-3
    assert _p_value(decoded.tokens, toy.law()) < 1e-6
    spent = torch.zeros(IMAGES).index_add_(0, decoded.drafts.image, decoded.drafts.excess)
    assert spent.mean().item() == pytest.approx(expected.certificate, abs=4 * float(spent.std()) / IMAGES**0.5)
    assert expected.distance(toy) <= expected.certificate


def _tests_by_the_drafts_numbers(self, purpose, *of, right=Draws.fine_uniforms):
    return right(self, Purpose.CODE_DRAFT if purpose is Purpose.ACCEPT else purpose, *of)


def _stays(self, made_A, tree, path_AM):
    """A cache whose kept nodes are left where they were drafted."""


MUTANTS = {
    "samples of p as residual": (CHAIN, rules, "residual", lambda p, q: p),
    "every draft accepted": (
        CHAIN,
        Lossless,
        "log_relaxed",
        lambda self, drafts: torch.full_like(drafts.log_ratio, 1.0),
    ),
    "one number drafts and tests": (CHAIN, Draws, "fine_uniforms", _tests_by_the_drafts_numbers),
    "kept nodes not moved": (Speculative(tree=(3, 2)), LawReader, "settle", _stays),
    "target read without its class": (
        CHAIN,
        LawReader,
        "restart",
        lambda self, slots, labels: None,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_rejected(tiny, name):
    method, *change = MUTANTS[name]
    exact = _exact_law(tiny["target"], GUIDED, 1)
    labels, draws = _same_label(6000, 3)
    # The first slots' images are of another class, so that a slot changes its class.
    labels[:2000] = 0
    tokens = _speculate(tiny, GUIDED, method, (labels, draws), 2000).tokens[2000:]
    assert _p_value(tokens, exact) > 1e-3
    with patch.object(*change):
        tokens = _speculate(tiny, GUIDED, method, (labels, draws), 2000).tokens[2000:]
    assert _p_value(tokens, exact) < 1e-6


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_several_positions_have_the_distributions_of_each(tiny, law):
    """A verification reads many positions at once: temperature, top-k, top-p and guidance act on each."""
    reader = LawReader(tiny["target"], tiny["target"], law, torch.tensor([1, 2]), 4)
    features = torch.randn(reader.copies, 2, 4, 16, generator=torch.Generator().manual_seed(0))
    position = torch.arange(4).expand(2, 4)
    together = reader.distribution(features, position)
    alone = [reader.distribution(features[:, :, at : at + 1], position[:, at : at + 1]) for at in range(4)]
    assert torch.allclose(together, torch.cat(alone, dim=1), atol=1e-6)
    if law is FILTERED:
        assert (together == 0).any(dim=-1).all()


@pytest.mark.parametrize("field", ["top_p", "top_k", "temperature"])
def test_a_law_that_several_positions_lose_is_caught(tiny, field):
    plain = {"top_p": 1.0, "top_k": 0, "temperature": 2.0}
    right = probabilities

    def lost(logits, law):
        return right(logits, law.model_copy(update={field: plain[field]}) if logits.shape[-2] > 1 else law)

    sharp = {
        "top_p": {"top_k": 0, "top_p": 0.5},
        "top_k": {"top_k": 2, "top_p": 1.0},
        "temperature": {"temperature": 1.0},
    }
    law = FILTERED.model_copy(update=sharp[field])
    with patch("spd_core.families.llamagen.codes.probabilities", lost), pytest.raises(AssertionError):
        test_several_positions_have_the_distributions_of_each(tiny, law)


# Agreements without chance.


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("drafter", ["draft", "eagle"])
def test_gamma_zero_is_plain_decoding_bit_for_bit(long, law, drafter):
    fast = _speculate(long, law, Speculative(gamma=0, drafter=drafter), _inputs(5))
    plain = _plain(long, law, _inputs(5))
    assert torch.equal(fast.tokens, plain.tokens)
    assert torch.equal(fast.rounds, plain.rounds)
    assert fast.counts == plain.counts
    assert not len(fast.drafts.image)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("method", [CHAIN, TREE], ids=["chain", "tree"])
def test_a_draft_equal_to_the_target_is_always_accepted(long, law, method):
    decoded = _speculate(long, law, method, _inputs(6), draft=long["target"])
    assert decoded.drafts.accepted.all()
    assert decoded.drafts.log_ratio.abs().max() < 1e-4
    # Three drafts and a code of the target's own each round, 16 codes an image: siblings are never looked at.
    assert decoded.rounds.tolist() == [4] * 6
    assert len(decoded.drafts.image) == 6 * 12


@pytest.mark.parametrize("method", [CHAIN, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("drafter", ["draft", "eagle"])
def test_greedy_decoding_is_plain_greedy_decoding(long, method, drafter):
    law = GUIDED.model_copy(update={"top_k": 1})
    fast, plain = _speculate(long, law, _using(method, drafter=drafter), _inputs(8)), _plain(long, law, _inputs(8))
    assert torch.equal(fast.tokens, plain.tokens)
    assert (fast.rounds < plain.rounds).any()
    assert 0 < fast.drafts.accepted.float().mean() < 1


@pytest.mark.parametrize("drafter", ["draft", "eagle"])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_chain_is_a_tree_without_branches(long, law, drafter):
    chain = _using(CHAIN, drafter=drafter)
    tree = _using(chain, tree=(1, 1, 1))
    assert tree_of(chain) == tree_of(tree) == Tree.chain(3)
    one = _speculate(long, law, chain, _inputs(6))
    # Chains have a shorter way to their mask and leave their nodes where they are.
    with patch.object(Tree, "is_chain", False):
        other = _speculate(long, law, tree, _inputs(6))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.rounds, other.rounds)


def test_nodes_stand_level_by_level_in_their_parents_order():
    assert tree_of(Speculative(tree=(2, 3))).parents == (0, 0, 1, 1, 1, 2, 2, 2)
    assert tree_of(Speculative(gamma=0)).parents == ()
    assert tree_of(TREE).levels == ((0,), (1, 2), (3, 4, 5, 6), (7, 8, 9, 10))


RULES = {
    "lossless": Acceptance(),
    "annealed": Acceptance(rule="annealed", delta=3.0, nu=0.7),
    "lantern": Acceptance(rule="lantern", k=3, delta=0.2),
    "lantern++": Acceptance(rule="lantern++", k=3, lam=3.0),
}


@pytest.mark.parametrize(
    ("law", "method", "drafter", "rule"),
    [
        (GUIDED, CHAIN, "draft", "annealed"),
        (LAW, TREE, "draft", "lossless"),
        (FILTERED, CHAIN, "eagle", "lantern"),
        (GUIDED, TREE, "eagle", "lantern++"),
    ],
    ids=["chain", "tree", "eagle chain", "eagle tree"],
)
def test_an_image_does_not_depend_on_its_batch(long, law, method, drafter, rule):
    method = _using(method, drafter=drafter, acceptance=RULES[rule])
    together = _speculate(long, law, method, _inputs(7))
    assert 0 < together.drafts.accepted.float().mean() < 1
    assert len(set(together.rounds.tolist())) > 1, "images of a batch should advance independently"
    last = _speculate(long, law, method, _inputs(2, 5))
    assert torch.equal(together.tokens[5:], last.tokens)
    for slots in (1, 3):
        some = _speculate(long, law, method, _inputs(7), slots)
        assert torch.equal(together.tokens, some.tokens)
        assert torch.equal(together.rounds, some.rounds)
        ours, theirs = (
            sorted(zip(d.image.tolist(), d.token.tolist(), d.draft_index.tolist(), d.accepted.tolist(), strict=True))
            for d in (together.drafts, some.drafts)
        )
        assert ours == theirs


# What is logged.


@pytest.mark.parametrize("method", [CHAIN, TREE], ids=["chain", "tree"])
def test_records_tell_the_rounds(long, method):
    """Tests follow one another: siblings until one stands, then its children; a round makes one code more than stood.

    What stood and the target's own codes, one a round, are all codes of an image; drafts past its end are not tested.
    """
    decoded = _speculate(long, GUIDED, method, _inputs(8))
    drafts, branches = decoded.drafts, method.tree or (1,) * method.gamma
    assert (drafts.excess == 0).all()
    for image in range(8):
        mine = drafts.image == image
        tests = zip(*(getattr(drafts, n)[mine].tolist() for n in ("draft_index", "token", "accepted")), strict=True)
        made, place, siblings, rounds = -1, 0, 0, 0
        for index, token, stands in tests:
            if index == 0 and token != made:
                made, place, siblings, rounds = token, 0, 0, rounds + 1
            assert token == made + index
            assert index == place
            siblings += 1
            assert siblings <= branches[place]
            if stands:
                place, siblings = place + 1, 0
        assert rounds in (int(decoded.rounds[image]), int(decoded.rounds[image]) - 1)
        own = 16 - int(drafts.accepted[mine].sum())
        assert own in (int(decoded.rounds[image]), int(decoded.rounds[image]) - 1), "the last round may need none"
        assert drafts.token[mine].max() <= 15


@pytest.mark.parametrize("name", [name for name in RULES if name != "lossless"])
def test_relaxed_rules_accept_more_and_say_what_it_costs(long, name):
    exact = _speculate(long, LAW, CHAIN, _inputs(300))
    relaxed = _speculate(long, LAW, _using(CHAIN, acceptance=RULES[name]), _inputs(300))
    gained = float(relaxed.drafts.accepted.float().mean() - exact.drafts.accepted.float().mean())
    spent = float(relaxed.drafts.excess.mean())
    assert spent > 0.01
    # Acceptance grows by what is spent; drafts of late places, tested more often now, are others than before.
    assert gained == pytest.approx(spent, abs=0.1)
    assert ((relaxed.drafts.excess >= 0) & (relaxed.drafts.excess <= 1)).all()
    assert relaxed.rounds.float().mean() < exact.rounds.float().mean()
    assert _using(CHAIN, acceptance=RULES[name]).guarantee is Guarantee.TV


# Caches.


@torch.inference_mode()
@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
def test_a_tree_pass_reads_what_each_path_read_alone_would(long, law):
    """Also after the kept nodes moved to their positions, and at another position in each row."""
    target, tree = long["target"], tree_of(TREE)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 8, (3, 16), generator=generator)
    first = torch.tensor([0, 3, 9])
    labels = torch.tensor([0, -1, 2])
    reader = LawReader(target, target, law, labels, 11)
    reader.read(codes.roll(1, dims=1), torch.zeros(3, dtype=torch.int64))  # what lies past `first` must not be seen
    nodes = torch.randint(0, 8, (3, 11), generator=generator)
    nodes[:, 0] = codes.gather(1, (first - 1).clamp(min=0)[:, None])[:, 0]
    features = reader.read(nodes, first, tree)

    def alone(row, extra):
        """Features [G, M, d] of the row's decided codes and then those of ``extra``."""
        known = [0, *codes[row, : first[row]].tolist(), *extra]
        of = torch.stack([labels[row], torch.tensor(-1)])[: reader.copies]
        return target(torch.tensor([known]).expand(len(of), -1), of)

    def path_to(node):
        return [] if node == 0 else [*path_to(tree.parents[node - 1]), node]

    for row, node in itertools.product(range(3), range(11)):
        expected = alone(row, nodes[row, path_to(node)].tolist())[:, -1]
        assert torch.allclose(features[:, row, node], expected, atol=1e-4)

    kept = torch.tensor([[0, 2, 5, 9], [0, 1, 4, 4], [0, 0, 0, 0]])
    counts = torch.tensor([4, 3, 1])
    reader.settle(first, tree, kept)
    following = torch.tensor([[3], [1], [6]])
    features = reader.read(following, first + counts)
    for row in range(3):
        extra = [*nodes[row, kept[row, 1 : counts[row]]].tolist(), int(following[row])]
        assert torch.allclose(features[:, row, 0], alone(row, extra)[:, -1], atol=1e-4)


@torch.inference_mode()
def test_a_cache_moves_all_that_it_read_before():
    """Goals of one node are sources of another."""
    cache = KvCache(1, 1, 1, 6, 2, torch.float32, torch.device("cpu"))
    layer = cache.layers(6)[0]
    layer.keys[0, 0, :6] = torch.arange(12.0).view(6, 2)
    layer.values[0, 0, :6] = torch.arange(12.0).view(6, 2) + 100
    cache.move(torch.tensor([[0, 2, 4]]), torch.tensor([[0, 1, 2]]))
    assert cache.keys(0)[0, 0, :3].tolist() == [[0, 1], [4, 5], [8, 9]]
    assert cache.values(0)[0, 0, :3].tolist() == [[100, 101], [104, 105], [108, 109]]


@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("slots", [None, 3])
@pytest.mark.parametrize("method", [CHAIN, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("drafter", ["draft", "eagle"])
def test_drafts_know_after_every_round_what_a_fresh_pass_knows(long, drafter, method, slots, law):
    """The feature that drafting starts from, and EAGLE's cache: as if read with the target's features of the codes."""
    target, kind = long["target"], {"draft": SmallDraft, "eagle": Eagle}[drafter]
    original, seen = kind.root, []

    def root(self, codes_AN, made_A, reach):
        features = original(self, codes_AN, made_A, reach)
        for row, made in enumerate(made_A.tolist()):
            if made < self.earliest:
                continue
            copies = self.reader.copies
            labels = self.reader.labels[row]
            known = torch.cat([codes_AN[row, :1] * 0, codes_AN[row, :made]]).expand(copies, -1)
            if drafter == "draft":
                fresh = self.reader.model(known, labels)
            else:
                truth = target(known, labels)
                cache = self.reader.model.cache(copies, made)
                first = torch.ones(copies, dtype=torch.int64)
                fresh = self.reader.model(target.tok_embeddings(known[:, 1:]), truth[:, :-1], first, cache)
                held = self.reader.cache.keys(0).unflatten(0, (-1, copies))[row, :, :, 1 : made + 1]
                assert torch.allclose(held, cache.keys(0)[:, :, 1 : made + 1], atol=1e-4)
            assert torch.allclose(features[:, row, 0], fresh[:, -1], atol=1e-4)
            seen.append(made)
        return features

    with patch.object(kind, "root", root):
        _speculate(long, law, _using(method, drafter=drafter), _inputs(5), slots)
    assert len(set(seen)) > 8


def test_eagle_drafts_each_node_from_its_parents_feature(long):
    root, level, known = Eagle.root, Eagle.level, {}

    def first(self, *given):
        known[0] = root(self, *given)[:, :, 0]
        return known[0][:, :, None]

    def below(self, codes_AL, made_A, tree, nodes, parents_GALd, reach):
        for at, node in enumerate(nodes):
            assert torch.equal(parents_GALd[:, :, at], known[tree.parents[node - 1]])
        features = level(self, codes_AL, made_A, tree, nodes, parents_GALd, reach)
        known.update((node, features[:, :, at]) for at, node in enumerate(nodes))
        return features

    with patch.multiple(Eagle, root=first, level=below):
        _speculate(long, GUIDED, _using(TREE, drafter="eagle"), _inputs(4))
    assert sorted(known) == list(range(7))


@torch.inference_mode()
def test_eagle_reads_a_cache_as_it_reads_a_whole_sequence(long):
    eagle, generator = long["eagle"], torch.Generator().manual_seed(0)
    codes, features = torch.randn(2, 2, 16, 16, generator=generator)
    whole = eagle(codes, features)
    cache = eagle.cache(2, 16)
    cached = eagle(codes, features, torch.ones(2, dtype=torch.int64), cache)
    assert torch.allclose(whole, cached, atol=1e-4)


class _Knowing(EagleDraft):
    """A draft of a target whose features depend on the code before them alone; it then knows the next one."""

    def __init__(self, target):
        super().__init__(EagleConfig(n_head=2, multiple_of=16), target.config)
        self.requires_grad_(False)
        self.layers.load_state_dict(target.layers.state_dict())
        self.fc.weight.copy_(torch.cat([torch.zeros(16, 16), torch.eye(16)], dim=1))
        self.fc.bias.zero_()
        self.norm = target.norm

    def forward(self, *args):
        return self.norm(super().forward(*args))


@pytest.mark.parametrize("method", [CHAIN, TREE], ids=["chain", "tree"])
def test_an_eagle_that_knows_the_next_feature_is_always_accepted(method):
    target = tiny_codes(LONG.model_copy(update={"n_layer": 1}))
    target.layers[0].attention.wo.weight.zero_()
    decoded = _speculate({"target": target}, GUIDED, method, _inputs(6), draft=_Knowing(target))
    assert decoded.drafts.accepted.all()
    # The first code is the target's own; 15 codes in rounds of four.
    assert decoded.rounds.tolist() == [5] * 6
    assert decoded.drafts.token.min() == 1


# Laws.


def test_guidance_schedules():
    position = torch.arange(4)
    assert guidance(SamplerLaw(cfg=3.0, cfg_schedule="constant"), position, 4).tolist() == [3, 3, 3, 3]
    assert guidance(SamplerLaw(cfg=3.0), position, 4).tolist() == [1.5, 2, 2.5, 3]
    short = SamplerLaw(cfg=3.0, cfg_schedule="constant", cfg_interval=1)
    assert guidance(short, position, 4).tolist() == [3, 3, 3, 1]


@pytest.mark.parametrize("method", [CHAIN, TREE, Speculative(gamma=0)], ids=["chain", "tree", "none"])
@pytest.mark.parametrize("drafter", ["draft", "eagle"])
def test_bfloat16_decodes(long, method, drafter):
    law = GUIDED.model_copy(update={"dtype": "bfloat16"})
    decoded = _speculate(long, law, _using(method, drafter=drafter), _inputs(20))
    assert ((decoded.tokens >= 0) & (decoded.tokens < 8)).all()
    if method.tree or method.gamma:
        assert 0 < decoded.drafts.accepted.float().mean() < 1
    else:
        assert torch.equal(decoded.tokens, _plain(long, law, _inputs(20)).tokens)


# The pair.


def test_a_pair_of_codes_decodes_with_both_drafts(pair):
    labels, draws = torch.arange(5) % 3, Draws(torch.arange(5))
    plain = decode(pair, pair.card.law, Plain(), labels, draws, slots=2)
    assert plain.tokens.dtype == torch.int64
    assert pair.to_images(plain.tokens).shape == (5, *pair.card.image_shape) == (5, 6, 6, 1)
    for drafter in pair.card.drafters:
        fast = decode(pair, pair.card.law, _using(TREE, drafter=drafter), labels, draws, slots=2)
        assert fast.tokens.shape == plain.tokens.shape == (5, 16)
        assert (fast.rounds < plain.rounds).any()
    assert pair.card.drafters == ("draft", "eagle")


def test_neighbours_are_those_that_the_decoder_sees(pair):
    """Codes are compared at length one; by the stored rows others are near."""
    codebook = pair.parts["vq"].quantize
    seen, stored = codebook.vectors, codebook.embedding.weight
    assert not torch.equal(neighbours(seen, 2), neighbours(stored, 2))
    assert torch.allclose(seen.norm(dim=1), torch.ones(8))
    method = _using(CHAIN, acceptance=RULES["lantern"])
    labels, draws = torch.zeros(20, dtype=torch.int64), Draws(torch.arange(20))

    def by(vectors):
        with torch.inference_mode():
            return decode_codes_speculative(pair.target, pair.draft, vectors, LAW, method, labels, draws).tokens

    assert torch.equal(decode(pair, LAW, method, labels, draws).tokens, by(seen))
    with patch("spd_core.families.llamagen.family._vectors", lambda codebook: codebook.embedding.weight):
        assert not torch.equal(decode(pair, LAW, method, labels, draws).tokens, by(seen))


def test_what_a_pair_of_codes_does_not_allow(tmp_path, pair):
    inputs = (torch.zeros(1, dtype=torch.int64), Draws(torch.zeros(1, dtype=torch.int64)))
    lonely = load_pair(str(make_tiny_code_pair(tmp_path, eagle=False)))
    assert lonely.card.drafters == ("draft",)
    with pytest.raises(ValueError, match="got 'eagle', allowed: draft"):
        decode(lonely, LAW, Speculative(drafter="eagle"), *inputs)
    with pytest.raises(ValueError, match="loaded without its draft"):
        decode(load_pair(str(tmp_path), draft=False), LAW, Speculative(), *inputs)
    with pytest.raises(ValueError, match="rule: got 'coupled', allowed: lossless, annealed, lantern"):
        decode(pair, LAW, Speculative(acceptance=Acceptance(rule="coupled", radius=1.0)), *inputs)
    with pytest.raises(ValueError, match="slots: got 0"):
        decode(pair, LAW, Speculative(), *inputs, slots=0)
