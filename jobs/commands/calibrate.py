"""``spd calibrate``: what method auto would choose, measured in this process, and whether that was right.

Of a spec with a method by name: how that method compares with plain decoding.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.job.calibration import Calibration, CalibrationRow, Measure, TrialFailed, calibrate, most_turns
from jobs.job.plan import utc_now
from jobs.job.spec import UNNAMED, FixedSpec, Spec, load_spec
from jobs.run.auto import (
    budget,
    ceilings_of,
    choices_of,
    is_brief,
    shard_rows,
    told,
    trial_rows,
    trial_settings,
    trial_task,
)
from jobs.run.remembered import remember
from jobs.words.console import say
from jobs.words.errors import JobError, SpecError
from jobs.words.files import check_file
from jobs.words.phrases import method_in_words, number
from jobs.words.progress import Steps
from spd_core.decode.trial import Trial
from spd_core.law import Choice, Null, Plain
from spd_core.pairs.pair import PairCard, load_card
from workers.trial import Trier

#: Smallest share of the best choice's speed that the chosen one may have.
ENOUGH = 0.95


def _measure(trier: Trier, spec: Spec, card: PairCard, whole: bool) -> Measure:
    """Trials in this process, of the few images of the knock-out or of whole shards."""

    def measure(choice: Choice, lap: int, limit_s: float) -> Trial:
        size = shard_rows(spec) if whole else trial_rows(spec, choice, limit_s)
        try:
            return trier.run(trial_task(spec, card, choice, size, lap, limit_s))
        except (RuntimeError, MemoryError) as error:
            raise TrialFailed(str(error)) from error

    return measure


def whole_rates(choices: Sequence[Choice], measure: Measure, laps: int) -> list[float]:
    """Median images/s of whole shards by choice, all choices in turn; 0 for one that fails."""
    rates: dict[Choice, list[float]] = {choice: [] for choice in choices}
    for lap in range(laps):
        for choice in choices:
            try:
                rates[choice].append(measure(choice, lap, math.inf).images_per_s)
            except TrialFailed:
                rates[choice].append(0.0)
    return [statistics.median(rates[choice]) for choice in choices]


def table(rows: Sequence[CalibrationRow], whole: Sequence[float | None], family: str) -> str:
    """One line a choice as markdown; the chosen one in bold."""
    lines = ["| method | batch | images/s | turns | images/s of whole shards |", "|---|---|---|---|---|"]
    for row, rate in zip(rows, whole, strict=True):
        name = method_in_words(row.method.model_dump(), family)
        speed = f"failed: {row.problem}" if row.problem else number(row.images_per_s)
        shown = f"**{name}**" if row.chosen else name
        lines.append(f"| {shown} | {row.batch} | {speed} | {len(row.trials)} | {number(rate)} |")
    return "\n".join(lines)


def _spec(args: argparse.Namespace) -> Spec:
    spec = load_spec(args.spec, args.set)
    if isinstance(spec.method, Null) or spec.method == Plain():
        raise SpecError(f"method: got {spec.method.name!r}, allowed: auto, or a method to hold against plain decoding")
    if args.check < 0:
        raise SpecError(f"--check: got {args.check}, allowed: 0 or more")
    check_file("--json", args.json)
    return spec


def _choices(spec: Spec, card: PairCard, machine: dict[str, str]) -> tuple[Choice, ...]:
    if isinstance(spec, FixedSpec):
        return tuple(Choice(method=method, batch=spec.batch) for method in (Plain(), spec.method))
    return choices_of(spec, card, ceilings_of(machine))


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and, if asked, checks the choice.

    Raises:
        SpecError, PairError: wrong input.
        JobError: every method fails.
    """
    spec = _spec(args)
    card = load_card(spec.pair)
    trier = Trier(trial_settings(spec, card))
    machine = trier.ready()
    choices = _choices(spec, card, machine)
    try:
        with Steps(most_turns(len(choices), is_brief(spec))) as steps:
            measure = told(_measure(trier, spec, card, whole=False), steps)
            best, rows, seconds = calibrate(choices, measure, budget(spec) or UNNAMED.seconds, is_brief(spec))
    except TrialFailed as error:
        raise JobError(f"method auto: {error}") from error
    if not isinstance(spec, FixedSpec):
        asked = {"method": spec.method, "batch": spec.batch, "made": utc_now()}
        found = {**asked, "rows": rows, "machine": machine, "seconds": seconds}
        remember(spec, card, Calibration.model_validate(found))
    whole = None
    if args.check:
        with Steps(args.check * len(choices)) as steps:
            whole = whole_rates(choices, told(_measure(trier, spec, card, whole=True), steps), args.check)
    say(table(rows, whole or [None] * len(rows), card.family))
    figures: dict[str, Any] = {
        "machine": machine,
        "spec": spec.model_dump(mode="json", include={"pair", "law", "method", "batch", "shard_size", "seed"}),
        "seconds": seconds,
        "rows": [row.model_dump(mode="json") for row in rows],
    }
    share = None
    if whole:
        share = whole[choices.index(best)] / max(whole)
        figures |= {"whole_images_per_s": whole, "share_of_best": share}
        say(f"the chosen one has {share:.3f} of the speed of the best")
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if share is not None and share < ENOUGH else 0
