"""``spd nightly`` and ``spd compare``: tonight's dataset, its record, the pages of the history, and a verdict."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
from pathlib import Path
from typing import Any

from jobs.job.plan import read_plan
from jobs.job.requirements import Requirements
from jobs.job.spec import FixedSpec, Spec, load_spec, options_of
from jobs.job.urls import UrlError, check_url
from jobs.nightly.control import TURNS, measure_control
from jobs.nightly.history import History, add_night, read_history
from jobs.nightly.pages import PAGES, pages_of
from jobs.nightly.record import Night, night_of
from jobs.nightly.verdict import Verdict, compare, judge
from jobs.run.cluster import running_ray
from jobs.run.driver import generate
from jobs.run.signals import stoppable
from jobs.words.console import say
from jobs.words.errors import SpecError
from jobs.words.files import check_file
from workers.redact import public_url
from workers.store import Store

logger = logging.getLogger(__name__)
REGRESSION = 3  #: exit code
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  #: set by Ray for the entry point of a submitted job


def _checked(field: str, url: str) -> str:
    try:
        check_url(field, url)
    except UrlError as error:
        raise SpecError(str(error)) from error
    local = "://" not in url and "::" not in url
    if not url or (local and _SUBMITTED in os.environ and not Path(url).expanduser().is_absolute()):
        raise SpecError(f"{field}: got {url!r}, allowed: a URL or folder; in a submitted job, one every node reaches")
    return url.rstrip("/")


def _night(text: str | None) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text) if text else datetime.datetime.now(datetime.UTC).date()
    except ValueError as error:
        raise SpecError(f"--night: got {text!r}, allowed: a date as YYYY-MM-DD") from error


def _requirements(path: str | None) -> Requirements:
    return load_spec(path, []).requirements if path else Requirements()


def make_tonight(spec: Spec, night: datetime.date, turns: int = TURNS) -> Night:
    """Makes the night's dataset below the spec's output, or what is missing of it, and measures its control.

    Raises:
        SpecError, PairError, StoreError: wrong input.
        JobError: the job cannot go on; the same call resumes it.
        Stopped: a signal came; the same call resumes it.
    """
    dated = spec.model_copy(update={"output": f"{spec.output}/{night.isoformat()}"})
    with running_ray(spec.workers) as ray, stoppable():
        done = generate(dated)
        logger.info("%s: %d images, %d of them made now", done["output"], done["images"], done["made"])
        plan = read_plan(Store(dated.output, dated.storage_options))
        fixed = dated if isinstance(dated, FixedSpec) else dated.decided(plan.choice)
        control = measure_control(ray, fixed.model_copy(update={"batch": plan.choice.batch}), turns)
    return night_of(dated.output, night, dated.storage_options, control)


def run(args: argparse.Namespace) -> int:
    """``spd nightly``; returns the exit code: 3 if a figure is worse."""
    url, night = _checked("HISTORY", args.history), _night(args.night)
    turns = TURNS if args.turns is None else args.turns
    if turns < 1:
        raise SpecError(f"--turns: got {turns}, allowed: 1 or more")
    if (args.job is None) == (args.of is None):
        raise SpecError(f"--run: got {args.job!r} and --of {args.of!r}, allowed: one of the two")
    options = args.options
    if args.job is not None:
        spec = load_spec(args.job, args.set)
        wanted, options = spec.requirements, {**options_of(spec, url), **options}
    else:
        wanted = _requirements(args.requirements)
    known = read_history(url, options).of(night)
    if known is not None:
        logger.info("the night of %s is recorded: %s, made %s", night, known.output, known.made)
    else:
        Store(url, options).check_writable()
        made = (
            make_tonight(spec, night, turns)
            if args.job is not None
            else night_of(_checked("--of", args.of), night, args.options)
        )
        held = add_night(url, made, options)
        if held.created != made.created:
            logger.warning("another writer recorded the night of %s first: %s", night, held.output)
    return _tell(url, options, read_history(url, options), wanted)


def _tell(url: str, options: dict[str, Any], history: History, wanted: Requirements) -> int:
    """Judges, writes the pages, says what came of it."""
    verdict = judge(history.nights, wanted)
    store = Store(url, options)
    for path, page in pages_of("trend", verdict, history.nights, history.problems).items():
        store.replace(path, page)
    _say(verdict, history.problems)
    say(f"trend: {public_url(store.url)}/{PAGES['trend']}")
    return REGRESSION if verdict.regressions else 0


def _say(verdict: Verdict, problems: tuple[str, ...] = ()) -> None:
    for line in (*verdict.lines, *(f"damaged: {problem}" for problem in problems)):
        say(line)


def _dataset(field: str, url: str, options: dict[str, Any]) -> Night:
    """The record of a dataset, of the night its plan was made."""
    plan = read_plan(Store(_checked(field, url), options))
    return night_of(url, datetime.date.fromisoformat(plan.created[:10]), options)


def run_compare(args: argparse.Namespace) -> int:
    """``spd compare``; returns the exit code: 3 if a figure of the second output is worse."""
    check_file("--html", args.html)
    wanted = _requirements(args.requirements)
    before, now = (_dataset(field, url, args.options) for field, url in (("A", args.a), ("B", args.b)))
    verdict = compare(before, now, wanted)
    _say(verdict)
    pages = pages_of("compare", verdict, (before, now))
    if args.out is not None:
        store = Store(_checked("--out", args.out), args.options)
        for path, page in pages.items():
            store.replace(path, page)
        say(f"comparison: {public_url(store.url)}/{PAGES['compare']}")
    if args.html is not None:
        Path(args.html).write_bytes(pages[PAGES["compare"]])
        say(f"page: {args.html}")
    return REGRESSION if verdict.regressions else 0
