"""Mutants of speculative decoding over codes: chain, tree, EAGLE, relaxed rules."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from spd_core.accept import codes as accept_codes
from spd_core.accept import rules
from spd_core.accept.rules import Annealed, RatioRule
from spd_core.draws import Draws
from spd_core.families.llamagen import codes
from spd_core.families.llamagen import speculation as code_speculation
from spd_core.families.llamagen.codes import LawReader, decode_codes_plain
from spd_core.families.llamagen.model import LlamaGen
from spd_core.families.llamagen.speculation import tree_of
from spd_core.law import Acceptance, SamplerLaw, Speculative
from tests.enumerate_codes import Enumeration, Toy
from tests.spd_core import test_codes as of_codes
from tests.spd_core.mutants.base import Decoder, Mutant
from tests.tiny_codes import smaller, tiny_codes, tiny_eagle

IMAGES = 8000
LAW = SamplerLaw(cfg=2.0, temperature=1.4, top_k=3)
EAGLE = SamplerLaw(cfg=3.0, cfg_interval=1, temperature=1.3)
RELAXED = Speculative(gamma=3, acceptance=Acceptance(rule="annealed", delta=2.0, nu=0.3))


def _models():
    target = tiny_codes()
    return {"target": target, "draft": smaller(target), "eagle": tiny_eagle(target)}


@cache
def _exact(law: SamplerLaw) -> Tensor:
    return of_codes._exact_law(tiny_codes(), law, 1)


@cache
def _expected():
    models = _models()
    toy = Toy(*(of_codes._tables(models[model], LAW, 1) for model in ("target", "draft")))
    test = accept_codes.CodeTest.of(RELAXED.acceptance, of_codes.VECTORS[:4].double())
    return Enumeration(toy, tree_of(RELAXED), test).run()


def _inputs(seed: int) -> tuple[Tensor, Draws]:
    labels = torch.ones(IMAGES, dtype=torch.int64)
    labels[: IMAGES // 4] = 0  # the first slots' images are of another class
    return labels, Draws(torch.arange(IMAGES) + seed * 10**6)


def _holds(law: SamplerLaw, method: Speculative, seed: int) -> None:
    tokens = of_codes._speculate(_models(), law, method, _inputs(seed), IMAGES // 4).tokens[IMAGES // 4 :]
    assert of_codes._p_value(tokens, _exact(law)) > 1e-5


def chain() -> None:
    _holds(LAW, Speculative(gamma=3), 1)


def tree() -> None:
    _holds(LAW, Speculative(tree=(2, 2)), 2)


def eagle() -> None:
    _holds(EAGLE, Speculative(tree=(2, 1), drafter="eagle"), 3)


def plain() -> None:
    with torch.inference_mode():
        tokens = decode_codes_plain(tiny_codes(), LAW, *_inputs(4)).tokens[IMAGES // 4 :]
    assert of_codes._p_value(tokens, _exact(LAW)) > 1e-5


def relaxed() -> None:
    decoded = of_codes._speculate(_models(), LAW, RELAXED, of_codes._same_label(IMAGES, 5))
    assert of_codes._p_value(decoded.tokens, _expected().law) > 1e-5
    spent = torch.zeros(IMAGES).index_add_(0, decoded.drafts.image, decoded.drafts.excess)
    assert abs(float(spent.mean()) - _expected().certificate) < 5 * float(spent.std()) / IMAGES**0.5


CHECKS = {"chain": chain, "tree": tree, "eagle": eagle, "plain": plain, "relaxed": relaxed}


def _walked(change):
    return lambda right: (
        lambda tree, codes, p, q, uniform, room, test: change(right, tree, codes, p, q, uniform, room, test)
    )


def _one_more(walk):
    return replace(walk, num_accepted=(walk.num_accepted + 1).clamp(max=walk.path.shape[1] - 1))


def _ignored(right):
    return lambda self, drafts: replace(right(self, drafts), accepted=torch.ones_like(drafts.code, dtype=torch.bool))


MUTANTS = (
    Mutant(
        "plain: the next number up",
        codes,
        "pick",
        lambda r: lambda w, u: (r(w, u) + (u < 0.02)).clamp(max=w.shape[-1] - 1),
        "plain",
    ),
    Mutant(
        "plain: numbers of the position before",
        codes,
        "target_uniforms",
        lambda r: lambda *given: r(*given)[:, :1].expand_as(r(*given)),
        "plain",
    ),
    Mutant("plain: guidance without its class", codes, "guidance", lambda r: lambda *given: r(*given) * 0.7, "plain"),
    Mutant(
        "plain: temperature of one",
        codes,
        "probabilities",
        lambda r: lambda logits, law: r(logits, law.model_copy(update={"temperature": 1.0})),
        "plain",
    ),
    Mutant(
        "plain: top-k keeps one more",
        codes,
        "probabilities",
        lambda r: lambda logits, law: r(logits, law.model_copy(update={"top_k": law.top_k + 1})),
        "plain",
    ),
    Mutant("samples of p as residual", rules, "residual", lambda r: lambda p, q: p, "chain"),
    Mutant("residual with the roles swapped", rules, "residual", lambda r: lambda p, q: r(q, p), "chain"),
    Mutant("residual squared", rules, "residual", lambda r: lambda p, q: r(p, q) ** 2, "chain"),
    Mutant("every draft is accepted", RatioRule, "judge", _ignored, "chain"),
    Mutant(
        "tested one sibling's number for all",
        code_speculation,
        "walk_tree",
        _walked(lambda r, tree, c, p, q, u, *rest: r(tree, c, p, q, u[:, :1].expand_as(u), *rest)),
        "tree",
    ),
    Mutant(
        "tested by the draft's numbers",
        code_speculation._Decoding,
        "_of_nodes",
        lambda r: lambda self, tree: (lambda own, drafting, testing: (own, drafting, drafting))(*r(self, tree)),
        "chain",
    ),
    Mutant(
        "the target's codes by the tests' numbers",
        code_speculation._Decoding,
        "_of_nodes",
        lambda r: (
            lambda self, tree: (lambda own, drafting, testing: (testing[:, 1:2].expand_as(own), drafting, testing))(
                *r(self, tree)
            )
        ),
        "chain",
    ),
    Mutant(
        "the code after the last accepted one from the draft's law",
        code_speculation,
        "walk_tree",
        _walked(lambda r, tree, c, p, q, *rest: (lambda w: replace(w, law=q[:, 0]))(r(tree, c, p, q, *rest))),
        "chain",
    ),
    Mutant(
        "the code after the last accepted one from p before it",
        code_speculation,
        "walk_tree",
        _walked(lambda r, tree, c, p, q, *rest: (lambda w: replace(w, law=p[:, 0]))(r(tree, c, p, q, *rest))),
        "chain",
    ),
    Mutant(
        "one draft more than accepted",
        code_speculation,
        "walk_tree",
        _walked(
            lambda r, *given: (lambda w: replace(w, num_accepted=(w.num_accepted + 1).clamp(max=w.path.shape[1] - 1)))(
                r(*given)
            )
        ),
        "chain",
    ),
    Mutant("siblings tested with repetition", accept_codes, "without", lambda r: lambda w, code: w, "tree"),
    Mutant(
        "the draft's law sharper than it drew by",
        code_speculation,
        "walk_tree",
        _walked(lambda r, tree, c, p, q, *rest: r(tree, c, p, (q**1.3) / (q**1.3).sum(-1, keepdim=True), *rest)),
        "chain",
    ),
    Mutant(
        "the target's law sharper",
        code_speculation,
        "walk_tree",
        _walked(lambda r, tree, c, p, *rest: r(tree, c, (p**1.2) / (p**1.2).sum(-1, keepdim=True), *rest)),
        "chain",
    ),
    Mutant(
        "accepted nodes of a tree not moved in the cache",
        LawReader,
        "settle",
        lambda r: lambda self, *given: None,
        "tree",
    ),
    Mutant(
        "a slot keeps its first image's class",
        LawReader,
        "change",
        lambda r: lambda self, change, labels: r(self, change, self.labels.flatten()[: len(labels)] * 0),
        "chain",
    ),
    Mutant(
        "guidance of the position before",
        codes,
        "guidance",
        lambda r: lambda law, position, length: r(law, (position - 1).clamp(min=0), length),
        "eagle",
    ),
    Mutant(
        "EAGLE: the draft's law flatter than it drew by",
        code_speculation,
        "walk_tree",
        _walked(lambda r, tree, c, p, q, *rest: r(tree, c, p, (q**0.7) / (q**0.7).sum(-1, keepdim=True), *rest)),
        "eagle",
    ),
    Mutant("EAGLE: samples of p as residual", rules, "residual", lambda r: lambda p, q: p, "eagle"),
    Mutant(
        "relaxed: the weight of another place",
        Annealed,
        "log_weight",
        lambda r: lambda self, place: r(self, place + 1),
        "relaxed",
    ),
    Mutant(
        "relaxed: excess halved",
        rules,
        "judge",
        lambda r: lambda *t: (lambda v: replace(v, excess=v.excess / 2))(r(*t)),
        "relaxed",
    ),
    Mutant(
        "relaxed: residual of the relaxed ratio",
        rules,
        "residual",
        lambda r: lambda p, q: r(2 * p, q),
        "relaxed",
    ),
    Mutant(
        "logits of a flatter target",
        LlamaGen,
        "logits",
        lambda r: lambda self, features: 0.8 * r(self, features),
        "chain",
    ),
)

DECODER = Decoder("codes (chain, tree, EAGLE)", CHECKS, MUTANTS)
