"""Mutants of speculative decoding over paths."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import torch
from torch import Tensor

from spd_core.accept import certificate, rules
from spd_core.accept.rules import Annealed
from spd_core.decode.path import BoundHead, Trace
from spd_core.draws import Draws, Purpose
from spd_core.families.causal import speculation as speculative
from spd_core.families.causal import verification
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import PathLaw, decode_causal_plain
from spd_core.law import Acceptance, Speculative
from tests.spd_core import test_relaxed_paths as one
from tests.spd_core.ledger import ledger
from tests.spd_core.mutants.base import Decoder, Mutant
from tests.spd_core.test_certificate import test_nothing_above_an_interval_is_left_unexcluded
from tests.spd_core.test_speculative import CONFIG as NINE
from tests.spd_core.test_speculative import test_residual_proposals_know_the_draft_s_law_and_are_new
from tests.tiny_causal import LAW, perturbed, tiny_causal
from tests.two_samples import energy_p_value, marginal_p_value

IMAGES = 4000
GUIDED = LAW.model_copy(update={"cfg": 2.0, "temperature": 0.9})
METHOD = Speculative(gamma=3, stride=2, proposals=1)
#: A draft that asks its head at every step is near the target, so most tests are close.
NEAR = METHOD.model_copy(update={"stride": 1})


def _models():
    target = tiny_causal(one.ONE)
    return target, perturbed(target, 0.04)


@cache
def _known():
    with torch.inference_mode():
        plain = decode_causal_plain(_models()[0], one.LAW, *one._inputs(0)).tokens[:, 0]
    drafted = one._decoded(_models(), one.ALL_KEPT, 1)
    return (
        one._functions(plain),
        one._functions(drafted.tokens[:, 0]),
        drafted.drafts.log_ratio[drafted.drafts.image.argsort()],
    )


def lossless_law_of_one_token() -> None:
    lossless = one.RELAXED.model_copy(update={"acceptance": Acceptance()})
    assert one._z(_known(), one._decoded(_models(), lossless, 3), weight=1.0) < 5.5


def relaxed_law_of_one_token() -> None:
    assert one._z(_known(), one._decoded(_models(), one.RELAXED, 2)) < 5.5


def excess_and_certificate() -> None:
    one.test_the_certificate_is_the_total_variation(_models(), _known())


@torch.inference_mode()
def _sample(seed: int, fast: bool) -> Tensor:
    labels, draws = torch.arange(IMAGES) % 2, Draws(torch.arange(IMAGES) + seed * 10**6)
    target = tiny_causal()
    if not fast:
        return decode_causal_plain(target, GUIDED, labels, draws).tokens.flatten(1)
    return decode_speculative(target, perturbed(target, 0.02), GUIDED, METHOD, labels, draws, 1000).tokens.flatten(1)


@cache
def _plain_sample() -> Tensor:
    return _sample(0, fast=False)


def law_of_four_tokens() -> None:
    fast = _sample(1, fast=True)
    assert marginal_p_value(_plain_sample(), fast) > 1e-4
    assert energy_p_value(_plain_sample()[:2000], fast[:2000]) > 0.005


@torch.inference_mode()
def ratios_of_proposals() -> None:
    """Over paths of p the mean of q/p is 1."""
    seen = []
    right = speculative.sample_residual

    def sample_residual(rows, propose):
        def booked(at, attempt):
            values, log_ratio, uniforms = propose(at, attempt)
            seen.append(log_ratio[log_ratio.isfinite()])
            return values, log_ratio, uniforms

        return right(rows, booked)

    target = _models()[0]
    method = Speculative(gamma=1, stride=1, proposals=64)
    labels, draws = torch.zeros(2000, dtype=torch.int64), Draws(torch.arange(2000) + 10**7)
    with patch.object(speculative, "sample_residual", sample_residual):
        decode_speculative(target, perturbed(target, 0.02), LAW, method, labels, draws)
    overlap = (-torch.cat(seen).double()).exp()
    assert abs(float(overlap.mean()) - 1) < 6 * float(overlap.std()) / math.sqrt(len(overlap))
    assert overlap.std() > 0.05


def proposals_are_new() -> None:
    test_residual_proposals_know_the_draft_s_law_and_are_new(tiny_causal(NINE), ())


@torch.inference_mode()
def a_draft_less_likely_than_it_was_can_be_rejected() -> None:
    """Every test draws the largest number below 1, so that only a ratio of one but for rounding, 6e-5, is accepted."""
    right = Draws.uniforms

    def uniforms(self, purpose, *rest, **named):
        drawn = right(self, purpose, *rest, **named)
        return torch.full_like(drawn, 1 - 2.0**-24) if purpose is Purpose.ACCEPT else drawn

    labels, draws = torch.zeros(200, dtype=torch.int64), Draws(torch.arange(200))
    first = patch.object(speculative, "sample_residual", lambda rows, propose: propose(rows, 0)[0][:, 0])
    with patch.object(Draws, "uniforms", uniforms), first:
        drafts = decode_speculative(tiny_causal(), perturbed(tiny_causal(), 1e-3), LAW, NEAR, labels, draws).drafts
    below = (drafts.log_ratio > -0.06) & (drafts.log_ratio < -1e-4)
    assert below.sum() > 20 and not drafts.accepted[below].any()


@torch.inference_mode()
def heads_of_proposals_draw_anew() -> None:
    """No test of head self-speculation inside a proposal has the numbers of another attempt's."""
    method = NEAR.model_copy(update={"head_window": (3, 2)})
    models = tiny_causal(), perturbed(tiny_causal(), 0.02)
    with ledger() as book:
        decode_speculative(*models, LAW, method, torch.arange(16) % 2, Draws(torch.arange(16)))
    of_proposals = [key for key in book.times if key[1] is Purpose.HEAD_ACCEPT and key[3] > 0]
    assert {key[3] for key in of_proposals} - {1}, "the check needs second attempts"
    assert not [key for key in of_proposals if book.times[key] > 1]


