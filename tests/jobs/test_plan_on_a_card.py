"""``spd plan`` for a GPU that this machine has not: its time and cost are predictions and say so."""

from __future__ import annotations

import pytest

from jobs.cli import main
from jobs.job.spec import make_spec
from jobs.run.estimate import estimate, estimate_lines
from spd_core.decode.ceilings import known_ceilings
from spd_core.decode.predict import images_per_s
from spd_core.law import Choice, Plain
from spd_core.memory import BatchMemory
from spd_core.pairs.pair import load_card
from tests.tiny_pair import make_tiny_pair
from tests.tiny_sphere import make_tiny_sphere_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


def planned(pair: str, workers: dict, **fields: object) -> dict[str, str]:
    """The lines of a plan by their first word."""
    spec = make_spec({"pair": pair, "requests": {"count": 10**9}, "workers": {"num_gpus": 1, **workers}, **fields})
    card = load_card(pair)
    lines = estimate_lines(card, spec, estimate(card, spec))
    return {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in lines}


def test_time_and_cost_on_a_named_card(pair):
    at = known_ceilings("L4", "float32")
    rate = images_per_s(load_card(pair), load_card(pair).law, Choice(method=Plain(), batch=256), at)
    spec = {"pair": pair, "method": "plain", "requests": {"count": 10**9}}
    workers = {"num_gpus": 1, "accelerator_type": "L4", "price_per_hour": 0.8, "count": 2}
    guess = estimate(load_card(pair), make_spec({**spec, "workers": workers}))
    assert guess.images_per_s_per_worker == rate
    assert guess.cost == pytest.approx(10**9 / rate / 3600 * 0.8)
    told = planned(pair, workers, method="plain")
    assert told["time"].startswith("predicted for one NVIDIA L4 a worker, not measured: at least about ")
    assert told["time"].endswith(", from its data sheet's peaks")
    assert told["cost"].startswith("predicted: at least about ") and told["cost"].endswith(
        " at 0.8 an hour of a worker"
    )


def test_without_a_price_the_hours_to_be_paid_are_told(pair):
    told = planned(pair, {"accelerator_type": "A100"}, method="plain")
    assert told["cost"].startswith("predicted: at least about ")
    assert told["cost"].endswith(" hours of a worker; workers.price_per_hour makes them an amount")


def test_a_card_that_is_not_listed_is_not_taken_for_another(pair):
    told = planned(pair, {"accelerator_type": "T4", "price_per_hour": 1.0}, method="plain")
    assert told["time"].startswith(
        "unknown: no peak speeds of workers.accelerator_type T4 are listed, only those of B200,"
    )
    assert told["cost"] == "unknown"


def test_windows_that_were_not_tuned_for_the_pair_are_left_out_and_said_so(tmp_path):
    method = {"name": "plain", "head_window": [3, 2]}
    told = planned(str(make_tiny_sphere_pair(tmp_path / "spheres")), {"accelerator_type": "H100"}, method=method)
    assert "head_window 3/2" in told["method"]
    assert told["time"].endswith(
        ", from speeds seen on one, without head self-speculation, whose gain here is not known"
    )


def test_one_gpu_stands_for_an_open_count(pair):
    assert planned(pair, {"accelerator_type": "L4"}, method="plain")["workers"] == "1"


@pytest.mark.parametrize(
    ("fields", "says"),
    [({}, "is halved until it fits, and slower than predicted"), ({"batch": 65536}, "a batch of 65536 is refused")],
)
def test_a_batch_above_the_memory_of_the_card_is_a_warning(pair, monkeypatch, fields, says):
    monkeypatch.setattr("jobs.run.estimate.batch_memory", lambda *_: BatchMemory(25 * 10**9, 0, 0, 0))
    told = planned(pair, {"accelerator_type": "L4"}, method="plain", **fields)
    assert told["warning"].startswith("one NVIDIA L4 has 24 GB: ") and says in told["warning"]
    assert "GB" not in planned(pair, {"accelerator_type": "L40S"}, method="plain", **fields).get("warning", "")


def test_the_memory_of_a_named_card_is_told_without_a_predicted_speed(pair, monkeypatch):
    monkeypatch.setattr("jobs.run.estimate.batch_memory", lambda *_: BatchMemory(25 * 10**9, 0, 0, 0))
    told = planned(pair, {"accelerator_type": "L4"}, method={"name": "cspd", "variant": "paper"})
    assert told["time"].startswith("unknown: ")
    assert told["warning"] == "one NVIDIA L4 has 24 GB: a batch of 256 is halved until it fits"


def test_the_command_of_the_page_prints_a_prediction(capsys):
    given = ["pair=fashion-vq", "method=plain", "requests.count=1000000", "workers.num_gpus=1"]
    given += ["workers.accelerator_type=L4", "workers.price_per_hour=0.8"]
    assert main(["plan", *(word for field in given for word in ("--set", field))]) == 0
    assert "cost         predicted: at least about " in capsys.readouterr().out
