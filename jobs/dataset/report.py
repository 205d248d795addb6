"""report.json and report.html: the figures of a job and one self-contained page that shows them."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from pyarrow import BufferReader

from jobs.dataset.aggregate import Json, aggregate
from jobs.dataset.commits import Kept, read_part
from jobs.dataset.page import Words, page_environment
from jobs.dataset.totals import Totals
from jobs.job.plan import Plan
from jobs.words import phrases as words
from jobs.words.gained import speed_in_words
from jobs.words.glossary import SPANS
from workers import layout
from workers.sealed import canonical_json
from workers.store import Store

_PER_CLASS = 10
_CLASSES = 20
_SHARDS = 16  #: data files read for the image grid, at most
_SIDE = 96  #: largest side of an embedded image, pixels
_STRAGGLES = 0.75  #: of the median worker's images/s; the glossary says so, too


def _thumbnail(raw: bytes) -> str:
    """Data URI of an encoded image as PNG, made smaller if it is large."""
    with Image.open(io.BytesIO(raw)) as image:
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.convert("L" if image.mode == "L" else "RGB").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def image_grid(store: Store, labels: Sequence[int], shards: Sequence[Kept]) -> dict[int, list[str]]:
    """First images of each of the first classes as data URIs, by label.

    Args:
        store: of the output.
        labels: of the classes that there are images of.
        shards: to look for them in.

    Raises:
        DamagedPart: a data file is gone or not what was committed.
        StoreError: a data file cannot be read.
    """
    grid: dict[int, list[str]] = {label: [] for label in labels[:_CLASSES]}
    for kept in shards[:_SHARDS]:
        if all(len(images) >= _PER_CLASS for images in grid.values()):
            break
        table = pq.read_table(BufferReader(read_part(store, kept, layout.DATA)), columns=["image", "label"])
        for image, label in zip(table["image"], table["label"].to_pylist(), strict=True):
            if label in grid and len(grid[label]) < _PER_CLASS:
                grid[label].append(_thumbnail(image["bytes"].as_py()))
    return {label: images for label, images in grid.items() if images}


def render(report: Json, grid: dict[int, list[str]]) -> str:
    """The page; every text of the job is escaped, nothing is loaded from elsewhere."""
    names: dict[int, str] = {row["label"]: row["name"] for row in report.get("classes", [])}
    template = page_environment().get_template("report.html")
    return template.render(
        r=report,
        words=Words(),
        grid=grid,
        family=report["pair"]["family"],
        names=names,
        promise=words.guarantee_in_words(
            report["guarantee"], report["law"]["dtype"], report["pair"]["sha256"].get("target", "")
        ),
        compared=words.comparison_in_words(report.get("comparison")),
        redecoded=words.redecoded_in_words(report.get("batch_invariance")),
        certified=words.certificate_in_words(report.get("certificate")),
        gained=speed_in_words(report),
        **_quality(report.get("quality")),
        **_workers(report.get("throughput")),
        split=_time_split(report),
        calibrated=_fastest_first(report["calibration"]),
    )


def _quality(quality: Json | None) -> Json:
    """What leads the section of quality, and the rows of its table; nothing where it was not computed."""
    if quality is None or "skipped" in quality:
        return {"gap": None, "told": []}
    from spd_core.quality.metrics import gap_to_floor  # loads what only these figures need

    rows = words.quality_in_words(quality)
    return {"gap": gap_to_floor(quality), "told": [row for row in rows if row[0] != "features"]}


def _workers(speed: Json | None) -> Json:
    """The workers, slowest first, with their share of the median's speed, and what there is to say of them."""
    if speed is None:
        return {}
    rows = sorted(speed["by_worker"], key=lambda row: row["images_per_s"] or 0.0)
    rates = [row["images_per_s"] or 0.0 for row in rows]
    median = statistics.median(rates) or 1.0
    shares = [rate / median for rate in rates]
    told = [
        {**row, "of_median": share, "straggles": share < _STRAGGLES} for row, share in zip(rows, shares, strict=True)
    ]
    slow = sum(row["straggles"] for row in told)
    between = f"{words.number(rates[0])} to {words.number(rates[-1])} images/s"
    if len(rows) == 1:
        text = "One worker made all images."
    elif slow:
        text = f"{slow} of {len(rows)} workers made less than three quarters of the median's images/s ({between})."
    else:
        text = f"No stragglers: {len(rows)} workers made {between} each, none less than three quarters of the median's."
    return {"workers": told, "stragglers": text, "span_of_job": max(row["to_seconds"] for row in rows) or 1.0}


def _fastest_first(calibration: Json | None) -> list[Json]:
    """Rows of the calibration by speed, those that failed last."""
    rows: list[Json] = calibration["rows"] if calibration else []
    return sorted(rows, key=lambda row: -(row["images_per_s"] or 0.0))


def _time_split(report: Json) -> list[dict[str, Any]]:
    """Share of the worker time by span, idle time last; spans below half a percent are put together."""
    speed = report.get("throughput")
    if not speed:
        return []
    # Where stages overlap they come to more than the workers' time, and shares are of their sum.
    whole = max(speed["worker_seconds"], sum(speed["seconds"].values())) + speed["idle_seconds"]
    spans = {name: seconds for name, seconds in speed["seconds"].items() if name != "other"}
    small = [name for name, seconds in spans.items() if seconds < 0.005 * whole]
    other = speed["seconds"].get("other", 0.0) + sum(spans.pop(name) for name in small)
    largest_first = sorted(spans.items(), key=lambda span: -span[1])
    parts = [*largest_first, ("other", other), ("idle", speed["idle_seconds"])]
    return [
        {
            "name": name,
            "seconds": seconds,
            "share": seconds / whole,
            "meaning": SPANS.get(name, ""),
            "colour": f"c{name if name in ('other', 'idle') else place % 8}",
        }
        for place, (name, seconds) in enumerate(parts)
        if seconds > 0
    ]


def make_report(store: Store, plan: Plan, shards: Sequence[Kept], totals: Totals) -> tuple[Json, dict[str, bytes]]:
    """The report from committed shards alone, also of an unfinished job; writes nothing.

    Returns:
        the content of report.json; bytes by path of report.json and report.html.

    Raises:
        DamagedPart: a file that is read is gone or not what was committed.
        StoreError: the output cannot be read.
    """
    report = aggregate(store, plan, shards, totals)
    made = [row["label"] for row in report.get("classes", []) if row["images"]]
    page = render(report, image_grid(store, made, shards))
    return report, {layout.REPORT_JSON: canonical_json(report), layout.REPORT_HTML: page.encode()}
