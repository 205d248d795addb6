"""Rows of a benchmark and how they are shown: JSON for programs, markdown for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from spd_core.families.registry import family as family_of
from spd_core.law import Guarantee, HeadWindow, SamplerLaw, Settings

Bounds = tuple[float, float]


class Row(Settings):
    """One law, method and batch size. Drafts and certificate: of the n images, of the timed ones where n is None."""

    pair: str
    family: str
    deepen: int = Field(0, description="blocks that work and change nothing, added after each of the target's")
    law: SamplerLaw
    label: str = Field(description="the method's name in the table")
    method: str
    settings: dict[str, Any] = Field(description="the method's other knobs")
    guarantee: Guarantee
    batch: int = Field(description="images decoded together")
    fills: int = Field(description="batches in one timed decoding")
    threads: int
    gamma: int | None
    stride: int | None
    head_window: HeadWindow
    rule: str | None = Field(description="acceptance rule")
    delta: float | None
    radius: float | None
    images_per_s: float = Field(description="median over the repeats")
    speedup_vs_plain: float = Field(description="to plain at the same law, median of pairwise ratios")
    speedup_range: Bounds
    speedup_vs_lossless: float | None = Field(
        None, description="to the fastest lossless speculative decoding of the run, median of pairwise ratios"
    )
    speedup_vs_full: float = Field(description="to plain at the first row's law: across laws where iterations differ")
    predicted_speedup: float | None = Field(
        None, description="over plain by the cost model from calls and this row's acceptance in the timed images"
    )
    calls: dict[str, float] | None = Field(None, description="seconds, `spd_core.decode.cost.CallTimes`")
    acceptance: float | None = Field(
        description="accepted share: released CSpD's of every draft, of all others of those tested, up to the first "
        "rejection of a block"
    )
    acceptance_by_place: list[float] | None = Field(
        description="by place in the block, where those before were accepted"
    )
    tokens_per_round: float | None = Field(description="tokens per target pass over an image")
    step_compression: float | None = Field(
        None, description="sequential target passes of plain over those of this row, timed images; none for MAR"
    )
    head_calls_per_token: float = Field(
        description="sequential target-head calls per token of an image; those above the hand-off where there is one"
    )
    head_rows_per_token: float
    finish_calls: float = Field(description="sequential target-head calls below the hand-off, once for all tokens")
    finish_rows_per_token: float
    certificate: float | None = Field(
        None, description="mean over images: bounds the total variation between the law of an image and the target's"
    )
    certificate_interval: Bounds | None = Field(None, description="95 %")
    excess_per_token: float | None = Field(None, description="total variation that a token's tests add, mean")
    seconds_split: dict[str, float] = Field(description="of the last timed decoding")
    pass_ms: dict[str, float] = Field(
        default_factory=dict, description="milliseconds of each span per sequential target pass, timed images"
    )
    distance: float | None = Field(
        None, description="Frechet distance at n images; a property of law and method, not batch"
    )
    distance_interval: Bounds | None = None
    floor: float | None = Field(None, description="the same distance of as many real images")
    label_agreement: float | None = None
    label_agreement_interval: Bounds | None = None
    n: int | None = None


def as_json(rows: list[Row], machine: dict[str, str]) -> dict[str, Any]:
    """The file ``--json`` writes."""
    return {"machine": machine, "rows": [row.model_dump(mode="json") for row in rows]}


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:z.{digits}f}"


def _with_bounds(value: float | None, bounds: Bounds | None, digits: int) -> str:
    if value is None or bounds is None:
        return _cell(value, digits)
    return f"{value:z.{digits}f} ({bounds[0]:z.{digits}f} to {bounds[1]:z.{digits}f})"


def _table(heads: list[str], lines: list[list[str]]) -> list[str]:
    """A markdown table without the columns that say nothing in any line."""
    kept = [i for i in range(len(heads)) if any(line[i] != "-" for line in lines)]
    rows = [heads, ["---"] * len(heads), *lines]
    return [f"| {' | '.join(row[i] for i in kept)} |" for row in rows]


def _tested(row: Row) -> bool:
    """Whether its acceptance is a share of the drafts tested: released CSpD judges every one of a block, the others
    none behind the first rejection."""
    return row.method != "cspd" or row.settings["variant"] != "released"


#: By head, what a row shows; a family's `columns` name those of its table.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.label,
    "guarantee": lambda row: row.guarantee.value,
    "iterations": lambda row: str(row.law.num_iter),
    "images/s": lambda row: _cell(row.images_per_s, 3),
    "x plain": lambda row: _cell(row.speedup_vs_plain, 2),
    "x full": lambda row: _cell(row.speedup_vs_full, 2),
    "x lossless": lambda row: _cell(row.speedup_vs_lossless, 2),
    "predicted": lambda row: _cell(row.predicted_speedup, 2),
    "acceptance": lambda row: _cell(row.acceptance, 3),
    # Two figures in two columns.
    "accepted of tested": lambda row: _cell(row.acceptance, 3) if _tested(row) else "-",
    "accepted of all": lambda row: "-" if _tested(row) else _cell(row.acceptance, 3),
    "tokens/target pass": lambda row: _cell(row.tokens_per_round, 2),
    "accepted length": lambda row: _cell(row.tokens_per_round, 2),
    "step compression": lambda row: _cell(row.step_compression, 2),
    "head calls/token": lambda row: _cell(row.head_calls_per_token, 1),
    "head rows/token": lambda row: _cell(row.head_rows_per_token, 1),
    "finish calls": lambda row: _cell(row.finish_calls, 1),
    "excess per token": lambda row: _cell(row.excess_per_token, 4),
    "certificate (95 %)": lambda row: _with_bounds(row.certificate, row.certificate_interval, 3),
    "distance (95 %)": lambda row: _with_bounds(row.distance, row.distance_interval, 1),
    "label agreement": lambda row: _cell(row.label_agreement, 3),
    "delta": lambda row: "-" if row.delta is None else f"{row.delta:g}",
    "ms a pass: draft": lambda row: _cell(row.pass_ms.get("draft"), 2),
    "target": lambda row: _cell(row.pass_ms.get("context", 0.0) + row.pass_ms.get("head", 0.0), 2),
    "test": lambda row: _cell(row.pass_ms.get("accept"), 2),
}
#: Of relaxed methods, where a family's own columns do not show their certificate.
_CERTIFICATE = ("method", "delta", "x plain", "acceptance", "excess per token", "certificate (95 %)")


def _columns(rows: list[Row], names: Sequence[str]) -> list[str]:
    return _table(list(names), [[COLUMNS[name](row) for name in names] for row in rows])


def _certificates(rows: list[Row]) -> list[str]:
    relaxed = [row for row in rows if row.delta is not None]
    return ["", *_columns(relaxed, _CERTIFICATE)] if relaxed else []


def _calls(rows: list[Row]) -> list[str]:
    timed = [row for row in rows if row.calls is not None]
    if not timed:
        return []
    names = list(timed[0].calls or {})
    lines = {
        row.label: [row.label, *(_cell(1000 * (row.calls or {})[name] or None, 2) for name in names)] for row in timed
    }
    return [
        "",
        "Milliseconds a call, as the cost model gets them (windowed: with the method's windows):",
        "",
        *_table(["method", *names], list(lines.values())),
    ]


def as_markdown(rows: list[Row], machine: dict[str, str]) -> str:
    """Tables per batch size, with machine, law and method above them."""
    family = family_of(rows[0].family)
    deeper = f", target with {rows[0].deepen} idle blocks after each of its own" if rows[0].deepen else ""
    lines = [
        f"Machine: {', '.join(machine.values())}; {rows[0].threads} torch thread(s). Pair: {rows[0].pair}{deeper}.",
        f"Law: {family.law_in_words(rows[0].law)}.",
        f"Speed: median of decodings in turn, {rows[0].fills} batch(es) each; x plain is against plain at the same law"
        + family.ratios,
    ]
    measured = next((row for row in rows if row.n), None)
    if measured is not None:
        lines.append(
            f"Distance: Frechet, EfficientNet-Lite0 features, n = {measured.n}; floor {_cell(measured.floor, 2)}."
        )
    for batch in dict.fromkeys(row.batch for row in rows):
        own = [row for row in rows if row.batch == batch]
        lines += ["", f"Batch {batch}", ""]
        lines += _columns(own, family.columns)
        if "certificate (95 %)" not in family.columns:
            lines += _certificates(own)
        lines += _calls(own)
    return "\n".join(lines) + "\n"
