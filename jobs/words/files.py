"""Files that a command will write when it is done: what cannot be written is refused before the work begins."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.words.errors import SpecError


def check_file(flag: str, path: str | None) -> None:
    """Refuses a file that cannot be written.

    Args:
        flag: the argument that names it.
        path: of the file; None: there is none.

    Raises:
        SpecError: its folder does not exist or cannot be written, or it is a folder itself.
    """
    if path is None:
        return
    file = Path(path)
    try:
        found = file.parent.is_dir() and not file.is_dir()
        writable = os.access(file if file.exists() else file.parent, os.W_OK)
    except (OSError, ValueError):  # too long, or a zero byte
        found = writable = False
    if not path or not found:
        raise SpecError(f"{flag}: got {path!r}, allowed: a file in a folder that exists")
    if not writable:
        raise SpecError(f"{flag}: got {path!r}, allowed: a file that can be written")
