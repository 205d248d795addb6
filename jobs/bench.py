"""``spd bench``: speed, acceptance and distance of decoding methods, in one run.

Method. Speed: every entry decodes the same images (same ids, same random numbers) batch by batch in turn, so that drift
of the machine is shared; the ratio to plain decoding at the same law is the median of the pairwise ratios. Quality: the
first ``n`` images of each entry at the largest batch, made by ``--processes`` processes; no time is taken from them.

Shape legend: B images of a batch, n images of an entry.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.bench_table import Row, as_json, as_markdown
from jobs.plan import describe_machine, request_id
from jobs.spec import SpecError, load_spec
from spd_core.decode import Decoded, decode
from spd_core.draws import Draws, image_seed
from spd_core.law import Cspd, Plain, SamplerLaw
from spd_core.pairs.pair import Pair, load_pair

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One line of the table: a law and a method."""

    law: SamplerLaw
    method: Plain | Cspd


@dataclass(frozen=True)
class QualityBatch:
    """What one batch of an entry adds to its quality figures."""

    features: Tensor  #: [B, F]
    agrees: Tensor  #: bool [B]
    tested: int
    accepted: int
    rounds: int


def main_entries(law: SamplerLaw, iterations: list[int], gammas: list[int], paper_gammas: list[int]) -> list[Entry]:
    """Plain at several iteration counts, then cspd at the law's own, released and paper variant."""
    plain = [Entry(law.model_copy(update={"num_iter": n}), Plain()) for n in iterations]
    released = [Entry(law, Cspd(variant="released", gamma=g)) for g in gammas]
    return plain + released + [Entry(law, Cspd(variant="paper", gamma=g)) for g in paper_gammas]


def ablation_entries(law: SamplerLaw, gamma: int) -> list[Entry]:
    """The paper's two ablations: noise alignment and pre-fill share."""
    aligned = [Entry(law, Cspd(gamma=gamma, aligned=value)) for value in (True, False)]
    prefill = [Entry(law, Cspd(gamma=gamma, prefill=share)) for share in (0.0, 0.15)]
    return [Entry(law, Plain()), *aligned, *prefill]


