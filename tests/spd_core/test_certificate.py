"""Certificates: that they bound, that their intervals cover, and what one image's certificate does not say."""

from __future__ import annotations

import math
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import stats

from spd_core.accept import certificate
from spd_core.accept.certificate import bounds, image_certificates, log_weights
from spd_core.accept.codes import CodeTest
from spd_core.accept.lemma import excess
from spd_core.families.llamagen.speculation import tree_of
from spd_core.law import Acceptance, Speculative
from tests import enumerate_codes
from tests.enumerate_codes import Enumeration, Toy, random_toy

ALWAYS = Acceptance(rule="annealed", delta=1e6, nu=0.0)


def _of_tests(lossless, relaxed, accepted):
    """Log weights of tests with chances ``lossless`` and ``relaxed`` to let their drafts stand."""
    lossless, relaxed = np.asarray(lossless), np.asarray(relaxed)
    return log_weights(np.log(lossless).astype(np.float32), np.asarray(accepted), (relaxed - lossless).astype("f4"))


def test_a_weight_is_the_ratio_of_the_two_chances():
    found = np.exp(_of_tests([0.5, 0.5, 0.2], [0.75, 0.75, 0.2], [True, False, True]))
    assert found == pytest.approx([2 / 3, 2.0, 1.0], rel=1e-6)


def test_an_outcome_that_the_lossless_rule_never_has_certifies_nothing():
    with np.errstate(divide="ignore"):
        weights = _of_tests([0.0, 0.5], [0.4, 0.6], [True, False])
    assert weights[0] == -math.inf
    assert image_certificates(np.array([0, 0]), weights, 1).tolist() == [1.0]


def test_extreme_ratios_give_numbers():
    log_ratio = np.array([-800.0, -800.0, 800.0, -1e-7, math.inf, -math.inf], dtype=np.float32)
    for added in (0.0, 1e-30, 2.0**-24):
        for accepted in (True, False):
            weights = log_weights(log_ratio, np.full(6, accepted), np.full(6, added, np.float32))
            assert not np.isnan(weights).any()
    assert np.isnan(log_weights(log_ratio, np.full(6, True), np.full(6, math.nan, np.float32))).all()


def test_certificates_of_images_without_a_test_are_zero():
    found = image_certificates(np.array([1, 1, 3]), np.log([0.5, 0.5, 4.0]), 5)
    assert found == pytest.approx([0, 0.75, 0, 0, 0])


# The bound, on toys whose law is enumerated.


def _enumerated(toy, branches, rule):
    """Expected certificate of an image, and what else is known of the toy's decoding."""
    walk = Enumeration(toy, tree_of(Speculative(tree=branches)), CodeTest.of(rule, torch.eye(toy.codes).double()))
    return walk.certified(), walk.run()


@pytest.mark.parametrize("branches", [(1,), (3,), (1, 1), (2, 1)], ids=str)
@pytest.mark.parametrize(
    "rule",
    [
        Acceptance(rule="annealed", delta=1.6, nu=0.7),
        Acceptance(rule="annealed", delta=4.0, nu=0.0),
        Acceptance(rule="lantern", k=2, delta=0.3),
        Acceptance(rule="lantern++", k=3, lam=1.5),
    ],
    ids=lambda rule: f"{rule.rule} {rule.delta:g}",
)
def test_the_expected_certificate_bounds_the_law_and_is_no_more_than_the_excess(rule, branches):
    toy = random_toy(3, 3, seed=1, agreement=0.5)
    certified, outcome = _enumerated(toy, branches, rule)
    assert outcome.distance(toy) <= certified + 1e-9
    assert certified <= outcome.certificate + 1e-9
    if branches == (1,):
        one = random_toy(3, 1, seed=1, agreement=0.5)
        certified, outcome = _enumerated(one, branches, rule)
        assert certified == pytest.approx(outcome.certificate, abs=1e-9), "of one test, it is the excess"
        assert certified == pytest.approx(outcome.distance(one), abs=1e-9)


