"""Every kind of fault at every step of a job: a complete dataset, or one clear line and a state that resumes.

The job is the product's own, driver and workers in this process; only the store breaks.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.filesystem import Bucket, Fault, Faulty
from tests.faults.in_process import TARGET, explain, images, in_process, job, run
from workers import layout

#: Steps of the protocol by name: the operations that a step is made of, as patterns of action and path.
STEPS = {
    "probe create": ("create", r"\.probe-"),
    "probe delete": ("delete", r"\.probe-"),
    "plan look": ("look", layout.PLAN),
    "plan create": ("create", layout.PLAN),
    "plan read": ("read", layout.PLAN),
    "mark look": ("look", layout.DRIVER),
    "mark write": ("replace", layout.DRIVER),
    "mark delete": ("delete", layout.DRIVER),
    "commit list": ("list", layout.COMMITS),
    "commit look": ("look", rf"{layout.COMMITS}/00001"),
    "data create": ("create", "data/part-00001"),
    "acceptance create": ("create", "acceptance/part-00001"),
    "features create": ("create", "_features/part-00001"),
    "commit create": ("create", f"{layout.COMMITS}/00001"),
    "commit read": ("read", f"{layout.COMMITS}/00001"),
    "report read": ("read", "data/part-00000"),
    "report.json write": ("replace", layout.REPORT_JSON),
    "report.html write": ("replace", layout.REPORT_HTML),
    "card write": ("replace", layout.CARD),
    "manifest read": ("read", layout.REPORT_HTML),
    "_SUCCESS look": ("look", layout.SUCCESS),
    "_SUCCESS delete": ("delete", layout.SUCCESS),
    "_SUCCESS create": ("create", layout.SUCCESS),
}
#: What a transport does now and then: the job must get over it without anybody's help.
HARMLESS = ("fail before", "fail after", "slow", "throttle", "truncate", "stale", "ignore")
#: Of a step's action only; the rest goes wrong with any.
_SPECIAL = {"truncate": "read", "stale": "list", "ignore": "create"}
_ANY = ("fail before", "fail after", "slow", "throttle", "deny", "outage", "crash before", "crash after", "power cut")
_TIMES = {"throttle": 4, "outage": 10**6, "deny": 10**6}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)


def cases() -> Iterator[tuple[str, str]]:
    for step, (action, _) in STEPS.items():
        yield from ((kind, step) for kind in _ANY)
        yield from ((kind, step) for kind, only in _SPECIAL.items() if only == action)


class Outage(Fault):
    """Nothing answers any more from the first strike on."""

    def strikes(self, action: str, path: str) -> bool:
        if self.fired:
            self.fired += 1
            return True
        return super().strikes(action, path)


def make_complete(pair: str, fault: Fault) -> BaseException | None:
    """Runs the job with a fault and, if that ended it, again without; how it ended."""
    Faulty.script.faults = [fault]
    failure = run(job(pair))
    assert fault.fired, "the step was never reached"
    Faulty.script.faults = []
    # What goes wrong before the driver has left its mark may be wrong input; later it is a matter of resuming.
    begun = any(action == "replace" for action, _ in Faulty.script.done)
    if failure is not None:
        explain()
        assert run(job(pair)) is None
    if isinstance(failure, Exception):
        assert not begun or "the same command resumes" in str(failure) or "failed 5 times" in str(failure)
        assert "output: " in str(failure) and "\n" not in str(failure)
    return failure


@pytest.mark.parametrize(("kind", "step"), list(cases()))
def test_a_fault_ends_in_a_complete_dataset_or_in_a_state_that_resumes(kind, step, pair, undisturbed):
    fault = (Outage if kind == "outage" else Fault)(kind, *STEPS[step], times=_TIMES.get(kind, 1))
    failure = make_complete(pair, fault)
    assert failure is None or kind not in HARMLESS
    assert images() == undisturbed
    if kind in HARMLESS:
        assert not [name for name in Bucket.objects if re.search(r"\.probe-|driver\.json", name)]


@pytest.mark.parametrize("folder", [layout.COMMITS, "out/data"])
@pytest.mark.parametrize("skip", range(4))
def test_any_stale_listing_is_got_over_or_resumed_from(skip, folder, pair, undisturbed):
    assert run(job(pair)) is None
    Bucket.objects.pop(f"bucket/out/{layout.commit(0)}")
    Faulty.script.faults = [fault := Fault("stale", "list", folder, skip=skip)]
    failure = run(job(pair))
    assert fault.fired or skip > 0
    Faulty.script.faults = []
    if failure is not None:
        assert "the same command resumes" in str(failure)
        assert run(job(pair)) is None
    assert images() == undisturbed


def test_a_shard_that_only_a_stale_listing_lacks_is_kept(pair, undisturbed):
    assert run(job(pair)) is None
    Bucket.objects.pop(f"bucket/out/{layout.commit(0)}")
    Faulty.script.faults = [Fault("stale", "list", "out/data")]
    assert run(job(pair)) is None
    deleted = [path for action, path in Faulty.script.done if action == "delete"]
    assert not [path for path in deleted if "part-" in path]
    assert images() == undisturbed


class EveryThird(Fault):
    """A store that is never quite well."""

    seen = 0

    def strikes(self, action: str, path: str) -> bool:
        self.seen += 1
        return self.seen % 3 == 0


@pytest.mark.parametrize("kind", ["throttle", "fail before", "fail after", "slow"])
def test_a_store_that_is_never_well_slows_the_job_and_does_not_end_it(kind, pair, undisturbed):
    Faulty.script.faults = [EveryThird(kind, "")]
    assert run(job(pair)) is None
    Faulty.script.faults = []
    assert images() == undisturbed


@pytest.mark.parametrize("seed", range(4))
def test_two_drivers_at_the_same_time_make_one_dataset(seed, pair, undisturbed):
    """Every operation takes a while, so that the two are at all places of the protocol at once, the end included."""
    draw = random.Random(seed)
    Faulty.script.faults = [Fault("slow", ".*", times=10**6)]
    outcomes: list[BaseException | None] = []

    def drive(after: float) -> None:
        time.sleep(after)
        outcomes.append(run(job(pair)))

    threads = [threading.Thread(target=drive, args=(draw.uniform(0, 0.5),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Faulty.script.faults = []
    assert outcomes == [None, None]
    assert images() == undisturbed


@pytest.mark.slow
def test_a_power_cut_at_any_operation_resumes(pair, undisturbed):
    """Driver and workers die together, at every single operation of a job; the state left is resumed from."""
    for skip in itertools.count():
        Bucket.objects.clear()
        fault = Fault("power cut", ".*", skip=skip)
        Faulty.script.faults = [fault]
        failure = run(job(pair))
        if failure is None:
            break
        Faulty.script.faults = []
        explain()
        assert run(job(pair)) is None, f"after operation {skip}"
        assert images() == undisturbed
    assert skip > 60


#: The steps in which S3 says something of its own.
_S3_STEPS = ("plan create", "data create", "commit list", "commit create", "_SUCCESS create")


@pytest.mark.parametrize("step", [s if s in _S3_STEPS else pytest.param(s, marks=pytest.mark.slow) for s in STEPS])
@pytest.mark.parametrize("kind", ["fail after", "power cut"])
def test_lost_responses_and_crashes_over_real_s3(kind, step, pair, undisturbed, s3_options, monkeypatch):
    monkeypatch.setitem(TARGET, "options", {"target": "s3", "target_options": s3_options})
    monkeypatch.setitem(TARGET, "url", f"faulty://tests/{kind.replace(' ', '-')}-{step.replace(' ', '-')}")
    failure = make_complete(pair, Fault(kind, *STEPS[step]))
    assert failure is None or kind not in HARMLESS
    assert images() == undisturbed
