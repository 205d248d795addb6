"""Law, method and guarantee in a person's words, for the report, the card and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spd_core.pairs
from spd_core.accept.rules import knobs_of
from spd_core.families.registry import family as family_of
from spd_core.law import Acceptance, SamplerLaw

if TYPE_CHECKING:
    from spd_core.quality.metrics import Told

GUARANTEES = {
    "exact": "The images follow the target model's law exactly; decoding changes only the speed.",
    "tv": "The law of an image is within a stated total variation distance of the target model's law: the "
    "certificate, a mean over the images. One image's certificate bounds nothing, and images chosen by it are a biased "
    "sample; of the images' joint law nothing is said.",
    "w_inf": "Given the tokens before it, every token's law at the hand-off can be coupled to the target model's "
    "law so that the two lie within a stated radius. Clean tokens and whole images may lie farther apart.",
    "none": "No bound against the target model's law is known; only their measured distance speaks for the images.",
}


def guarantee_in_words(guarantee: str, dtype: str, target: str) -> str:
    """What a guarantee promises, and where the law is not float32 what rounding leaves of it."""
    rounding = rounding_in_words(dtype, target)
    return f"{GUARANTEES[guarantee]} {rounding}" if rounding and guarantee != "none" else GUARANTEES[guarantee]


def rounding_in_words(dtype: str, target: str) -> str:
    """What the rounding of a law's arithmetic does to a promise, of float32 nothing.

    Args:
        dtype: of the law.
        target: sha256 of the target's weights: it was measured for those of the bundled pairs.
    """
    if dtype == "float32":
        return ""
    table = json.loads((Path(spd_core.pairs.__file__).parent / "rounding.json").read_bytes())
    found = next((of.get(dtype) for of in table.values() if of["target"] == target), None)
    if found is None:
        return f"This holds up to the rounding of {dtype}, which was not measured for this pair."
    return (
        f"This holds up to the rounding of {dtype}: on this pair the law of a token differs between plain decoding's "
        f"passes and a verification's by a total variation of {found['mean']:.1e} on average, {found['largest']:.1e} "
        "at most, on a CPU."
    )


def counted(count: int, one: str, more: str) -> str:
    """``1 class`` or ``10 classes``."""
    return f"{count:,} {one if count == 1 else more}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits and thousands separators; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:z,.0f}"
    return f"{value:z.{digits}g}"  # z: no zero has a sign


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash for none."""
    return "–" if value is None else f"{100 * value:z.1f} %"


def size(count: int) -> str:
    """Bytes in a unit that fits."""
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def _with_interval(value: str, bounds: Sequence[float] | None, show: Callable[[float], str]) -> str:
    return value if bounds is None else f"{value} (95 % interval {show(bounds[0])} to {show(bounds[1])})"


def _figure(figure: Told) -> str:
    def show(value: float) -> str:
        return percent(value) if figure.share else number(value, figure.digits)

    if figure.spread is not None:
        return f"{show(figure.value)} ± {number(figure.spread, 2)}"
    return _with_interval(show(figure.value), figure.interval, show)


def quality_in_words(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each figure of a dumped `QualityFigures`, or the reason why there are none."""
    if "skipped" in quality:
        return [("distance to real images", f"not computed: {quality['skipped']}")]
    from spd_core.quality.metrics import told  # loads what only these figures need

    rows = [(figure.name, _figure(figure)) for figure in told(quality)]
    return [*rows, ("features", f"{quality['extractor']}; these are not the published FID and KID")]


def comparison_in_words(comparison: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Name and value of each figure of a report's comparison, and what must be said beside them; none without one."""
    if comparison is None:
        return []
    skipped = comparison.get("skipped")
    few = [("comparison with a reference", f"not computed: {skipped}")] if skipped else []
    from spd_core.quality.comparison import told  # loads what only these figures need

    return few + [row if isinstance(row, tuple) else (row.name, _figure(row)) for row in told(comparison)]


def acceptance_of(method: dict[str, Any]) -> str:
    """Of which drafts a dumped method's acceptance is a share: two figures that must not be compared.

    Released CSpD judges and keeps or replaces every draft of a block. Everything else looks at no draft behind the
    first rejection, so the share is that of drafts whose predecessors were accepted.
    """
    if method["name"] == "cspd" and method["variant"] == "released":
        return "of every draft"
    return "of the drafts tested, up to the first rejection of a block"


def certificate_in_words(certificate: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Name and value of the figures of a report's certificate; none if it has none."""
    if certificate is None:
        return []
    bounds = [certificate["low"], certificate["high"]]
    return [
        ("certificate, mean over images", _with_interval(number(certificate["mean"]), bounds, number)),
        ("excess per token", number(certificate["excess_per_token"])),
    ]


def redecoded_in_words(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Name and value of a report's batch invariance; none if it was not asked for."""
    if found is None:
        return []
    images, equal = found["images"], found["equal"]
    batches = f"at batch {found['again_batch']} in place of {found['batch']} and in other company"
    elsewhere = found["elsewhere"]
    where = "all on another machine" if elsewhere == images else f"{elsewhere:,} of them on another machine"
    platforms = sorted({*found["platforms"], *found["again_platforms"]})
    texts = [
        f"{equal:,} of {counted(images, 'image', 'images')} decoded again {batches} have the same bytes",
        where if elsewhere else "by another process of the same machine",
        f"platforms: {'; '.join(platforms)}",
    ]
    if equal < images:
        texts[1:1] = [
            f"the others differ by at most {found['largest_difference']} of 255 in a pixel, "
            f"in {percent(found['differing_share'])} of all pixels (first: {', '.join(found['differing'][:3])})"
        ]
    return [("batch invariance", ", ".join(texts[:-1]) + f"; {texts[-1]}")]


def law_in_words(law: dict[str, Any], family: str) -> str:
    """One line for a dumped `SamplerLaw` of a pair of a family; laws of older versions may lack newer fields."""
    known = {name: law[name] for name in SamplerLaw.model_fields if name in law}
    return family_of(family).law_in_words(SamplerLaw.model_validate(known))


def method_in_words(method: dict[str, Any], family: str) -> str:
    """One line for a dumped method of a pair of a family: its name and every knob that it uses."""
    meant = family_of(family).methods.get(method["name"], frozenset(method))
    unused = {"gamma"} if method.get("tree") else {"tree"}
    rule = str(method.get("acceptance", {}).get("rule"))
    unused |= frozenset(Acceptance.model_fields) - {"rule"} - knobs_of(rule)
    used = {name: value for name, value in method.items() if name != "name" and name in meant}
    knobs = ", ".join(_knobs(used, frozenset(unused)))
    return f"{method['name']} ({knobs})" if knobs else str(method["name"])


def _knobs(values: dict[str, Any], unused: frozenset[str]) -> list[str]:
    texts = []
    for name, value in values.items():
        if name in unused:
            continue
        if isinstance(value, dict):
            texts += _knobs(value, unused)
        elif isinstance(value, list | tuple):
            texts.append(f"{name} {'/'.join(map(str, value)) or 'off'}")
        else:
            texts.append(f"{name} {value}")
    return texts
