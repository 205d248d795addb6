"""What is said of nights: figure, size, since when, and what changed between."""

from __future__ import annotations

import datetime

import pytest

from jobs.job.requirements import Requirements
from jobs.nightly.pages import pages_of
from jobs.nightly.verdict import State, compare, judge
from tests.jobs.nights_tree import FIRST, a_night, thirty_nights

NONE = Requirements()


def requiring(**figures) -> Requirements:
    return Requirements.model_validate({"figures": figures})


def found(verdict, figure):
    return next(one for one in verdict.findings if one.figure == figure)


def test_a_drop_from_night_24_on_is_named_with_figure_night_size_and_commit():
    verdict = judge(thirty_nights(0.08), NONE)
    (worse,) = verdict.regressions
    assert worse.figure == "speed_over_plain"
    assert worse.since == FIRST + datetime.timedelta(days=23)
    assert worse.percent == pytest.approx(-8, abs=2)
    assert verdict.lines[0].startswith("regression: speed_over_plain fell ")
    assert "since the night of 2026-11-24; between: commit abc123 -> def456" in verdict.lines[0]


def test_thirty_nights_without_a_drop_are_ok():
    verdict = judge(thirty_nights(0.0), NONE)
    assert not verdict.regressions
    assert verdict.lines[0].startswith("ok: ")


def test_a_changed_acceptance_is_found_the_first_night():
    nights = [*(a_night(day) for day in range(5)), a_night(5, figures={"acceptance": 0.74}, commit="new")]
    (worse,) = judge(nights, NONE).regressions
    assert worse.figure == "acceptance"
    assert worse.since == nights[5].night
    assert "fell 1.3 % (0.75 -> 0.74)" in worse.line
    assert "commit abc123 -> new" in worse.line


def test_a_changed_acceptance_is_not_forgotten_the_night_after():
    nights = [*(a_night(day) for day in range(5)), *(a_night(day, figures={"acceptance": 0.74}) for day in (5, 6, 7))]
    (worse,) = judge(nights, NONE).regressions
    assert worse.since == nights[5].night


def test_nights_before_the_agreed_date_are_not_judged():
    nights = [*(a_night(day) for day in range(5)), *(a_night(day, figures={"acceptance": 0.74}) for day in (5, 6, 7))]
    assert not judge(nights, Requirements(since=nights[5].night)).regressions


def test_another_plan_explains_another_acceptance():
    spec = {"method": {"name": "speculative", "gamma": 4}}
    nights = [a_night(0), a_night(1, figures={"acceptance": 0.8}, fingerprint="0" * 64, spec=spec)]
    verdict = judge(nights, NONE)
    assert not verdict.regressions
    assert found(verdict, "acceptance").state is State.EXPLAINED
    assert "method.gamma 8 -> 4" in found(verdict, "acceptance").line


def test_another_platform_explains_other_bytes():
    assert not judge([a_night(0), a_night(1, platforms=("GPU",), content="d" * 64)], NONE).regressions


def test_other_bytes_of_one_plan_and_platform_are_a_regression():
    (worse,) = judge([a_night(0), a_night(1, content="d" * 64)], NONE).regressions
    assert worse.line.startswith("regression: bytes of the dataset changed at the same plan and platform")


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"min": 3}, "is 2.4, required: at least 3"),
        ({"max": 2}, "is 2.4, required: at most 2"),
        ({"exact": 2.5}, "is 2.4, required: 2.5"),
    ],
)
def test_a_limit_holds_for_the_newest_night_alone(limits, text):
    (worse,) = judge([a_night()], requiring(speed_over_plain=limits)).regressions
    assert worse.text == text


def test_what_is_required_must_be_measured():
    (worse,) = judge([a_night()], requiring(certificate={"max": 0.1})).regressions
    assert worse.text == "is required and was not measured"


def test_a_drop_within_what_is_tolerated_is_none():
    assert not judge(thirty_nights(0.08), requiring(speed_over_plain={"max_regression": 15})).regressions


def test_wall_speed_is_judged_only_if_something_is_asked_of_it():
    nights = [a_night(day, figures={"images_per_s": 40.0 if day < 20 else 30.0}) for day in range(30)]
    assert not judge(nights, NONE).regressions
    (worse,) = judge(nights, requiring(images_per_s={"max_regression": 5})).regressions
    assert worse.figure == "images_per_s"


def test_a_speed_that_came_back_is_no_regression_and_one_that_partly_did_is():
    def nights(last):
        levels = [2.4] * 20 + [1.8] * 10 + [last] * 10
        return [a_night(day, figures={"speed_over_plain": value}) for day, value in enumerate(levels)]

    assert not judge(nights(2.4), NONE).regressions
    (worse,) = judge(nights(2.1), NONE).regressions
    assert worse.since == FIRST + datetime.timedelta(days=20)
    assert worse.percent == pytest.approx(-12.5, abs=0.5)