def _requests(pair: Pair, seed: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    index = range(start, start + count)
    labels = torch.tensor([i % len(pair.card.class_names) for i in index], device=pair.device)
    seeds = torch.tensor([image_seed(seed, request_id(i)) for i in index], device=pair.device)
    return labels, seeds


def _decode(pair: Pair, entry: Entry, seed: int, start: int, count: int) -> tuple[Decoded, float]:
    labels, seeds = _requests(pair, seed, start, count)
    if pair.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    decoded = decode(pair, entry.law, entry.method, labels, Draws(seeds))
    if pair.device.type == "cuda":
        torch.cuda.synchronize()
    return decoded, time.perf_counter() - began


@lru_cache(maxsize=1)
def _loaded(name: str, device: str, threads: int) -> Pair:
    torch.set_num_threads(threads)
    return load_pair(name, device)


def _quality_batch(
    name: str, device: str, threads: int, entry: Entry, seed: int, start: int, count: int
) -> QualityBatch:
    from spd_core.quality.features import FeatureExtractor
    from spd_core.quality.labels import label_agreement

    pair = _loaded(name, device, threads)
    decoded, _ = _decode(pair, entry, seed, start, count)
    images, labels = pair.to_images(decoded.tokens), _requests(pair, seed, start, count)[0]
    return QualityBatch(
        FeatureExtractor(device)(images).cpu(),
        label_agreement(images, labels.cpu(), pair.card.reference).cpu(),
        len(decoded.drafts.accepted),
        int(decoded.drafts.accepted.sum()),
        int(decoded.rounds.sum()),
    )


def measure_quality(
    name: str, pair: Pair, entries: list[Entry], n: int, batch: int, seed: int, processes: int, threads: int
) -> Iterator[dict[str, Any]]:
    """Distance, floor, label agreement and acceptance of each entry over its first ``n`` images, entry by entry."""
    from spd_core.quality.evaluate import evaluate

    starts = range(0, n, batch)
    labels = torch.arange(n) % len(pair.card.class_names)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        make = map if processes == 1 else pool.map
        for entry in entries:
            given = [(name, str(pair.device), threads, entry, seed, start, min(batch, n - start)) for start in starts]
            parts = list(make(_quality_batch, *zip(*given, strict=True)))
            features, agrees = (torch.cat([getattr(part, name) for part in parts]) for name in ("features", "agrees"))
            quality = evaluate(features, labels, agrees, pair.card.reference)
            tested = sum(part.tested for part in parts)
            log.info("%s at %d iterations: quality of %d images", entry.method.name, entry.law.num_iter, n)
            yield {
                "acceptance": sum(part.accepted for part in parts) / tested if tested else None,
                "tokens_per_round": n * pair.card.target.seq_len / sum(part.rounds for part in parts),
                "distance": quality.frechet,
                "distance_interval": quality.frechet_interval,
                "floor": quality.floor,
                "label_agreement": quality.label_agreement,
                "n": n,
            }


def measure_speed(pair: Pair, entries: list[Entry], batch: int, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Images/s, ratio to plain at the same law and head calls of each entry at one batch size."""
    for entry in entries:  # warm-up of allocator and kernels
        _decode(pair, Entry(entry.law.model_copy(update={"num_iter": 2}), entry.method), seed, 0, batch)
    times: list[list[float]] = [[] for _ in entries]
    last: list[Decoded] = []
    for repeat in range(repeats):
        last = []
        for index, entry in enumerate(entries):
            decoded, spent = _decode(pair, entry, seed, repeat * batch, batch)
            times[index].append(spent)
            last.append(decoded)
    tokens = pair.card.target.seq_len
    base = {entry.law: times[i] for i, entry in enumerate(entries) if isinstance(entry.method, Plain)}
    rows = []
    for entry, own, decoded in zip(entries, times, last, strict=True):
        ratios = [plain / mine for plain, mine in zip(base[entry.law], own, strict=True)]
        full = base[entries[0].law]
        rows.append(
            {
                "images_per_s": batch / statistics.median(own),
                "speedup_vs_plain": statistics.median(ratios),
                "speedup_range": (min(ratios), max(ratios)),
                "speedup_vs_full": statistics.median(p / mine for p, mine in zip(full, own, strict=True)),
                "head_calls_per_token": decoded.counts["target_head_calls"] / tokens,
                "head_rows_per_token": decoded.counts["target_head_rows"] / (tokens * batch),
                "seconds_split": {name: round(value, 3) for name, value in decoded.seconds.items()},
            }
        )
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("--pair", default="fashion-mar", help="bundled pair or a folder that holds one")
    parser.add_argument(
        "--ablation", action="store_true", help="noise alignment and pre-fill instead of the main table"
    )
    parser.add_argument(
        "--num-iter", type=int, nargs="+", metavar="I", help="plain decoding at these; default: law's, /2, /4, /8"
    )
    parser.add_argument(
        "--gamma", type=int, nargs="+", default=[4, 8, 16, 32], metavar="G", help="draft lengths of cspd, released"
    )
    parser.add_argument(
        "--paper-gamma", type=int, nargs="*", default=[8], metavar="G", help="draft lengths of cspd, paper"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="B", help="batch sizes")
    parser.add_argument(
        "--n", type=int, default=1000, help="images per entry for distance and agreement; 0: speed only"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed batches per entry and batch size")
    parser.add_argument("--processes", type=int, default=1, help="processes that make the quality images")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="job seed")
    parser.add_argument("--set", action="append", default=[], metavar="law.FIELD=VALUE", help="one field of the law")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as markdown")


def _checked(args: argparse.Namespace) -> None:
    for name in ("num_iter", "gamma", "paper_gamma", "batch", "repeats", "processes", "threads"):
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                raise SpecError(f"--{name.replace('_', '-')}: got {value}, allowed: 1 or more")
    if args.n != 0 and args.n < 2:
        raise SpecError(f"--n: got {args.n}, allowed: 0 (speed only) or at least 2")
    for path in (args.json, args.markdown):
        if path and not Path(path).parent.is_dir():
            raise SpecError(f"--json/--markdown: got {path!r}, allowed: a file in a folder that exists")


_NOT_MEASURED: dict[str, Any] = dict.fromkeys(
    ("distance", "distance_interval", "floor", "label_agreement", "acceptance", "tokens_per_round", "n")
)


def _machine(pair: Pair) -> dict[str, str]:
    machine = {"cpu": describe_machine(), "device": pair.device.type, "torch": torch.__version__}
    if pair.device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _rows(
    args: argparse.Namespace,
    pair: Pair,
    entries: list[Entry],
    speed: dict[int, list[dict[str, Any]]],
    quality: list[dict[str, Any]],
) -> list[Row]:
    return [
        Row(
            pair=pair.card.name,
            law=entry.law,
            method=entry.method.name,
            settings=entry.method.model_dump(mode="json", exclude={"name"}),
            gamma=getattr(entry.method, "gamma", None),
            batch=batch,
            threads=args.threads,
            **figures,
            **known,
        )
        for batch in args.batch
        for entry, figures, known in zip(entries, speed[batch], quality, strict=True)
    ]


def _write(
    args: argparse.Namespace,
    pair: Pair,
    entries: list[Entry],
    speed: dict[int, list[dict[str, Any]]],
    quality: list[dict[str, Any]],
) -> None:
    rows, machine = _rows(args, pair, entries, speed, quality), _machine(pair)
    if args.json:
        Path(args.json).write_text(json.dumps(as_json(rows, machine), indent=1) + "\n")
    if args.markdown:
        Path(args.markdown).write_text(as_markdown(rows, machine))


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the files asked for."""
    _checked(args)
    spec = load_spec(None, [f"pair={args.pair}", f"seed={args.seed}", *args.set])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pair = _loaded(args.pair, device, args.threads)
    law = spec.law
    if args.ablation:
        entries = ablation_entries(law, args.gamma[0] if len(args.gamma) == 1 else 8)
    else:
        iterations = args.num_iter or [law.num_iter, law.num_iter // 2, law.num_iter // 4, law.num_iter // 8]
        iterations = list(dict.fromkeys([law.num_iter, *(n for n in iterations if n >= 1)]))
        entries = main_entries(law, iterations, args.gamma, args.paper_gamma)
    speed = {batch: measure_speed(pair, entries, batch, args.repeats, args.seed) for batch in args.batch}
    quality = [_NOT_MEASURED for _ in entries]
    _write(args, pair, entries, speed, quality)
    if args.n and pair.card.reference:
        found = measure_quality(
            args.pair, pair, entries, args.n, max(args.batch), args.seed, args.processes, args.threads
        )
        for index, figures in enumerate(found):
            quality[index] = figures
            _write(args, pair, entries, speed, quality)  # a run that is cut off keeps what it has measured
    log.info("\n%s", as_markdown(_rows(args, pair, entries, speed, quality), _machine(pair)))
    return 0
