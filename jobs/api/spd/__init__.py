"""spd from Python: what the command line does, and the decoders beneath it.

    import spd

    done = spd.generate({"output": "out/fashion", "requests": {"count": 1000}})
    rows = spd.read("out/fashion").to_table(columns=["label", "certificate"])
    images = spd.sample({"pair": "fashion-vq", "requests": {"count": 16}}).images

A spec is a mapping of the fields that ``spd spec`` lists, or the path of a YAML file of them. Wrong input raises an
error whose text is one line: the field, its value, what is allowed. Names are imported when they are first used:
``import spd`` takes no time.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

    from jobs.commands.sample import Samples
    from jobs.job.spec import Spec
    from jobs.words.errors import JobError, SpecError
    from spd_core.decode import Decoded, decode
    from spd_core.draws import Draws, image_seed
    from spd_core.law import Acceptance, Cspd, Plain, SamplerLaw, Speculative
    from spd_core.pairs.pair import Pair, PairCard, PairError
    from workers.store import StoreError

__all__ = [
    "Acceptance",
    "Cspd",
    "Decoded",
    "Draws",
    "JobError",
    "Pair",
    "PairCard",
    "PairError",
    "Plain",
    "SamplerLaw",
    "Samples",
    "Spec",
    "SpecError",
    "Speculative",
    "StoreError",
    "decode",
    "generate",
    "image_seed",
    "load_pair",
    "read",
    "sample",
]

#: Where each re-exported name is defined.
_PLACES = {
    "jobs.commands.sample": ("Samples",),
    "jobs.job.spec": ("Spec",),
    "jobs.words.errors": ("JobError", "SpecError"),
    "spd_core.decode": ("Decoded", "decode"),
    "spd_core.draws": ("Draws", "image_seed"),
    "spd_core.law": ("Acceptance", "Cspd", "Plain", "SamplerLaw", "Speculative"),
    "spd_core.pairs.pair": ("Pair", "PairCard", "PairError"),
    "workers.store": ("StoreError",),
}
_INTERRUPTED = 130
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module 'spd' has no attribute {name!r}")
    _check_packages()
    found = getattr(importlib.import_module(_PLACE_OF[name]), name)
    globals()[name] = found
    return found


def _check_packages() -> None:
    """Refuses to go on with another's modules in place of spd's.

    Raises:
        ImportError: names the folder that hides them.
    """
    from spd.packages import hidden

    if (problem := hidden()) is not None:
        raise ImportError(problem)


def _spec_of(spec: Mapping[str, Any] | str | PathLike[str]) -> Spec:
    from jobs.job.spec import load_spec, make_spec

    if isinstance(spec, Mapping):
        return make_spec(dict(spec))
    return load_spec(_path("spec", spec, "a mapping of fields, or the path of a YAML file of them"), [])


def _path(field: str, value: Any, allowed: str) -> str:
    from jobs.words.errors import SpecError

    path = fspath(value) if isinstance(value, (str, PathLike)) else value
    if not isinstance(path, str):
        raise SpecError(f"{field}: got {value!r}, allowed: {allowed}")
    return path


def generate(spec: Mapping[str, Any] | str | PathLike[str]) -> dict[str, Any]:
    """Makes the dataset of a spec on Ray, or finishes one that was begun or damaged.

    Args:
        spec: fields of a job, or a YAML file of them.

    Returns:
        ``output``, ``images``, ``shards``, ``made`` (images of this run) and ``seconds``.

    Raises:
        SpecError, PairError, StoreError: wrong input; nothing is written.
        JobError: the job cannot go on; the same spec resumes it.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; the same spec resumes it.
    """
    _check_packages()
    from jobs.run.driver import generate as run
    from jobs.run.signals import Stopped

    try:
        return run(_spec_of(spec))
    except Stopped as stop:  # what Python programs expect of these two signals
        raise (KeyboardInterrupt if stop.exit_code == _INTERRUPTED else SystemExit(stop.exit_code)) from stop


def sample(spec: Mapping[str, Any] | str | PathLike[str]) -> Samples:
    """The images of a spec, made in this process without Ray, and written nowhere.

    Args:
        spec: as of `generate`; its output is not looked at.

    Returns:
        ``images`` uint8 [n, H, W, C], ``labels`` int64 [n], ``tokens`` float32 [n, N, D] or codes int64 [n, N].

    Raises:
        SpecError, PairError: wrong input.
    """
    _check_packages()
    from jobs.commands.sample import samples

    return samples(_spec_of(spec))


def load_pair(name: str, device: str = "cpu", draft: bool = True) -> Pair:
    """Loads a pair for `decode`; its weights are checked against the hashes of its card.

    Args:
        name: a bundled pair, or a folder or fsspec URL that holds one; a URL is fetched once and kept.
        device: where the models go.
        draft: False leaves the draft out.

    Raises:
        PairError: unknown pair, unreadable or corrupt weights.
    """
    _check_packages()
    importlib.import_module("workers.pair_cache")  # which fetches URLs
    from spd_core.pairs.pair import load_pair as load

    return load(name, device, draft)


def read(output: str | PathLike[str], storage_options: dict[str, Any] | None = None) -> Dataset:
    """The committed rows of a dataset, finished or not, in the order of its requests, as an Arrow dataset.

    Args:
        output: URL or folder of a dataset.
        storage_options: of its fsspec file system.

    Returns:
        a `pyarrow.dataset.Dataset`: ``to_table()``, ``head(n)``, ``to_batches()``, columns and filters.

    Raises:
        SpecError: no job is there.
        StoreError: the output cannot be read.
    """
    _check_packages()
    from jobs.dataset.rows import committed_rows

    return committed_rows(_path("output", output, "URL or folder of a dataset"), storage_options)