def test_a_single_low_night_is_odd_and_no_regression():
    nights = [a_night(day, figures={"speed_over_plain": 2.4 + 0.01 * (day % 3)}) for day in range(20)]
    verdict = judge([*nights, a_night(20, figures={"speed_over_plain": 1.5})], NONE)
    assert not verdict.regressions
    assert found(verdict, "speed_over_plain").state is State.ODD


def test_distances_of_other_numbers_of_images_are_not_compared():
    nights = [a_night(day, figures={"frechet": 337.0}) for day in range(20)]
    nights += [a_night(day, figures={"frechet": 500.0}, quality_n=64) for day in range(20, 30)]
    assert not judge(nights, NONE).regressions


def test_a_worse_distance_is_found():
    nights = [a_night(day, figures={"frechet": 337.0 if day < 20 else 420.0}) for day in range(30)]
    (worse,) = judge(nights, NONE).regressions
    assert worse.figure == "frechet"
    assert worse.text.startswith("rose 24")


def test_two_outputs_are_compared_by_their_standard_errors():
    assert not compare(a_night(0), a_night(1, figures={"frechet": 345.0}), NONE).regressions
    (worse,) = compare(a_night(0), a_night(1, figures={"frechet": 420.0}), NONE).regressions
    assert worse.figure == "frechet"


def test_two_outputs_of_one_plan_have_one_acceptance():
    (worse,) = compare(a_night(0), a_night(1, figures={"acceptance": 0.7}), NONE).regressions
    assert worse.figure == "acceptance"


def test_speed_of_two_outputs_is_judged_only_if_something_is_asked_of_it():
    slow = a_night(1, figures={"images_per_s": 20.0})
    assert not compare(a_night(0), slow, NONE).regressions
    (worse,) = compare(a_night(0), slow, requiring(images_per_s={"max_regression": 10})).regressions
    assert worse.figure == "images_per_s"


def test_a_first_night_is_held_against_nothing():
    verdict = judge([a_night()], NONE)
    assert verdict.lines == ("ok: first night, nothing to compare with",)
    of_acceptance = found(verdict, "acceptance")
    assert (of_acceptance.state, of_acceptance.before, of_acceptance.percent) == (State.WAITING, None, None)


def test_a_first_night_is_judged_by_the_limits_that_it_has():
    verdict = judge([a_night()], requiring(acceptance={"min": 0.7}))
    assert verdict.lines[0] == "ok: 1 figure of 2026-11-01 judged, 1 night"
    assert verdict.lines[1] == "not judged yet: speed_over_plain, frechet: 0 of 10 earlier nights"
    assert verdict.lines[2] == "not judged yet: images: nothing to compare with"


def test_a_noisy_figure_waits_for_ten_earlier_nights_and_does_not_count_until_then():
    ten = judge([a_night(day) for day in range(10)], NONE)
    assert ten.lines[0].startswith("ok: 2 figures ")
    assert ten.lines[1:] == ("not judged yet: speed_over_plain, frechet: 9 of 10 earlier nights",)
    eleven = judge([a_night(day) for day in range(11)], NONE)
    assert len(eleven.lines) == 1 and eleven.lines[0].startswith("ok: 4 figures ")


def test_a_figure_is_held_against_the_night_before_if_the_plan_is_new_and_waits_if_that_has_none():
    def second(**figures):
        return found(judge([a_night(0), a_night(1, figures=figures, fingerprint="0" * 64)], NONE), next(iter(figures)))

    assert (second(acceptance=0.75).state, second(acceptance=0.75).before) == (State.OK, 0.75)
    assert (second(certificate=0.1).state, second(certificate=0.1).text) == (State.WAITING, "nothing to compare with")


def test_what_only_the_second_of_two_outputs_has_is_shown_and_not_judged():
    verdict = compare(a_night(0), a_night(1, figures={"certificate": 0.1, "label_agreement": 0.9}), NONE)
    assert [found(verdict, name).state for name in ("certificate", "label_agreement")] == [State.SHOWN] * 2


@pytest.mark.parametrize("page", ["trend.html", "trend.md"])
def test_the_pages_of_a_first_night_say_that_there_is_nothing_to_compare_with(page):
    nights = [a_night()]
    text = pages_of("trend", judge(nights, NONE), nights)[page].decode()
    assert "first night, nothing to compare with" in text and "0 of 10 earlier nights" in text
    assert "0 %" not in text.partition("<body>")[2] and "nights judged" not in text
