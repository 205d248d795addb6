"""Pairs that are URLs: fetched once per node, verified by hash, kept for the next job.

A pair's folder below the cache is named by the hash of its card, which names the hash of every weights file, so two
pairs never share a folder and a changed pair is another one. A file appears under its name complete and verified, or
not at all; of several workers of a node one fetches and the others wait for it, and where files cannot be locked the
worst is that two fetch the same bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from spd_core.pairs.pair import PairError, fetch_urls_with, parse_card
from workers.redact import hide, public_url, redact

logger = logging.getLogger(__name__)
T = TypeVar("T")

TRIES = 5  #: at one file, before it is given up
LONGEST_WAIT_S = 20.0
_CHUNK = 8 << 20
_LARGEST_CARD = 8 << 20
_PART = re.compile(r"[a-z][a-z0-9_]{0,40}")
_PERMANENT = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, AttributeError, ImportError, LookupError,
    NotImplementedError, TypeError, ValueError,
)  # fmt: skip

_options: dict[str, dict[str, Any]] = {}  #: of the file system of each URL
_cards: dict[str, bytes] = {}  #: read in this process: one job sees one pair, whatever happens to the URL


def use_options(url: str, options: dict[str, Any]) -> None:
    """Remembers how the file system of a pair's URL is opened; by default as the environment says."""
    if "://" in url and options:
        hide(options)
        _options[url] = dict(options)


def cache_folder(of: str = "pairs") -> Path:
    """Where what was fetched is kept: SPD_CACHE, or the user's cache folder, or one below the temporary folder.

    Args:
        of: kind of what is kept, the name of its folder.

    Raises:
        PairError: none of them can be written by this user alone.
    """
    asked = os.environ.get("SPD_CACHE")
    places = [Path(asked)] if asked else []
    if not asked:
        with contextlib.suppress(RuntimeError):  # a user without a home
            places.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spd")
        places.append(Path(tempfile.gettempdir()) / f"spd-{os.getuid()}")
    problems = []
    for place in places:
        folder = place / of
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = folder.stat()
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
                raise OSError("others can write to it")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise OSError("it cannot be written")
            return folder
        except OSError as error:
            problems.append(f"{folder}: {error.strerror or error}")
    raise PairError(f"SPD_CACHE: no place for pairs ({'; '.join(problems)}), allowed: a folder of your own")


def fetch(url: str, weights: bool) -> Path:
    """The folder of a pair that is a URL, on this machine.

    Args:
        url: of the folder that holds the pair.json.
        weights: False: only the card need be there.

    Raises:
        PairError: it cannot be read or kept, or is not what its card says.
    """
    if url not in _cards:
        _cards[url] = _read_card(url)
    raw = _cards[url]
    card = parse_card(raw, public_url(url))
    if wrong := next((part for part in card.sha256 if not _PART.fullmatch(part)), None):
        raise PairError(f"pair: {public_url(url)} has a part {wrong[:40]!r}, allowed: small letters and underscores")
    folder = cache_folder() / hashlib.sha256(raw).hexdigest()[:32]
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
        missing = {part: digest for part, digest in card.sha256.items() if not _is_kept(folder, part, digest)}
        if weights and missing:
            with _locked(folder / ".lock") as alone:
                for left in folder.glob(".*.part") if alone else ():
                    left.unlink(missing_ok=True)  # of one that was killed
                for part, digest in missing.items():
                    if not _is_kept(folder, part, digest):
                        _fetch_part(url, folder, part, digest)
        if not (folder / "pair.json").exists():
            _put(folder / "pair.json", lambda file: file.write(raw))
    except OSError as error:
        raise PairError(
            f"pair: cannot keep {public_url(url)} in {folder}: {error.strerror or error}, "
            "allowed: an SPD_CACHE with room for it"
        ) from error
    return folder


def _is_kept(folder: Path, part: str, digest: str) -> bool:
    """Whether a file is there as it was verified: a mark beside it holds its hash, size and time of change."""
    try:
        found = (folder / f"{part}.safetensors").stat()
        return (folder / f".{part}").read_text() == f"{digest} {found.st_size} {found.st_mtime_ns}"
    except OSError:
        return False


def _fetch_part(url: str, folder: Path, part: str, digest: str) -> None:
    logger.info("fetching %s of %s", part, public_url(url))
    target = folder / f"{part}.safetensors"

    def copy(file: Any) -> None:
        hashed = hashlib.sha256()
        with _opened(url, f"{part}.safetensors") as source:
            while chunk := source.read(_CHUNK):
                hashed.update(chunk)
                file.write(chunk)
        if hashed.hexdigest() != digest:
            got = f"{hashed.hexdigest()[:12]}..., allowed: {digest[:12]}... (its card)"
            raise PairError(f"pair: {public_url(url)}/{part}.safetensors has sha256 {got}")

    _patiently(url, lambda: _put(target, copy))
    found = target.stat()
    _put(folder / f".{part}", lambda file: file.write(f"{digest} {found.st_size} {found.st_mtime_ns}".encode()))


def _put(path: Path, write: Callable[[Any], object]) -> None:
    """Writes a file that appears complete or not at all."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            write(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_card(url: str) -> bytes:
    def read() -> bytes:
        with _opened(url, "pair.json") as file:
            return bytes(file.read(_LARGEST_CARD + 1))

    raw = _patiently(url, read)
    if len(raw) > _LARGEST_CARD:
        raise PairError(f"pair: {public_url(url)}/pair.json is larger than {_LARGEST_CARD} bytes, allowed: a card")
    return raw


class _Remote(Exception):
    """An error of the other side, told apart from one of this machine's disk."""


@contextlib.contextmanager
def _opened(url: str, name: str) -> Iterator[Any]:
    place, question, query = url.partition("?")
    try:
        fs, path = fsspec.core.url_to_fs(f"{place.rstrip('/')}/{name}{question}{query}", **_options.get(url, {}))
        file = fs.open(path, "rb")
    except Exception as error:  # a driver may raise anything
        raise _Remote from error
    with file:
        yield _Reader(file)


class _Reader:
    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._file.read(size))
        except Exception as error:
            raise _Remote from error


def _patiently(url: str, call: Callable[[], T]) -> T:
    def is_transient(error: BaseException) -> bool:
        if not isinstance(error, _Remote) or isinstance(error.__cause__, _PERMANENT):
            return False
        answer = getattr(error.__cause__, "status", 0)  # of HTTP
        return not 400 <= answer < 500 or answer in (408, 429)

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT_S),
        stop=stop_after_attempt(TRIES),
        reraise=True,
    )
    try:
        return retrying(call)
    except _Remote as error:
        cause = error.__cause__
        text = " ".join(str(cause).split()) or type(cause).__name__
        raise PairError(
            redact(f"pair: cannot read {public_url(url)}: {text}; allowed: a URL of a folder that holds a pair.json")
        ) from cause


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """One process of the node at a time; a process that dies lets go, and where nothing can be locked all go on.

    Yields:
        whether this process is alone.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


fetch_urls_with(fetch)
