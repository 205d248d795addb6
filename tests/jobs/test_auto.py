"""Method auto without a cluster: what a plan remembers, and what becomes of actors that are lost while they measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.job.calibration import Calibration, CalibrationRow
from jobs.job.plan import Plan, make_plan, parse_plan, read_plan, store_plan, task_of
from jobs.job.spec import FixedSpec, Spec, make_spec
from jobs.run.auto import choices_of, decide, decided_before, trial_rows
from jobs.run.remembered import folder
from jobs.words.errors import JobError, SpecError
from spd_core.decode.trial import Trial
from spd_core.law import Auto, Choice, Guarantee, Plain
from spd_core.pairs.pair import PairError, TunedWindows, load_card
from spd_core.train.bundle import record_windows
from tests.jobs.test_fleet import ActorDied, GetTimeoutError, RayError, RayTaskError, Ref
from tests.jobs.tree import make_shards
from tests.tiny_pair import make_tiny_pair
from workers import layout
from workers.records import PairSettings, TrialTask
from workers.sealed import canonical_json, seal
from workers.store import Store

FACTS = {"hostname": "h", "machine": "m", "device": "cpu", "threads": "1", "torch": "2"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


def auto_spec(pair: str, output: Path, **fields: object) -> Spec:
    raw: dict[str, Any] = {"pair": pair, "output": str(output), "method": "auto", "batch": 2, "features": False}
    return make_spec({**raw, "requests": {"count": 10}, "shard_size": 4, **fields})


def calibration_of(spec: Spec, chosen: int) -> Calibration:
    """A table in which each choice is as fast as its place, and ``chosen`` the fastest."""
    rows = tuple(
        CalibrationRow(
            method=choice.method,
            batch=choice.batch,
            guarantee=choice.method.guarantee,
            images_per_s=99.0 if place == chosen else float(place),
            trials=(float(place),),
            images=1.0,
            chosen=place == chosen,
        )
        for place, choice in enumerate(choices_of(spec, load_card(spec.pair)))
    )
    assert isinstance(spec.method, Auto)
    return Calibration(method=spec.method, batch=spec.batch, rows=rows, machine=FACTS, seconds=1.5)


def planned(spec: Spec, chosen: int) -> Plan:
    choice = choices_of(spec, load_card(spec.pair))[chosen]
    return make_plan(spec.decided(choice), calibration_of(spec, chosen))


def test_only_a_spec_with_a_method_is_fixed(pair, tmp_path):
    spec = auto_spec(pair, tmp_path)
    assert not isinstance(spec, FixedSpec) and isinstance(spec.method, Auto)
    fixed = auto_spec(pair, tmp_path, method="plain")
    assert isinstance(fixed, FixedSpec)
    assert decided_before(fixed, Store(fixed.output)) == (fixed, None)
    assert choices_of(fixed, load_card(pair)) == ()


def test_a_choice_gives_the_plan_that_naming_it_gives(pair, tmp_path):
    spec = auto_spec(pair, tmp_path, batch="auto")
    choices = choices_of(spec, load_card(pair))
    assert {choice.batch for choice in choices} == {1, 4}
    plan = planned(spec, 4)
    named = auto_spec(pair, tmp_path, method=choices[4].method.model_dump(), batch=choices[4].batch)
    assert plan.fingerprint == make_plan(named).fingerprint
    assert plan.choice == choices[4]
    assert plan.spec.method.name == "plain" and plan.spec.batch == 4
    assert plan.calibration.chosen.images_per_s == 99.0


def test_a_plan_whose_table_chose_something_else_is_no_plan(pair, tmp_path):
    spec = auto_spec(pair, tmp_path)
    plan = planned(spec, 1)
    assert parse_plan(plan.to_bytes()) is not None
    raw = plan.model_dump(mode="json") | {"calibration": calibration_of(spec, 2).model_dump(mode="json")}
    assert parse_plan(canonical_json(seal(raw))) is None


def test_nothing_is_decided_in_an_empty_output(pair, tmp_path):
    spec = auto_spec(pair, tmp_path / "out")
    assert decided_before(spec, Store(spec.output)) is None


def test_a_stored_plan_decides_for_every_later_run(pair, tmp_path):
    spec = auto_spec(pair, tmp_path / "out")
    store, plan = Store(spec.output), planned(spec, 1)
    store_plan(store, plan)
    fixed, kept = decided_before(spec, store)
    assert kept == plan.calibration
    again = make_plan(fixed, kept)
    assert again.fingerprint == plan.fingerprint
    assert store_plan(store, again).created == plan.created
    # Who names the method that was chosen continues the same dataset, and does not lose the table.
    named = auto_spec(pair, tmp_path / "out", method=plan.spec.method.model_dump())
    assert store_plan(store, make_plan(*decided_before(named, store))).calibration == plan.calibration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"name": "auto", "seconds": 5}}, "method.seconds: got 5.0, stored 120.0"),
        ({"method": {"name": "auto", "guarantee": "none"}}, "method.guarantee: got 'none', stored 'exact'"),
        ({"batch": 4}, "batch: got 4, stored 2"),
        ({"batch": "auto"}, "batch: got 'auto', stored 2"),
    ],
)
def test_asking_for_something_else_is_refused(pair, tmp_path, change, message):
    spec = auto_spec(pair, tmp_path / "out")
    store = Store(spec.output)
    store_plan(store, planned(spec, 1))
    with pytest.raises(SpecError, match=f"{message}; allowed: the stored value, or another output"):
        decided_before(auto_spec(pair, tmp_path / "out", **change), store)


def test_asking_for_auto_where_a_method_was_named_is_refused(pair, tmp_path):
    named = auto_spec(pair, tmp_path / "out", method="plain")
    store = Store(named.output)
    store_plan(store, make_plan(named))
    with pytest.raises(SpecError, match=r"method\.name: got 'auto', stored 'plain'"):
        decided_before(auto_spec(pair, tmp_path / "out"), store)


def test_another_law_is_refused_when_the_plans_are_compared(pair, tmp_path):
    spec = auto_spec(pair, tmp_path / "out")
    store = Store(spec.output)
    store_plan(store, planned(spec, 1))
    fixed, kept = decided_before(auto_spec(pair, tmp_path / "out", law={"num_iter": 4}), store)
    with pytest.raises(SpecError, match=r"law.num_iter: got 4, stored 8"):
        store_plan(store, make_plan(fixed, kept))


@pytest.mark.parametrize("damage", ["deleted", "cut short"])
def test_commit_records_tell_the_choice_of_a_lost_plan(pair, tmp_path, damage):
    spec = auto_spec(pair, tmp_path / "out")
    store, plan = Store(spec.output), planned(spec, 2)
    store_plan(store, plan)
    make_shards(store, spec.decided(plan.choice), plan)
    store.delete(layout.PLAN)
    if damage == "cut short":
        store.create(layout.PLAN, plan.to_bytes()[:-40])
    store.replace(layout.commit(0), b"{}")
    fixed, kept = decided_before(spec, store)
    assert (fixed.method, fixed.batch) == (plan.choice.method, plan.choice.batch)
    assert kept.rows == () and kept.chosen is None
    assert store_plan(store, make_plan(fixed, kept)).fingerprint == plan.fingerprint
    assert read_plan(store).calibration == kept


def test_commit_records_of_another_job_are_refused_before_anything_is_measured(pair, tmp_path):
    spec = auto_spec(pair, tmp_path / "out")
    other = auto_spec(pair, tmp_path / "out", method={"name": "cspd", "gamma": 3})
    store = Store(spec.output)
    make_shards(store, other, make_plan(other))
    with pytest.raises(SpecError, match=r"_commits/00000.json belongs to another job, allowed: another output"):
        decided_before(spec, store)


def unnamed_spec(pair: str, output: Path, **fields: object) -> Spec:
    """A spec that names no method."""
    raw: dict[str, Any] = {"pair": pair, "output": str(output), "features": False, "shard_size": 4}
    return make_spec({**raw, "requests": {"count": 10}, **fields})


@pytest.mark.parametrize("name", ["fashion-ar", "fashion-mar", "fashion-vq"])
def test_a_spec_without_a_method_measures_few_exact_ones_in_seconds(name, tmp_path):
    spec, card = unnamed_spec(name, tmp_path), load_card(name)
    found = choices_of(spec, card)
    assert found[0].method == Plain() and 1 < len(found) <= 5 and {choice.batch for choice in found} == {spec.batch}
    assert {choice.method.guarantee for choice in found} == {Guarantee.EXACT}
    assert spec.method.seconds <= 10
    assert card.of.default_method(card).guarantee is Guarantee.EXACT


@pytest.mark.parametrize(
    ("name", "fields", "meant"),
    [
        ("fashion-ar", {"seconds": 3}, {"name": "auto", "candidates": "few", "seconds": 3.0}),
        ("fashion-ar", {"guarantee": "tv", "delta": 4}, {"name": "auto", "candidates": "few", "delta": 4.0}),
        ("fashion-ar", {"gamma": 3}, {"name": "speculative", "gamma": 3, "stride": 15}),
        ("fashion-ar", {"head_window": [4]}, {"name": "plain", "head_window": [4]}),
        ("fashion-mar", {"aligned": False}, {"name": "cspd", "gamma": 8, "aligned": False, "head_window": []}),
        ("fashion-vq", {"gamma": 6}, {"name": "speculative", "gamma": 6, "drafter": "draft"}),
    ],
)
def test_fields_without_a_name_are_those_of_the_method_that_has_them(name, fields, meant, tmp_path):
    method = unnamed_spec(name, tmp_path, method=fields).method.model_dump(mode="json")
    assert {key: method[key] for key in meant} == meant
    if "gamma" in fields and name == "fashion-ar":
        assert tuple(method["head_window"]) == load_card(name).windows[0]


#: What versions that measured nothing took where no method was named.
FORMER = {"name": "cspd", "gamma": 8}


def test_an_output_that_an_earlier_version_began_goes_on_as_it_was_begun(pair, tmp_path, caplog):
    former = unnamed_spec(pair, tmp_path / "out", method=FORMER)
    store, plan = Store(former.output), make_plan(former)
    store_plan(store, plan)
    caplog.set_level("INFO")
    fixed, calibration = decided_before(unnamed_spec(pair, tmp_path / "out"), store)
    assert (fixed.method.name, calibration) == ("cspd", None)
    assert make_plan(fixed, calibration).fingerprint == plan.fingerprint
    assert "no method is asked for: going on with that of the stored plan, cspd (variant released" in caplog.text
    with pytest.raises(SpecError, match="batch: got 2, stored 32; allowed: the stored value, or another output"):
        decided_before(unnamed_spec(pair, tmp_path / "out", batch=2), store)
    with pytest.raises(SpecError, match=r"method\.name: got 'auto', stored 'cspd'"):
        decided_before(unnamed_spec(pair, tmp_path / "out", method="auto"), store)


def test_commit_records_tell_what_an_earlier_version_began(pair, tmp_path):
    former = unnamed_spec(pair, tmp_path / "out", method=FORMER, batch=2)
    store, plan = Store(former.output), make_plan(former)
    make_shards(store, former, plan)
    fixed, _ = decided_before(unnamed_spec(pair, tmp_path / "out", batch=2), store)
    assert make_plan(fixed).fingerprint == plan.fingerprint


def test_without_time_the_pairs_own_method_is_taken_and_a_resume_finds_it(pair, tmp_path):
    spec = unnamed_spec(pair, tmp_path / "out", method={"seconds": 0}, batch="auto")
    fixed, calibration = decided_before(spec, Store(spec.output))
    assert (fixed.method, fixed.batch) == (load_card(pair).of.default_method(load_card(pair)), 32)
    assert "batch" in fixed.open_fields, "on a GPU it is halved until it fits"
    assert (calibration.unmeasured, calibration.rows) == ("method.seconds is 0", ())
    store_plan(Store(spec.output), make_plan(fixed, calibration))
    assert decided_before(spec, Store(spec.output))[0].method == fixed.method


class FakeRay:
    """Actors that answer at once, as a script says; only what the measurement uses of Ray."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError)

    def __init__(self, answer: Callable[[TrialTask, int], Any], ready: Any = FACTS) -> None:
        self.answer, self.facts = answer, ready
        self.started: list[PairSettings] = []
        self.options: list[dict[str, Any]] = []
        self.killed = 0
        self.tasks: list[TrialTask] = []

    def remote(self, _trier: type) -> Any:
        def start(settings: PairSettings) -> Any:
            self.started.append(settings)
            return SimpleNamespace(
                ready=SimpleNamespace(remote=lambda: Ref(self.facts)), run=SimpleNamespace(remote=self._run)
            )

        def options(**given: Any) -> Any:
            self.options.append(given)
            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=options)

    def _run(self, task: TrialTask) -> Ref:
        self.tasks.append(task)
        return Ref(self.answer(task, len(self.started)))

    def get(self, ref: Ref, timeout: float) -> Any:
        assert math.isfinite(timeout), "Ray takes no other"
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.killed += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}


