"""JSON records that prove themselves: one spelling, and a sha256 over everything else inside.

Commit records and the manifest are sealed, so that one changed byte anywhere is noticed without a second copy.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from workers.store import StoreError

SEAL = "sha256"


class UnknownVersion(StoreError):
    """A record that is sound and of a version that this program does not know; it must not be touched."""


def canonical_json(content: Any) -> bytes:
    """The one spelling of a JSON value in the store: sorted keys, one per line, a final newline."""
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its seal, replacing an older one."""
    bare = {key: value for key, value in content.items() if key != SEAL}
    return {**bare, SEAL: hashlib.sha256(canonical_json(bare)).hexdigest()}


def unseal(raw: bytes) -> dict[str, Any]:
    """The sealed content of canonical JSON bytes, seal included.

    Raises:
        ValueError: not JSON, not sealed, or changed since.
    """
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not JSON") from error
    if not isinstance(content, dict) or SEAL not in content:
        raise ValueError("has no seal")
    # The seal is over everything but its own line, so as a rule nothing has to be spelled again.
    bare = raw.replace(f'\n "{SEAL}": "{content[SEAL]}",'.encode(), b"", 1)
    if hashlib.sha256(bare).hexdigest() != content[SEAL] and canonical_json(seal(content)) != raw:
        raise ValueError("does not match its seal")
    return content


def check_version(content: dict[str, Any], path: str, known: int) -> None:
    """Refuses the unsealed content of a later program.

    Args:
        content: of the record.
        path: where it lies.
        known: latest version of its kind that this program reads; the first is 1.

    Raises:
        UnknownVersion: it is of another one.
    """
    version = content.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= known:
        raise UnknownVersion(
            f"output: {path} is of version {version!r}, allowed: 1 to {known}; a later spd wrote it, use that one"
        )
