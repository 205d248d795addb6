"""Rows of a benchmark and how they are shown: JSON for programs, markdown for people."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from spd_core.law import Guarantee, HeadWindow, SamplerLaw, Settings

Bounds = tuple[float, float]


class Row(Settings):
    """One law, method and batch size. Drafts and certificate: of the n images, of the timed ones where n is None."""

    pair: str
    family: Literal["mar", "causal", "llamagen"]
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
        "refusal of a block"
    )
    acceptance_by_place: list[float] | None = Field(
        description="by place in the block, where those before were accepted"
    )
    tokens_per_round: float | None = Field(description="tokens per target pass over an image")
    step_compression: float | None = Field(
        None, description="sequential target passes of plain over those of this row, timed images; none for MAR"
    )
    head_calls_per_token: float = Field(
        description="sequential target-head calls per token of an image; causal: those above the hand-off"
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


#: Two figures in two columns: released CSpD judges every draft, the others none behind the first refusal.
ACCEPTANCES = ("accepted of tested", "accepted of all")


def _acceptances(row: Row) -> list[str]:
    released = row.method == "cspd" and row.settings["variant"] == "released"
    return ["-", _cell(row.acceptance, 3)] if released else [_cell(row.acceptance, 3), "-"]


def _speed(rows: list[Row], causal: bool) -> list[str]:
    heads = [
        "method", "guarantee", "iterations", "images/s", "x plain", "x full", "predicted", *ACCEPTANCES,
        "tokens/target pass", "head calls/token", "head rows/token", "finish calls", "distance (95 %)",
        "label agreement",
    ]  # fmt: skip
    lines = [
        [
            row.label,
            row.guarantee.value,
            "-" if causal else str(row.law.num_iter),
            _cell(row.images_per_s, 3),
            _cell(row.speedup_vs_plain, 2),
            "-" if causal else _cell(row.speedup_vs_full, 2),
            _cell(row.predicted_speedup, 2),
            *_acceptances(row),
            _cell(row.tokens_per_round, 2),
            _cell(row.head_calls_per_token, 1),
            _cell(row.head_rows_per_token, 1),
            _cell(row.finish_calls, 1) if causal else "-",
            _with_bounds(row.distance, row.distance_interval, 1),
            _cell(row.label_agreement, 3),
        ]
        for row in rows
    ]
    return _table(heads, lines)


def _codes(rows: list[Row]) -> list[str]:
    heads = [
        "method", "guarantee", "images/s", "x plain", "x lossless", "accepted length", "step compression", "acceptance",
        "excess per token", "certificate (95 %)", "distance (95 %)", "label agreement", "ms a pass: draft", "target",
        "test",
    ]  # fmt: skip
    lines = [
        [
            row.label,
            row.guarantee.value,
            _cell(row.images_per_s, 3),
            _cell(row.speedup_vs_plain, 2),
            _cell(row.speedup_vs_lossless, 2),
            _cell(row.tokens_per_round, 2),
            _cell(row.step_compression, 2),
            _cell(row.acceptance, 3),
            _cell(row.excess_per_token, 4),
            _with_bounds(row.certificate, row.certificate_interval, 3),
            _with_bounds(row.distance, row.distance_interval, 1),
            _cell(row.label_agreement, 3),
            _cell(row.pass_ms.get("draft"), 2),
            _cell(row.pass_ms["context"] + row.pass_ms.get("head", 0.0), 2),
            _cell(row.pass_ms.get("accept"), 2),
        ]
        for row in rows
    ]
    return _table(heads, lines)


def _certificates(rows: list[Row]) -> list[str]:
    heads = ["method", "delta", "x plain", "acceptance", "excess per token", "certificate (95 %)"]
    lines = [
        [
            row.label,
            f"{row.delta:g}",
            _cell(row.speedup_vs_plain, 2),
            _cell(row.acceptance, 3),
            _cell(row.excess_per_token, 4),
            _with_bounds(row.certificate, row.certificate_interval, 3),
        ]
        for row in rows
        if row.delta is not None
    ]
    return ["", *_table(heads, lines)] if lines else []


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
        "Milliseconds a call, as the cost model gets them:",
        "",
        *_table(["method", *names], list(lines.values())),
    ]


def as_markdown(rows: list[Row], machine: dict[str, str]) -> str:
    """Tables per batch size, with machine, law and method above them."""
    family = rows[0].family
    deeper = f", target with {rows[0].deepen} idle blocks after each of its own" if rows[0].deepen else ""
    lines = [
        f"Machine: {', '.join(machine.values())}; {rows[0].threads} torch thread(s). Pair: {rows[0].pair}{deeper}.",
        f"Law: {_law(rows[0])}.",
        f"Speed: median of decodings in turn, {rows[0].fills} batch(es) each; x plain is against plain at the same law"
        + _MEASURES[family],
    ]
    measured = next((row for row in rows if row.n), None)
    if measured is not None:
        lines.append(
            f"Distance: Frechet, EfficientNet-Lite0 features, n = {measured.n}; floor {_cell(measured.floor, 2)}."
        )
    for batch in dict.fromkeys(row.batch for row in rows):
        own = [row for row in rows if row.batch == batch]
        lines += ["", f"Batch {batch}", ""]
        if family == "llamagen":
            lines += _codes(own)
        else:
            lines += [*_speed(own, family == "causal"), *_certificates(own), *_calls(own)]
    return "\n".join(lines) + "\n"


#: What the ratios of each family are, after what x plain is.
_MEASURES = {
    "mar": " (same iterations), x full against plain at the first row's iterations.",
    "causal": ", predicted is what the cost model makes of measured call times and acceptance.",
    "llamagen": ", x lossless against the fastest lossless speculation. Accepted length: codes an image gets per "
    "target pass, the target's own included. Step compression: plain's target passes over a batch to the row's. "
    "Acceptance: of every verified draft.",
}


def _law(row: Row) -> str:
    law, family = row.law, row.family
    guidance = "no guidance" if law.cfg == 1 else f"cfg {law.cfg:g} ({law.cfg_schedule})"
    if family == "llamagen":
        kept = f"top-k {law.top_k or 'off'}, top-p {law.top_p:g}"
        return f"{guidance}, temperature {law.temperature:g}, {kept}, {law.dtype}"
    handoff = f", hand-off at {law.handoff_level}" if family == "causal" else ""
    iterations = "; iterations in the table" if family == "mar" else ""
    steps = f"{law.steps_in_words} from level {law.start_level}{handoff}"
    return f"{steps}, {guidance}, temperature {law.temperature:g}, {law.dtype}{iterations}"