CHECKS = {
    "rounding": a_draft_less_likely_than_it_was_can_be_rejected,
    "head numbers": heads_of_proposals_draw_anew,
    "intervals": test_nothing_above_an_interval_is_left_unexcluded,
    "ratios": ratios_of_proposals,
    "new": proposals_are_new,
    "one token": lossless_law_of_one_token,
    "relaxed": relaxed_law_of_one_token,
    "certificate": excess_and_certificate,
    "four tokens": law_of_four_tokens,
}


def _judged(change):
    return lambda right: lambda *tested: change(right(*tested), *tested)


def _scaled_ratio(factor):
    return lambda right: lambda noise, shift: factor * right(noise, shift)


def _residual(change):
    def mutant(right):
        def sample(rows, propose):
            return right(rows, lambda at, attempt: change(*propose(at, attempt)))

        return sample

    return mutant


def _nothing_stops(right):
    def settle(accepted, drafted, room):
        kept, draws, advance = right(accepted, drafted, room)
        return torch.stack([kept, draws, torch.maximum(advance, drafted)])

    return settle


def _longer(right):
    return lambda accepted: (right(accepted) + 1).clamp(max=accepted.shape[1])


def _from_draft_noise(right):
    def proposals(self, purpose, image, token, count, dims, round_R=0, attempt=0):
        normals, uniforms = right(self, purpose, image, token, count, dims, round_R, attempt)
        if purpose is Purpose.PATH_PROPOSAL:
            normals[:, :, :2] = self.normals(Purpose.START, image, token, 2)[:, None]
        return normals, uniforms

    return proposals


def _by_draft_steps(right):
    """The proposals of a token all walk alike."""

    def proposals(self, purpose, image, token, count, dims, round_R=0, attempt=0):
        normals, uniforms = right(self, purpose, image, token, count, dims, round_R, attempt)
        if purpose is Purpose.PATH_PROPOSAL:
            normals[:, :, 2:] = 0.5 * normals[:, :, 2:]
        return normals, uniforms

    return proposals


def _in_proposals(factor):
    def mutant(right):
        def ratio(noise, shift):
            return right(noise, shift) * (factor if inspect.stack()[2].function == "_proposal_ratio" else 1.0)

        return ratio

    return mutant


def _own_path_of_the_draft(right):
    def held(head, states, path, stride):
        return right(
            head, states.roll(1, 0) if inspect.stack()[2].function == "_proposal_ratio" else states, path, stride
        )

    return held


def _no_union(right):
    """As if each of the several t had the whole probability to itself."""

    def bounds(count, total, squares):
        steps = 1 + math.ceil(math.log2(0.9 / min(0.5, math.sqrt(32.0 / count))))
        with patch.object(certificate, "CONFIDENCE", 1 - steps * (1 - certificate.CONFIDENCE)):
            return right(count, total, squares)

    return bounds


def _without_attempt(right):
    def head_draws(draws, image, token, salt, steps):
        return right(draws, image, token, torch.where(salt > 0, (salt - 1) % speculative.MOST_PROPOSALS + 1, 0), steps)

    return head_draws


