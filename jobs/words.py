"""Law, method and guarantee in a person's words, for the report, the card and the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GUARANTEES = {
    "exact": "The images follow the target model's own law exactly; decoding changes only the speed.",
    "tv": "The total variation distance between an image's law and the target model's is bounded by its certificate.",
    "w_inf": "Every token lies within a stated radius of one that follows the target model's own law.",
    "none": "No bound against the target model's own law is known; only their measured distance speaks for the images.",
}


def number(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits and thousands separators; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash for none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def size(count: int) -> str:
    """Bytes in a unit that fits."""
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def _with_interval(value: str, bounds: list[float] | None, show: Callable[[float], str]) -> str:
    return value if bounds is None else f"{value} (95 % interval {show(bounds[0])} to {show(bounds[1])})"


def quality_in_words(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each figure of a dumped `QualityFigures`, or the reason why there are none."""
    if "skipped" in quality:
        return [("distance to real images", f"not computed: {quality['skipped']}")]
    rows = [
        (
            f"Frechet distance to {quality['reference']} at N = {quality['n']:,}",
            _with_interval(number(quality["frechet"], 4), quality["frechet_interval"], lambda x: number(x, 4)),
        ),
        (
            f"floor: the same distance of {quality['floor_n']:,} real images",
            f"{number(quality['floor'], 4)} ± {number(quality['floor_spread'], 2)}",
        ),
    ]
    if quality["kid"] is not None:
        rows.append(("kernel distance (KID)", _with_interval(number(quality["kid"]), quality["kid_interval"], number)))
    if quality["label_agreement"] is not None:
        text = _with_interval(percent(quality["label_agreement"]), quality["label_agreement_interval"], percent)
        rows.append(("label agreement", text))
    return [*rows, ("features", f"{quality['extractor']}; these are not the published FID and KID")]


def law_in_words(law: dict[str, Any]) -> str:
    """One line for a dumped `SamplerLaw`."""
    guidance = "no guidance" if law["cfg"] == 1 else f"guidance {law['cfg']:g} ({law['cfg_schedule']})"
    levels, iterations = f"from level {law['start_level']}", f"{law['num_iter']} iterations, "
    if law.get("handoff_level"):  # of a causal pair, which has no iterations
        levels, iterations = f"{levels}, hand-off at {law['handoff_level']}", ""
    return (
        f"{iterations}{law['head_steps']} head steps {levels}, {guidance}, "
        f"temperature {law['temperature']:g}, {law['dtype']}"
    )


def method_in_words(method: dict[str, Any]) -> str:
    """One line for a dumped method: its name and every knob."""
    knobs = ", ".join(_knobs({name: value for name, value in method.items() if name != "name"}))
    return f"{method['name']} ({knobs})" if knobs else str(method["name"])


def _knobs(values: dict[str, Any]) -> list[str]:
    texts = []
    for name, value in values.items():
        if isinstance(value, dict):
            texts += _knobs(value)
        elif isinstance(value, list | tuple):
            texts.append(f"{name} {'/'.join(map(str, value)) or 'off'}")
        else:
            texts.append(f"{name} {value}")
    return texts
