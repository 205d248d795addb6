"""The formats of `spd export`, one line each. Their modules are imported when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.export.format import Format

FORMATS = {
    "webdataset": "jobs.export.webdataset:WebDataset",
    "folder": "jobs.export.folder:ImageFolder",
    "npz": "jobs.export.npz:Npz",
    "hub-folder": "jobs.export.hub_folder:HubFolder",
}


def format_class(name: str) -> type[Format]:
    """The class of a format, a key of `FORMATS`."""
    module, _, found = FORMATS[name].partition(":")
    result: type[Format] = getattr(importlib.import_module(module), found)
    return result
