"""``spd overhead``: how fast everything around the decoder is, and what it costs, on this machine and a local disk.

Method. A Parquet file of requests (id, label, seed) is planned; a job of it without a model, method null, makes 32 x 32
noise images as PNG; every tenth shard loses its commit record and a resume has to find and make them. Then the same
shards of a real pair are decoded in a bare loop, and as a job of one worker and of two, in turn. Every step runs in a
process of its own, whose peak memory is the kernel's (VmHWM); rates of jobs are those of their reports: images over the
time in which a worker was at work.

Then images: what each format costs, and jobs whose decoder only waits, as one on another device would, with encoding
beside it and in between.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.bench import overhead_waiting as waiting
from jobs.dataset.commits import find_missing, read_committed
from jobs.job.plan import make_plan, store_plan, stored_plan, task_of
from jobs.job.requests import store_requests
from jobs.job.spec import FixedSpec, load_spec, make_spec
from jobs.run.driver import generate
from jobs.run.encoding import FORMATS, EncodingCost, encoding_cost, encoding_table
from jobs.words.console import say
from jobs.words.errors import SpecError
from jobs.words.files import check_file
from jobs.words.phrases import number
from jobs.words.progress import Steps
from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.law import Null
from spd_core.pairs.pair import load_pair
from workers import layout
from workers.machine import describe_machine, peak_memory, usable_cpus
from workers.store import Store

Figures = dict[str, Any]
_T = TypeVar("_T")
_PART = 1 << 16  #: requests written at a time
_LOST = 10  #: one commit record in so many is lost before the resume


def _peak_mb() -> float:
    """Largest resident memory of this process so far, MB (10^6 bytes)."""
    return peak_memory(torch.device("cpu"))["host"] / 1e6


def _apart(call: Callable[[], _T]) -> _T:
    """Runs a call in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call).result()


def write_requests(path: str, images: int) -> None:
    """A request file with ids, labels 0 to 9 in turn and random seeds."""
    draw = np.random.default_rng(0)
    schema = pa.schema({"id": pa.string(), "label": pa.int64(), "seed": pa.int64()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, images, _PART):
            index = np.arange(start, min(start + _PART, images))
            ids = [f"image-{i:09d}" for i in index.tolist()]
            columns = [ids, index % 10, draw.integers(0, 2**63 - 1, len(index))]
            writer.write_table(pa.table(columns, schema=schema))


def _null_spec(folder: str, shard_size: int, workers: int) -> FixedSpec:
    spec = make_spec(
        {
            "output": f"{folder}/null",
            "method": "null",
            "features": False,
            "shard_size": shard_size,
            "requests": {"file": f"{folder}/requests.parquet"},
            "workers": {"count": workers},
        }
    )
    assert isinstance(spec, FixedSpec)
    return spec


def plan_step(folder: str, shard_size: int) -> Figures:
    """Plans the request file into an output of its own."""
    began = time.perf_counter()
    spec = _null_spec(folder, shard_size, 1).model_copy(update={"output": f"{folder}/planned"})
    store, plan = Store(spec.output), make_plan(spec)
    store_requests(store, spec, plan)
    store_plan(store, plan)
    return {"seconds": time.perf_counter() - began, "peak_mb": _peak_mb(), "shards": plan.shards}


def null_step(folder: str, shard_size: int, workers: int) -> Figures:
    """A whole job without a model, or what is left of it."""
    done = generate(_null_spec(folder, shard_size, workers))
    speed = json.loads(Store(done["output"]).read(layout.REPORT_JSON))["throughput"]
    return {
        "seconds": done["seconds"],
        "made": done["made"],
        "peak_mb": _peak_mb(),
        "images_per_s": speed["images_per_s"],
        "split": speed["seconds"],
    }


def remainder_step(folder: str, shard_size: int) -> Figures:
    """What a resume does before it asks for workers: reads the requests, the plan, the commit records, the listings."""
    began = time.perf_counter()
    spec = _null_spec(folder, shard_size, 1)
    store = Store(spec.output)
    plan = stored_plan(store, make_plan(spec))
    assert plan is not None
    committed = read_committed(store, plan)
    find_missing(store, committed)
    missing = [shard for shard in range(plan.shards) if shard not in committed.records]
    return {
        "seconds": time.perf_counter() - began,
        "peak_mb": _peak_mb(),
        "missing": sum(len(plan.rows_of(shard)) for shard in missing),
        "damaged": len(committed.damaged),
    }


def lose_records(folder: str) -> None:
    """Deletes every tenth commit record of the finished job, and its end."""
    store = Store(f"{folder}/null")
    for path in list(store.list(layout.COMMITS))[::_LOST]:
        store.delete(path)
    store.delete(layout.SUCCESS)


def _pair_spec(folder: str, overrides: list[str], shards: int, workers: int) -> FixedSpec:
    spec = load_spec(None, ["features=false", *overrides])
    if not isinstance(spec, FixedSpec) or isinstance(spec.method, Null):
        raise SpecError(f"--set: got method {spec.method.name!r}, allowed: a method by name that makes tokens")
    requests = spec.requests.model_copy(update={"count": shards * workers * spec.shard_size})
    crew = spec.workers.model_copy(update={"count": workers})
    return spec.model_copy(update={"output": folder, "requests": requests, "workers": crew})


def loop_step(spec: FixedSpec) -> Figures:
    """The shards of a job, decoded one after the other by nothing but the decoder, in one thread."""
    assert not isinstance(spec.method, Null)
    torch.set_num_threads(spec.workers.threads)
    pair, plan = load_pair(spec.pair, "cpu", draft=spec.method.uses_draft), make_plan(spec)
    tasks = [task_of(plan, shard, 0) for shard in range(plan.shards)]
    began = time.perf_counter()
    for task in tasks:
        decode(pair, spec.law, spec.method, torch.tensor(task.labels), Draws(torch.tensor(task.seeds)), spec.batch)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "images_per_s": plan.rows / seconds}


