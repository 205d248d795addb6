"""The picture of a benchmark over codes: what the acceptance rules pay for their speed."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.table import Row
from jobs.words.errors import SpecError
from spd_core.families.registry import family
from spd_core.law import Guarantee, Speculative

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")
#: Markers of the exact entries, which are no line, and of the others.
_EXACT, _RELAXED = "osDv^<>Ph", "osDv^X*"


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
    """Speed over plain decoding against the excess of a token and against the distance, a line of panels a batch.

    Args:
        rows: of a pair of codes; while no distance is known, its panels are left out.
        path: .svg or .png.
    """
    from matplotlib.figure import Figure

    batches = list(dict.fromkeys(row.batch for row in rows))
    images = max((row.n or 0 for row in rows), default=0)
    figure = Figure(figsize=(12 if images else 7, 4.2 * len(batches) + 1), layout="constrained")
    panels = figure.subplots(len(batches), 2 if images else 1, squeeze=False, sharex="col", sharey="row")
    for batch, line in zip(batches, panels, strict=True):
        for lines, style in _styled([row for row in rows if row.batch == batch]):
            for panel, of in zip(line, (_excess, _distance), strict=False):
                _draw(panel, [(row, *of(row)) for row in lines], style)
        line[0].set_ylabel(f"speed over plain decoding, batch {batch}")
        for panel in line:
            panel.axhline(1.0, color="0.8", linewidth=0.8, zorder=0)
            panel.spines[["top", "right"]].set_visible(False)
    titles = ("excess per token (total variation added)", f"Frechet distance to real images, n = {images}")
    for panel, title in zip(panels[-1], titles, strict=False):
        panel.set_xlabel(title)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4 if images else 2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _styled(rows: list[Row]) -> Iterator[tuple[list[Row], dict[str, Any]]]:
    """Rows that differ only in their rule's knob, and how they are drawn: exact ones grey, a colour for each other."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        method = _method(row)
        found[family(row.family).series(method) if method else row.label].append(row)
    exact, relaxed = itertools.cycle(_EXACT), itertools.cycle(zip(_RELAXED, range(10), strict=False))
    for name, own in found.items():
        if own[0].guarantee == Guarantee.EXACT:
            yield own, {"label": name, "marker": next(exact), "color": "0.25", "mfc": "none", "linestyle": "none"}
        else:
            marker, colour = next(relaxed)
            yield own, {"label": name, "marker": marker, "color": f"C{colour}"}


def _method(row: Row) -> Speculative | None:
    return Speculative.model_validate(row.settings) if row.method == "speculative" else None


def _excess(row: Row) -> tuple[float | None, tuple[float, float] | None]:
    if row.guarantee == Guarantee.EXACT:
        return 0.0, None
    return row.excess_per_token, None


def _distance(row: Row) -> tuple[float | None, tuple[float, float] | None]:
    return row.distance, row.distance_interval


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
        value = method and method.acceptance.chosen.main_value
        if value is not None:
            place = (at, row.speedup_vs_plain)
            panel.annotate(f"{value:g}", place, (3, 4), textcoords="offset points", fontsize=7, color=style["color"])
