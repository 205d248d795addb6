"""What lies beside the committed files of a dataset, and must not be read with them.

Files of attempts that never committed, or whose shard was made again, have names of closed generations: each is
replaced by a Parquet file of the same schema without rows. A closed generation never opens again, so nothing that
counts is ever replaced, and an attempt that was paused cannot create its file under a name that is taken. Files that no
attempt makes are their owner's to move away.
"""

from __future__ import annotations

from collections.abc import Iterable

from jobs.dataset.commits import Committed
from jobs.job.plan import Plan
from workers import layout
from workers.parquet import acceptance_schema, data_schema, empty_bytes, features_schema, read_table
from workers.store import Store


def put_empty_parts(store: Store, plan: Plan, committed: Committed) -> None:
    """Replaces every file of a closed generation, whether it is there or not.

    Raises:
        StoreError: the store cannot be written.
    """
    paths = [path for kept in committed.records.values() for path in kept.closed_paths]
    if not paths:
        return
    schemas = {
        layout.DATA: data_schema(plan.class_names),
        layout.ACCEPTANCE: acceptance_schema(),
        layout.FEATURES: features_schema(),
    }
    empty = {folder: empty_bytes(schema) for folder, schema in schemas.items()}
    for path in paths:
        store.replace(path, empty[path.partition("/")[0]])


def is_empty_part(data: bytes) -> bool:
    """Whether a file adds nothing to what is read."""
    try:
        return bool(read_table(data).num_rows == 0)
    except ValueError:
        return False


def is_empty_at(store: Store, path: str) -> bool:
    """Whether a closed name is taken by a file that adds nothing.

    Raises:
        StoreError: the store cannot be read.
    """
    try:
        return is_empty_part(store.read(path))
    except FileNotFoundError:
        return False


def foreign_parts(paths: Iterable[str], plan: Plan) -> list[str]:
    """Files in the folders of the shards that no attempt at the plan can have made."""
    return [path for path in _visible(paths) if not layout.is_part(path, plan.shards)]


def stray_parts(paths: Iterable[str], committed: Committed) -> list[str]:
    """Files in the folders of the shards that neither count nor stand under a closed name; of a complete job."""
    known = {path for kept in committed.records.values() for path in (*kept.paths, *kept.closed_paths)}
    return [path for path in _visible(paths) if path not in known]


def _visible(paths: Iterable[str]) -> list[str]:
    # Readers of a folder skip hidden files too.
    return [path for path in paths if not path.rpartition("/")[2].startswith(".")]
