"""Measurements of `spd bench`: time, calls and drafts of every entry, and the quality of its images.

Shape legend: B images of a batch, n images of an entry, G drafts of a block at most.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from jobs.job.plan import request_id
from spd_core.accept.certificate import bounds, image_certificates, log_weights
from spd_core.accept.lemma import acceptance_probability
from spd_core.compare import Entry, Naive
from spd_core.decode import Decoded, decode
from spd_core.decode.naive import decode_naive
from spd_core.draws import Draws, image_seed
from spd_core.law import Guarantee
from spd_core.pairs.pair import Pair, load_pair


@dataclass(frozen=True)
class Bench:
    """What every measurement of a run shares; a process can make the pair from it."""

    pair: str
    device: str
    threads: int
    seed: int
    deepen: int  #: idle blocks added after each of the target's


@dataclass(frozen=True)
class Tally:
    """What some images of an entry say of its drafts."""

    tested: Tensor  #: int64 [G] by place in the block
    accepted: Tensor  #: int64 [G]
    overlaps: float  #: sum of min(1, R) over the tested drafts
    rounds: int
    excess: Tensor  #: float64 [images], sums over their drafts
    certificates: Tensor  #: float64 [images]

    @staticmethod
    def of(decoded: Decoded) -> Tally:
        drafts = decoded.drafts
        tested, accepted = (
            torch.bincount(places) for places in (drafts.draft_index, drafts.draft_index[drafts.accepted])
        )
        accepted = torch.nn.functional.pad(accepted, (0, len(tested) - len(accepted)))
        excess = torch.zeros(len(decoded.rounds), dtype=torch.float64).index_add(
            0, drafts.image, drafts.excess.double()
        )
        overlaps = float(acceptance_probability(drafts.log_ratio).sum())
        weights = log_weights(*(column.numpy() for column in (drafts.log_ratio, drafts.accepted, drafts.excess)))
        certificates = torch.from_numpy(image_certificates(drafts.image.numpy(), weights, len(decoded.rounds)))
        return Tally(tested, accepted, overlaps, int(decoded.rounds.sum()), excess, certificates)

    @staticmethod
    def total(parts: list[Tally]) -> Tally:
        places = max(len(part.tested) for part in parts)
        tested, accepted = (
            torch.stack([torch.nn.functional.pad(column, (0, places - len(column))) for column in columns]).sum(dim=0)
            for columns in ([part.tested for part in parts], [part.accepted for part in parts])
        )
        overlaps, rounds = sum(part.overlaps for part in parts), sum(part.rounds for part in parts)
        excess, certificates = (torch.cat([getattr(part, n) for part in parts]) for n in ("excess", "certificates"))
        return Tally(tested, accepted, overlaps, rounds, excess, certificates)

    @property
    def overlap(self) -> float:
        """Mean of min(1, R) over the tested drafts; 0 if there were none."""
        return self.overlaps / max(1, int(self.tested.sum()))

    def acceptance(self, gamma: int) -> list[float]:
        """Accepted share by place; 0 where no draft was ever tested."""
        shares = (self.accepted / self.tested.clamp(min=1)).tolist()
        return shares + [0.0] * (gamma - len(shares))

    def figures(self, entry: Entry, tokens: int) -> dict[str, Any]:
        """The row's fields that speak of drafts and of the certificate, for images of ``tokens`` tokens."""
        tested = int(self.tested.sum())
        figures: dict[str, Any] = {
            "acceptance": int(self.accepted.sum()) / tested if tested else None,
            "acceptance_by_place": self.acceptance(len(self.tested)) if tested else None,
            "tokens_per_round": len(self.excess) * tokens / self.rounds,
        }
        if entry.method.guarantee == Guarantee.TV:
            sums = (float(of_images.sum()) for of_images in (self.certificates, self.certificates.square()))
            found = bounds(len(self.certificates), *sums)
            figures["certificate"] = found.mean
            figures["certificate_interval"] = (found.low, found.high)
            figures["excess_per_token"] = float(self.excess.mean()) / tokens
        return figures


@dataclass
class Timed:
    """The timed decodings of an entry, in the order in which all entries took turns."""

    seconds: list[float] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    split: dict[str, float] = field(default_factory=dict)  #: of the last one
    spans: Counter[str] = field(default_factory=Counter)  #: microseconds of all

    def add(self, decoded: Decoded, seconds: float) -> None:
        self.seconds.append(seconds)
        self.tallies.append(Tally.of(decoded))
        self.counts.update(decoded.counts)
        self.spans.update({name: round(1e6 * value) for name, value in decoded.seconds.items()})
        self.split = {name: round(value, 4) for name, value in decoded.seconds.items()}

    def over(self, other: Timed) -> list[float]:
        """Ratios of the times of each turn."""
        return [mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)]


@dataclass(frozen=True)
class QualityBatch:
    """What one batch of an entry adds to its quality figures."""

    features: Tensor  #: [B, F]
    agrees: Tensor  #: bool [B]
    tally: Tally


@lru_cache(maxsize=1)
def loaded(bench: Bench) -> Pair:
    """The pair of a run, its target deepened if asked for; sets torch's threads."""
    torch.set_num_threads(bench.threads)
    pair = load_pair(bench.pair, bench.device)
    if not bench.deepen:
        return pair
    return replace(pair, target=pair.card.of.deepened(pair.target, bench.deepen))


