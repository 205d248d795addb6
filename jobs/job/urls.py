"""URLs as people mistype them, and as they may be shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fsspec.registry import known_implementations, registry

from spd_core.alike import did_you_mean
from workers.redact import public_url, without_secrets

#: A scheme that lost a slash or its colon; on a disk it would quietly become a folder of that name.
_BROKEN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)(?::/?(?!/)|//)(?P<rest>.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class UrlError(ValueError):
    """A URL that cannot be meant; the message is one line: field, value, what is allowed."""


def check_folder(field: str, url: str) -> None:
    """Refuses a path of this machine at which, or above which, there is a file.

    Args:
        field: of the spec.
        url: its value; URLs of other file systems are left to their stores.

    Raises:
        UrlError: names the file.
    """
    if "::" in url or ("://" in url and not url.startswith("file://")):
        return
    path = Path(url.removeprefix("file://")).expanduser()
    for place in (path, *path.parents):
        if os.path.isfile(place):  # noqa: PTH113 - which raises for names that no file can have
            where = "is a file" if place == path else f"is below {str(place)!r}, a file"
            raise UrlError(f"{field}: cannot use {public_url(url)!r}: it {where}; allowed: a folder or a URL")


def check_url(field: str, url: str) -> None:
    """Refuses what looks like a URL and is none.

    Args:
        field: of the spec.
        url: its value; a path of this machine is one too.

    Raises:
        UrlError: with what was probably meant.
    """
    shown = repr(public_url(url))
    known = {*known_implementations, *registry}
    if _CONTROL.search(url):
        raise UrlError(f"{field}: got {shown}, allowed: a URL or path of printable UTF-8 characters")
    if url.startswith("~") and url[1:2] not in ("", "/"):
        raise UrlError(f"{field}: got {shown}, allowed: a path from / or ~/ on")
    broken = _BROKEN.fullmatch(url)
    if broken and "::" not in url and broken["scheme"].lower() in known:
        root = "/" if broken["scheme"].lower() in ("file", "local") else ""
        meant = f"{broken['scheme'].lower()}://{root}{without_secrets('//' + broken['rest'].lstrip('/'))[2:]}"
        raise UrlError(f"{field}: got {shown}, allowed: a URL or a path, did you mean {meant}?")
    scheme, separator, _ = url.partition("://")
    if separator and "::" not in url and scheme not in known:
        near = did_you_mean(scheme, sorted(known))
        raise UrlError(f"{field}: got {shown}, allowed: a protocol that fsspec knows{near}")