@pytest.mark.parametrize("spoilt", ["halved", "of the lossless rule"])
def test_a_wrong_excess_certifies_too_little(spoilt):
    toy, rule = random_toy(4, 1, seed=0, agreement=0.5), Acceptance(rule="annealed", delta=2.0)
    certified, outcome = _enumerated(toy, (1,), rule)
    assert certified == pytest.approx(outcome.distance(toy), abs=1e-9)
    change = {
        "halved": lambda spent: spent / 2,
        "of the lossless rule": lambda spent: 0 * spent,
    }[spoilt]

    def wrong(log_ratio, accepted, spent):
        return log_weights(log_ratio, accepted, change(spent))

    with patch.object(enumerate_codes, "log_weights", wrong):
        assert _enumerated(toy, (1,), rule)[0] < outcome.distance(toy) - 1e-3


# What a certificate does not say.


def test_images_of_certificate_zero_are_another_law():
    """One token; the draft is near the target everywhere, and everything it drafts stands.

    The law of an image is 0.05 from the target's, as the mean certificate says. The images whose own certificate is 0
    are those that the draft gives too rarely, a twentieth of all, and their law is 0.90 from the target's.
    """
    p = torch.full((1, 10), 0.1, dtype=torch.float64)
    q = torch.cat([torch.tensor([0.05]), torch.full((9,), 0.95 / 9)]).double()[None]
    toy = Toy((p,), (q,))
    certified, outcome = _enumerated(toy, (1,), ALWAYS)
    assert outcome.distance(toy) == pytest.approx(certified) == pytest.approx(0.05)
    log_ratio = (p / q).log()[0]
    spent = excess(log_ratio, log_ratio + math.log(ALWAYS.delta))
    weights = log_weights(log_ratio.numpy(), np.full(10, True), spent.numpy())
    chosen = image_certificates(np.arange(10), weights, 10) == 0
    filtered = outcome.law * torch.from_numpy(chosen)
    assert filtered.sum() == pytest.approx(0.05)
    assert float((filtered / filtered.sum() - p[0]).abs().sum()) / 2 == pytest.approx(0.90)
    low = image_certificates(np.arange(10), weights, 10) <= certified
    assert low.tolist() == chosen.tolist(), "any threshold below the others' certificate does the same"


def test_the_joint_law_of_images_is_farther_than_that_of_one():
    """Two images of the toy above: their joint law is nearly twice as far, which no certificate of one image says."""
    p, q = torch.full((10,), 0.1), torch.cat([torch.tensor([0.05]), torch.full((9,), 0.95 / 9)])
    joint = float((torch.outer(p, p) - torch.outer(q, q)).abs().sum()) / 2
    assert 1.5 * 0.05 < joint <= 2 * 0.05


# The interval.


#: Laws of an image's certificate, [n] draws by a generator and their mean.
def _rare(rng, n):
    return (rng.random(n) < 0.004) * 1.0, 0.004


def _rarer_than_seen(rng, n):
    return (rng.random(n) < 1 / n) * 0.8, 0.8 / n


def _clustered(rng, n):
    """Excess comes in bursts, and in one class of ten only: images are independent and have different laws."""
    bursts = rng.poisson(0.05, n) * rng.exponential(2.0, n)
    of_class = np.arange(n) % 10 == 0
    # A burst of k times exponential(2): E exp(-k x) = 1 / (1 + 2 k).
    counts = np.arange(1, 30)
    kept = np.exp(-0.05) * (1 + float(np.sum(0.05**counts / [math.factorial(k) for k in counts] / (1 + 2 * counts))))
    return np.where(of_class, 1 - np.exp(-bursts), 0.0), (1 - kept) / 10


def _heavy(rng, n):
    return 1 - np.exp(-rng.pareto(1.1, n) * 0.01), HEAVY_MEAN


def _ordinary(rng, n):
    return rng.beta(2.0, 6.0, n), 0.25


def _coin(rng, n):
    return (rng.random(n) < 0.5) * 1.0, 0.5


#: Of 1 - exp(-0.01 x), x of a Pareto (Lomax) law of exponent 1.1, by quadrature.
HEAVY_MEAN = float(
    np.trapezoid((1 - np.exp(-0.01 * np.expm1(grid := np.linspace(0, 60, 600_001)))) * 1.1 * np.exp(-1.1 * grid), grid)
)
LAWS = {
    "rare": _rare,
    "rarer than seen": _rarer_than_seen,
    "clustered": _clustered,
    "heavy": _heavy,
    "beta": _ordinary,
    "coin": _coin,
}


