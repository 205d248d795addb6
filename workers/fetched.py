"""Single files that a user names by path or URL: one of a URL is fetched once per node and kept beside the pairs."""

from __future__ import annotations

import hashlib
import logging
import shutil
import uuid
from pathlib import Path
from typing import Any

import fsspec
from tenacity import Retrying, retry_if_not_exception_type, stop_after_attempt, wait_random_exponential

from spd_core.pairs.pair import PairError
from spd_core.quality.files import QualityError
from workers import pair_cache
from workers.redact import public_url, redact

logger = logging.getLogger(__name__)
_CHUNK = 8 << 20


def local_file(field: str, place: str, options: dict[str, Any] | None = None) -> Path:
    """A file on this machine.

    Args:
        field: of the spec, for the error.
        place: path or fsspec URL.
        options: of the URL's file system.

    Raises:
        QualityError: it is not there, or cannot be read or kept.
    """
    if "://" not in place and "::" not in place:
        path = Path(place).expanduser()
        if not path.is_file():
            raise QualityError(f"{field}: got {place!r}, allowed: a file or a URL")
        return path.absolute()
    try:
        return _patiently(place, options or {})
    except QualityError:
        raise
    except PairError as error:
        raise QualityError(str(error).replace("no place for pairs", "no place for files")) from error
    except Exception as error:  # a driver may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        shown = public_url(place)
        raise QualityError(redact(f"{field}: cannot read {shown}: {text}; allowed: a file or a URL of one")) from error


def _patiently(url: str, options: dict[str, Any]) -> Path:
    permanent = (PairError, QualityError, FileNotFoundError, PermissionError, ImportError, ValueError, TypeError)
    retrying = Retrying(
        retry=retry_if_not_exception_type(permanent),
        wait=wait_random_exponential(multiplier=0.2, max=pair_cache.LONGEST_WAIT_S),
        stop=stop_after_attempt(pair_cache.TRIES),
        reraise=True,
    )
    return retrying(_fetched, url, options)


def _fetched(url: str, options: dict[str, Any]) -> Path:
    file_system, key = fsspec.core.url_to_fs(url, **options)
    if not file_system.exists(key):
        raise FileNotFoundError("there is no such file")
    folder = pair_cache.cache_folder("files")
    # A file that changes has another key wherever the file system tells its size, its time or its hash.
    digest = hashlib.sha256(f"{url} {file_system.ukey(key)}".encode()).hexdigest()[:32]
    target = folder / f"{digest}-{Path(key).name[-100:]}"
    if target.exists():
        return target
    logger.info("fetching %s", public_url(url))
    part = folder / f".{uuid.uuid4().hex}.part"
    try:
        with file_system.open(key, "rb") as source, part.open("xb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target
