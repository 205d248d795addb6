"""The picture of a benchmark over codes: what the acceptance rules pay for their speed."""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench_entries import knob, series
from jobs.bench_table import Row
from jobs.spec import SpecError
from spd_core.law import Guarantee, Speculative

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")
_MARKERS = "osD^vPX<>*"


def check_plot(path: str) -> None:
    """Refuses what `plot` cannot write.

    Raises:
        SpecError: another format, or no matplotlib.
    """
    if Path(path).suffix not in FORMATS:
        raise SpecError(f"--plot: got {path!r}, allowed: a file name that ends in {' or '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise SpecError("--plot: got a file, but matplotlib is missing, allowed: after pip install 'spd[plot]'")


def plot(rows: list[Row], path: str) -> None:
    """Speed over plain decoding against the certificate of a token and against the distance, a line of panels a batch.

    Args:
        rows: of a pair of codes.
        path: .svg or .png.
    """
    from matplotlib.figure import Figure

    batches = list(dict.fromkeys(row.batch for row in rows))
    figure = Figure(figsize=(12, 4.6 * len(batches)), layout="constrained")
    panels = figure.subplots(len(batches), 2, squeeze=False, sharey="row")
    for batch, (left, right) in zip(batches, panels, strict=True):
        own = [row for row in rows if row.batch == batch]
        for place, (name, line) in enumerate(_series(own).items()):
            style = {"color": f"C{place % 10}", "marker": _MARKERS[place % len(_MARKERS)], "label": name}
            _draw(left, [(row, *_certificate(row)) for row in line], style)
            _draw(right, [(row, row.distance, row.distance_interval) for row in line], style)
        left.set_ylabel(f"speed over plain decoding, batch {batch}")
        left.set_xlabel("certificate per token (bound on its total variation from the target)")
        right.set_xlabel(f"Frechet distance to real images, n = {max((row.n or 0 for row in own), default=0)}")
        for panel in (left, right):
            panel.axhline(1.0, color="0.75", linewidth=0.8, zorder=0)
            panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _series(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by what they share but for their rule's knob, in the order of the table."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        method = _method(row)
        exact = row.label if method is None else series(method)
        found[exact].append(row)
    return found


def _method(row: Row) -> Speculative | None:
    return Speculative.model_validate(row.settings) if row.method == "speculative" else None


def _certificate(row: Row) -> tuple[float | None, tuple[float, float] | None]:
    if row.guarantee == Guarantee.EXACT:
        return 0.0, None
    return row.certificate_per_token, row.certificate_per_token_interval


def _draw(
    panel: Axes,
    points: list[tuple[Row, float | None, tuple[float, float] | None]],
    style: dict[str, Any],
) -> None:
    """A series with the 95 % intervals of its abscissae; each point is named by its knob."""
    known = [(row, x, bounds or (x, x)) for row, x, bounds in points if x is not None]
    x, y = [x for _, x, _ in known], [row.speedup_vs_plain for row, _, _ in known]
    reach = [[x - low for _, x, (low, _) in known], [high - x for _, x, (_, high) in known]]
    panel.errorbar(x, y, xerr=reach, markersize=5, linewidth=1.2, elinewidth=0.7, **style)
    for row, at, _ in known:
        method = _method(row)
        value = method and knob(method.acceptance)
        if value is not None:
            panel.annotate(
                f"{value:g}", (at, row.speedup_vs_plain), (3, 4), textcoords="offset points", fontsize=7, color="0.35"
            )
