"""Whether the packages that spd consists of are found on the path, and not another's of the same names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

#: Packages of spd beside `spd` itself, whose names a user's own folders may have too.
_PACKAGES = ("jobs", "workers", "spd_core")


def hidden() -> str | None:
    """What to say of a package of another's that would be imported in place of one of spd's; None: there is none."""
    here = Path(__file__).resolve().parent
    for name in _PACKAGES:
        found = find_spec(name)
        places = (
            [Path(place).resolve() for place in (found.submodule_search_locations or [found.origin or ""])]
            if found
            else []
        )
        if not any(here in (place.parent / "spd", place.parent / "jobs" / "api" / "spd") for place in places):
            where = f"is {places[0]}" if places else "is not there"
            return f"path: {name!r} {where}, allowed: spd's own; run from another folder, or mend PYTHONPATH"
    return None