def windowed(task: TrialTask) -> bool:
    return bool(task.choice.method.head_window)


def faster_with_windows(task: TrialTask, _actor: int) -> Trial:
    return Trial(sum(task.choice.method.head_window) + 1.0, 1.0)


def test_the_fastest_is_decided_on_one_worker_with_the_jobs_resources(pair, tmp_path):
    ray = FakeRay(faster_with_windows)
    spec = auto_spec(pair, tmp_path, workers={"threads": 3, "num_cpus": 3, "num_gpus": 1}, seed=7)
    fixed, calibration = decide(ray, spec)
    assert isinstance(fixed, FixedSpec) and fixed.method == Plain(head_window=(8,)) and fixed.batch == 2
    assert calibration.chosen.method == fixed.method and calibration.machine == FACTS
    assert len(ray.started) == ray.killed == 1
    assert (ray.started[0].device, ray.started[0].threads, ray.started[0].law) == ("cuda", 3, spec.law)
    assert (ray.options[0]["num_cpus"], ray.options[0]["num_gpus"]) == (3, 1)


def test_the_requests_are_the_jobs_own(pair, tmp_path):
    ray = FakeRay(faster_with_windows)
    spec = auto_spec(pair, tmp_path, seed=7)
    fixed, _ = decide(ray, spec)
    plan = make_plan(fixed)
    shards = [task_of(plan, shard, 0) for shard in range(2)]
    assert (ray.tasks[0].labels, ray.tasks[0].seeds) == (shards[0].labels, shards[0].seeds)
    assert (ray.tasks[1].labels, ray.tasks[1].seeds) == (shards[1].labels, shards[1].seeds)
    # The third shard has two requests left; a trial goes on with the first ones.
    third = next(task for task in ray.tasks if task.seeds not in (shards[0].seeds, shards[1].seeds))
    assert third.seeds[2:] == shards[0].seeds[:2]


