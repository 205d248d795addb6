"""What every bundled pair and method makes, as hashes: whole jobs in this process, and a file that remembers them.

``python -m tests.same_bytes`` writes the file anew for machines like this one. Do that when a change means to make
other images, and say so; a change of structure alone must leave the file as it is.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.faults.in_process import TARGET, in_process, job, run
from workers import layout
from workers.machine import describe_machine
from workers.store import Store

REMEMBERED = Path(__file__).parent / "data" / "same_bytes.json"
WINDOWS = (24, 20, 16, 12, 8)
_LAW: dict[str, dict[str, Any]] = {
    "fashion-mar": {"num_iter": 8, "head_steps": 20},
    "fashion-ar": {"head_steps": 20, "handoff_level": 91},
    "fashion-vq": {},
}
#: Methods of each bundled pair; short laws, so that all of them take seconds.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mar plain": ("fashion-mar", {"name": "plain"}),
    "mar windows": ("fashion-mar", {"name": "plain", "head_window": [4]}),
    "mar cspd released": ("fashion-mar", {"name": "cspd", "gamma": 2}),
    "mar cspd paper": ("fashion-mar", {"name": "cspd", "variant": "paper", "gamma": 2}),
    "ar plain": ("fashion-ar", {"name": "plain"}),
    "ar windows": ("fashion-ar", {"name": "plain", "head_window": [5, 3]}),
    "ar speculative": ("fashion-ar", {"name": "speculative", "gamma": 4, "stride": 4}),
    "ar annealed": (
        "fashion-ar",
        {"name": "speculative", "gamma": 4, "stride": 4, "acceptance": {"rule": "annealed", "delta": 4}},
    ),
    "ar coupled": (
        "fashion-ar",
        {"name": "speculative", "gamma": 4, "stride": 4, "acceptance": {"rule": "coupled", "radius": 0.3}},
    ),
    "vq plain": ("fashion-vq", {"name": "plain"}),
    "vq chain": ("fashion-vq", {"name": "speculative", "gamma": 4}),
    "vq tree": ("fashion-vq", {"name": "speculative", "tree": [2, 2]}),
    "vq eagle": ("fashion-vq", {"name": "speculative", "gamma": 3, "drafter": "eagle"}),
    "vq annealed": (
        "fashion-vq",
        {"name": "speculative", "gamma": 4, "acceptance": {"rule": "annealed", "delta": 4}},
    ),
    "vq lantern++": (
        "fashion-vq",
        {"name": "speculative", "gamma": 4, "acceptance": {"rule": "lantern++", "k": 10, "lam": 2}},
    ),
}
#: Figures of a report that do not depend on the clock.
FIGURES = ("images", "guarantee", "acceptance", "certificate", "draws", "per_class")


def machine() -> str:
    """Machines on which float32 sums come out alike."""
    kind = f"{describe_machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}, torch {torch.__version__.split('+')[0]}"


def made(case: str) -> dict[str, str]:
    """Hashes of the case's images, logs, plan and figures."""
    pair, method = CASES[case]
    spec = job(pair, method=method, law=_LAW[pair], features=False, requests={"count": 3}, shard_size=3)
    failed = run(spec)
    if failed is not None:
        raise failed
    store = Store(TARGET["url"], TARGET["options"])
    plan, report = (json.loads(store.read(path)) for path in (layout.PLAN, layout.REPORT_JSON))
    figures = {name: report[name] for name in FIGURES if name in report}
    return {
        "images": _digest(_pixels(store)),
        "rows": _digest(_rows(store, "data/")),
        "log": _digest(_rows(store, "acceptance/")),
        "plan": plan["fingerprint"],
        "figures": _digest(json.dumps(figures, sort_keys=True).encode()),
    }


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _tables(store: Store, folder: str) -> list[Any]:
    paths = sorted(path for path in store.list() if path.startswith(folder) and path.endswith(".parquet"))
    return [pq.read_table(io.BytesIO(store.read(path))) for path in paths]


def _pixels(store: Store) -> bytes:
    """Pixels, not PNG bytes, which also depend on the compressor."""
    images = [image["bytes"] for table in _tables(store, "data/") for image in table["image"].to_pylist()]
    return b"".join(np.asarray(Image.open(io.BytesIO(image))).tobytes() for image in images)


def _rows(store: Store, folder: str) -> bytes:
    """Every column but the images."""
    tables = [
        table.drop_columns([name for name in table.column_names if name == "image"]) for table in _tables(store, folder)
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    return json.dumps(rows, sort_keys=True, default=str).encode()


def remembered() -> dict[str, dict[str, dict[str, str]]]:
    """By machine and case."""
    return json.loads(REMEMBERED.read_text()) if REMEMBERED.exists() else {}


def main() -> None:
    """Writes what is made now."""
    torch.set_num_threads(1)
    now = {}
    for case in CASES:
        with pytest.MonkeyPatch.context() as patch:
            in_process(patch)
            now[case] = made(case)
    REMEMBERED.write_text(json.dumps(remembered() | {machine(): now}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
