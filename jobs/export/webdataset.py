"""Tar shards as the webdataset library reads them: members with one key are one sample.

A key ends at the first dot of a member's name, so the dots of an id are written as ``%2E``; ids have no percent sign.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator

from jobs.export.format import Format, Written
from jobs.export.source import Piece, Row


class WebDataset(Format):
    """``train-000000.tar``: ``KEY.png`` (or jpg, webp), ``KEY.cls`` and ``KEY.json`` of each image, in order."""

    def write(self, piece: Piece, rows: Iterator[Row]) -> Written:
        path, buffer, images = f"train-{piece.number:06d}.tar", io.BytesIO(), []
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for row in rows:
                key, data = row.request_id.replace(".", "%2E"), self.encoded(row)
                name = f"{key}.{self.extension(row)}"
                _add(tar, name, data)
                _add(tar, f"{key}.cls", str(row.label).encode())
                _add(tar, f"{key}.json", self._json(row))
                images.append(self.exported(row, path, name, data))
        return Written((self.put(path, buffer.getvalue()),), images)

    def _json(self, row: Row) -> bytes:
        name = self.job.dataset.class_names[row.label]
        return json.dumps({**row.columns, "class_name": name}, ensure_ascii=False).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without a clock or an owner, so that the same images give the same tar."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o444
    tar.addfile(member, io.BytesIO(data))