@pytest.mark.parametrize(("batch", "shard", "images"), [(1, 64, 8), (4, 64, 16), (16, 64, 64), (64, 64, 64), (1, 4, 4)])
def test_a_trial_fills_its_slots_more_than_once_where_a_shard_does(pair, tmp_path, batch, shard, images):
    spec = auto_spec(pair, tmp_path, batch=batch, shard_size=shard, requests={"count": 100})
    assert trial_rows(spec, choices_of(spec, load_card(pair))[0]) == images


def test_a_decoder_that_fails_is_left_out(pair, tmp_path, caplog):
    def answer(task: TrialTask, actor: int) -> Any:
        return RayTaskError(RuntimeError("out of memory")) if windowed(task) else faster_with_windows(task, actor)

    ray = FakeRay(answer)
    fixed, calibration = decide(ray, auto_spec(pair, tmp_path))
    assert fixed.method == Plain()
    assert [row.problem for row in calibration.rows] == ["", "out of memory", "out of memory"]
    assert len(ray.started) == 1, "the actor itself is well"
    assert "is skipped: out of memory" in caplog.text


@pytest.mark.parametrize("loss", [ActorDied("gone"), GetTimeoutError("no answer")])
def test_a_choice_that_takes_its_actors_with_it_is_left_out(pair, tmp_path, loss):
    ray = FakeRay(lambda task, actor: loss if windowed(task) else faster_with_windows(task, actor))
    fixed, calibration = decide(ray, auto_spec(pair, tmp_path))
    assert fixed.method == Plain()
    assert [row.problem for row in calibration.rows][1:] == ["2 workers were lost over it"] * 2
    assert len(ray.started) == ray.killed == 5


