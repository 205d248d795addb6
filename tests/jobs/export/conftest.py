"""A dozen images without a model, and helpers that export them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.dataset.commits import read_committed, read_part
from jobs.export.run import Done, Wishes, export
from jobs.job.plan import read_plan
from tests.jobs.tree import make_tree
from workers import layout
from workers.parquet import read_table
from workers.store import Store

#: Bytes of a file that hold no more than one shard, so that an export of the dozen has three pieces.
ONE_SHARD_MB = 1


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Twelve grey images of 6x6 pixels and three classes in three shards; nobody may write to it."""
    folder = tmp_path_factory.mktemp("dataset")
    return make_tree(folder, method={"name": "null"}, requests={"count": 12})


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image counts as so large that every shard is a piece of its own."""
    monkeypatch.setattr("jobs.export.source._OVERHEAD", 200_000)


def rows_of(store: Store) -> list[dict]:
    """Every row of a dataset, from its Parquet files."""
    plan = read_plan(store)
    records = read_committed(store, plan).records
    tables = [read_table(read_part(store, records[shard], layout.DATA)) for shard in sorted(records)]
    return [row for table in tables for row in table.to_pylist()]


def exported(dataset: Store, folder: Path, form: str, **wishes: object) -> Done:
    return export(dataset, Store(str(folder)), Wishes(format=form, file_mb=ONE_SHARD_MB, **wishes))


def files_of(folder: Path) -> dict[str, bytes]:
    """Content by path of everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
