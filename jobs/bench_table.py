"""Rows of a benchmark and how they are shown: JSON for programs, markdown for people."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from spd_core.law import SamplerLaw, Settings


class Row(Settings):
    """One law, method and batch size."""

    pair: str
    law: SamplerLaw
    method: str
    settings: dict[str, Any] = Field(description="the method's other knobs")
    batch: int
    threads: int
    gamma: int | None
    images_per_s: float = Field(description="median over the repeats")
    speedup_vs_plain: float = Field(description="to plain at the same law, median of pairwise ratios")
    speedup_range: tuple[float, float]
    speedup_vs_full: float = Field(description="to plain at the first row's law: across laws where iterations differ")
    acceptance: float | None = Field(description="accepted share of the verified drafts")
    tokens_per_round: float | None = Field(description="tokens per target pass over an image")
    head_calls_per_token: float = Field(description="sequential target-head calls per token of an image")
    head_rows_per_token: float
    seconds_split: dict[str, float] = Field(description="of the last timed batch")
    distance: float | None = Field(description="Frechet distance at n images; a property of law and method, not batch")
    distance_interval: tuple[float, float] | None
    floor: float | None = Field(description="the same distance of as many real images")
    label_agreement: float | None
    n: int | None


def as_json(rows: list[Row], machine: dict[str, str]) -> dict[str, Any]:
    """The file ``--json`` writes."""
    return {"machine": machine, "rows": [row.model_dump(mode="json") for row in rows]}


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _method(row: Row) -> str:
    if row.method != "cspd":
        return row.method
    noise = "" if row.settings["aligned"] else ", unaligned"
    return f"cspd {row.settings['variant']}, gamma {row.gamma}, pre-fill {row.settings['prefill']:g}{noise}"


def as_markdown(rows: list[Row], machine: dict[str, str]) -> str:
    """One table per batch size, with machine, law and method above it."""
    law = rows[0].law
    lines = [
        f"Machine: {', '.join(machine.values())}; {rows[0].threads} torch thread(s).",
        f"Law: {law.head_steps} head steps from level {law.start_level}, cfg {law.cfg:g} ({law.cfg_schedule}), "
        f"temperature {law.temperature:g}, {law.dtype}; iterations in the table.",
        "Speed: median of batches decoded in turn; x plain is against plain at the same law (same iterations), "
        "x full against plain at the first row's iterations.",
    ]
    if rows[0].n:
        lines.append(
            f"Distance: Frechet, EfficientNet-Lite0 features, n = {rows[0].n}; floor {_cell(rows[0].floor, 2)}."
        )
    for batch in dict.fromkeys(row.batch for row in rows):
        lines += [
            "",
            f"Batch {batch}",
            "",
            "| method | iterations | images/s | x plain | x full | acceptance | tokens/target pass | head calls/token "
            "| head rows/token | distance | label agreement |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            if row.batch != batch:
                continue
            cells = (
                _method(row),
                str(row.law.num_iter),
                _cell(row.images_per_s, 3),
                _cell(row.speedup_vs_plain, 2),
                _cell(row.speedup_vs_full, 2),
                _cell(row.acceptance, 3),
                _cell(row.tokens_per_round, 2),
                _cell(row.head_calls_per_token, 1),
                _cell(row.head_rows_per_token, 1),
                _cell(row.distance, 2),
                _cell(row.label_agreement, 3),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
