"""What was measured for ``method: auto`` before, by kind of device: a second job of a kind starts at once.

One file a question in ``$SPD_CACHE``, else ``$XDG_CACHE_HOME/spd``, else ``~/.cache/spd``. The question is the pair's
weights, the law with its precision, what is asked for, and the kind of the worker's device: a GPU's name with the
versions of torch and CUDA, or a CPU's model, cores and threads. So a CPU's answer is never a GPU's. ``spd calibrate``
measures anew and replaces the answer; deleting the folder forgets them all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

from pydantic import ValidationError

from jobs.job.calibration import Calibration
from jobs.job.plan import package_version
from jobs.job.spec import Spec
from spd_core.pairs.pair import PairCard

log = logging.getLogger(__name__)


def folder() -> Path:
    """Where the answers lie."""
    if own := os.environ.get("SPD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spd"


def device_kind(facts: dict[str, str]) -> dict[str, str]:
    """What decides a worker's speed, from what it tells of itself (`workers.trial.Trier.ready`).

    The machine around a GPU does not count; of a CPU it is the device.
    """
    names = ("device", "torch", "cuda") if "cuda" in facts else ("device", "torch", "machine", "threads")
    return {name: facts[name] for name in names}


def _path(spec: Spec, card: PairCard, facts: dict[str, str]) -> Path:
    question = {
        "spd": package_version("spd"),
        "weights": card.sha256,
        "law": spec.law.model_dump(mode="json"),
        "method": spec.method.model_dump(mode="json"),
        "batch": spec.batch,
        "shard": min(spec.shard_size, spec.requests.count),
        "device": device_kind(facts),
    }
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return folder() / f"auto-{digest[:32]}.json"


def recall(spec: Spec, card: PairCard, facts: dict[str, str]) -> Calibration | None:
    """The calibration measured before for such a spec on such a device; None: there is none that can be read."""
    try:
        return Calibration.model_validate_json(_path(spec, card, facts).read_bytes())
    except (OSError, ValidationError):
        return None


def remember(spec: Spec, card: PairCard, found: Calibration) -> None:
    """Stores a calibration under its own machine's kind; where that cannot be, a warning says so."""
    path = _path(spec, card, found.machine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(found.model_dump_json(indent=1))
        Path(file.name).replace(path)
    except OSError as error:
        log.warning("what was measured is not remembered: %s: %s", path, error.strerror)
