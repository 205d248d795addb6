"""``spd bench``: speed, acceptance and distance of decoding methods, in one run.

Method. Speed: every entry decodes the same images (same ids, same random numbers) batch by batch in turn, so that drift
of the machine is shared; the ratio to plain decoding at the same law is the median of the pairwise ratios. Where the
pair's family has a cost model, the calls that decoding consists of are timed too, and the model predicts the ratio from
them. Quality: the first ``n`` images of each entry in batches of 32 or the largest size, made by ``--processes``
processes; no time is taken from them.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from jobs.bench.arguments import check_arguments, check_files, families_for, parse_tree
from jobs.bench.measure import Bench, Tally, Timed, loaded, measure_quality, measure_speed, requests, speed_figures
from jobs.bench.plot import plot
from jobs.bench.predicted import predicted_speedup
from jobs.bench.table import Row, as_json, as_markdown
from jobs.job.spec import load_spec
from jobs.words.console import say
from jobs.words.errors import SpecError
from jobs.words.progress import Steps
from spd_core.accept.rules import Ratios
from spd_core.compare import Entry, Naive, Wishes
from spd_core.complaints import one_line
from spd_core.families.family import Family
from spd_core.families.registry import family as family_of
from spd_core.law import Acceptance, Guarantee, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import PairCard
from workers.machine import describe_machine

log = logging.getLogger(__name__)

#: Images decoded together for their quality, at least.
_QUALITY_BATCH = 32


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
        """Speed and, where a model predicts it from them, call times, at every batch size."""
        tokens = self.card.target.seq_len
        with Steps(len(self.batches) * len(self.entries) * (repeats + 1)) as steps:
            for batch in self.batches:
                timed = measure_speed(self.bench, self.entries, batch, self.fills, repeats, steps.did)
                self.speed[batch] = speed_figures(self.entries, timed, batch, self.fills, tokens)
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
                alone = self.card.of.call_times(pair, entry.law, key, *requests(pair, self.bench.seed, 0, 1))
                if alone is None:
                    return
                drawn = requests(pair, self.bench.seed, 0, batch)
                every = alone if batch == 1 else self.card.of.call_times(pair, entry.law, key, *drawn)
                calls[key] = every or alone, alone
                log.info("%s, batch %d: call times", entry.label, batch)
            times, alone = calls[key]
            figures["calls"] = asdict(times)
            figures["predicted_speedup"] = predicted_speedup(
                times, alone, method, Tally.total(own.tallies), self.card.target.seq_len, batch, self.fills
            )

    def assess(self, entries: list[Entry], n: int, processes: int) -> None:
        """Quality of some of the entries."""
        batch = max(*self.batches, _QUALITY_BATCH)
        with Steps(len(entries) * -(-n // batch)) as steps:
            measured = measure_quality(self.bench, entries, n, batch, processes, steps.did)
            for entry, figures in zip(entries, measured, strict=True):
                self.quality[entry] = figures
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
            "stride": getattr(method, "stride", None) if "stride" in self.card.of.wishes else None,
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
    wished = {field.name: getattr(args, field.name) for field in fields(Wishes)}
    trees = None if args.tree is None else [parse_tree(text) for text in args.tree]
    try:
        compared = card.of.compared(card, law, Wishes(**{**wished, "tree": trees}))
    except ValidationError as error:
        raise SpecError(one_line(error, SamplerLaw).replace("spec:", "--head-steps:", 1)) from error
    except ValueError as error:
        raise SpecError(str(error)) from error
    return [Entry(at, method, card.of.label(at, method)) for at, method in compared]


def _assessed(entries: list[Entry], texts: list[str] | None, family: Family) -> list[Entry]:
    """The entries whose quality is measured."""
    if texts is None:
        exact = [e for e in entries if e.acceptance and e.method.guarantee == Guarantee.EXACT]
        alike = exact[1:] if family.lossless_alike else []
        return [entry for entry in entries if not isinstance(entry.method, Naive) and entry not in alike]
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
    if args.plot and "plot" not in family_of(rows[0].family).wishes:
        raise SpecError(f"--plot: got rows of {rows[0].pair}, allowed: of a pair of the {families_for('plot')} family")
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
    assessed = _assessed(entries, args.quality_of, card.of)
    fills, files = args.fills or card.of.fills, (args.json, args.markdown, args.plot)
    run = Run(bench, card, entries, args.batch, fills, files=files)
    run.measure(args.repeats)
    if args.n and card.reference:
        run.assess(assessed, args.n, args.processes)
    say(as_markdown(run.rows(), run.machine))
    return 0
