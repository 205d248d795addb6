"""Records that cross the boundary between driver, worker and store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from spd_core.law import Choice, Method, SamplerLaw, Settings
from spd_core.quality.names import ExtractorName

#: Of commit and void records. A record of a later version is refused by name: what it says is not known here.
RECORD_VERSION = 2


class ImageFormat(Settings):
    """How images are encoded."""

    format: str = Field(
        "png",
        pattern="^(png|webp|jpeg)$",
        description="png and webp are lossless, jpeg is not",
        json_schema_extra={"allowed": "png, webp, jpeg"},
    )
    quality: int = Field(95, ge=1, le=100, description="of jpeg")
    effort: Literal["fast", "small"] = Field(
        "fast", description="of png and webp, the pixels are the same; small takes 4 (png) to 30 (webp) times as long"
    )


class PairSettings(Settings):
    """What it takes to load and run the models of a job."""

    pair: str
    pair_options: dict[str, Any] = Field(default_factory=dict, repr=False, description="of the pair's file system")
    pair_sha256: dict[str, str] = Field(description="weights the job was planned with; others are refused")
    law: SamplerLaw
    device: str = Field(description="torch device, e.g. cpu or cuda")
    threads: int = Field(ge=1, description="torch threads of a worker on a CPU")


class QualityFile(Settings):
    """A file that a user names, as the driver saw it."""

    place: str = Field(description="path that every node reaches, or fsspec URL")
    sha256: str


class QualitySettings(Settings):
    """What workers measure of their images for the quality figures, beside the dataset."""

    extractor: ExtractorName | None = Field(None, description="of features; None: none")
    weights: QualityFile | None = Field(None, description="of the extractor; None: it brings its own")
    classifier: QualityFile | None = Field(None, description="None: none")
    options: dict[str, Any] = Field(default_factory=dict, repr=False, description="of the output's file system")
    output: str = Field("", description="its options open files of the same protocol")


class WorkerSettings(PairSettings):
    """What every worker of a job needs to know; the same object for all of them."""

    name: str = Field("", description="of the dataset, a label of the metrics")
    output: str = Field(description="fsspec URL of the output")
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False, description="of the fsspec file system")
    method: Method
    batch: int = Field(gt=0, description="images decoded together")
    image: ImageFormat
    features: bool = Field(description="write image features and label agreement")
    fingerprint: str = Field(description="of the plan, copied into every commit record")
    shards: int = Field(gt=0, description="shards of the job")
    run: str = Field("", description="the driver's run; workers show with it that they see the driver's output")
    quality: QualitySettings | None = Field(None, description="None: nothing is measured beside the dataset")
    encoders: int = Field(0, ge=0, description="threads that encode beside the decoder; 0: see `overlaps`")

    @property
    def overlaps(self) -> bool:
        """Whether a shard is encoded and uploaded while the next is decoded.

        On a CPU the decoder has a core to itself, which encoding beside it would only take from it.
        """
        return self.encoders > 0 or self.device == "cuda"

    @property
    def in_flight(self) -> int:
        """Shards that a worker holds at once, at most: one decoded, one encoded, one uploaded."""
        return 3 if self.overlaps else 1


def stages_of(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by span put together by stage: what a worker does at a time may be in different stages.

    Returns:
        ``decode`` (with codec and features), ``encode``, ``upload``.
    """
    beside = {name: seconds.get(name, 0.0) for name in ("encode", "upload")}
    return {"decode": sum(seconds.values()) - sum(beside.values()), **beside}


class ShardTask(Settings):
    """One shard to make: its requests, in order."""

    shard: int = Field(ge=0)
    attempt: int = Field(ge=0)
    request_ids: tuple[str, ...]
    labels: tuple[int, ...]
    seeds: tuple[int, ...]


class TrialTask(Settings):
    """Requests to decode for the time it takes."""

    choice: Choice
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    limit_s: float = Field(allow_inf_nan=True, description="decoding is cut off after it; infinite: never")


class FileRecord(Settings):
    """One committed file."""

    path: str
    bytes: int
    sha256: str
    rows: int


class CommitRecord(Settings):
    """Written last, create-only: a shard exists if and only if the last of its records is one of these."""

    version: int = RECORD_VERSION
    shard: int
    generation: int = Field(0, ge=0, description="of the shard; its files' names follow from it")
    closed: tuple[int, ...] = Field((), description="generations whose files are no part of the dataset any more")
    attempt: int
    run: str = Field("", description="of the driver whose worker made it")
    platform: str = Field("", description="equal ones make equal bytes: device, torch, CUDA; empty: not recorded")
    worker: str
    fingerprint: str
    rows: int
    first_id: str
    last_id: str
    files: tuple[FileRecord, ...] = Field(description="data, acceptance and, if asked for, features")
    started: str = Field(description="UTC, ISO 8601")
    wall_seconds: float = Field(description="from the start of decoding to the upload of the last file")
    seconds: dict[str, float] = Field(
        description="at work, by span: context, head, draft, residual, finish, codec, features, encode (summed over "
        "its threads), upload; where a worker overlaps shards they come to more than its wall time"
    )
    counts: dict[str, int] = Field(description="calls and rows of the networks, rounds, drafted, accepted")
    tested_by_index: tuple[int, ...] = Field(description="verified drafts by place in the block")
    accepted_by_index: tuple[int, ...]
    tested_by_token: tuple[int, ...] = Field(description="verified drafts by raster index of the token")
    accepted_by_token: tuple[int, ...]
    certificate_sum: float | None = Field(description="of the images; None: no bound exists")
    certificate_square_sum: float | None = Field(
        None, description="of the images; None: no bound exists, or certificate_sum is of version 1, a sum of excess"
    )
    excess_sum: float | None = Field(None, description="over the tested drafts; None likewise")
    memory: dict[str, int] = Field(
        default_factory=dict, description="most bytes that the worker's process had held by then: host, device"
    )
    images_by_label: tuple[int, ...]
    agreeing_by_label: tuple[int, ...] | None = Field(description="images the label classifier agrees with")
    sha256: str = Field("", description="over the record without this field, see `workers.sealed`")

    @property
    def stages(self) -> dict[str, float]:
        """Seconds at work by stage of the worker, see `stages_of`."""
        return stages_of(self.seconds)


class VoidRecord(Settings):
    """Written create-only in the place of a commit record: the generations it closes are dead for good."""

    version: int = RECORD_VERSION
    shard: int
    generation: int = Field(ge=0, description="whose record this is; the next one is open after it")
    fingerprint: str
    closed: tuple[int, ...] = Field(description="every generation of the shard whose files count no more")
    attempt: int = Field(description="of the last attempt that is void; -1: it is not known")
    reason: str
    worker: str
    void: Literal[True] = True
    sha256: str = Field("", description="over the record without this field, see `workers.sealed`")