def _t_interval(values):
    mean, reach = values.mean(), stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return mean - reach, mean + reach


def _coverage(law, count, interval, times=2000, seed=0):
    """Shares of intervals that hold the mean, and whose upper end is not below it."""
    rng = np.random.default_rng(seed)
    covered = above = 0
    for _ in range(times):
        values, mean = law(rng, count)
        low, high = interval(values)
        covered += low <= mean <= high
        above += mean <= high
    return covered / times, above / times


def _ours(values, bounds=bounds):
    found = bounds(len(values), float(values.sum()), float(np.square(values).sum()))
    return found.low, found.high


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("count", [30, 300, 3000])
def test_the_interval_covers(name, count):
    covered, above = _coverage(LAWS[name], count, _ours)
    assert covered >= 0.93
    assert above >= 0.93


def test_the_simulation_notices_an_interval_of_students_t():
    assert _coverage(_rare, 150, _t_interval)[1] < 0.55, "in half of all datasets nothing rare is seen"
    assert _coverage(_rarer_than_seen, 300, _t_interval)[1] < 0.7
    assert _coverage(_ordinary, 300, _t_interval)[0] > 0.93


def _without_variance(count, total, squares):
    return bounds(count, total, total**2 / count)


def _without_rare_term(count, total, squares):
    with patch.object(certificate, "math", SimpleNamespace(**{**vars(math), "log": lambda _: 0.0})):
        return bounds(count, total, squares)


INTERVAL_MUTANTS = {"no variance": (_coin, _without_variance), "no rare term": (_rarer_than_seen, _without_rare_term)}


@pytest.mark.parametrize("name", INTERVAL_MUTANTS)
def test_the_simulation_notices_a_wrong_interval(name):
    law, wrong = INTERVAL_MUTANTS[name]
    assert min(_coverage(law, 3000, lambda values: _ours(values, wrong))) < 0.9


def test_the_interval_is_not_absurdly_wide():
    """1.9 times Student's with many images, 3.5 times with few; a few in n where nothing is seen."""
    rng = np.random.default_rng(0)
    for count, times in ((200, 3.5), (2000, 2.4), (100_000, 1.9)):
        values = rng.beta(2.0, 6.0, count)
        (low, high), (t_low, t_high) = _ours(values), _t_interval(values)
        assert high - low < times * (t_high - t_low)
    for count in (100, 1000, 10_000):
        assert bounds(count, 0.0, 0.0).low == 0
        assert 3 / count < bounds(count, 0.0, 0.0).high < 8 / count


def test_intervals_stay_within_0_and_1():
    assert bounds(1, 0.5, 0.25) == certificate.Bounds(0.5, 0.0, 1.0)
    assert bounds(5, 5.0, 5.0).high == 1
    assert bounds(10**9, 1e8, 1e8).high < 0.1001


def test_nothing_above_an_interval_is_left_unexcluded():
    """Every reach that no t excludes lies inside, also where the largest t excludes up to its larger root only."""
    reach = np.linspace(0.0, 1.0, 401)
    for count in (*range(2, 201), 1000):
        for variance in (0.0, 0.0005, 0.001, 0.002, 0.005, 0.02, 0.1, 0.25):
            steps = 1 + math.ceil(math.log2(0.9 / min(0.5, math.sqrt(32.0 / count))))
            excluded = np.zeros_like(reach, dtype=bool)
            for t in 0.9 * 0.5 ** np.arange(steps):
                psi = -math.log1p(-t) - t
                excluded |= t * reach - psi * (reach**2 + variance) > math.log(2 * steps / 0.05) / count
            largest = reach[~excluded].max()
            # A mean of 0 with this variance cannot be; the bound does not ask.
            found = certificate.bounds(count, 0.0, count * variance).high
            assert largest - 1e-9 <= found <= largest + 1 / 400 + 1e-9, (count, variance)
