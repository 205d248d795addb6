"""What a job's way of decoding has gained, from its report: the last lines of ``spd generate``, the report's first."""

from __future__ import annotations

from typing import Any

from jobs.words.phrases import acceptance_of, counted, number, percent
from spd_core.law import Plain

Json = dict[str, Any]


def speed_in_words(report: Json) -> str:
    """Images per second, and how that compares with plain decoding; empty: no image is committed."""
    if "throughput" not in report:
        return ""
    speed = report["throughput"]
    made = f"{number(speed['images_per_s'])} images/s on {counted(speed['workers'], 'worker', 'workers')}"
    return f"{made}; {_against_plain(report)}"


def _against_plain(report: Json) -> str:
    method, found, choice = report["method"], report.get("against_plain"), report.get("calibration") or {}
    if method["name"] == "null":
        return "no model was run"
    if found is not None:
        turns = counted(len(found["plain"]), "turn", "turns")
        images = found["images"] / len(found["plain"])
        made = "1 image" if images == 1 else f"{number(images)} images"
        cut = "" if found["whole"] else ", cut off before a batch was whole"
        name = f"{method['name']} with head windows" if method.get("head_window") else method["name"]
        return (
            f"{name} is {_times(found)} times as fast as plain decoding at the same law and batch: "
            f"{turns} of {made} each way{cut}, on one worker{_when(choice)}"
        )
    if _is_plain(method) and choice.get("rows"):
        measured = sum(row["images_per_s"] is not None for row in choice["rows"])
        return f"plain decoding is the fastest of the {measured} ways measured on one worker{_when(choice)}"
    if _is_plain(method):
        return "by plain decoding"
    return "plain decoding was not measured beside it: `spd calibrate` with the same spec does that"


def _times(found: Json) -> str:
    """The ratio; one turn each on a machine that others use is a rough one."""
    return f"{found['ratio']:.2f}" if len(found["plain"]) > 1 else f"about {found['ratio']:.1f}"


def _is_plain(method: Json) -> bool:
    return method["name"] == Plain().name and not method.get("head_window")


def _when(choice: Json) -> str:
    """When it was measured, and whether for this job."""
    for_which = "earlier, on such a device" if choice.get("remembered") else "before the job"
    day = f", {made[:10]}" if (made := choice.get("made", "")) else ""
    return f", {for_which}{day}"


def gained_lines(report: Json) -> list[str]:
    """The last lines of a job: speed, acceptance, quality; a report of another version may lack some."""
    lines = [("speed", speed_in_words(report)), ("acceptance", _acceptance(report)), ("quality", _quality(report))]
    return [f"{name}: {text}" for name, text in lines if text]


def _acceptance(report: Json) -> str:
    found = report.get("acceptance")
    return f"{percent(found['rate'])} {acceptance_of(report['method'])}" if found else ""


def _quality(report: Json) -> str:
    found = report.get("quality")
    if not found:
        return ""
    if "skipped" in found:
        return f"not computed: {found['skipped']}"
    between, agreement = found.get("frechet_interval"), found.get("label_agreement")
    interval = f" (95 % interval {number(between[0])} to {number(between[1])})" if between else ""
    distance = f"distance to real images {number(found['frechet'])}{interval}"
    floor = f"the same of {found['floor_n']:,} real ones {number(found['floor'])}"
    seen = "" if agreement is None else f"; a classifier sees the label in {percent(agreement)} of the images"
    return f"{distance}, {floor}{seen}"