def test_an_actor_that_is_lost_once_blames_nobody(pair, tmp_path):
    ray = FakeRay(lambda task, actor: ActorDied("gone") if actor == 1 else faster_with_windows(task, actor))
    fixed, calibration = decide(ray, auto_spec(pair, tmp_path))
    assert fixed.method == Plain(head_window=(8,))
    assert not any(row.problem for row in calibration.rows)
    assert len(ray.started) == ray.killed == 2


def test_if_every_method_fails_the_job_ends(pair, tmp_path):
    ray = FakeRay(lambda *_: RayTaskError(RuntimeError("out of memory")))
    with pytest.raises(JobError, match="method auto: every method failed, the first with: out of memory"):
        decide(ray, auto_spec(pair, tmp_path))
    assert ray.killed == 1


@pytest.mark.parametrize(
    ("ready", "error", "message"),
    [
        (RayTaskError(PairError("pair: corrupt")), PairError, "pair: corrupt"),
        (ActorDied("boom"), JobError, "the worker that measures did not come up: boom"),
        (GetTimeoutError("late"), JobError, "each needs 1 CPUs and 0 GPUs, the cluster has 1 and 0"),
    ],
)
def test_a_worker_that_does_not_come_up_ends_the_job(pair, tmp_path, ready, error, message):
    ray = FakeRay(faster_with_windows, ready=ready)
    with pytest.raises(error, match=message):
        decide(ray, auto_spec(pair, tmp_path))
    assert ray.killed == 1


