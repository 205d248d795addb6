"""``spd bench``: speed, acceptance and distance of decoding methods, in one run.

Method. Speed: every entry decodes the same images (same ids, same random numbers) batch by batch in turn, so that drift
of the machine is shared; the ratio to plain decoding at the same law is the median of the pairwise ratios. For a causal
pair the calls that decoding consists of are timed too, and the cost model predicts the ratio from them. Quality: the
first ``n`` images of each entry at the largest batch, made by ``--processes`` processes; no time is taken from them.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from jobs.bench_calls import measure_calls, predicted_speedup
from jobs.bench_entries import (
    DELTAS,
    GAMMAS,
    PAPER_GAMMAS,
    Entry,
    Naive,
    ablation_entries,
    causal_entries,
    mar_entries,
)
from jobs.bench_measure import Bench, Tally, Timed, loaded, measure_quality, measure_speed, speed_figures
from jobs.bench_table import Row, as_json, as_markdown
from jobs.spec import SpecError, load_spec
from spd_core.law import Acceptance, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import PairCard, load_card
from workers.machine import describe_machine

log = logging.getLogger(__name__)

#: Arguments that mean something for one family only.
_OF_FAMILY = {
    "mar": ("ablation", "num_iter", "paper_gamma"),
    "causal": ("stride", "delta", "radius", "deepen"),
}


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
    files: tuple[str | None, str | None] = (None, None)  #: JSON, markdown

    def measure(self, repeats: int) -> None:
        """Speed, and for a causal pair call times, at every batch size."""
        tokens = self.card.target.seq_len
        for batch in self.batches:
            timed = measure_speed(self.bench, self.entries, batch, self.fills, repeats)
            self.speed[batch] = speed_figures(self.entries, timed, batch, self.fills, tokens)
            if self.card.family == "causal":
                self._predict(batch, timed)
            self.write()

    def _predict(self, batch: int, timed: list[Timed]) -> None:
        pair, calls = loaded(self.bench), {}
        for entry, own, figures in zip(self.entries, timed, self.speed[batch], strict=True):
            method, rule = entry.method, entry.acceptance
            if not isinstance(method, Plain | Speculative) or (rule is not None and rule.rule == "coupled"):
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
        for entry, figures in zip(
            entries, measure_quality(self.bench, entries, n, max(self.batches), processes), strict=True
        ):
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
            "gamma": getattr(method, "gamma", None),
            "stride": getattr(method, "stride", None),
            "head_window": entry.head_window,
            "rule": rule and rule.rule,
            "delta": rule.delta if rule and rule.rule == "annealed" else None,
            "radius": rule.radius if rule and rule.rule == "coupled" else None,
        }

    @property
    def machine(self) -> dict[str, str]:
        machine = {"cpu": describe_machine(), "device": self.bench.device, "torch": torch.__version__}
        if self.bench.device == "cuda":
            machine["gpu"] = torch.cuda.get_device_name()
        return machine

    def write(self) -> None:
        """The files asked for, with what is measured so far."""
        rows, (as_file, table) = self.rows(), self.files
        if as_file:
            Path(as_file).write_text(json.dumps(as_json(rows, self.machine), indent=1) + "\n")
        if table:
            Path(table).write_text(as_markdown(rows, self.machine))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--pair", default="fashion-mar", help="bundled pair or a folder that holds one")
    parser.add_argument("--gamma", type=int, nargs="+", metavar="G", help="draft lengths; default 4 8, MAR 4 8 16 32")
    parser.add_argument(
        "--head-window",
        type=int,
        nargs="+",
        metavar="L",
        help="windows of head self-speculation, one a slice of the path",
    )
    parser.add_argument(
        "--ablation", action="store_true", default=None, help="MAR: noise alignment and pre-fill of cspd instead"
    )
    parser.add_argument(
        "--num-iter", type=int, nargs="+", metavar="I", help="MAR: plain decoding at these; default law's, /2, /4, /8"
    )
    parser.add_argument(
        "--paper-gamma", type=int, nargs="*", metavar="G", help="MAR: draft lengths of cspd, paper; default 8"
    )
    parser.add_argument("--stride", type=int, metavar="K", help="causal: steps the draft holds a prediction")
    parser.add_argument(
        "--delta", type=float, nargs="*", metavar="D", help="causal: annealed acceptance with these; default 2 4 8 16"
    )
    parser.add_argument("--radius", type=float, nargs="*", metavar="R", help="causal: coupled acceptance with these")
    parser.add_argument(
        "--deepen", type=int, metavar="K", help="causal: a heavier target, K idle blocks after each block; same law"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="B", help="batch sizes")
    parser.add_argument(
        "--fills",
        type=int,
        default=1,
        metavar="F",
        help="batches in one timed decoding; with more than one, speculative decoding refills its slots",
    )
    parser.add_argument(
        "--n", type=int, default=1000, help="images per entry for distance and agreement; 0: speed only"
    )
    parser.add_argument(
        "--quality-of",
        nargs="+",
        metavar="TEXT",
        help="distance and agreement only of entries with one of these texts in their name in the table; "
        "default: all but the naive loop, whose images are plain's",
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed decodings per entry and batch size")
    parser.add_argument("--processes", type=int, default=1, help="processes that make the quality images")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="job seed")
    parser.add_argument("--set", action="append", default=[], metavar="law.FIELD=VALUE", help="one field of the law")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as markdown")


def _check_family(args: argparse.Namespace, family: str) -> None:
    for other, names in _OF_FAMILY.items():
        for name in names:
            value = getattr(args, name)
            if value is not None and other != family:
                flag, got = f"--{name.replace('_', '-')}", "set" if value is True else value
                raise SpecError(f"{flag}: got {got} for {args.pair}, allowed: a pair of the {other} family")


def _checked(args: argparse.Namespace) -> None:
    whole = (
        "num_iter",
        "gamma",
        "paper_gamma",
        "head_window",
        "stride",
        "batch",
        "fills",
        "repeats",
        "processes",
        "threads",
    )
    least = {**dict.fromkeys((*whole, "delta"), 1), "radius": 0, "deepen": 1}
    for name, lowest in least.items():
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < lowest:
                raise SpecError(f"--{name.replace('_', '-')}: got {value}, allowed: {lowest} or more")
    if args.n != 0 and args.n < 2:
        raise SpecError(f"--n: got {args.n}, allowed: 0 (speed only) or at least 2")
    for path in (args.json, args.markdown):
        if path and not Path(path).parent.is_dir():
            raise SpecError(f"--json/--markdown: got {path!r}, allowed: a file in a folder that exists")
    _check_family(args, load_card(args.pair).family)


def _entries(args: argparse.Namespace, card: PairCard, law: SamplerLaw) -> list[Entry]:
    windows = [tuple(args.head_window)] if args.head_window else card.windows
    gammas = list(args.gamma or GAMMAS[card.family])
    if card.family == "causal":
        deltas, radii = list(DELTAS) if args.delta is None else args.delta, args.radius or []
        stride = args.stride or Speculative().stride
        return causal_entries(law, gammas, deltas, radii, windows, stride, card.draft is not None)
    if args.ablation:
        return ablation_entries(law, gammas[0] if len(gammas) == 1 else 8)
    iterations = args.num_iter or [law.num_iter // part for part in (1, 2, 4, 8)]
    iterations = list(dict.fromkeys([law.num_iter, *(n for n in iterations if n >= 1)]))
    paper_gammas = list(PAPER_GAMMAS) if args.paper_gamma is None else args.paper_gamma
    return mar_entries(law, iterations, gammas, paper_gammas, windows)


def _assessed(entries: list[Entry], texts: list[str] | None) -> list[Entry]:
    """The entries whose quality is measured."""
    if texts is None:
        return [entry for entry in entries if not isinstance(entry.method, Naive)]
    for text in texts:
        if not any(text in entry.label for entry in entries):
            names = "; ".join(dict.fromkeys(entry.label for entry in entries))
            raise SpecError(f"--quality-of: got {text!r}, allowed: a part of {names}")
    return [entry for entry in entries if any(text in entry.label for text in texts)]


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the files asked for."""
    _checked(args)
    law = load_spec(None, [f"pair={args.pair}", f"seed={args.seed}", "method=plain", *args.set]).law
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(args.pair, device, args.threads, args.seed, args.deepen or 0)
    card = loaded(bench).card
    entries = _entries(args, card, law)
    assessed = _assessed(entries, args.quality_of)
    run = Run(bench, card, entries, args.batch, args.fills, files=(args.json, args.markdown))
    run.measure(args.repeats)
    if args.n and card.reference:
        run.assess(assessed, args.n, args.processes)
    log.info("\n%s", as_markdown(run.rows(), run.machine))
    return 0
