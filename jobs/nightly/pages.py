"""The pages of a history and of a comparison: HTML in the look of the report, markdown, and JSON."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.dataset.page import Words, page_environment, ticks
from jobs.job.figures import FIGURES
from jobs.nightly.record import Night
from jobs.nightly.verdict import Finding, State, Verdict, what_changed
from jobs.words.phrases import number
from workers.sealed import canonical_json

PAGES = {"trend": "trend.html", "compare": "compare.html"}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 480, 208, 54, 28, 34
_EDGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  #: of the bars of changes, percent
_NORMAL_95 = 1.959964
#: Nights in the table, the newest ones.
_ROWS = 31
#: Figures of the table of nights.
_COLUMNS = ("speed_over_plain", "acceptance", "frechet", "label_agreement", "images_per_s_per_worker", "cost_per_1000")


@dataclass(frozen=True)
class Chart:
    """One figure over the nights, in the pixels of its drawing."""

    figure: str
    title: str
    unit: str
    state: str
    points: tuple[tuple[float, float, str], ...]  #: x, y, what it says
    levels: tuple[tuple[float, float, float], ...]  #: from x to x at y: the median of the nights between two changes
    band: tuple[float, float, float] | None  #: x of the newest night, y of the highest and the lowest expected value
    marks: tuple[tuple[float, str], ...]  #: x of the first night of a new level
    ticks: tuple[tuple[float, str], ...]  #: y and value
    first: str
    last: str


def _chart(finding: Finding, nights: Sequence[Night]) -> Chart | None:
    """None for a figure that was the same every night: the table says all of it."""
    name = finding.figure
    series = [night for night in nights if name in night.figures]
    values = [night.figures[name] for night in series]
    if name not in FIGURES or len(set(values)) < 2:
        return None
    edges = [math.exp(edge) for edge in (finding.band.low, finding.band.high)] if finding.band else []
    low, high = min(*values, *edges), max(*values, *edges)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - pad, high + pad
    first, days = series[0].night, max(1, (series[-1].night - series[0].night).days)

    def x(night: datetime.date) -> float:
        return _LEFT + 8 + (_WIDTH - _LEFT - 20) * (night - first).days / days

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    starts = [0, *(place for place, night in enumerate(series) if night.night in finding.steps), len(series)]
    levels = []
    for begin, end in itertools.pairwise(starts):
        middle = sorted(values[begin:end])[(end - begin) // 2]
        levels.append((x(series[begin].night) - 4, x(series[end - 1].night) + 4, y(middle)))
    texts = [f"{night.night}: {number(night.figures[name], 4)} {FIGURES[name].unit}".strip() for night in series]
    return Chart(
        name,
        FIGURES[name].title,
        FIGURES[name].unit or "no unit",
        finding.state,
        tuple((x(night.night), y(value), text) for night, value, text in zip(series, values, texts, strict=True)),
        tuple(levels),
        (x(series[-1].night), y(edges[1]), y(edges[0])) if edges else None,
        tuple((x(night), night.isoformat()) for night in finding.steps),
        tuple((y(tick), number(tick)) for tick in ticks(low, high)),
        first.isoformat(),
        series[-1].night.isoformat(),
    )


def total_cost(nights: Sequence[Night]) -> float | None:
    """Of the datasets of some nights, each once however many nights recorded it; None if none has a price."""
    costs = {(night.output, night.created): night.figures["cost"] for night in nights if "cost" in night.figures}
    return math.fsum(costs.values()) if costs else None


def _row(finding: Finding) -> dict[str, Any]:
    figure = FIGURES.get(finding.figure)
    return {
        "figure": finding.figure,
        "title": figure.title if figure else finding.figure,
        "unit": figure.unit if figure else "",
        "state": str(finding.state),
        "value": finding.value,
        "before": finding.before,
        "percent": finding.percent,
        "since": finding.since.isoformat() if finding.since else None,
        "text": finding.text,
        "between": list(finding.between),
    }


def content_of(verdict: Verdict, nights: Sequence[Night], problems: Sequence[str] = ()) -> dict[str, Any]:
    """What the pages say, as JSON."""
    return {
        "version": 1,
        "name": verdict.newest.name,
        "verdict": "regression" if verdict.regressions else "ok",
        "lines": list(verdict.lines),
        "newest": verdict.newest.night.isoformat(),
        "judged": verdict.nights,
        "findings": [_row(found) for found in verdict.findings],
        "problems": list(problems),
        "total_cost": total_cost(nights),
        "nights": [night.model_dump(mode="json", exclude={"spec", "sha256"}) for night in nights],
    }


def _markdown(content: dict[str, Any]) -> str:
    head = ["figure", "now", "before", "change", "verdict", "since"]
    rows = [
        [
            f"{row['title']}{f', {unit}' if (unit := row['unit']) else ''}",
            number(row["value"], 4),
            number(row["before"], 4),
            _signed(row["percent"]),
            f"waiting: {row['text']}" if row["state"] == State.WAITING else row["state"],
            row["since"] or "",
        ]
        for row in content["findings"]
    ]
    lines = [f"# {content['name']}: {content['newest']}", "", *(f"- {_flat(line)}" for line in content["lines"])]
    lines += [f"- damaged: {_flat(problem)}" for problem in content["problems"]]
    table = [head, ["---"] * len(head), *rows]
    return "\n".join([*lines, "", *(f"| {' | '.join(map(_flat, row))} |" for row in table), ""])


def _flat(text: str) -> str:
    """Text of a spec or a path on one line, with what Markdown or HTML would act on made plain."""
    return "".join(f"\\{char}" if char in "\\`*[]<>|" else char for char in " ".join(text.split()))


def _signed(percent: float | None) -> str:
    return "" if percent is None else "0 %" if abs(percent) < 0.05 else f"{percent:+.1f} %"


def _html(kind: str, verdict: Verdict, nights: Sequence[Night], content: dict[str, Any]) -> str:
    environment = page_environment(Path(__file__).parent)
    environment.filters["signed"] = _signed
    # What is judged and what is worse comes first.
    order = {State.REGRESSION: 0, State.OK: 2, State.WAITING: 3, State.SHOWN: 4}
    found = sorted(verdict.findings, key=lambda finding: order.get(finding.state, 1))
    charts = [_chart(finding, nights) for finding in found] if kind == "trend" else []
    columns = [name for name in _COLUMNS if any(name in night.figures for night in nights)]
    rows, widest = _drawn([_row(finding) for finding in found], nights[0], verdict.newest)
    page: str = environment.get_template("trend.html").render(
        kind=kind,
        c=content,
        words=Words(),
        rows=rows,
        widest=widest,
        charts=[chart for chart in charts if chart],
        columns=[(name, FIGURES[name]) for name in columns],
        nights=list(reversed(nights))[:_ROWS],
        newest=verdict.newest,
        before=nights[0],
        size=(_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP),
        differs=what_changed(nights[0], verdict.newest),
    )
    return page


def _drawn(rows: list[dict[str, Any]], before: Night, now: Night) -> tuple[list[dict[str, Any]], float]:
    """Rows with a bar from no change to theirs, and its 95 % interval if the errors are known, in percent of the width.

    Also the change in percent at the edges, to which larger ones are cut.
    """
    changes = [abs(row["percent"]) for row in rows if row["percent"] is not None]
    widest = next((edge for edge in _EDGES if edge >= max(changes, default=0.0)), _EDGES[-1])

    def place(percent: float) -> float:
        return 50 + 50 * max(-1.0, min(1.0, percent / widest))

    for row in rows:
        row["bar"] = row["reach"] = None
        if row["percent"] is None:
            continue
        row["bar"] = sorted((50.0, place(row["percent"])))
        errors = [night.errors[row["figure"]] for night in (before, now) if row["figure"] in night.errors]
        if len(errors) == 2:
            half = _NORMAL_95 * math.hypot(*errors) * (100 + row["percent"])
            row["reach"] = place(row["percent"] - half), place(row["percent"] + half)
    return rows, widest


def pages_of(kind: str, verdict: Verdict, nights: Sequence[Night], problems: Sequence[str] = ()) -> dict[str, bytes]:
    """Bytes by name of the pages of a history (``trend``) or of two outputs (``compare``)."""
    content = content_of(verdict, nights, problems)
    return {
        f"{kind}.json": canonical_json(content),
        f"{kind}.md": _markdown(content).encode(),
        PAGES[kind]: _html(kind, verdict, nights, content).encode(),
    }