GPU = {**FACTS, "device": "NVIDIA H100 80GB HBM3", "cuda": "13.0", "flops": "7.98e+14", "bytes_per_s": "3e+12"}


def test_where_the_first_turn_takes_too_long_the_pairs_own_method_is_taken(pair, tmp_path, caplog):
    ray = FakeRay(lambda *_: Trial(1.0, 6.0))
    spec = unnamed_spec(pair, tmp_path)
    fixed, calibration = decide(ray, spec)
    assert fixed.method == load_card(pair).of.default_method(load_card(pair)) and fixed.batch == spec.batch
    assert calibration.unmeasured == "the first turn takes more than 5.0 s" and calibration.rows == ()
    assert len(ray.tasks) == 2, "the first call of all may wait for kernels, so there was a second"
    assert "taking plain (head_window 4) at batch 32 unmeasured" in caplog.text
    assert not list(folder().glob("auto-*.json"))
    patient = FakeRay(lambda *_: Trial(1.0, 6.0))
    assert decide(patient, auto_spec(pair, tmp_path))[1].rows, "who asks for auto waits"


def test_a_choice_says_what_it_gains_over_plain_decoding_measured_in_turns(pair, tmp_path):
    ray = FakeRay(lambda task, _: Trial(2.0, 1.0 if windowed(task) else 4.0))
    _, calibration = decide(ray, unnamed_spec(pair, tmp_path))
    found = calibration.comparison
    assert found.ratio == 4.0 and found.batch == 32 and set(found.method) == {2.0} and set(found.plain) == {0.5}
    assert found.made == calibration.made and found.made.startswith("20")
    last = [windowed(task) for task in ray.tasks[-2:]]
    assert sorted(last) == [False, True], "they take turns"
    assert {len(task.seeds) for task in ray.tasks} == {4}, "a batch, of a shard of four"
    slower = FakeRay(lambda task, _: Trial(5.0 if windowed(task) else 4.0, 1.0))
    decide(slower, unnamed_spec(pair, tmp_path, batch=31))
    assert [math.isinf(task.limit_s) for task in slower.tasks[-3:]] == [False, True, True], "a whole batch each"
    _, calibration = decide(FakeRay(lambda *_: Trial(1.0, 1.0)), unnamed_spec(pair, tmp_path, seed=1, batch=3))
    assert calibration.chosen.method == Plain() and calibration.comparison is None


def test_what_was_measured_is_remembered(pair, tmp_path):
    first, second = FakeRay(faster_with_windows), FakeRay(faster_with_windows)
    fixed, measured = decide(first, auto_spec(pair, tmp_path / "a"))
    again, remembered = decide(second, auto_spec(pair, tmp_path / "b", seed=3))
    assert first.tasks and not second.tasks
    assert (again.method, again.batch) == (fixed.method, fixed.batch)
    assert not measured.remembered and remembered == measured.model_copy(update={"remembered": True})
    assert second.killed == 1, "the worker that said what it is goes"


@pytest.mark.parametrize(
    "other",
    [
        GPU,
        {**FACTS, "machine": "another CPU"},
        {**FACTS, "threads": "2"},
        {**FACTS, "torch": "3"},
    ],
    ids=["gpu", "machine", "threads", "torch"],
)
def test_another_kind_of_device_is_measured_itself(pair, tmp_path, other):
    decide(FakeRay(faster_with_windows), auto_spec(pair, tmp_path / "a"))
    ray = FakeRay(faster_with_windows, ready=other)
    _, calibration = decide(ray, auto_spec(pair, tmp_path / "b"))
    assert ray.tasks
    assert calibration.machine == other