MUTANTS = (
    Mutant("log ratios down to -0.06 count as 0", speculative, "ROUNDING", lambda r: 2.0**-4, "rounding"),
    Mutant("attempts share their heads' numbers", speculative, "HeadDraws", _without_attempt, "head numbers"),
    Mutant("each t of an interval has all of its probability", certificate, "bounds", _no_union, "intervals"),
    Mutant(
        "every draft is accepted",
        rules,
        "judge",
        _judged(lambda v, *_: replace(v, accepted=torch.ones_like(v.accepted))),
        "one token",
    ),
    Mutant("tested by R squared", verification, "path_log_ratio", _scaled_ratio(2.0), "one token"),
    Mutant("tested by 1/R", verification, "path_log_ratio", _scaled_ratio(-1.0), "one token"),
    Mutant("tested by the root of R", verification, "path_log_ratio", _scaled_ratio(0.5), "one token"),
    Mutant(
        "only the last step's ratio",
        verification,
        "path_log_ratio",
        lambda r: lambda noise, shift: r(noise[:, -1:], shift[:, -1:]),
        "one token",
    ),
    Mutant(
        "the last step left out of the ratio",
        verification,
        "path_log_ratio",
        lambda r: lambda noise, shift: r(noise[:, :-1], shift[:, :-1]),
        "one token",
    ),
    Mutant(
        "accepted by min(1, q/p) in the residual",
        speculative,
        "sample_residual",
        _residual(lambda v, ratio, u: (v, -ratio, u)),
        "one token",
    ),
    Mutant("the residual's ratio halved", verification, "path_log_ratio", _in_proposals(0.5), "ratios"),
    Mutant("the residual's ratio doubled", verification, "path_log_ratio", _in_proposals(2.0), "ratios"),
    Mutant(
        "samples of p as residual",
        speculative,
        "sample_residual",
        lambda r: lambda rows, propose: propose(rows, 0)[0][:, 0],
        "one token",
    ),
    Mutant(
        "the draft's law at another proposal's states",
        verification,
        "held_predictions",
        _own_path_of_the_draft,
        "one token",
    ),
    Mutant("proposals start from the draft's noise", Draws, "proposals", _from_draft_noise, "new"),
    Mutant("proposals walk with half the step noise", Draws, "proposals", _by_draft_steps, "ratios"),
    Mutant(
        "relaxed: residual of the weighted ratio",
        speculative,
        "sample_residual",
        _residual(lambda v, ratio, u: (v, ratio + math.log(one.WEIGHT), u)),
        "relaxed",
    ),
    Mutant(
        "relaxed: another weight than the rule's",
        Annealed,
        "log_weight",
        lambda r: lambda self, place: r(self, place) * 1.5,
        "relaxed",
    ),
    Mutant(
        "relaxed: excess halved",
        rules,
        "judge",
        _judged(lambda v, *_: replace(v, excess=v.excess / 2)),
        "certificate",
    ),
    Mutant(
        "relaxed: excess of accepted drafts only",
        rules,
        "judge",
        _judged(lambda v, *_: replace(v, excess=v.excess * v.accepted)),
        "certificate",
    ),
    Mutant(
        "relaxed: log ratio recorded with the weight",
        rules,
        "judge",
        _judged(lambda v, ratio, relaxed, *_: replace(v, log_ratio=relaxed)),
        "certificate",
    ),
    Mutant("no stop after a rejection", speculative, "settle", _nothing_stops, "four tokens"),
    Mutant("the token after the rejected one is drawn", speculative, "num_accepted", _longer, "four tokens"),
    Mutant(
        "the draft's guidance is that of the token after",
        PathLaw,
        "scale",
        lambda r: lambda self, at: r(self, at) * (1 + 0.5 * (len(at) % 2)),
        "four tokens",
    ),
    Mutant(
        "the target reads the token before the last",
        speculative,
        "previous_tokens",
        lambda r: lambda states, image, first, count: r(states, image, (first - 1).clamp(min=0), count),
        "four tokens",
    ),
    Mutant(
        "the finish has the contexts of other tokens",
        speculative,
        "finish",
        lambda r: lambda head, path, canvas, *rest: r(head, path, replace(canvas, z=canvas.z.roll(1, 2)), *rest),
        "four tokens",
    ),
    Mutant(
        "held predictions shifted by a step",
        speculative,
        "draft_walk",
        lambda r: lambda *given: _shifted(r(*given)),
        "one token",
    ),
    Mutant(
        "the target judges its own noise",
        BoundHead,
        "shift",
        lambda r: lambda self, *given, **named: 0.7 * r(self, *given, **named),
        "one token",
    ),
)


def _shifted(path):
    trace = path.trace
    return replace(path, trace=Trace(trace.states, trace.x0.roll(1, 1), trace.noise))


DECODER = Decoder("speculative over paths", CHECKS, MUTANTS)
