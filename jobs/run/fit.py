"""Whether a batch fits into the memory of a worker's GPU, found out before the plan fixes the batch for good."""

from __future__ import annotations

import logging
import math
from typing import Any

from jobs.job.calibration import TrialFailed
from jobs.job.spec import FixedSpec
from jobs.run.auto import Trials, trial_task
from jobs.words.errors import JobError, SpecError
from spd_core.law import Choice, Null
from spd_core.pairs.pair import load_card
from workers import layout
from workers.memory import OutOfMemory
from workers.store import Store

logger = logging.getLogger(__name__)


def is_to_be_fitted(spec: FixedSpec, store: Store) -> bool:
    """Whether nobody knows yet that the batch fits, and it may not: on a GPU, before there is a plan or a shard."""
    if spec.workers.device == "cpu" or isinstance(spec.method, Null):
        return False
    return not store.exists(layout.PLAN) and not store.list(layout.COMMITS)


def fitted(ray: Any, spec: FixedSpec) -> FixedSpec:
    """Decodes one batch on one worker; a batch that was not given is halved until it fits.

    It is never changed later: what is decoded together is part of the plan, since it moves rounding.

    Args:
        ray: the ray module, connected.
        spec: without a plan.

    Raises:
        SpecError: a given batch does not fit.
        PairError: the worker refuses the pair.
        JobError: no worker comes up, or decoding fails for another reason.
    """
    card = load_card(spec.pair)
    trials, batch = Trials(ray, spec, card), min(spec.batch, spec.shard_size, spec.requests.count)
    logger.info("checking on one worker that a batch of %d fits into its memory", batch)
    try:
        trials.start()
        while True:
            choice = Choice(method=spec.method, batch=batch)
            try:
                trials.ask(trial_task(spec, card, choice, batch, 0, math.inf), whole=True)
                break
            except TrialFailed as error:
                cause = getattr(error.__cause__, "cause", None)
                if not isinstance(cause, OutOfMemory):
                    raise JobError(f"a batch of {batch} cannot be decoded: {error}") from error
                if "batch" not in spec.open_fields or batch == 1:
                    raise SpecError(str(cause)) from error
                logger.warning("%s", cause)
                batch //= 2
    finally:
        trials.stop()
    # A batch that a shard does not fill is as large as it was meant to be.
    tried_whole = batch == min(spec.batch, spec.shard_size, spec.requests.count)
    return spec if tried_whole else spec.with_open({"batch": batch})
