"""Time and peak memory of exports of many small images: ``python -m tests.jobs.export.memory --images 1000000``.

The images are 6x6 pixels and the same in every shard; ids, labels and seeds are their own, so every file has its hash.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.export.formats import FORMATS
from jobs.job.plan import make_plan, store_plan, task_of
from tests.jobs.tree import tree_spec, worker_settings
from workers.engine import Engine
from workers.shard import commit_shard
from workers.store import Store

SHARD = 1000

_EXPORT = """
import json, resource, sys
from pathlib import Path
from jobs.export.run import Wishes, export
from workers.store import Store
source, destination, form, file_mb = sys.argv[1:]
started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = export(Store(source), Store(destination), Wishes(format=form, file_mb=file_mb))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"images": done.rows, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024,
                  "imported_mb": started / 1024}))
"""


def make_large(folder: Path, images: int) -> Store:
    """A committed dataset of so many images, a multiple of 1,000."""
    spec = tree_spec(folder, method={"name": "null"}, requests={"count": images}, shard_size=SHARD)
    store, plan = Store(spec.output), make_plan(spec)
    store_plan(store, plan)
    settings = worker_settings(spec, plan)
    result = Engine(settings).make(task_of(plan, 0, 0))
    for shard in range(plan.shards):
        commit_shard(store, settings, task_of(plan, shard, 0), result)
    return store


def measure(source: Store, destination: Path, form: str, file_mb: int) -> dict[str, float]:
    """Exports in a process of its own: images, CPU and wall seconds, most memory held, and that after the imports."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _EXPORT, source.url, str(destination), form, str(file_mb)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, check=True)
    return {**json.loads(done.stdout), "wall_s": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000])
    parser.add_argument("--to", choices=tuple(FORMATS), nargs="+", default=["webdataset", "npz", "hub-folder"])
    parser.add_argument("--file-mb", type=int, default=128)
    args = parser.parse_args()
    for images in args.images:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            source = make_large(folder, images)
            for form in args.to:
                print(json.dumps({"to": form, **measure(source, folder / form, form, args.file_mb)}), flush=True)


if __name__ == "__main__":
    main()
