"""The program's own code over a store in memory that lets one actor do one operation at a time.

Actors are threads. Each of them stands still before every operation on the store until the explorer lets it do it, so
that an execution is the order in which the explorer chooses. What only tells (report, card) and what nobody changes
(the plan) is the same in every order and is done at once.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem

from jobs.dataset import commits, finish, manifest
from jobs.dataset.commits import find_missing, read_committed
from jobs.dataset.leftovers import is_empty_part
from jobs.job.plan import Plan, make_plan, task_of
from jobs.run.driver import open_shards
from jobs.run.state import is_unfinished, look_at_files, missing_shards
from jobs.words.errors import JobError
from tests.interleavings.explore import Found, Objects, explore
from tests.jobs.tree import tree_spec, worker_settings
from workers import layout, shard
from workers.engine import Engine
from workers.records import ShardTask, WorkerSettings
from workers.result import ShardResult
from workers.shard import UnequalCommit, commit_shard
from workers.store import Store, StoreError

ROOT = "out"
URL = f"turns://{ROOT}"
_WAIT_S = 60.0
_here = threading.local()
_DOCUMENTS = (layout.PLAN, layout.CARD, layout.REPORT_JSON, layout.REPORT_HTML)


class _Ended(BaseException):
    """The execution is over, and this actor with it."""


class Turns(AbstractFileSystem):
    """Objects in memory, as an object store has them, that are looked at and changed in turns."""

    protocol = "turns"
    cachable = False

    @property
    def run(self) -> RealRun:
        """The execution that this thread belongs to."""
        return _here.run

    def _turn(self, action: str, path: str, call: Callable[[], Any]) -> Any:
        path = self._strip_protocol(path).removeprefix(f"{ROOT}/")
        actor = _here.actor
        if path in _DOCUMENTS:
            return call()
        self.run.wait_for_turn(actor)
        try:
            answer = call()
        except OSError as error:
            self.run.tell(actor, (action, path, type(error).__name__))
            raise
        self.run.tell(actor, (action, path, repr(answer)))
        return answer

    def _key(self, path: str) -> str:
        return str(self._strip_protocol(path)).removeprefix(f"{ROOT}/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            if (key := self._key(path)) not in self.run.objects:
                raise FileNotFoundError(path)
            return {"name": f"{ROOT}/{key}", "size": len(self.run.objects[key]), "type": "file"}

        return self._turn("look", path, call)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        def call() -> bytes:
            if (key := self._key(path)) not in self.run.objects:
                raise FileNotFoundError(path)
            return self.run.objects[key][start:end]

        return self._turn("read", path, call)

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **_: Any) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            below = f"{self._key(path)}/"
            found = {key: len(raw) for key, raw in sorted(self.run.objects.items()) if key.startswith(below)}
            return {f"{ROOT}/{key}": {"size": size, "type": "file"} for key, size in found.items()}

        return self._turn("list", path, call)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        def call() -> None:
            if mode == "create" and self._key(path) in self.run.objects:
                raise FileExistsError(path)
            self.run.objects[self._key(path)] = bytes(value)

        self._turn(mode, path, call)

    def rm_file(self, path: str) -> None:
        def call() -> None:
            if self.run.objects.pop(self._key(path), None) is None:
                raise FileNotFoundError(path)

        self._turn("delete", path, call)


class RealRun:
    """Threads that run the program's code, one operation at a time."""

    def __init__(self, objects: Objects, actors: list[Callable[[], None]]) -> None:
        self.objects = dict(objects)
        self._go = [threading.Semaphore(0) for _ in actors]
        self._stands = threading.Semaphore(0)
        self._over = False
        self._outcomes: list[str | None] = [None] * len(actors)
        self._histories: list[Hashable] = [()] * len(actors)
        self._threads = [threading.Thread(target=self._act, args=(i, act)) for i, act in enumerate(actors)]
        for thread in self._threads:
            thread.start()
            self._await()

    def _await(self) -> None:
        if not self._stands.acquire(timeout=_WAIT_S):
            raise RuntimeError("an actor neither ended nor came to its next operation")

    def _act(self, actor: int, act: Callable[[], None]) -> None:
        _here.actor, _here.run = actor, self
        try:
            act()
            self._outcomes[actor] = ""
        except _Ended:
            pass
        except (JobError, StoreError, UnequalCommit) as error:
            self._outcomes[actor] = str(error)
        except BaseException as error:
            self._outcomes[actor] = f"broken: {error!r}"
        finally:
            self._stands.release()

    def wait_for_turn(self, actor: int) -> None:
        if not self._over:
            self._stands.release()
            self._go[actor].acquire()
        if self._over:
            raise _Ended

    def tell(self, actor: int, event: tuple[str, str, str]) -> None:
        self._histories[actor] = hash((self._histories[actor], event))

    def enabled(self) -> list[int]:
        return [actor for actor, outcome in enumerate(self._outcomes) if outcome is None]

    def step(self, actor: int) -> None:
        self._go[actor].release()
        self._await()

    def state(self) -> Hashable:
        return (frozenset(self.objects.items()), tuple(self._histories))

    def outcomes(self) -> list[str | None]:
        return list(self._outcomes)

    def close(self) -> None:
        self._over = True
        for actor in self.enabled():
            self._go[actor].release()
        for thread in self._threads:
            thread.join(_WAIT_S)


