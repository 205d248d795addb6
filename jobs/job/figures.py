"""The figures of a dataset that nights and comparisons are judged by: the one table of their names and meanings."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """How a figure is judged."""

    EXACT = "equal for equal work on one platform: another value is a change of the program"
    NOISY = "judged by lasting changes of its level over the nights"
    SHOWN = "shown, and judged only if the spec requires something of it"


class Better(Enum):
    """Which way a figure is worse."""

    HIGHER, LOWER, NEITHER = 1, -1, 0


class Figure(NamedTuple):
    """One figure of a night."""

    title: str
    unit: str
    kind: Kind
    better: Better


_E, _N, _S = Kind.EXACT, Kind.NOISY, Kind.SHOWN
_UP, _DOWN, _NONE = Better.HIGHER, Better.LOWER, Better.NEITHER

FIGURES: dict[str, Figure] = {
    "speed_over_plain": Figure("speed over plain decoding, same night and worker", "ratio", _N, _UP),
    "acceptance": Figure("drafts accepted of those tested", "share", _E, _UP),
    "rounds_per_image": Figure("rounds", "per image", _E, _DOWN),
    "tokens_per_round": Figure("tokens per round", "tokens", _E, _UP),
    "target_calls_per_token": Figure("calls of the target's context network", "per token", _E, _DOWN),
    "draft_calls_per_token": Figure("calls of the draft's context network", "per token", _E, _DOWN),
    "certificate": Figure("certificate, mean over images", "total variation", _E, _DOWN),
    "frechet": Figure("Frechet distance to real images", "", _N, _DOWN),
    "kid": Figure("kernel distance (KID)", "", _S, _DOWN),
    "label_agreement": Figure("label agreement", "share", _N, _UP),
    "images_per_s": Figure("throughput, all workers", "images/s", _S, _UP),
    "images_per_s_per_worker": Figure("throughput of a worker", "images/s", _S, _UP),
    "images_per_s_per_gpu": Figure("throughput of a GPU", "images/s", _S, _UP),
    "decoding_images_per_s": Figure("speed of decoding in the control", "images/s", _S, _UP),
    "plain_images_per_s": Figure("speed of plain decoding in the control", "images/s", _S, _UP),
    "cpu_over_plain": Figure("CPU seconds per image over those of plain decoding", "ratio", _N, _DOWN),
    "cpu_seconds_per_image": Figure("CPU seconds of decoding in the control", "s per image", _S, _DOWN),
    "load": Figure("load of the control's machine, 1 minute", "processes", _S, _NONE),
    "worker_seconds": Figure("seconds of the workers at work", "s", _S, _DOWN),
    "idle_share": Figure("idle time of the workers", "share", _S, _DOWN),
    "warm_up_seconds": Figure("from the plan to the first shard", "s", _S, _DOWN),
    "cost_per_1000": Figure("cost per 1,000 images", "currency of the price", _S, _DOWN),
    "cost": Figure("cost of the dataset, resumes included", "currency of the price", _S, _DOWN),
    "bytes_per_image": Figure("bytes of all files", "per image", _E, _DOWN),
    "retries": Figure("attempts at shards beyond the first", "attempts", _S, _DOWN),
    "images": Figure("images", "", _E, _NONE),
}
