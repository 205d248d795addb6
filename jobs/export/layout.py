"""Names of what lies below the destination of an export beside the files of its format."""

from __future__ import annotations

FOLDER = "_export"
PLAN = f"{FOLDER}/plan.json"
#: Written last: an export is whole if and only if it is there.
MANIFEST = f"{FOLDER}/manifest.json"
RECORDS = f"{FOLDER}/pieces"
WORK = f"{FOLDER}/work"


def record(piece: int) -> str:
    """The record of a piece, written when its files are there."""
    return f"{RECORDS}/{piece:05d}.json"


def images(piece: int, pieces: int) -> str:
    """The table of a piece's images with their hashes."""
    return f"{FOLDER}/images-{piece:05d}-of-{pieces:05d}.parquet"
