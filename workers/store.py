"""The output as whole objects below one fsspec URL: create-only writes that are atomic, and retries that are patient.

Every file system behaves the same here: an object appears under its name complete or not at all, and of two creators
one gets `Conflict`. s3fs does that with ``If-None-Match: *``; on a local disk a hard link does it; in memory a lock.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import posixpath
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from workers import local_disk
from workers.redact import hide, redact, without_secrets

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Longest time one operation is tried again; s3fs alone gives up after seconds, an object store's outage takes minutes.
RETRY_DEADLINE_S = 300.0
#: A store that has never answered this process is rather mistyped than away, so it is given up sooner.
PROBE_DEADLINE_S = 15.0
#: A store that answers 500 is not away but broken, and rather for this object than for a while.
FAULT_DEADLINE_S = 60.0
#: What is only tidied up must not hold up a driver that was told to stop.
TIDY_DEADLINE_S = 2.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 20.0

_PERMANENT_TYPES = (
    FileExistsError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
    AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, TypeError, ValueError,
)  # fmt: skip
_PERMANENT_ERRNOS = frozenset(
    {
        errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.ELOOP, errno.EMSGSIZE, errno.ENAMETOOLONG, errno.ENOSPC,
        errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EROFS, errno.EXDEV,
    }
)  # fmt: skip
#: By name, so that a local job never imports botocore.
_PERMANENT_NAMES = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound"}
)
_FAULTS = frozenset({"500", "InternalError"})
#: An object may be deleted while we look what lies there; a store that says so every time contradicts itself.
_CREATE_TRIES = 5
_PROBE = "_run/.probe-"
_FIND_TRIES, _FIND_S = 3, 1.0
_READ = 1 << 23  #: bytes of a large object that are held at a time
_memory_lock = threading.Lock()
_answered: set[str] = set()  #: URLs of the stores that have answered this process


class StoreError(OSError):
    """The output cannot be reached, read or written; the message is one line for the user."""

    #: Whether trying again is of no use before somebody has done something about it.
    lasting = False


class Conflict(StoreError):
    """A create-only write found an object with other content under its name."""


class _Shortened(OSError):
    """Fewer bytes came than the object has."""


def _error_code(error: BaseException) -> str:
    response = getattr(error.__cause__ or error.__context__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _is_taken(error: BaseException) -> bool:
    # Some gateways leave out the condition that s3fs looks for, so the refusal arrives as EINVAL.
    return isinstance(error, FileExistsError) or _error_code(error) == "PreconditionFailed"


def _is_transient(error: BaseException) -> bool:
    if not isinstance(error, Exception) or isinstance(error, (StoreError, *_PERMANENT_TYPES)) or _is_taken(error):
        return False
    if type(error).__name__ in _PERMANENT_NAMES:
        return False
    return not (isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS)


def _is_server_fault(error: BaseException | None) -> bool:
    """Whether the store answered that it failed inside (500), which is neither "later" (503) nor silence."""
    response = getattr(getattr(error, "__cause__", None), "response", None)
    if not isinstance(response, dict):
        return False
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 500 or _error_code(error) in _FAULTS  # type: ignore[arg-type]


def _create_remote(fs: Any, key: str, data: bytes) -> None:
    """Create-only write; the look before it spares an upload, and is all there is if a gateway ignores the header."""
    try:
        fs.info(key)
    except FileNotFoundError:
        fs.pipe_file(key, data, mode="create")
    else:
        raise FileExistsError(key)


def _is_same_folder(one: Path, other: Path) -> bool:
    """Also by another spelling, where the disk knows no capitals or has the folder mounted twice."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