class _Inline:
    """Stands for a pool of threads, whose work has to be the actor's own here."""

    def __init__(self, _threads: int) -> None:
        pass

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        done = call(*args)
        return SimpleNamespace(result=lambda: done)

    def map(self, call: Callable[..., Any], items: Any) -> Iterator[Any]:
        return iter([call(item) for item in items])


@dataclass
class Job:
    """One shard of four images, made by machines of two types."""

    plan: Plan
    settings: WorkerSettings
    task: ShardTask
    results: dict[str, ShardResult]  #: by platform

    def attempt(self, platform: str, number: int = 0) -> None:
        """What a worker does once it has made the images."""
        store = Store(URL)
        commit_shard(store, self.settings, self.task.model_copy(update={"attempt": number}), self.results[platform])

    def drive(self, platform: str) -> None:
        """What a driver does, its worker included; see `jobs.run.driver`."""
        store = Store(URL)
        committed = read_committed(store, self.plan)
        look_at_files(store, self.plan, committed)
        if committed.damaged or missing_shards(self.plan, committed):
            for number in open_shards(store, self.plan, committed).values():
                self.attempt(platform, number)
            committed = read_committed(store, self.plan)
            find_missing(store, committed)
            finish.check_whole(self.plan, committed)
        if is_unfinished(store, self.plan, committed):
            finish.finish(URL)


def make_job(folder: Path, patch: pytest.MonkeyPatch) -> Job:
    """The job, and the program made to give the same bytes in every execution."""
    fsspec.register_implementation("turns", Turns, clobber=True)
    spec = tree_spec(folder, requests={"count": 4}, output=URL)
    plan = make_plan(spec)
    settings = worker_settings(spec, plan)
    task = task_of(plan, 0, 0)
    one = Engine(settings).make(task)
    other = replace(one, images=one.images[::-1])
    patch.setattr(shard, "time", SimpleNamespace(perf_counter=lambda: one.began, sleep=lambda _: None))
    patch.setattr(shard, "worker_name", lambda: f"actor-{getattr(_here, 'actor', 'alone')}")
    for module in (commits, manifest):
        patch.setattr(module, "ThreadPoolExecutor", _Inline)
    documents = {layout.REPORT_JSON: b"{}", layout.REPORT_HTML: b"report"}
    patch.setattr(finish, "make_report", lambda *_: ({}, documents))
    patch.setattr(finish, "render_card", lambda *_: "card")
    for name in ("data_bytes", "acceptance_bytes"):
        made = {id(result): getattr(shard, name)(task, result) for result in (one, other)}
        patch.setattr(shard, name, lambda _task, result, made=made: made[id(result)])
    return Job(plan, settings, task, {"A": one, "B": other})


# What must hold


@functools.cache
def _rows(data: bytes) -> tuple[str, ...]:
    return tuple(pq.read_table(io.BytesIO(data), columns=["request_id"])["request_id"].to_pylist())


def _last_record(objects: Objects) -> tuple[str, dict[str, Any] | None]:
    """Path and content of the record that holds; the content is None if the shard is not committed."""
    generations = [found[1] for path in objects if (found := layout.parse_commit(path))]
    if not generations:
        return "", None
    path = layout.commit(0, max(generations))
    try:
        content = json.loads(objects[path])
    except ValueError:
        return path, None
    return path, None if content.get("void") else content


def problems(objects: Objects, broken: frozenset[str]) -> list[str]:
    """Files of the record that holds and are not what it says, but for those damaged before."""
    _, content = _last_record(objects)
    found = []
    for file in content["files"] if content else ():
        raw = objects.get(file["path"])
        if (raw is None or hashlib.sha256(raw).hexdigest() != file["sha256"]) and file["path"] not in broken:
            found.append(f"{file['path']} of a commit is {'missing' if raw is None else 'another'}")
    return found


