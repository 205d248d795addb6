"""Jobs on a real cluster and a real store, whose processes are killed until enough kills have been survived."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from jobs.dataset.commits import find_missing, read_committed
from jobs.dataset.leftovers import is_empty_part
from jobs.dataset.status import status
from jobs.dataset.validate import validate
from jobs.job.plan import read_plan
from jobs.words.errors import SpecError
from tests.chaos import drivers
from tests.chaos.dataset import Difference, Rows, compare, read_rows
from tests.chaos.kills import CAUSES, PAUSED, Kill, next_kill
from tests.chaos.nodes import ADDRESSES, Nodes
from tests.seaweed import BUCKET, SeaweedFS
from tests.tiny_pair import make_tiny_pair
from workers import layout
from workers.store import Store, StoreError

logger = logging.getLogger(__name__)

SHARDS, SHARD_SIZE = 60, 8
EARLY_KILLS, LATE_KILLS, REPAIR_KILLS = 2, 5, 3  #: of each dataset
_PATIENCE_S = 90.0  #: for an order that nobody comes by
_RUN_S = 900.0  #: longest time a driver may take to end when nothing is killed any more
_POLL_S = 0.05
_THROTTLED, _SECOND = 0.2, 0.6  #: share of the kills before which, and of a driver's pauses in which


@dataclass
class Tally:
    """What was killed and what came of it."""

    kills: Counter[str] = field(default_factory=Counter)  #: by cause
    pauses: Counter[str] = field(default_factory=Counter)  #: by cause
    paused_s: list[float] = field(default_factory=list)
    throttled: int = 0  #: times in which the store refused half of everything for a while
    second: int = 0  #: drivers that were started while another one was paused
    repairs: int = 0  #: finished datasets that were damaged and mended
    looked: int = 0  #: times that what `_SUCCESS` stands over was looked at
    holes: list[str] = field(default_factory=list)  #: what was missing below it
    at: Counter[tuple[str, str]] = field(default_factory=Counter)  #: by cause and moment
    resumes: Counter[str] = field(default_factory=Counter)  #: drivers started again, by the last kill before
    datasets: Counter[str] = field(default_factory=Counter)  #: datasets that a cause struck
    wrong: dict[str, Difference] = field(default_factory=dict)  #: of datasets that are not as they should be
    struck: dict[str, set[str]] = field(default_factory=dict)  #: causes by dataset
    complaints: list[str] = field(default_factory=list)  #: problems that no kill explains

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    def of(self, cause: str) -> Difference:
        """Differences of the datasets that the cause struck: a dataset counts for every cause it met."""
        found = [self.wrong[name] for name, causes in self.struck.items() if cause in causes and name in self.wrong]
        return Difference(*(sum(values) for values in zip(*(vars(d).values() for d in found), strict=True)))


class Harness:
    """Store, cluster and jobs.

    Args:
        folder: of everything; its path must be short.
        port: first of 200 free ports.
        seed: of the order of the kills.
    """

    def __init__(self, folder: Path, port: int, seed: int) -> None:
        self._folder, self._draw = folder, random.Random(seed)
        self._weed = SeaweedFS(folder / "weed", tuple(port + 100 + 10 * place for place in range(5)))
        os.environ.update(self._weed.variables)
        self._order = folder / "order.json"
        site = folder / "site" / "spd_chaos-0.dist-info"
        site.mkdir(parents=True)
        (site / "METADATA").write_text("Metadata-Version: 2.1\nName: spd-chaos\nVersion: 0\n")
        (site / "entry_points.txt").write_text("[fsspec.specs]\nchaos = tests.chaos.filesystem:Chaos\n")
        path = [str(Path(__file__).parents[2]), str(folder / "site"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        self._nodes = Nodes(folder / "ray", port, {})
        os.environ.update(self._nodes.environment)
        os.environ["RAY_ADDRESS"] = self._nodes.address
        self._pair = make_tiny_pair(folder / "pair")
        self._driver: drivers.Driver | None = None
        self._others: list[drivers.Driver] = []  #: started while the driver was paused
        self._phase_is = ""  #: "repair" while a damaged dataset is mended
        self._met: set[str] = set()  #: causes of the kills since the driver started
        self._others_met: set[str] = set()  #: the same, since the first of the others started
        self.tally = Tally()

    def start(self) -> None:
        drivers.preload()
        self._weed.start()
        self._nodes.start()

    def stop(self) -> None:
        for driver in [*self._others, *([self._driver] if self._driver else [])]:
            if driver.exit_code is None:
                os.kill(driver.pid, signal.SIGKILL)
        self._nodes.stop()
        self._weed.kill()

    # One dataset

    def run(self, kills: int) -> None:
        """Makes datasets until so many kills have been survived."""
        undisturbed = self._dataset("undisturbed", 0, None)
        number = 0
        while self.tally.total < kills:
            number += 1
            name = f"run-{number:03d}"
            began, before = time.monotonic(), self.tally.total
            self._dataset(name, kills, undisturbed)
            self._repair_dataset(name, kills, undisturbed)
            seconds = time.monotonic() - began
            logger.info(
                "%s: %d kills in %.0f s, %d of %d", name, self.tally.total - before, seconds, self.tally.total, kills
            )

    def _dataset(self, name: str, kills: int, undisturbed: Rows | None) -> Rows:
        """Makes one dataset, killing as long as there are kills left; its rows."""
        self._write_spec(name)
        self.tally.struck[name] = set()
        self._work(name, kills, {"early": EARLY_KILLS, "late": LATE_KILLS})
        return self._check(name, undisturbed)

    def _repair_dataset(self, name: str, kills: int, undisturbed: Rows) -> None:
        """Damages a finished dataset and has it mended, killing."""
        if self.tally.total >= kills:
            return
        store = self._store(name)
        kept = [path for path in store.list("data") if not is_empty_part(store.read(path))]
        for number, path in enumerate(self._draw.sample(kept, 2)):
            raw = store.read(path)
            store.delete(path) if number else store.replace(path, raw[:99] + bytes([raw[99] ^ 1]) + raw[100:])
        self.tally.repairs += 1
        self._phase_is = "repair"
        self._work(name, kills, {"repair": REPAIR_KILLS})
        self._phase_is = ""
        self._check(name, undisturbed)

    def _work(self, name: str, kills: int, left: dict[str, int]) -> None:
        """Runs drivers until one ends as it should; ``left`` are the kills of each phase that is short."""
        spec, log = self._folder / f"{name}.yaml", self._folder / f"{name}.log"
        cause, began, ended = "", 0, False
        while not ended:
            phase = self._phase(name, left)
            over = self.tally.total >= kills or left.get(phase, 1) <= 0
            kill = None if over else next_kill(self._draw, self.tally.kills, self.tally.at, kills, phase)
            if kill is not None and kill.step is not None:
                self._give_order(kill)
            if self._driver is None:
                self._driver, self._met = drivers.Driver(spec, log), set()
                self.tally.resumes[cause] += began > 0
                began += 1
            if kill is None:
                self._driver.wait(_RUN_S)
            else:
                self._throttle()
                if self._carry_out(kill):
                    cause = kill.cause
                    self._count(name, kill)
                    left[phase] = left.get(phase, 1 << 30) - 1
                    self._repair(name, kill)
            self._order.unlink(missing_ok=True)
            ended = self._take_in(name, kill)
            self._look_for_holes(name)
        self._wait_for_others(name)

    def _throttle(self) -> None:
        """Now and then the store refuses half of everything for some seconds."""
        if self._draw.random() < _THROTTLED:
            self.tally.throttled += 1
            self._order.with_name("throttle.json").write_text(str(time.time() + self._draw.uniform(1.0, 15.0)))

    def _look_for_holes(self, name: str) -> None:
        """What `_SUCCESS` stands over is there, whoever has died or sleeps."""
        if self._phase_is:
            return  # it was damaged here, not by the job
        try:
            store = self._store(name)
            if not store.exists(layout.SUCCESS):
                return
            plan = read_plan(store)
            committed = read_committed(store, plan)
            find_missing(store, committed)
            if not store.exists(layout.SUCCESS):
                return
        except (SpecError, StoreError):
            return  # the store is away
        self.tally.looked += 1
        if committed.damaged or len(committed.records) < plan.shards:
            self.tally.holes.append(f"{name}: {committed.damaged or len(committed.records)}")

    def _wait_for_others(self, name: str) -> None:
        """A second driver ends in order too, late as it may be."""
        for driver in self._others:
            code = driver.wait(_RUN_S)
            if code and not self._others_met & {"driver", "raylet", "store"}:
                self.tally.complaints.append(f"{name}: a second driver ended with {code}: {driver.last_line()}")
        self._others, self._others_met = [], set()

    def _write_spec(self, name: str) -> None:
        spec = {
            "output": f"chaos://{BUCKET}/{name}",
            "storage_options": {"order": str(self._order)},
            "pair": str(self._pair),
            "method": "null",
            "features": False,
            "shard_size": SHARD_SIZE,
            "requests": {"count": SHARDS * SHARD_SIZE},
            # A killed actor blames its shard, and here that is nobody's fault.
            # Half a core, so that there is room for a second driver's.
            "workers": {"count": 2, "num_cpus": 0.5, "max_attempts": 1000, "shard_timeout_s": 120.0},
        }
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec))

    def _store(self, name: str) -> Store:
        return Store(f"s3://{BUCKET}/{name}")

    def _phase(self, name: str, left: dict[str, int]) -> str:
        if self._phase_is:
            return self._phase_is
        if self._driver is None and left["early"] > 0:
            return "early"
        return "late" if len(self._store(name).list(layout.COMMITS)) >= SHARDS else "middle"

    # One kill

    def _give_order(self, kill: Kill) -> None:
        assert kill.step is not None
        victim = {"actor": "self", "driver": "self"}.get(kill.cause, kill.cause)
        order = {
            "by": kill.step.by,
            "action": kill.step.action,
            "path": kill.step.path,
            "when": kill.when,
            "victim": victim,
            "pause": kill.pause_s,
            "store": self._weed.pid,
        }
        self._order.with_suffix(".taken").unlink(missing_ok=True)
        new = self._order.with_suffix(".new")
        new.write_text(json.dumps(order))
        new.rename(self._order)

    def _carry_out(self, kill: Kill) -> bool:
        """Waits for the order to be carried out, or kills after the delay; False: the driver ended before."""
        assert self._driver is not None
        if kill.step is None:
            return self._driver.wait(kill.delay_s) is None and self._shoot(kill)
        deadline = time.monotonic() + _PATIENCE_S
        while self._order.exists() and time.monotonic() < deadline:
            if self._driver.wait(_POLL_S) is not None:
                break
        # Whoever takes the order away carries it out.
        with contextlib.suppress(FileNotFoundError):
            self._order.rename(self._order.with_suffix(".void"))
            return False
        return True

    def _shoot(self, kill: Kill) -> bool:
        assert self._driver is not None
        pids = {
            "actor": self._nodes.actors,
            "raylet": lambda: [pid for pid in map(self._nodes.raylet, ADDRESSES) if pid],
            "driver": lambda: [self._driver.pid],
            "store": lambda: [self._weed.pid],
        }[kill.cause]()
        if not pids:
            return False
        pid = self._draw.choice(pids)
        try:
            os.kill(pid, signal.SIGSTOP if kill.pause_s else signal.SIGKILL)
        except ProcessLookupError:
            return False
        self._order.with_suffix(".taken").write_text(str(pid))
        return True

    def _count(self, name: str, kill: Kill) -> None:
        how = f"paused {kill.label[:-7]} for {kill.pause_s:.0f} s" if kill.pause_s else f"killed {kill.cause}"
        logger.info("%s: %s, %s", name, how, kill.name)
        self.tally.at[kill.label, kill.name] += 1
        if kill.pause_s:
            self.tally.pauses[kill.cause] += 1
            self.tally.paused_s.append(kill.pause_s)
        else:
            self.tally.kills[kill.cause] += 1
            self._met.add(kill.cause)
            self._others_met |= {kill.cause} if self._others else set()
        if kill.label not in self.tally.struck[name]:
            self.tally.struck[name].add(kill.label)
            self.tally.datasets[kill.label] += 1

    def _pause(self, name: str, kill: Kill) -> None:
        """Waits as long as the victim stands still; in the place of a driver another one may go on."""
        taken = self._order.with_suffix(".taken")
        deadline = time.monotonic() + 5.0
        while not taken.exists() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if not taken.exists():
            return
        pid = int(taken.read_text())
        if kill.cause == "driver" and self._draw.random() < _SECOND:
            log = self._folder / f"{name}-second-{self.tally.second}.log"
            self._others.append(drivers.Driver(self._folder / f"{name}.yaml", log))
            self.tally.second += 1
            self._others[-1].wait(kill.pause_s)
        else:
            time.sleep(kill.pause_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _repair(self, name: str, kill: Kill) -> None:
        """Brings back what was killed or stopped, after a while."""
        if kill.pause_s:
            self._pause(name, kill)
            return
        if kill.cause == "store":
            time.sleep(self._draw.uniform(0.0, 1.5))
            self._weed.kill()
            self._weed.start()
        if kill.cause == "raylet":
            deadline = time.monotonic() + 10
            while not self._nodes.restart_raylets() and time.monotonic() < deadline:
                time.sleep(0.1)
        if kill.cause == "driver":
            assert self._driver is not None
            self._driver.wait(30)

    def _take_in(self, name: str, kill: Kill | None) -> bool:
        """Looks after the driver; whether the job has ended as it should."""
        assert self._driver is not None
        code = self._driver.exit_code
        if code is None:
            if kill is None:
                raise RuntimeError(f"{name}: the driver (process {self._driver.pid}) does not end")
            return False
        if code == 0:
            self._driver = None
            return True
        last = self._driver.last_line()
        self._driver = None
        logger.info("%s: driver ended with %d: %s", name, code, last)
        if not self._met & {"driver", "raylet", "store"}:
            self.tally.complaints.append(f"{name}: driver ended with {code} by itself: {last}")
        self._explain(name)
        return False

    def _explain(self, name: str) -> None:
        """`spd status` says what to do, whatever the kill left."""
        try:
            step = status(f"s3://{BUCKET}/{name}").next_step
        except SpecError as error:
            step = str(error)
            if "allowed: an output of `spd generate`" not in step:
                self.tally.complaints.append(f"{name}: status: {step}")
        except (StoreError, ValueError, RuntimeError) as error:
            self.tally.complaints.append(f"{name}: status: {error!r}")
            return
        logger.info("%s: status: %s", name, step)

    # The end

    def _check(self, name: str, undisturbed: Rows | None) -> Rows:
        found = validate(f"s3://{BUCKET}/{name}")
        self.tally.complaints += [f"{name}: validate: {problem}" for problem in found.problems]
        rows = read_rows(self._store(name))
        if undisturbed is not None and (difference := compare(rows, undisturbed)) != Difference():
            self.tally.wrong[name] = difference
            logger.error("%s: %s", name, difference)
        return rows


def table(tally: Tally, seconds: float) -> str:
    """The tally in Markdown."""
    lines = [
        "| killed | kills | at a step of the protocol | at any moment | driver runs resumed after it | rows lost "
        "| rows doubled | rows differing | files differing |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cause in CAUSES:
        moments = tally.at[cause, "any moment"]
        wrong = tally.of(cause)
        lines.append(
            f"| {cause} | {tally.kills[cause]} | {tally.kills[cause] - moments} | {moments} | {tally.resumes[cause]} "
            f"| {wrong.lost} | {wrong.doubled} | {wrong.differing} | {wrong.files} |"
        )
    for cause in PAUSED:
        label = f"{cause} paused"
        moments, wrong = tally.at[label, "any moment"], tally.of(label)
        lines.append(
            f"| {cause}, paused only | {tally.pauses[cause]} | {tally.pauses[cause] - moments} | {moments} | "
            f"| {wrong.lost} | {wrong.doubled} | {wrong.differing} | {wrong.files} |"
        )
    moments = sum(tally.at[cause, "any moment"] for cause in CAUSES)
    whole = Difference(*(sum(v) for v in zip(*(vars(d).values() for d in tally.wrong.values()), strict=True)))
    lines.append(
        f"| all kills | {tally.total} | {tally.total - moments} | {moments} | {sum(tally.resumes.values())} "
        f"| {whole.lost} | {whole.doubled} | {whole.differing} | {whole.files} |"
    )
    steps: Counter[str] = Counter()
    for (_, name), count in tally.at.items():
        steps[name.partition(" ")[2]] += count if name != "any moment" else 0
    hit = ", ".join(f"{name} {count}" for name, count in sorted(steps.items()) if count)
    lines += [
        "",
        f"{len(tally.struck) - 1} datasets of {SHARDS} shards with {SHARD_SIZE} images, {seconds / 60:.0f} minutes. "
        f"Steps hit, before or after: {hit}.",
        "",
        f"Pauses: {sum(tally.pauses.values())}, of {statistics.fmean(tally.paused_s or [0]):.0f} s on average and "
        f"{max(tally.paused_s, default=0):.0f} s at most; in {tally.second} of them a second driver went on. Times "
        f"that the store refused half of everything: {tally.throttled}. Finished datasets damaged and mended: "
        f"{tally.repairs}. `_SUCCESS` looked below: {tally.looked} times, holes: {len(tally.holes)}.",
        *(f"- {hole}" for hole in tally.holes),
        "",
        f"Ended without a kill, or not explained by `spd status`: {len(tally.complaints)}.",
        *(f"- {complaint}" for complaint in tally.complaints),
    ]
    return "\n".join(lines) + "\n"