class Store:
    """Whole objects under paths relative to one URL.

    The file system is opened on first use and never travels: a pickled store is its URL and options alone.

    Args:
        url: any fsspec URL, or a local path.
        storage_options: arguments of the fsspec file system; they never appear in a repr, a log or an error.
        known: it has answered another process, so that an outage is waited for from the first operation on.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None, known: bool = False) -> None:
        # A worker's current folder is not the driver's.
        self.url = url if "://" in url or "::" in url else str(Path(url).expanduser().absolute())
        self.retries = 0  #: operations of this object that were tried once more
        self._options = dict(storage_options or {})
        hide(self._options)
        if known:
            _answered.add(self.url)

    def __reduce__(self) -> tuple[type[Store], tuple[str, dict[str, Any]]]:
        return Store, (self.url, self._options)

    def __repr__(self) -> str:
        return f"Store({self._shown_url!r})"

    @property
    def _shown_url(self) -> str:
        return without_secrets(self.url)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        try:
            fs, root = fsspec.core.url_to_fs(self.url, **{"use_listings_cache": False, **self._options})
        except Exception as error:  # a driver's constructor may raise anything
            raise self._failure("open", "", error) from error
        root = str(root).rstrip("/")
        # Listings of a local folder give its plain path.
        return fs, os.path.normpath(root) if root and isinstance(fs, LocalFileSystem) else root

    def addresses(self, paths: Sequence[str]) -> tuple[Any, list[str]]:
        """The fsspec file system and the keys of objects in it, for readers that open files themselves."""
        return self._opened[0], [self._key(path) for path in paths]

    def is_within(self, other: Store) -> bool:
        """Whether this is the other store or a folder in it: of local paths as their links lead, of URLs as spelled.

        Raises:
            StoreError: one of the two cannot be opened.
        """
        (ours, inner), (theirs, outer) = self._opened, other._opened
        if type(ours) is not type(theirs):
            return False
        if isinstance(ours, LocalFileSystem):
            place = Path(inner).resolve()
            return any(_is_same_folder(folder, Path(outer).resolve()) for folder in (place, *place.parents))
        # Whether `..` is a step up or a name is the file system's to say.
        plain = posixpath.normpath(f"/{outer}"), posixpath.normpath(f"/{inner}")
        return any(f"{one}/".startswith(f"{root}/") for root, one in (plain, (outer, inner)))

    def _key(self, path: str) -> str:
        root = self._opened[1]
        return f"{root}/{path}" if path else root

    def _failure(self, action: str, path: str, error: BaseException) -> StoreError:
        if path.startswith(_PROBE):
            path = ""  # a name the user has never heard of
        text = " ".join(str(error).split()) or type(error).__name__
        if _error_code(error) == "NoSuchBucket":
            text = "there is no such bucket"
        where = f"{self._shown_url}/{path}" if path else self._shown_url
        failure = StoreError(redact(f"output: cannot {action} {where}: {text}"))
        failure.lasting = not _is_transient(error)
        return failure

    def _retry(self, action: str, path: str, call: Callable[[], T], deadline_s: float | None = None) -> T:
        """Runs ``call`` until it succeeds, fails for good, or the deadline has passed."""
        if deadline_s is None:
            deadline_s = RETRY_DEADLINE_S if self.url in _answered else PROBE_DEADLINE_S

        def log(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            self.retries += 1
            logger.warning("%s; trying again", self._failure(action, path, error or OSError("unknown")))

        def is_over(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            limit_s = min(deadline_s, FAULT_DEADLINE_S) if _is_server_fault(error) else deadline_s
            return (state.seconds_since_start or 0.0) >= limit_s

        retrying = Retrying(
            retry=retry_if_exception(_is_transient),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            stop=is_over,
            before_sleep=log,
            reraise=True,
        )
        try:
            result = retrying(call)
            _answered.add(self.url)
            return result
        except FileNotFoundError as error:
            _answered.add(self.url)
            if _error_code(error) == "NoSuchBucket":
                raise self._failure(action, path, error) from error
            raise FileNotFoundError(f"output: {self._shown_url}/{path} is not there") from error
        except StoreError:
            raise
        except Exception as error:
            if _is_taken(error):
                raise
            raise self._failure(action, path, error) from error

    def read(self, path: str) -> bytes:
        """The whole object; a reading that ends early is repeated.

        Raises:
            FileNotFoundError: no such object.
            StoreError: the store cannot be read.
        """

        def call() -> bytes:
            # With a range s3fs does not ask for the size once more; an empty object has none to ask for.
            size = self._size(path)
            data = bytes(self._opened[0].cat_file(self._key(path), start=0, end=size)) if size else b""
            # What looks damaged costs its shard, so a connection that was cut must not look like that.
            if len(data) != size:
                raise _Shortened(f"got {len(data)} of {size} bytes")
            return data

        return self._retry("read", path, call)

    def read_many(self, sizes: Mapping[str, int]) -> dict[str, bytes | None]:
        """Whole objects by path, as many at a time as the file system can; None for one that is gone.

        Args:
            sizes: bytes by path, of a listing; what comes otherwise is read again by itself.

        Raises:
            StoreError: the store cannot be read.
        """
        fs = self._opened[0]
        found: dict[str, Any] = {}
        if not isinstance(fs, LocalFileSystem) and sizes:
            try:
                found = fs.cat([self._key(path) for path in sizes], on_error="return")
            except Exception as error:  # one by one they may come all the same
                logger.debug("reading %d objects at once failed: %s", len(sizes), type(error).__name__)
        result: dict[str, bytes | None] = {}
        for path, size in sizes.items():
            data = found.get(self._key(path))
            if not isinstance(data, bytes) or len(data) != size:
                try:
                    data = self.read(path)
                except FileNotFoundError:
                    data = None
            result[path] = data
        return result

    def size(self, path: str) -> int:
        """Bytes of the object.

        Raises:
            FileNotFoundError: no such object.
            StoreError: the store cannot be read.
        """
        return self._retry("read", path, lambda: self._size(path))

    def _size(self, path: str) -> int:
        info = self._opened[0].info(self._key(path))
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return int(info["size"])

    def exists(self, path: str) -> bool:
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> dict[str, int]:
        """Path and bytes of every object below a folder ("": all), sorted; an absent folder has none."""
        folder = prefix.strip("/")

        def call() -> dict[str, int]:
            fs, key = self._opened[0], self._key(folder)
            if isinstance(fs, LocalFileSystem):
                return local_disk.sizes(Path(key or "/"))
            infos = fs.find(key, detail=True)
            return {name: int(info["size"]) for name, info in infos.items() if info["type"] == "file"}

        try:
            found = self._retry("list", folder, call)
        except FileNotFoundError:
            return {}
        skip = len(self._opened[1]) + 1
        sizes = {key[skip:]: size for key, size in found.items()}
        below = f"{folder}/" if folder else ""
        return {p: sizes[p] for p in sorted(sizes) if p.startswith(below)}

    def local_folder(self) -> Path | None:
        """The folder of this machine that the URL is; None: it is none."""
        return Path(self._key("") or "/") if isinstance(self._opened[0], LocalFileSystem) else None

    def is_empty(self) -> bool:
        """Whether nothing lies below the URL, as far down as a first file; empty folders are nothing.

        Raises:
            StoreError: the store cannot be read.
        """

        def call() -> bool:
            fs, key = self._opened[0], self._key("")
            if isinstance(fs, LocalFileSystem):
                return not local_disk.has_files(Path(key or "/"))
            return all(str(name).rstrip("/") == key for name in fs.ls(key, detail=False))

        try:
            return self._retry("list", "", call)
        except FileNotFoundError:
            return True

    def create(self, path: str, data: bytes) -> None:
        """Writes an object that must not exist yet; the same content under the name counts as written.

        A lost response makes our own object look like another's, so content decides.

        Raises:
            Conflict: other content lies there.
            StoreError: the store cannot be written.
        """
        self._create(path, data)

    def _create(self, path: str, data: bytes, deadline_s: float | None = None) -> None:
        for _ in range(_CREATE_TRIES):
            try:
                return self._retry("write", path, lambda: self._create_once(path, data), deadline_s)
            except FileNotFoundError as error:
                raise self._failure("write", path, error.__cause__ or error) from error
            except OSError as error:
                if not _is_taken(error):
                    raise
                try:
                    there = self.read(path)
                except FileNotFoundError:
                    continue  # whoever wrote it has deleted it again
                if hashlib.sha256(there).digest() != hashlib.sha256(data).digest():
                    raise Conflict(f"output: {self._shown_url}/{path} exists with other content") from error
                return None
        raise StoreError(f"output: {self._shown_url}/{path} exists when it is written and not when it is read")

    def _create_once(self, path: str, data: bytes) -> None:
        fs, key = self._opened[0], self._key(path)
        if isinstance(fs, LocalFileSystem):
            local_disk.create(Path(key), data)
        elif isinstance(fs, MemoryFileSystem):
            with _memory_lock:
                fs.pipe_file(key, data, mode="create")
        else:
            _create_remote(fs, key, data)

    def create_from(self, path: str, file: Path) -> None:
        """Writes an object that must not exist yet from a file of this machine, without holding it in memory.

        Args:
            path: of the object.
            file: it must not change afterwards: a disk may give it a second name in place of a copy.

        Raises:
            Conflict: other content lies there; the same content counts as written.
            StoreError: the store cannot be written.
        """
        try:
            self._retry("write", path, lambda: self._create_from_once(path, file))
        except FileNotFoundError as error:
            raise self._failure("write", path, error.__cause__ or error) from error
        except OSError as error:
            if not _is_taken(error):
                raise
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            if self._retry("read", path, lambda: self._digest(path)) != digest:
                raise Conflict(f"output: {self._shown_url}/{path} exists with other content") from error

    def _create_from_once(self, path: str, file: Path) -> None:
        fs, key = self._opened[0], self._key(path)
        if isinstance(fs, LocalFileSystem):
            local_disk.create_from(Path(key), file)
        elif isinstance(fs, MemoryFileSystem):
            with _memory_lock:
                fs.put_file(str(file), key, mode="create")
        else:
            try:
                fs.info(key)
            except FileNotFoundError:
                fs.put_file(str(file), key, mode="create")
            else:
                raise FileExistsError(key)

    def _digest(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._opened[0].open(self._key(path), "rb") as file:
            while data := file.read(_READ):
                digest.update(data)
        return digest.hexdigest()

    def replace(self, path: str, data: bytes) -> None:
        """Writes an object, whatever lay there before.

        Raises:
            StoreError: the store cannot be written.
        """

        def call() -> None:
            fs, key = self._opened[0], self._key(path)
            if isinstance(fs, LocalFileSystem):
                local_disk.replace(Path(key), data)
            else:
                fs.pipe_file(key, data)

        try:
            self._retry("write", path, call)
        except FileNotFoundError as error:
            raise self._failure("write", path, error.__cause__ or error) from error

    def delete(self, path: str, deadline_s: float | None = None) -> None:
        """Deletes an object; one that is not there is deleted already.

        Args:
            path: of the object.
            deadline_s: longest time it is tried again; None: `RETRY_DEADLINE_S`.

        Raises:
            StoreError: the store cannot be written.
        """
        try:
            self._retry("delete", path, lambda: self._opened[0].rm_file(self._key(path)), deadline_s)
        except FileNotFoundError:
            logger.debug("%s was not there to delete", path)

    def check_writable(self) -> bool:
        """Writes, reads and deletes a probe object and leaves nothing, not even a folder.

        Returns:
            whether of two creators one is refused; some gateways ignore the header that says so.

        Raises:
            StoreError: the output cannot be written.
        """
        made = self.missing_folders()
        probe = f"{_PROBE}{uuid.uuid4().hex}"
        try:
            self._create(probe, b"first", PROBE_DEADLINE_S)
            self._find(probe)
            return self._refuses_overwriting(probe)
        finally:
            self.withdraw(probe, made)

    def _find(self, probe: str) -> None:
        """Lists what was just written, which a URL with empty or dotted parts may hide."""
        for look in range(_FIND_TRIES):
            if look:
                time.sleep(_FIND_S)  # a listing may lag behind
            if probe in self.list("_run"):
                return
        raise StoreError(
            f"output: what is written to {self._shown_url} does not show when it is listed, allowed: a URL without "
            "empty or dotted parts"
        )

    def _refuses_overwriting(self, probe: str) -> bool:
        fs = self._opened[0]
        if isinstance(fs, LocalFileSystem):
            return local_disk.refuses_second(Path(self._key(probe)))
        try:
            self._retry(
                "write", probe, lambda: fs.pipe_file(self._key(probe), b"second", mode="create"), PROBE_DEADLINE_S
            )
        except OSError as error:
            if not _is_taken(error):
                raise
            return True
        return False

    def missing_folders(self) -> tuple[Path, ...]:
        """Local folders, deepest first, that a first file below ``_run`` would make."""
        if not isinstance(self._opened[0], LocalFileSystem):
            return ()
        folder = Path(self._key("_run"))
        return tuple(path for path in (folder, *folder.parents) if not path.exists())

    def withdraw(self, path: str, made: tuple[Path, ...]) -> None:
        """Deletes a file that was of use for a moment, and the folders that were made for it, unless they are used."""
        try:
            self.delete(path, TIDY_DEADLINE_S)
        except StoreError:
            # Nothing was written, or the write's own error is already on its way to the user.
            logger.debug("%s cannot be deleted below %s", path, self._shown_url)
        for folder in made:
            try:
                folder.rmdir()
            except OSError:
                break  # it was never made, or someone has begun to use it
