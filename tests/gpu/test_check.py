"""The device check at toy size, and its parts: what it promises of time limits, imposed acceptance and its figures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from spd_core.decode.head_speculation import windows_by_step
from spd_core.families.llamagen.speculation import decode_codes_speculative
from spd_core.law import SamplerLaw, Speculative
from tests.gpu import models
from tests.gpu.__main__ import PARTS, main
from tests.gpu.check import correctness, flops
from tests.gpu.check.imposed import ForcedDraws, PatternDraws, as_table, calls_under, recorded_pattern
from tests.gpu.check.probe import MarProbe, summed
from tests.gpu.check.run import Check, Part, run_parts
from tests.gpu.check.two_laws import codes_p_value, energy_p_value
from tests.gpu.pretend import CUDA, Missing, pretend_cuda

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_whole_check_runs_at_toy_size(tmp_path: Path):
    assert main(["--smoke", "--device", "cpu", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "device_check.json").read_text())["rows"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == [part.name for part in PARTS]
    assert [row for row in rows if "error" in row or "skipped" in row] == []


def test_oracles_are_reproduced_on_a_device(tmp_path: Path):
    try:
        with pretend_cuda():
            check = Check(CUDA, tmp_path, 600.0, smoke=True)
            assert run_parts(check, [Part("oracles", 1, correctness.oracles)])
    except Missing as missing:
        pytest.skip(f"needs {missing}")
    assert {row["oracle"] for row in check.rows if "oracle" in row} >= {"llamagen_gpt", "mar_diffusion", "mar_head"}


def test_without_a_gpu_only_the_smoke_run_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cpu", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "got cpu, allowed without --smoke: a GPU" in capsys.readouterr().err


def check_of(tmp_path: Path, budget: float = 60.0) -> Check:
    return Check(CPU, tmp_path, budget, smoke=True)


def test_every_row_is_on_disk_before_the_next_is_measured(tmp_path: Path):
    seen = []

    def run(check: Check) -> None:
        for value in range(3):
            check.row(value=value)
            seen.append(len(json.loads((tmp_path / "device_check.json").read_text())["rows"]))

    run_parts(check_of(tmp_path), [Part("one", 1, run)])
    assert seen == [1, 2, 3]


def test_a_part_that_fails_costs_only_itself(tmp_path: Path):
    def fails(check: Check) -> None:
        raise ValueError("no such kernel")

    check = check_of(tmp_path)
    assert not run_parts(check, [Part("bad", 1, fails), Part("good", 1, lambda check: check.row(value=1))])
    assert check.rows[0]["error"] == "ValueError: no such kernel"
    assert check.rows[0]["where"].startswith("test_check.py:")
    assert check.rows[1]["part"] == "good"


def test_a_finding_that_is_wrong_makes_the_run_unsound(tmp_path: Path):
    assert not run_parts(check_of(tmp_path), [Part("one", 1, lambda check: check.row(ok=False))])


def test_time_is_apportioned_and_what_is_not_used_is_the_later_parts(tmp_path: Path):
    check, given = check_of(tmp_path, budget=100.0), []
    parts = [
        Part(str(n), weight, lambda c: given.append(c.deadline - time.perf_counter()))
        for n, weight in enumerate((1, 1, 2))
    ]
    run_parts(check, parts)
    assert given == pytest.approx([25.0, 100 / 3, 100.0], abs=1.0)


def test_a_part_whose_time_is_up_says_what_it_left_out(tmp_path: Path):
    check = check_of(tmp_path, budget=0.0)
    run_parts(check, [Part("late", 1, lambda check: check.tried({"model": "huge"}, dict))])
    assert check.rows[0]["skipped"] == "no time left for this part" and check.rows[0]["model"] == "huge"


def test_running_out_of_memory_is_a_row(tmp_path: Path):
    def huge() -> dict:
        raise torch.OutOfMemoryError

    check = check_of(tmp_path)
    check.tried({"batch": 256}, huge)
    assert check.rows[0]["skipped"] == "out of memory"


def test_imposed_acceptance_of_codes_is_the_stated_one():
    config = models.code_config("B", narrow=True, grid=4).model_copy(update={"n_layer": 1})
    target, draft = models.codes(config, CPU, seed=1), models.codes(config, CPU, seed=2)
    labels, law = torch.zeros(40, dtype=torch.int64), SamplerLaw(cfg_schedule="constant")
    vectors = torch.eye(config.vocab_size)
    shares = []
    for rate in (0.0, 0.8, 1.0):
        draws = ForcedDraws(torch.arange(40), rate)
        with torch.inference_mode():
            drafts = decode_codes_speculative(target, draft, vectors, law, Speculative(gamma=4), labels, draws).drafts
        shares.append(float(drafts.accepted.float().mean()))
    assert shares[0] == 0.0 and shares[2] == 1.0
    assert shares[1] == pytest.approx(0.8, abs=0.05)


def test_imposed_rejections_of_a_head_are_those_of_the_pattern(tmp_path: Path):
    law, windows = SamplerLaw(num_iter=4, head_steps=12, cfg=2.0), (4, 3)
    rejected = as_table([[10, 9, 3], [], [11, 5]], 12)
    config = models.mar_config("base", narrow=True, grid=2).model_copy(update={"encoder_depth": 1, "decoder_depth": 1})

    def draws(seeds: torch.Tensor) -> PatternDraws:
        return PatternDraws(seeds, rejected)

    with torch.inference_mode():
        probe = MarProbe(check_of(tmp_path), models.mar(config, CPU), law, 1, windows, draws)
        probe.run(probe.steps)
    made = probe.sampler.meter.counts["target_head_calls"]
    # The first step, where the noise hides the token, is always made alone.
    lengths = torch.minimum(windows_by_step(windows, 12, CPU), torch.arange(1, 13))
    lengths[11] = 1
    assert made == sum(calls_under(lengths, rejected[[token % 3]]) for token in range(4))


def test_the_recorded_pattern_is_of_the_bundled_pairs_windows():
    for schedule, most in ((0, 8), (1, 9)):
        windows, rejected = recorded_pattern(schedule)
        lengths = torch.minimum(windows_by_step(windows, 100, CPU), torch.arange(1, 101))
        assert rejected.shape[1] == 100 and len(rejected) >= 300 and not rejected[:, 0].any()
        assert 6 < calls_under(lengths, rejected) < most


def test_two_sample_tests_keep_one_law_and_refuse_another():
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(200, 3, generator=generator) for _ in range(2))
    assert energy_p_value(x, y) > 0.05
    assert energy_p_value(x, 1.3 * y) <= 0.01
    fair, other, bent = (torch.multinomial(torch.tensor(w), 2000, True, generator=generator).view(200, 10)
                         for w in ([1.0, 1, 1, 1], [1.0, 1, 1, 1], [1.0, 1, 1, 2]))  # fmt: skip
    assert codes_p_value(fair, other, 4) > 0.05
    assert codes_p_value(fair, bent, 4) <= 0.01


def test_probes_sum_to_a_whole_schedule():
    assert summed([(0, 1.0), (4, 5.0), (9, 0.0)], 0, 10) == pytest.approx(1 + 2 + 3 + 4 + 5 + 4 + 3 + 2 + 1 + 0)
    assert summed([(0, 2.0)], 3, 7) == 8.0


@pytest.mark.parametrize(
    ("name", "head", "transformer"), [("base", 3.66, 0.162), ("large", 7.4, 0.385), ("huge", 15.5, 0.751)]
)
def test_operations_of_mar_are_those_that_were_counted(name: str, head: float, transformer: float):
    """Teraflops of an image's 100 head steps, and of an iteration's transformer, as torch's counter gives them."""
    config, law = models.mar_config(name), SamplerLaw(num_iter=256, head_steps=100, cfg=3.0)
    more = law.model_copy(update={"head_steps": 200})
    of_head = (flops.mar_image(config, more) - flops.mar_image(config, law)) / 1e12
    of_transformer = (flops.mar_image(config, law) / 1e12 - of_head) / 256
    assert of_head == pytest.approx(head, rel=0.1)
    assert of_transformer == pytest.approx(transformer, rel=0.15)