def job_step(spec: FixedSpec) -> Figures:
    """The same as a job."""
    done = generate(spec)
    speed = json.loads(Store(done["output"]).read(layout.REPORT_JSON))["throughput"]
    return {"seconds": done["seconds"], "images_per_s": speed["images_per_s"], "idle_share": speed["idle_share"]}


def measure_overhead(folder: str, images: int, shard_size: int, workers: int, steps: Steps) -> Figures:
    """Plan, job without a model, remainder and resume."""
    write_requests(f"{folder}/requests.parquet", images)
    found: Figures = {"plan": _apart(partial(plan_step, folder, shard_size))}
    steps.did("plan")
    found["null"] = _apart(partial(null_step, folder, shard_size, workers))
    steps.did("job without a model")
    lose_records(folder)
    found["remainder"] = _apart(partial(remainder_step, folder, shard_size))
    steps.did("remainder")
    found["resume"] = _apart(partial(null_step, folder, shard_size, workers))
    steps.did("resume")
    return found


def measure_pair(folder: str, overrides: list[str], shards: int, laps: int, steps: Steps) -> Figures:
    """Bare loop, one worker, two workers, in turn; medians of the laps' ratios."""
    rows: list[Figures] = []
    for lap in range(laps):
        one, two = (_pair_spec(f"{folder}/{n}-{lap}", overrides, shards, n) for n in (1, 2))
        row: Figures = {}
        for name, call in (("loop", loop_step), ("one", job_step), ("two", job_step)):
            row[name] = _apart(partial(call, two if name == "two" else one))
            steps.did(f"{name}, lap {lap + 1}, {row[name]['images_per_s']:.3g} images/s")
        rows.append(row)

    def ratio(over: str, under: str) -> float:
        return statistics.median(row[over]["images_per_s"] / row[under]["images_per_s"] for row in rows)

    return {
        "spec": one.model_dump(mode="json", include={"pair", "law", "method", "batch", "shard_size", "features"}),
        "laps": rows,
        "job_over_loop": ratio("one", "loop"),
        "two_over_one": ratio("two", "one"),
    }