def now(device: torch.device) -> float:
    """Seconds on a steady clock once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def requests(pair: Pair, seed: int, start: int, count: int) -> tuple[Tensor, Draws]:
    """Labels and random numbers of requests ``start`` on: those a job with this seed has."""
    index = range(start, start + count)
    labels = torch.tensor([i % len(pair.card.class_names) for i in index], device=pair.device)
    return labels, Draws(torch.tensor([image_seed(seed, request_id(i)) for i in index], device=pair.device))


def _decode(pair: Pair, entry: Entry, seed: int, start: int, count: int, slots: int) -> tuple[Decoded, float]:
    labels, draws = requests(pair, seed, start, count)
    began = now(pair.device)
    if isinstance(entry.method, Naive):
        batches = zip(labels.split(slots), draws.seeds.split(slots), strict=True)
        decoded = Decoded.concatenate([decode_naive(pair, entry.law, b, Draws(s)) for b, s in batches])
    else:
        decoded = decode(pair, entry.law, entry.method, labels, draws, slots)
    return decoded, now(pair.device) - began


def measure_speed(
    bench: Bench,
    entries: list[Entry],
    batch: int,
    fills: int,
    repeats: int,
    done: Callable[[str], None] = lambda _: None,
) -> list[Timed]:
    """Decodes ``repeats`` times ``fills`` batches by every entry in turn, the same images by all.

    ``done`` is told of each decoding, the warm-up's too.
    """
    pair, count = loaded(bench), batch * fills
    for entry in entries:  # warm-up of allocator and kernels, with few iterations where there are any
        short = replace(entry, law=entry.law.model_copy(update={"num_iter": 2}))
        _decode(pair, short, bench.seed, 0, batch, batch)
        done(f"{entry.label}, batch {batch}, warm-up")
    timed = [Timed() for _ in entries]
    for repeat in range(repeats):
        for own, entry in zip(timed, entries, strict=True):
            own.add(*_decode(pair, entry, bench.seed, repeat * count, count, batch))
            done(f"{entry.label}, batch {batch}, {batch * fills / own.seconds[-1]:.3g} images/s")
    return timed


def speed_figures(
    entries: list[Entry], timed: list[Timed], batch: int, fills: int, tokens: int
) -> list[dict[str, Any]]:
    """The rows' fields from the timed decodings; ratios are medians of the pairwise ones."""
    base = {entry.law: own for entry, own in zip(entries, timed, strict=True) if entry.is_base}
    speculative = [
        own
        for entry, own in zip(entries, timed, strict=True)
        if entry.acceptance and entry.method.guarantee == Guarantee.EXACT
    ]
    lossless = min(speculative, key=lambda own: statistics.median(own.seconds), default=None)
    full, rows = base[entries[0].law], []
    for entry, own in zip(entries, timed, strict=True):
        plain = base[entry.law]
        ratios = plain.over(own)
        batches = len(own.seconds) * fills
        steps, passes = (of.counts["target_context_calls"] for of in (plain, own))
        rows.append(
            {
                "images_per_s": batch * fills / statistics.median(own.seconds),
                "speedup_vs_plain": statistics.median(ratios),
                "speedup_range": (min(ratios), max(ratios)),
                "speedup_vs_full": statistics.median(full.over(own)),
                "speedup_vs_lossless": statistics.median(lossless.over(own)) if lossless else None,
                "step_compression": steps / passes if steps and passes else None,
                "head_calls_per_token": own.counts["target_head_calls"] / (batches * tokens),
                "head_rows_per_token": own.counts["target_head_rows"] / (batches * batch * tokens),
                "finish_calls": own.counts["finish_head_calls"] / batches,
                "finish_rows_per_token": own.counts["finish_head_rows"] / (batches * batch * tokens),
                "seconds_split": own.split,
                "pass_ms": {name: span / 1000 / passes for name, span in own.spans.items()} if passes else {},
                **Tally.total(own.tallies).figures(entry, tokens),
            }
        )
    return rows


def _quality_batch(bench: Bench, entry: Entry, start: int, count: int) -> QualityBatch:
    from spd_core.quality.features import FeatureExtractor
    from spd_core.quality.labels import label_agreement

    pair = loaded(bench)
    decoded, _ = _decode(pair, entry, bench.seed, start, count, count)
    images = pair.to_images(decoded.tokens, entry.law.dtype)
    labels = requests(pair, bench.seed, start, count)[0]
    return QualityBatch(
        FeatureExtractor(bench.device)(images).cpu(),
        label_agreement(images, labels.cpu(), pair.card.reference).cpu(),
        Tally.of(decoded),
    )


def measure_quality(
    bench: Bench,
    entries: list[Entry],
    n: int,
    batch: int,
    processes: int,
    done: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Distance, floor, label agreement and drafts of each entry over its first ``n`` images, entry by entry.

    ``done`` is told of each batch.
    """
    from spd_core.quality.evaluate import evaluate

    card, starts = loaded(bench).card, range(0, n, batch)
    labels = torch.arange(n) % len(card.class_names)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        make = map if processes == 1 else pool.map
        for entry in entries:
            given = [(bench, entry, start, min(batch, n - start)) for start in starts]
            parts = []
            for start, part in zip(starts, make(_quality_batch, *zip(*given, strict=True)), strict=True):
                parts.append(part)
                done(f"{entry.label}, quality, {min(start + batch, n):,} of {n:,} images")
            features, agrees = (torch.cat([getattr(part, name) for part in parts]) for name in ("features", "agrees"))
            quality = evaluate(features, labels, agrees, card.reference)
            yield {
                **Tally.total([part.tally for part in parts]).figures(entry, card.target.seq_len),
                "distance": quality.frechet,
                "distance_interval": quality.frechet_interval,
                "floor": quality.floor,
                "label_agreement": quality.label_agreement,
                "label_agreement_interval": quality.label_agreement_interval,
                "n": n,
            }
