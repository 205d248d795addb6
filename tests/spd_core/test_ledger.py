"""No random number of a decoding is used in two roles; mistakes of that kind are caught."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch

from spd_core.decode import decode
from spd_core.decode.path import HeadDraws
from spd_core.draws import Draws, Purpose
from spd_core.law import Acceptance, Cspd, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import load_pair
from tests.spd_core.ledger import EndlessError, ledger
from tests.tiny_causal import make_tiny_causal_pair
from tests.tiny_codes import make_tiny_code_pair
from tests.tiny_pair import make_tiny_pair

ANNEALED = Acceptance(rule="annealed", delta=3.0)
DECODERS = {
    "mar plain": ("mar", Plain()),
    "mar windows": ("mar", Plain(head_window=(3, 2))),
    "cspd released": ("mar", Cspd(gamma=3)),
    "cspd released, unaligned, windows": ("mar", Cspd(gamma=3, aligned=False, head_window=(3,))),
    "cspd paper": ("mar", Cspd(variant="paper", gamma=3)),
    "cspd paper, unaligned, windows": ("mar", Cspd(variant="paper", gamma=3, aligned=False, head_window=(3,))),
    "causal plain": ("causal", Plain()),
    "causal windows": ("causal", Plain(head_window=(3, 2))),
    "paths": ("causal", Speculative(gamma=3, stride=2, proposals=1)),
    "paths, windows": ("causal", Speculative(gamma=3, stride=2, proposals=2, head_window=(3, 2))),
    "paths, annealed": ("causal", Speculative(gamma=3, stride=2, acceptance=ANNEALED)),
    "paths, coupled": (
        "causal",
        Speculative(gamma=3, stride=2, head_window=(3,), acceptance=Acceptance(rule="coupled", radius=1.0)),
    ),
    "codes plain": ("codes", Plain()),
    "codes chain": ("codes", Speculative(gamma=3)),
    "codes tree": ("codes", Speculative(tree=(2, 2, 1), acceptance=ANNEALED)),
    "codes eagle": ("codes", Speculative(gamma=3, drafter="eagle")),
}
_NOISE, _HEAD = {Purpose.START, Purpose.STEP}, {Purpose.HEAD_ACCEPT, Purpose.HEAD_PROPOSAL}
_RESAMPLED = {Purpose.ACCEPT, Purpose.PROPOSAL, Purpose.PROPOSAL_KEEP}
_CODES = {Purpose.CODE, Purpose.CODE_DRAFT, Purpose.ACCEPT}
#: What each decoder draws at all, but for the order of MAR's tokens, which the ledger does not book.
PURPOSES = {
    "mar plain": _NOISE,
    "mar windows": _NOISE | _HEAD,
    "cspd released": _NOISE | _RESAMPLED,
    "cspd released, unaligned, windows": _NOISE | _RESAMPLED | _HEAD | {Purpose.START_TARGET, Purpose.STEP_TARGET},
    "cspd paper": _NOISE | _RESAMPLED,
    "cspd paper, unaligned, windows": _NOISE | _RESAMPLED | _HEAD | {Purpose.START_TARGET, Purpose.STEP_TARGET},
    "causal plain": _NOISE,
    "causal windows": _NOISE | {Purpose.HEAD_ACCEPT},
    "paths": _NOISE | {Purpose.ACCEPT, Purpose.PATH_PROPOSAL},
    "paths, windows": _NOISE | {Purpose.ACCEPT, Purpose.PATH_PROPOSAL, Purpose.HEAD_ACCEPT},
    "paths, annealed": _NOISE | {Purpose.ACCEPT, Purpose.PATH_PROPOSAL},
    "paths, coupled": _NOISE | {Purpose.HEAD_ACCEPT},
    "codes plain": {Purpose.CODE},
    "codes chain": _CODES,
    "codes tree": _CODES,
    "codes eagle": _CODES,
}
#: Drafts that fell unread are made and tested again, numbers drawn ahead for several tokens are drawn again, and so are
#: the first proposals of released CSpD with all the others. Elsewhere what a token is resampled from is drawn once, and
#: in some decoders everything.
RESAMPLING = (Purpose.PROPOSAL, Purpose.PROPOSAL_KEEP, Purpose.PATH_PROPOSAL)
ALL_ONCE = ("causal plain", "codes plain", "codes chain", "codes tree", "codes eagle")


def _once(name):
    if name in ALL_ONCE:
        return tuple(Purpose)
    return () if name.startswith("cspd released") else RESAMPLING


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return {
        "mar": load_pair(str(make_tiny_pair(folder / "mar", law=SamplerLaw(num_iter=8, head_steps=6)))),
        "causal": load_pair(str(make_tiny_causal_pair(folder / "causal"))),
        "codes": load_pair(str(make_tiny_code_pair(folder / "codes"))),
    }


def _booked(pairs, name, mutant=nullcontext):
    kind, method = DECODERS[name]
    draws = Draws(torch.tensor([5, 2**62 + 5, 7]))
    with ledger() as book, mutant():
        decoded = decode(pairs[kind], pairs[kind].card.law, method, torch.arange(3), draws, slots=2)
    return book, decoded


def _faults(name, book):
    unexpected = {key[1] for key in book.times} ^ PURPOSES[name]
    return [*book.in_two_roles, *book.twice_in_a_call, *book.drawn_again(*_once(name)), *unexpected]


@pytest.mark.parametrize("name", DECODERS)
def test_every_counter_has_one_role(pairs, name):
    book, decoded = _booked(pairs, name)
    assert len(book.times) > 40
    assert not _faults(name, book)
    if isinstance(DECODERS[name][1], Speculative | Cspd):
        assert decoded.drafts.accepted.float().mean() < 1, "the test needs rejections"


def _other(kind, wrong, **fixed):
    """A draw that takes purpose ``wrong`` in place of a right one, or a fixed token or attempt."""
    right = getattr(Draws, kind)  # at the time of the patch: the ledger's

    def draw(self, purpose, image_R, token_R, *args, **named):
        purpose = wrong.get(purpose, purpose)
        token_R = torch.zeros_like(token_R) if fixed.get("one_token") is purpose else token_R
        if "attempt" in named and fixed.get("no_attempt"):
            named["attempt"] = 0
        return right(self, purpose, image_R, token_R, *args, **named)

    return draw


MUTANTS = {
    "keep uniforms and proposals of paths from ACCEPT": (
        "paths", "proposals", {Purpose.PATH_PROPOSAL: Purpose.ACCEPT}, {},
    ),
    "keep uniforms of CSpD from ACCEPT": (
        "cspd paper", "uniforms", {Purpose.PROPOSAL_KEEP: Purpose.ACCEPT}, {},
    ),
    "head proposals from HEAD_ACCEPT": (
        "mar windows", "proposals", {Purpose.HEAD_PROPOSAL: Purpose.HEAD_ACCEPT}, {},
    ),
    "one HEAD_ACCEPT stream for all tokens": (
        "causal windows", "uniforms", {}, {"one_token": Purpose.HEAD_ACCEPT},
    ),
    "attempt left out of a path's proposals": ("paths", "proposals", {}, {"no_attempt": True}),
    "the target's own noise is the draft's": (
        "cspd released, unaligned, windows", "normals", {Purpose.STEP_TARGET: Purpose.STEP}, {},
    ),
    "codes drafted by the numbers that test them": (
        "codes chain", "fine_uniforms", {Purpose.CODE_DRAFT: Purpose.ACCEPT}, {},
    ),
    "codes drafted by the target's own numbers": (
        "codes tree", "fine_uniforms", {Purpose.CODE_DRAFT: Purpose.CODE}, {},
    ),
    "start noise from the steps' stream": ("causal plain", "normals", {Purpose.START: Purpose.STEP}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_counters_are_caught(pairs, name):
    """The mutant lies over the ledger, which books what becomes of a draw."""
    decoder, kind, wrong, fixed = MUTANTS[name]
    try:
        book, _ = _booked(pairs, decoder, lambda: patch.object(Draws, kind, _other(kind, wrong, **fixed)))
    except EndlessError:
        return
    assert _faults(decoder, book)


def test_tests_of_all_of_a_tokens_paths_by_one_stream_are_caught(pairs):
    def uniforms(self):
        return self.draws.uniforms(Purpose.HEAD_ACCEPT, self.image, self.token, self.steps)

    name = "paths, windows"
    assert _faults(name, _booked(pairs, name, lambda: patch.object(HeadDraws, "uniforms", uniforms))[0])
