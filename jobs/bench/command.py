"""``spd bench``: speed, acceptance and distance of decoding methods, in one run.

Method. Speed: every entry decodes the same images (same ids, same random numbers) batch by batch in turn, so that drift
of the machine is shared; the ratio to plain decoding at the same law is the median of the pairwise ratios. For a causal
pair the calls that decoding consists of are timed too, and the cost model predicts the ratio from them. Quality: the
first ``n`` images of each entry in batches of 32 or the largest size, made by ``--processes`` processes; no time is
taken from them.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from jobs.bench.arguments import check_arguments, check_files, parse_tree
from jobs.bench.calls import measure_calls, predicted_speedup
from jobs.bench.entries import (
    CODE_DELTAS,
    DELTAS,
    FEWEST_HEAD_STEPS,
    GAMMAS,
    HEAD_SCHEDULES,
    LAMS,
    LANTERN_DELTAS,
    NUS,
    PAPER_GAMMAS,
    TREES,
    Entry,
    Naive,
    ablation_entries,
    causal_entries,
    code_entries,
    code_rules,
    falling_entries,
    falling_laws,
    mar_entries,
)
from jobs.bench.measure import Bench, Tally, Timed, loaded, measure_quality, measure_speed, speed_figures
from jobs.bench.plot import plot
from jobs.bench.table import Row, as_json, as_markdown
from jobs.job.spec import load_spec
from jobs.words.console import Steps, say
from jobs.words.errors import SpecError
from spd_core.accept.rules import Ratios
from spd_core.complaints import one_line
from spd_core.law import Acceptance, Guarantee, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import PairCard
from workers.machine import describe_machine

log = logging.getLogger(__name__)

#: Batches in one timed decoding: an image of codes is made in a moment, and how many rounds it takes varies.
_FILLS = {"mar": 1, "causal": 1, "llamagen": 4}
#: Images decoded together for their quality, at least.
_QUALITY_BATCH = 32
#: Seconds between two lines of progress.
_EVERY_S = 5.0


@dataclass
class Run:
    """A benchmark and what it has measured so far."""

    bench: Bench
    card: PairCard
    entries: list[Entry]
    batches: list[int]
    fills: int
    speed: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  #: by batch size, as the entries
    quality: dict[Entry, dict[str, Any]] = field(default_factory=dict)  #: where measured
    files: tuple[str | None, str | None, str | None] = (None, None, None)  #: JSON, markdown, picture

    def measure(self, repeats: int) -> None:
        """Speed, and for a causal pair call times, at every batch size."""
        tokens = self.card.target.seq_len
        steps = Steps(len(self.batches) * len(self.entries) * (repeats + 1), every_s=_EVERY_S)
        for batch in self.batches:
            timed = measure_speed(self.bench, self.entries, batch, self.fills, repeats, steps.done)
            self.speed[batch] = speed_figures(self.entries, timed, batch, self.fills, tokens)
            if self.card.family == "causal":
                self._predict(batch, timed)
            self.write()

    def _predict(self, batch: int, timed: list[Timed]) -> None:
        pair, calls = loaded(self.bench), {}
        for entry, own, figures in zip(self.entries, timed, self.speed[batch], strict=True):
            method, rule = entry.method, entry.acceptance
            if not isinstance(method, Plain | Speculative) or (rule and not issubclass(rule.chosen.evidence, Ratios)):
                continue
            # What a draft must pass does not change what its calls cost.
            key = method if isinstance(method, Plain) else method.model_copy(update={"acceptance": Acceptance()})
            if key not in calls:
                one = measure_calls(pair, entry.law, key, 1, self.bench.seed)
                every = one if batch == 1 else measure_calls(pair, entry.law, key, batch, self.bench.seed)
                calls[key] = every, one
                log.info("%s, batch %d: call times", entry.label, batch)
            times, alone = calls[key]
            figures["calls"] = asdict(times)
            figures["predicted_speedup"] = predicted_speedup(
                times, alone, method, Tally.total(own.tallies), self.card.target.seq_len, batch, self.fills
            )

    def assess(self, entries: list[Entry], n: int, processes: int) -> None:
        """Quality of some of the entries."""
        steps = Steps(len(entries))
        for entry, figures in zip(
            entries,
            measure_quality(self.bench, entries, n, max(*self.batches, _QUALITY_BATCH), processes),
            strict=True,
        ):
            self.quality[entry] = figures
            steps.done(f"{entry.label}, quality of {n} images")
            self.write()  # a run that is cut off keeps what it has measured

    def rows(self) -> list[Row]:
        return [
            Row.model_validate({**self._described(entry), "batch": batch, **figures, **self.quality.get(entry, {})})
            for batch, measured in self.speed.items()
            for entry, figures in zip(self.entries, measured, strict=True)
        ]

    def _described(self, entry: Entry) -> dict[str, Any]:
        method, rule = entry.method, entry.acceptance
        chain = not getattr(method, "tree", ())
        return {
            "pair": self.card.name,
            "family": self.card.family,
            "deepen": self.bench.deepen,
            "law": entry.law,
            "label": entry.label,
            "method": method.name,
            "settings": method.model_dump(mode="json", exclude={"name"}),
            "guarantee": method.guarantee,
            "threads": self.bench.threads,
            "fills": self.fills,
            "gamma": getattr(method, "gamma", None) if chain else None,
            "stride": None if entry.codes else getattr(method, "stride", None),
            "head_window": entry.head_window,
            "rule": rule and rule.rule,
            **{knob: rule and getattr(rule.chosen, knob, None) for knob in ("delta", "radius")},
        }

    @property
    def machine(self) -> dict[str, str]:
        machine = {"cpu": describe_machine(), "device": self.bench.device, "torch": torch.__version__}
        if self.bench.device == "cuda":
            machine["gpu"] = torch.cuda.get_device_name()
        return machine

    def write(self) -> None:
        """The files asked for, with what is measured so far."""
        rows, (as_file, table, picture) = self.rows(), self.files
        if as_file:
            Path(as_file).write_text(json.dumps(as_json(rows, self.machine), indent=1) + "\n")
        if table:
            Path(table).write_text(as_markdown(rows, self.machine))
        if picture:
            plot(rows, picture)


def _entries(args: argparse.Namespace, card: PairCard, law: SamplerLaw) -> list[Entry]:
    gammas = list(args.gamma or GAMMAS[card.family])
    if card.family == "llamagen":
        return _code_entries(args, card, law, gammas)
    windows = [tuple(args.head_window)] if args.head_window else card.windows
    falling = falling_entries(_falling(args, card, law), windows)
    if card.family == "causal":
        deltas, radii = list(DELTAS) if args.delta is None else args.delta, args.radius or []
        stride = args.stride or Speculative().stride
        return causal_entries(law, gammas, deltas, radii, windows, stride, card.draft is not None) + falling
    if args.ablation:
        return ablation_entries(law, gammas[0] if len(gammas) == 1 else 8)
    iterations = args.num_iter or [law.num_iter // part for part in (1, 2, 4, 8)]
    iterations = list(dict.fromkeys([law.num_iter, *(n for n in iterations if n >= 1)]))
    paper_gammas = list(PAPER_GAMMAS) if args.paper_gamma is None else args.paper_gamma
    return mar_entries(law, iterations, gammas, paper_gammas, windows) + falling


def _falling(args: argparse.Namespace, card: PairCard, law: SamplerLaw) -> list[SamplerLaw]:
    schedules = args.head_schedule
    if schedules is None:
        schedules = HEAD_SCHEDULES[card.family] if law.head_steps >= FEWEST_HEAD_STEPS and not law.falls else ()
    if schedules and law.falls:
        raise SpecError(
            f"--head-schedule: got {schedules[0]}, allowed: none with law.head_schedule {law.head_schedule}"
        )
    try:
        return falling_laws(law, schedules, args.head_steps)
    except ValidationError as error:
        raise SpecError(one_line(error, SamplerLaw).replace("spec:", "--head-steps:", 1)) from error


def _code_entries(args: argparse.Namespace, card: PairCard, law: SamplerLaw, gammas: list[int]) -> list[Entry]:
    trees = TREES if args.tree is None else [parse_tree(text) for text in args.tree]
    rules = code_rules(
        *(
            default if given is None else given
            for default, given in (
                (CODE_DELTAS, args.delta),
                (NUS, args.nu),
                (LAMS, args.lam),
                (LANTERN_DELTAS, args.lantern_delta),
            )
        )
    )
    drafters = sorted(card.drafters, key=lambda drafter: drafter != args.drafter)
    return code_entries(law, gammas, trees, rules, drafters)


def _assessed(entries: list[Entry], texts: list[str] | None) -> list[Entry]:
    """The entries whose quality is measured."""
    if texts is None:
        exact = [e for e in entries if e.codes and e.acceptance and e.method.guarantee == Guarantee.EXACT]
        return [entry for entry in entries if not isinstance(entry.method, Naive) and entry not in exact[1:]]
    chosen: set[Entry] = set()
    for text in texts:
        named = [entry for entry in entries if entry.label == text] or [e for e in entries if text in e.label]
        if not named:
            names = "; ".join(dict.fromkeys(entry.label for entry in entries))
            raise SpecError(f"--quality-of: got {text!r}, allowed: a part of {names}")
        chosen.update(named)
    return [entry for entry in entries if entry in chosen]


def _show(args: argparse.Namespace) -> int:
    """Table and picture of rows that were measured before."""
    check_files(args)
    try:
        found = json.loads(Path(args.rows).read_text())
        rows = [Row.model_validate(row) for row in found["rows"]]
        table = as_markdown(rows, found["machine"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SpecError(f"--rows: got {args.rows!r}, allowed: a file that `spd bench --json` wrote") from error
    if args.plot and rows[0].family != "llamagen":
        raise SpecError(f"--plot: got rows of {rows[0].pair}, allowed: of a pair of the llamagen family")
    if args.markdown:
        Path(args.markdown).write_text(table)
    if args.plot:
        plot(rows, args.plot)
    say(table)
    return 0


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the files asked for."""
    if args.rows:
        return _show(args)
    check_arguments(args)
    law = load_spec(None, [f"pair={args.pair}", f"seed={args.seed}", "method=plain", *args.set]).law
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(args.pair, device, args.threads, args.seed, args.deepen or 0)
    card = loaded(bench).card
    entries = _entries(args, card, law)
    assessed = _assessed(entries, args.quality_of)
    fills, files = args.fills or _FILLS[card.family], (args.json, args.markdown, args.plot)
    run = Run(bench, card, entries, args.batch, fills, files=files)
    run.measure(args.repeats)
    if args.n and card.reference:
        run.assess(assessed, args.n, args.processes)
    say(as_markdown(run.rows(), run.machine))
    return 0