def unfinished(objects: Objects, job: Job) -> list[str]:
    """Why ``_SUCCESS`` is missing, or should not be there."""
    path, content = _last_record(objects)
    if layout.SUCCESS not in objects:
        return ["there is no _SUCCESS"]
    if content is None:
        return ["_SUCCESS over a hole: the shard is not committed"]
    found = problems(objects, frozenset())
    listed = json.loads(objects[layout.SUCCESS])["files"]
    if listed.get(path) != hashlib.sha256(objects[path]).hexdigest():
        found.append("_SUCCESS lists another record")
    rows: Counter[str] = Counter()
    for name, raw in objects.items():
        if name.startswith("data/") and name.endswith(".parquet"):
            try:
                rows.update(_rows(raw))
            except (OSError, ValueError):
                found.append(f"{name} cannot be read")
    if rows != Counter(job.task.request_ids):
        found.append(f"data/*.parquet reads {sorted(rows.items())}")
    evidence = [name for name, raw in objects.items() if name.startswith("acceptance/") and not is_empty_part(raw)]
    if len(evidence) != 1:
        found.append(f"acceptance/*.parquet reads {evidence}")
    return found


def alone(objects: Objects, act: Callable[[], None]) -> tuple[Objects, str | None]:
    """What a single actor leaves, and how it ends."""
    run = RealRun(objects, [act])
    while run.enabled():
        run.step(0)
    run.close()
    return run.objects, run.outcomes()[0]


@dataclass(frozen=True)
class Situation:
    """What lies in the store, and who acts on it."""

    name: str
    before: Objects
    actors: tuple[str, ...]  #: "attempt A" or "drive B"
    broken: frozenset[str] = frozenset()  #: files that are damaged before

    def explore(self, job: Job, preemptions: int | None = None, first: bool = False) -> Found:
        makers = [self._maker(job, actor) for actor in self.actors]
        drivers = frozenset(index for index, actor in enumerate(self.actors) if actor.startswith("drive"))

        def check(objects: Objects, outcomes: list[str | None], ended: int | None) -> list[str]:
            found = problems(objects, self.broken)
            found += [outcome for outcome in outcomes if outcome and outcome.startswith("broken")]
            if layout.SUCCESS in objects and objects[layout.SUCCESS] != self.before.get(layout.SUCCESS):
                found += unfinished(objects, job)
            if ended in drivers and outcomes[ended] == "":
                found += [f"a driver ended in order: {problem}" for problem in unfinished(objects, job)]
            return found

        def recover(objects: Objects) -> list[str]:
            after, outcome = alone(objects, lambda: job.drive("A"))
            return ([f"a driver ended with {outcome!r}"] if outcome else []) + unfinished(after, job)

        return explore(lambda: RealRun(self.before, makers), check, recover, preemptions, first)

    @staticmethod
    def _maker(job: Job, actor: str) -> Callable[[], None]:
        kind, platform = actor.split()
        return (lambda: job.drive(platform)) if kind == "drive" else (lambda: job.attempt(platform))


def situations(job: Job) -> list[Situation]:
    """All of them, with two or three actors."""
    plan = {layout.PLAN: job.plan.to_bytes()}
    whole, outcome = alone(plan, lambda: job.drive("A"))
    assert outcome == "", outcome
    data, commit = layout.data(0, 1), layout.commit(0)
    vanished = {path: raw for path, raw in whole.items() if path != data}
    flipped = {**whole, data: whole[data][:99] + bytes([whole[data][99] ^ 1]) + whole[data][100:]}
    unreadable = {**whole, commit: whole[commit][:-9]}
    left = {**plan, data: whole[data]}
    gone = frozenset({data})
    return [
        Situation("two attempts of two platforms", plan, ("attempt A", "attempt B")),
        Situation("an attempt and a driver of another platform", plan, ("attempt A", "drive B")),
        Situation("a dead attempt's file, an attempt and a driver", left, ("attempt B", "drive B")),
        Situation("two drivers of one platform", plan, ("drive A", "drive A")),
        Situation("two drivers of two platforms", plan, ("drive A", "drive B")),
        Situation("two repairs of a file that is gone", vanished, ("drive A", "drive A"), gone),
        Situation("two repairs of it, of two platforms", vanished, ("drive A", "drive B"), gone),
        Situation("two repairs of a flipped file, of two platforms", flipped, ("drive A", "drive B"), gone),
        Situation("two repairs of a damaged record, of two platforms", unreadable, ("drive A", "drive B")),
        Situation("two attempts and a driver", plan, ("attempt A", "attempt B", "drive A")),
        Situation("a late attempt and two repairs", vanished, ("attempt B", "drive A", "drive B"), gone),
    ]
