"""A dataset repository of the Hugging Face hub: Parquet files with image features, and a README with front matter."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.dataset.card import front_matter
from jobs.export.format import Exported, Format, Written
from jobs.export.records import FileFacts, PieceRecord
from jobs.export.source import Piece, Row
from workers import layout as dataset_layout
from workers.parquet import data_schema

README = "README.md"
_ROW_GROUP = 1000  #: rows that a viewer of the hub reads to show one page


class HubFolder(Format):
    """``data/train-00000-of-00008.parquet`` with every column of the dataset, ``README.md`` over its card."""

    def write(self, piece: Piece, rows: Iterator[Row]) -> Written:
        path = f"data/train-{piece.number:05d}-of-{self.job.pieces:05d}.parquet"
        schema, buffer = data_schema(self.job.dataset.class_names), io.BytesIO()
        images: list[Exported] = []
        with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
            while some := list(islice(rows, _ROW_GROUP)):
                writer.write_table(self._table(some, schema, path, images))
        return Written((self.put(path, buffer.getvalue()),), images)

    def _table(self, rows: list[Row], schema: pa.Schema, path: str, images: list[Exported]) -> pa.Table:
        """The rows as a table; what becomes of each is added to ``images``."""
        table = []
        for row in rows:
            data = self.encoded(row)
            image = {"bytes": data, "path": f"{row.request_id}.{self.extension(row)}"}
            table.append({**row.columns, "image": image})
            images.append(self.exported(row, path, str(row.index), data))
        return pa.Table.from_pylist(table, schema=schema)

    def finish(self, records: list[PieceRecord]) -> tuple[FileFacts, ...]:
        del records
        return (self.put(README, self._card().encode()),)

    def _card(self) -> str:
        dataset, plan = self.job.dataset, self.job.plan
        front = front_matter(dataset.model_copy(update={"rows": plan.rows}), dataset.pair.licence)
        front["configs"] = [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
        ]
        kept = "all classes" if plan.labels is None else f"classes {', '.join(map(str, plan.labels))} only"
        lines = [
            f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
            f"# {_plain(dataset.spec.name)}",
            f"{plan.rows:,} images, {kept}, exported with `spd export` from a dataset of {dataset.rows:,} images"
            f"{', which was not finished' if plan.partial else ''}. Images: {plan.images_in_words}. "
            "`_export/manifest.json` holds the hash of every file, the tables beside it the hash of every image.",
            '```python\nfrom datasets import load_dataset\n\ndataset = load_dataset(".", split="train")\n```',
        ]
        if body := self._dataset_card():
            lines += ["# The dataset that this was exported from", body]
        return "\n\n".join(lines) + "\n"

    def _dataset_card(self) -> str:
        """The dataset's own card below its front matter, its headings one level down; empty: it has none yet."""
        try:
            text = self.job.source.read(dataset_layout.CARD).decode(errors="replace")
        except FileNotFoundError:
            return ""
        body = re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL).strip()
        blocks = re.split(r"(^```.*?^```$)", body, flags=re.DOTALL | re.MULTILINE)
        return "".join(
            block if block.startswith("```") else re.sub(r"^#", "##", block, flags=re.MULTILINE) for block in blocks
        )


def _plain(text: str) -> str:
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(text.split()))
