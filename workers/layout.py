"""Names of everything below an output URL. Nothing else in the project spells these paths.

A shard's files and its record stand under names that follow from the shard and a *generation*, 0 as a rule. A name is
written by the attempts of its generation alone, see `workers.shard`.
"""

from __future__ import annotations

import re

CARD = "README.md"
SUCCESS = "_SUCCESS"
PLAN = "_run/plan.json"
DRIVER = "_run/driver.json"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
COMMITS = "_commits"
#: Folders of a shard's files, in the order of a commit record.
DATA, ACCEPTANCE, FEATURES = "data", "acceptance", "_features"
PARTS = (DATA, ACCEPTANCE, FEATURES)
#: What is measured of the images for a `quality` block: kept beside the dataset, no part of it.
QUALITY = "_quality"
COMPARISON = f"{QUALITY}/comparison.json"
#: What became of images that were decoded again: kept beside the dataset, no part of it.
REDECODED = "_run/batch_invariance.json"

_GENERATION = r"(?:\.r([1-9]\d*))?"
_PART = re.compile(rf"({'|'.join(PARTS)})/part-(\d{{5,}})-of-(\d{{5,}}){_GENERATION}\.parquet")
_COMMIT = re.compile(rf"{COMMITS}/(\d{{5,}}){_GENERATION}\.json")


def _again(generation: int) -> str:
    return f".r{generation}" if generation else ""


def _part(folder: str, shard: int, shards: int, generation: int = 0) -> str:
    return f"{folder}/part-{shard:05d}-of-{shards:05d}{_again(generation)}.parquet"


def data(shard: int, shards: int, generation: int = 0) -> str:
    """Images and their columns."""
    return _part(DATA, shard, shards, generation)


def acceptance(shard: int, shards: int, generation: int = 0) -> str:
    """Verified drafts."""
    return _part(ACCEPTANCE, shard, shards, generation)


def features(shard: int, shards: int, generation: int = 0) -> str:
    """Image features."""
    return _part(FEATURES, shard, shards, generation)


def parts(shard: int, shards: int, generation: int = 0) -> tuple[str, ...]:
    """Every file a shard may have, without its record."""
    return tuple(_part(folder, shard, shards, generation) for folder in PARTS)


def is_part(path: str, shards: int) -> bool:
    """Whether a file may be one of a job with so many shards."""
    found = _PART.fullmatch(path)
    if found is None:
        return False
    shard, generation = int(found[2]), int(found[4] or 0)
    return shard < shards and path == _part(found[1], shard, shards, generation)


def requests(sha256: str, part: int, parts: int) -> str:
    """Rows of the request file with this content hash."""
    return _part(f"_run/requests-{sha256[:16]}", part, parts)


def requests_index(sha256: str) -> str:
    """Hashes of those parts, written last."""
    return f"_run/requests-{sha256[:16]}/index.json"


def commit(shard: int, generation: int = 0) -> str:
    """The record of a shard's generation: a commit, or that it is void."""
    return f"{COMMITS}/{shard:05d}{_again(generation)}.json"


def parse_commit(path: str) -> tuple[int, int] | None:
    """Shard and generation of a record's path; None: it is no such path."""
    found = _COMMIT.fullmatch(path)
    if found is None:
        return None
    shard, generation = int(found[1]), int(found[2] or 0)
    return (shard, generation) if path == commit(shard, generation) else None


def measured(key: str, data_sha256: str) -> str:
    """What a network measured of the images of a data file."""
    return f"{QUALITY}/{key}/{data_sha256[:32]}.safetensors"


def sign(run: str, who: str) -> str:
    """What a driver's run or one of its workers leaves for the other to find."""
    return f"_run/.place-{run}-{who}"
