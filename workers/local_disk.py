"""Whole files on a local disk: complete or absent, and one winner among creators.

A file is written and synced under a hidden name in its final folder first; a crash leaves at most that name, which
listings skip. The name "unless it exists" is given by a hard link, or where there are none (gcsfuse, s3fs-fuse, BeeGFS)
by an exclusive rename; a file system with neither cannot refuse the second of two creators.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

#: What file systems without hard links, or without exclusive renames, answer.
_UNABLE = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1
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
    _publish(path, data, lambda temporary: _give_name(temporary, path))


def create_from(path: Path, file: Path) -> None:
    """Gives a file a second name that must not exist yet, or copies it there where that cannot be.

    Raises:
        FileExistsError: it does.
    """
    _make_folder(path.parent)
    try:
        os.link(file, path)
    except OSError as error:
        if error.errno not in (*_UNABLE, errno.EXDEV):
            raise
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            shutil.copyfile(file, temporary)
            _give_name(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    with path.open("rb") as written:
        os.fsync(written.fileno())
    _sync_folder(path.parent)


def refuses_second(path: Path) -> bool:
    """Whether the second creator of a file that is there is refused, also if both come at once."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.touch()
    try:
        return _link(temporary, path) is not None or _rename(temporary, path) is not None
    except FileExistsError:
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _give_name(temporary: Path, path: Path) -> None:
    if _link(temporary, path) is None and _rename(temporary, path) is None:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.replace(path)


def _link(temporary: Path, path: Path) -> bool | None:
    """Links a file to a name; None: there are no links here.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        return None
    return True


def _rename(temporary: Path, path: Path) -> bool | None:
    """Renames a file to a name that is free; None: that cannot be asked for here.

    Raises:
        FileExistsError: the name is taken.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return None
    if not renameat2(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE):
        return True
    if (code := ctypes.get_errno()) in _UNABLE:
        return None
    raise OSError(code, os.strerror(code), str(path))


def replace(path: Path, data: bytes) -> None:
    """Writes a file, whatever lay there before."""
    _publish(path, data, lambda temporary: temporary.replace(path))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # must not be taken for a create conflict
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def _publish(path: Path, data: bytes, publish: Callable[[Path], object]) -> None:
    _make_folder(path.parent)
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
    found = {}
    for path in _files(root):
        try:
            found[str(path)] = path.stat().st_size
        except FileNotFoundError:
            continue
    return found


def has_files(root: Path) -> bool:
    """Whether there is a file below a folder, or the folder is a file itself.

    Raises:
        OSError: a folder cannot be read.
    """
    return root.is_file() or next(_files(root), None) is not None


def _files(root: Path) -> Iterator[Path]:
    def check(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, names in os.walk(root, onerror=check):
        yield from (Path(folder, name) for name in names if not _TEMPORARY.fullmatch(name))