def measure_waiting(folder: str, images: int, rate: float) -> Figures:
    """Jobs whose decoder waits: what the cores encode, a job that encodes beside it, a shorter one in between."""
    found: Figures = {"rate": rate, "images": images}
    for image in waiting.IMAGES:
        row: Figures = {"cores_encode": _apart(partial(waiting.rate_step, image, max(images // 4, 4)))}
        for name, count, encoders in (("beside", images, usable_cpus()), ("between", max(1, images // 4), 0)):
            spec = waiting.waiting_spec(folder, image, count, rate, encoders)
            row[name] = _apart(partial(waiting.waiting_step, spec))
        found[image.effort] = row | {"share": waiting.shares(row, rate)}
    return found


def measure_encoding() -> list[Figures]:
    """Time and size of an image by format and effort."""
    shape = (waiting.SIDE, waiting.SIDE, 3)
    return [vars(encoding_cost(shape, image, seconds=2.0)) for image in FORMATS]


def table(args: argparse.Namespace, found: Figures) -> str:
    """The figures as a markdown table."""
    overhead = found["overhead"]
    rows = [
        (f"plan of a file of {args.images:,} requests", f"{overhead['plan']['seconds']:.1f} s"),
        ("peak memory of that", f"{overhead['plan']['peak_mb']:.0f} MB"),
        (f"null job, {args.workers} workers, shards of {args.shard_size}", _rate(overhead["null"]["images_per_s"])),
        ("the same from start to end", _rate(args.images / overhead["null"]["seconds"])),
        ("peak memory of its driver", f"{overhead['null']['peak_mb']:.0f} MB"),
        ("remainder of it found when 90 % is done", f"{overhead['remainder']['seconds']:.1f} s"),
        (
            "images of the remainder, and made by a resume",
            f"{overhead['remainder']['missing']}, {overhead['resume']['made']}",
        ),
        ("peak memory of the driver that resumes", f"{overhead['resume']['peak_mb']:.0f} MB"),
    ]
    if pair := found.get("pair"):
        last = pair["laps"][-1]
        rows += [
            (
                f"{pair['spec']['pair']}, batch {pair['spec']['batch']}: bare decode loop",
                _rate(last["loop"]["images_per_s"]),
            ),
            ("job of one worker", _rate(last["one"]["images_per_s"])),
            ("job of two workers", _rate(last["two"]["images_per_s"])),
            (f"job over loop, median of {args.laps}", f"{pair['job_over_loop']:.3f}"),
            (f"two workers over one, median of {args.laps}", f"{pair['two_over_one']:.3f}"),
        ]
    if figures := found.get("waiting"):
        rows += waiting.rows(figures, args.wait_rate, args.waiting)
    lines = [f"| {what} | {value} |" for what, value in rows]
    text = "\n".join([found["machine"], "", "| figure | value |", "|---|---|", *lines])
    if costs := found.get("encoding"):
        shape = (waiting.SIDE, waiting.SIDE, 3)
        text += "\n\n" + encoding_table(shape, [EncodingCost(**cost) for cost in costs])
    return text


def _rate(images_per_s: float) -> str:
    return f"{number(images_per_s)} images/s"


def _check(args: argparse.Namespace) -> None:
    for name, least in (
        ("images", _LOST),
        ("shard_size", 1),
        ("workers", 1),
        ("shards", 0),
        ("laps", 1),
        ("waiting", 0),
    ):
        if getattr(args, name) < least:
            raise SpecError(f"--{name.replace('_', '-')}: got {getattr(args, name)}, allowed: {least} or more")
    if not args.wait_rate > 0:
        raise SpecError(f"--wait-rate: got {args.wait_rate:g}, allowed: above 0")
    check_file("--json", args.json)
    if args.folder and not Path(args.folder).is_dir():
        raise SpecError(f"--folder: got {args.folder!r}, allowed: a folder that exists")
    _pair_spec("", args.set, 1, 1)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the file asked for.

    Raises:
        SpecError, PairError: wrong input.
        JobError: a job failed.
    """
    args.workers = usable_cpus() if args.workers is None else args.workers
    _check(args)
    found: Figures = {"machine": describe_machine(), "images": args.images, "workers": args.workers}
    found |= {"shard_size": args.shard_size, "torch": torch.__version__}
    steps = Steps(4 + (3 * args.laps if args.shards else 0) + (2 if args.waiting else 0))
    with steps, tempfile.TemporaryDirectory(prefix="spd-overhead-", dir=args.folder) as folder:
        found["overhead"] = measure_overhead(folder, args.images, args.shard_size, args.workers, steps)
        if args.shards:
            found["pair"] = measure_pair(folder, args.set, args.shards, args.laps, steps)
        if args.waiting:
            found["encoding"] = _apart(measure_encoding)
            steps.did("encoding")
            found["waiting"] = measure_waiting(folder, args.waiting, args.wait_rate)
            steps.did("a decoder that waits")
    say(table(args, found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0
