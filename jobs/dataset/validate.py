"""Re-reads a whole dataset and names every file that is not what the plan, the commit records and the manifest say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from jobs.dataset.commits import Kept
from jobs.dataset.leftovers import is_empty_at
from jobs.dataset.manifest import check_manifest
from jobs.dataset.parts import ShardFiles, part_problems
from jobs.job.plan import Plan, parse_plan
from jobs.job.requests import Tasks, rows_problem
from jobs.words.progress import Progress
from spd_core.law import Settings
from spd_core.pairs.pair import PairError, load_card
from workers import layout
from workers.records import CommitRecord, ShardTask
from workers.redact import public_url
from workers.shard import chain_of, file_problem
from workers.store import Store, StoreError

_THREADS = 4  # each holds one shard in memory
_PART_FOLDERS = (*(f"{folder}/" for folder in layout.PARTS), f"{layout.COMMITS}/")


class Validation(Settings):
    """Outcome of a validation."""

    problems: tuple[str, ...] = Field(description="each led by the path of the file it is about; empty: all is well")
    shards: int = Field(description="shards whose commit record could be read")
    rows: int = Field(description="images in them")
    files: int = Field(description="files of the output")
    bytes: int

    @property
    def ok(self) -> bool:
        return not self.problems


def validate(url: str, storage_options: dict[str, Any] | None = None) -> Validation:
    """Checks a finished dataset.

    Args:
        url: fsspec URL of the output.
        storage_options: of its file system.

    Raises:
        StoreError: the output cannot be read at all, or is none.
    """
    store = Store(url, storage_options)
    sizes = store.list()
    if not any(path == layout.PLAN or path == layout.SUCCESS or layout.parse_commit(path) for path in sizes):
        raise StoreError(f"output: got {public_url(url)!r}, allowed: an output of `spd generate`")
    plan, problems = _read_plan(store)
    last = _last_generations(sizes)
    shards = range(plan.shards) if plan else sorted(last)
    shape = _image_shape(plan) if plan else None
    unknown = rows_problem(store, plan) if plan else None
    problems += [unknown] if unknown else []
    # Without its requests a shard is held against its commit record alone.
    tasks = Tasks(store, plan) if plan and not unknown else None
    checked = []
    with ThreadPoolExecutor(_THREADS) as pool, Progress(len(shards), "shards") as progress:
        places = ((shard, last.get(shard, 0)) for shard in shards)
        for each in pool.map(lambda place: _check_shard(store, plan, tasks, place, shape), places):
            checked.append(each)
            progress.add()
            progress.tick()
    problems += [problem for each in checked for problem in each.problems]
    problems += check_manifest(store, plan, [each.kept for each in checked if each.kept])
    problems += _strays(sizes, plan, last, [each.kept for each in checked if each.kept])
    problems += _closed_problems(store, [each.kept for each in checked if each.kept])
    return Validation(
        problems=tuple(dict.fromkeys(problems)),
        shards=sum(each.rows is not None for each in checked),
        rows=sum(each.rows or 0 for each in checked),
        files=len(sizes),
        bytes=sum(sizes.values()),
    )


def _read_plan(store: Store) -> tuple[Plan | None, list[str]]:
    try:
        plan = parse_plan(store.read(layout.PLAN))
    except FileNotFoundError:
        return None, [f"{layout.PLAN}: missing"]
    return plan, [] if plan else [f"{layout.PLAN}: is not a plan that agrees with itself"]


def _last_generations(sizes: dict[str, int]) -> dict[int, int]:
    """Generation of the last record of every shard that has one."""
    last: dict[int, int] = {}
    for path in sizes:
        if found := layout.parse_commit(path):
            last[found[0]] = max(found[1], last.get(found[0], 0))
    return last


def _image_shape(plan: Plan) -> tuple[int, int, int] | None:
    """Height, width and channels of the plan's images; None where its pair is not at hand."""
    try:
        if "://" in plan.spec.pair:
            return None  # a plan of strangers must not make us fetch what it names
        card = load_card(plan.spec.pair)
    except PairError:
        return None
    return card.image_shape if card.sha256 == plan.pair_sha256 else None


def _strays(sizes: dict[str, int], plan: Plan | None, last: dict[int, int], records: list[Kept]) -> list[str]:
    if plan is None:
        return []
    expected = {path for kept in records for path in kept.closed_paths}
    for shard in range(plan.shards):
        generation = last.get(shard, 0)
        expected.update(layout.commit(shard, each) for each in range(generation + 1))
        expected.update(_planned_paths(plan, shard, generation))
    return [
        f"{path}: no shard of the plan"
        for path in sizes
        if path.startswith(_PART_FOLDERS) and path not in expected and not path.rpartition("/")[2].startswith(".")
    ]


def _closed_problems(store: Store, records: list[Kept]) -> list[str]:
    """Files of attempts that do not count and are still there to be read."""
    paths = [path for kept in records for path in kept.closed_paths]
    return [
        f"{path}: is of an attempt that does not count, allowed: an empty part"
        for path in paths
        if not is_empty_at(store, path)
    ]


def _planned_paths(plan: Plan, shard: int, generation: int) -> tuple[str, ...]:
    paths = layout.parts(shard, plan.shards, generation)
    return paths if plan.spec.features else paths[:2]


@dataclass(frozen=True, slots=True)
class _Checked:
    """What is kept of a shard that was looked at."""

    rows: int | None  #: of its commit record; None: it could not be read
    kept: Kept | None  #: None: it is not the plan's
    problems: list[str]


def _check_shard(
    store: Store, plan: Plan | None, tasks: Tasks | None, last: tuple[int, int], shape: tuple[int, int, int] | None
) -> _Checked:
    """Looks at a shard, whose number comes with the generation of its last record."""
    shard, path = last[0], layout.commit(*last)
    try:
        raw = store.read(path)
    except FileNotFoundError:
        return _Checked(None, None, [f"{path}: missing"])
    chain = chain_of(raw, *last)
    if chain.damage:
        return _Checked(None, None, [chain.damage])
    if (record := chain.commit) is None:
        return _Checked(None, None, [f"{path}: the shard has to be made again"])
    problems, blobs = [], {}
    for file in record.files:
        try:
            blobs[file.path] = store.read(file.path)
        except FileNotFoundError:
            problems.append(f"{file.path}: missing")
            continue
        if problem := file_problem(file, blobs[file.path]):
            problems.append(problem)
    if plan is None:
        return _Checked(record.rows, None, problems)
    task = tasks.task(shard, record.attempt) if tasks else None
    others = _record_problems(plan, task, record)
    problems += others
    if not problems and task:
        problems = part_problems(ShardFiles(plan, task, record, blobs, shape))
    return _Checked(record.rows, None if others else Kept.of(record, raw, plan.shards), problems)


def _record_problems(plan: Plan, task: ShardTask | None, record: CommitRecord) -> list[str]:
    facts: dict[str, tuple[Any, Any]] = {
        "fingerprint": (record.fingerprint, plan.fingerprint),
        "rows": (record.rows, len(plan.rows_of(record.shard))),
        "files": (tuple(file.path for file in record.files), _planned_paths(plan, record.shard, record.generation)),
    }
    if task:
        facts["first_id"] = (record.first_id, task.request_ids[0])
        facts["last_id"] = (record.last_id, task.request_ids[-1])
    return [
        f"{layout.commit(record.shard, record.generation)}: {name} is {got!r}, planned: {planned!r}"
        for name, (got, planned) in facts.items()
        if got != planned
    ]
