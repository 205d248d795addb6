"""Names of everything below an output URL. Nothing else in the project spells these paths."""

from __future__ import annotations

CARD = "README.md"
SUCCESS = "_SUCCESS"
PLAN = "_run/plan.json"
DRIVER = "_run/driver.json"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
COMMITS = "_commits"


def _part(folder: str, shard: int, shards: int) -> str:
    return f"{folder}/part-{shard:05d}-of-{shards:05d}.parquet"


def data(shard: int, shards: int) -> str:
    """Images and their columns."""
    return _part("data", shard, shards)


def acceptance(shard: int, shards: int) -> str:
    """Verified drafts."""
    return _part("acceptance", shard, shards)


def features(shard: int, shards: int) -> str:
    """Image features."""
    return _part("_features", shard, shards)


def requests(sha256: str, part: int, parts: int) -> str:
    """Rows of the request file with this content hash."""
    return _part(f"_run/requests-{sha256[:16]}", part, parts)


def requests_index(sha256: str) -> str:
    """Hashes of those parts, written last."""
    return f"_run/requests-{sha256[:16]}/index.json"


def commit(shard: int) -> str:
    """The commit record."""
    return f"{COMMITS}/{shard:05d}.json"
