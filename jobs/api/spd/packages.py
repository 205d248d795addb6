"""Whether the packages that spd consists of are found on the path, and not another's of the same names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

#: Packages of spd beside `spd` itself, whose names a user's own folders may have too.
_PACKAGES = ("jobs", "workers", "spd_core")
#: This file from the folder above the packages: in site-packages, and in a checkout.
_HERE = ("spd/packages.py", "jobs/api/spd/packages.py")


def hidden() -> str | None:
    """What to say of a package of another's that would be imported in place of one of spd's; None: there is none.

    A whole copy of spd is not another's: the working directory of a submitted job may be a checkout.
    """
    above: set[Path] = set()
    for name in _PACKAGES:
        place = _place_of(name)
        if place is None or not any((place.parent / file).is_file() for file in _HERE):
            where = f"is {place}" if place else "is not there"
            return f"path: {name!r} {where}, allowed: spd's own; run from another folder, or mend PYTHONPATH"
        above.add(place.parent)
    return (
        None if len(above) == 1 else f"path: parts of spd are in {' and '.join(map(str, sorted(above)))}, allowed: one"
    )


def _place_of(name: str) -> Path | None:
    found = find_spec(name)
    if found is None:
        return None
    places = found.submodule_search_locations or [found.origin or ""]
    return Path(next(iter(places))).resolve()