@pytest.mark.parametrize(
    ("change", "measures"),
    [
        ({"hostname": "other", "machine": "another host", "threads": "9", "flops": "7.5e+14"}, False),
        ({"device": "NVIDIA H200"}, True),
        ({"cuda": "12.8"}, True),
        ({"torch": "3"}, True),
    ],
    ids=["host", "device", "cuda", "torch"],
)
def test_of_a_gpu_its_name_and_versions_count(pair, tmp_path, change, measures):
    decide(FakeRay(faster_with_windows, ready=GPU), auto_spec(pair, tmp_path / "a"))
    ray = FakeRay(faster_with_windows, ready={**GPU, **change})
    decide(ray, auto_spec(pair, tmp_path / "b"))
    assert bool(ray.tasks) == measures


@pytest.mark.parametrize(
    "change",
    [
        {"law": {"dtype": "bfloat16"}},
        {"law": {"num_iter": 4}},
        {"batch": 1},
        {"method": {"name": "auto", "seconds": 5}},
    ],
    ids=["precision", "law", "batch", "method"],
)
def test_another_question_is_measured(pair, tmp_path, change):
    decide(FakeRay(faster_with_windows), auto_spec(pair, tmp_path / "a"))
    ray = FakeRay(faster_with_windows)
    decide(ray, auto_spec(pair, tmp_path / "b", **change))
    assert ray.tasks


def test_a_damaged_memory_is_measured_again(pair, tmp_path):
    decide(FakeRay(faster_with_windows), auto_spec(pair, tmp_path / "a"))
    for file in folder().glob("auto-*.json"):
        file.write_text(file.read_text()[:-20])
    ray = FakeRay(faster_with_windows)
    decide(ray, auto_spec(pair, tmp_path / "b"))
    assert ray.tasks


def test_a_memory_that_cannot_be_written_is_no_failure(pair, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPD_CACHE", str(tmp_path / "file" / "cache"))
    fixed, _ = decide(FakeRay(faster_with_windows), auto_spec(pair, tmp_path / "a"))
    assert fixed.method == Plain(head_window=(8,))
    assert "not remembered" in caplog.text


@pytest.fixture
def tuned_pair(tmp_path) -> str:
    """A pair with windows tuned at several prices."""
    own = make_tiny_pair(tmp_path / "tuned")
    ladder = [
        TunedWindows(price=price, windows=(length,), calls=calls, rows=rows, steps=4)
        for price, length, calls, rows in ((0.0, 4, 1.2, 9.0), (0.1, 3, 1.8, 6.0), (1.0, 2, 3.0, 4.2))
    ]
    record_windows(own, [(4,)], ladder)
    return str(own)


def test_on_a_gpu_windows_are_those_of_its_ridge(tuned_pair, tmp_path):
    ray = FakeRay(faster_with_windows, ready=GPU)
    decide(ray, auto_spec(tuned_pair, tmp_path / "a", workers={"num_gpus": 1}))
    measured = {task.choice.method.head_window for task in ray.tasks}
    assert measured == {(), (4,), (3,)}, "the longest: two images are far below the ridge, and calls are what counts"


def test_a_choice_of_a_cpu_is_told_where_it_goes_on_on_a_gpu(pair, tmp_path, caplog):
    spec = auto_spec(pair, tmp_path / "out")
    store = Store(spec.output)
    store_plan(store, planned(spec, 1))
    decided_before(spec, store)
    assert "measured on a CPU" not in caplog.text
    decided_before(auto_spec(pair, tmp_path / "out", workers={"num_gpus": 1}), store)
    assert "the stored choice was measured on a CPU" in caplog.text


def test_commit_records_name_windows_of_any_device(tuned_pair, tmp_path):
    spec = auto_spec(tuned_pair, tmp_path / "out", workers={"num_gpus": 1})
    fixed = spec.decided(Choice(method=Plain(head_window=(3,)), batch=2))
    store = Store(spec.output)
    make_shards(store, fixed, make_plan(fixed))
    assert decided_before(spec, store)[0].method == fixed.method
