"""Whole files on a local disk: complete or absent, and one winner among creators.

A file is written and synced under a hidden name in its final folder first; a crash leaves at most that name, which
listings skip.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

_TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{32}\.tmp")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(path: Path, data: bytes) -> None:
    """Writes a file that must not exist yet.

    Raises:
        FileExistsError: it does.
    """
    # link() is the atomic "unless it exists".
    _publish(path, data, lambda temporary: path.hardlink_to(temporary))


def replace(path: Path, data: bytes) -> None:
    """Writes a file, whatever lay there before."""
    _publish(path, data, lambda temporary: temporary.replace(path))


def _publish(path: Path, data: bytes, publish: Callable[[Path], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # must not be taken for a create conflict
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def sizes(root: Path) -> dict[str, int]:
    """Bytes by absolute path of the files below a folder; files that vanish meanwhile are left out.

    Raises:
        OSError: a folder cannot be read.
    """

    def check(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    found = {}
    for folder, _, names in os.walk(root, onerror=check):
        for path in (Path(folder, name) for name in names if not _TEMPORARY.fullmatch(name)):
            try:
                found[str(path)] = path.stat().st_size
            except FileNotFoundError:
                continue
    return found
