"""The control of a night: the job's method and plain decoding at the same law, in turns on one of its workers."""

from __future__ import annotations

import logging
from typing import Any

from jobs.job.spec import FixedSpec
from jobs.nightly.record import Control
from jobs.run.auto import FEWEST_IMAGES, shard_rows, trial_settings, trial_task
from jobs.run.cluster import no_room, reserved
from jobs.run.fleet import raise_if_hopeless, reason_of
from jobs.words.errors import JobError
from jobs.words.phrases import number
from jobs.words.progress import Steps
from spd_core.law import Choice, Null, Plain
from spd_core.pairs.pair import load_card
from workers.control import Controller, Turn
from workers.records import TrialTask

logger = logging.getLogger(__name__)
#: Turns of each, and seconds after which a turn is cut off where the decoder can be stopped.
TURNS = 4
_TURN_S = 30.0


def measure_control(ray: Any, spec: FixedSpec, turns: int = TURNS) -> Control | None:
    """Measures the control; None for a method that is plain decoding itself or makes no tokens.

    Every night decodes the same first requests of the job.

    Args:
        ray: the ray module, connected.
        spec: of the job.
        turns: of each of the two.

    Raises:
        PairError: the worker refuses the pair.
        JobError: no worker comes up, or decoding fails.
    """
    if isinstance(spec.method, Null) or spec.method == Plain():
        logger.info("control: none, the method is %s", spec.method.name)
        return None
    card, workers = load_card(spec.pair), spec.workers
    size = min(shard_rows(spec), max(FEWEST_IMAGES, spec.batch))
    ways = (Choice(method=spec.method, batch=spec.batch), Choice(method=Plain(), batch=spec.batch))
    tasks = [trial_task(spec, card, way, size, 0, _TURN_S) for way in ways]
    actor = ray.remote(Controller).options(**reserved(workers)).remote(trial_settings(spec, card))
    logger.info("control: %d images %d times with %s and with plain decoding", size, turns, spec.method.name)
    try:
        machine = ray.get(actor.ready.remote(), timeout=workers.start_timeout_s)
        ray.get(actor.warm_up.remote(*tasks), timeout=workers.shard_timeout_s)
        (method, plain), load = _take_turns(ray, actor, tasks, turns, workers.shard_timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise JobError(f"control: {no_room(ray, workers)}") from error
    except ray.exceptions.RayError as error:
        raise_if_hopeless(error)
        raise JobError(f"control: {reason_of(error)}") from error
    finally:
        ray.kill(actor, no_restart=True)
    control = _control(method, plain, load, size, machine)
    logger.info("control: %s and %s images/s", *(number(max(rates)) for rates in (control.method, control.plain)))
    return control


def _take_turns(
    ray: Any, actor: Any, tasks: list[TrialTask], turns: int, timeout_s: float
) -> tuple[tuple[list[Turn], list[Turn]], float]:
    """The turns of both, in the order A B, B A, A B and so on, so that whatever else the machine does meets both.

    Returns:
        the turns of each, and the machine's load after them.
    """
    taken: tuple[list[Turn], list[Turn]] = ([], [])
    with Steps(2 * turns) as steps:
        for turn in range(turns):
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                made = ray.get(actor.turn.remote(tasks[place]), timeout=timeout_s)
                taken[place].append(made)
                steps.did(f"control, {tasks[place].choice.method.name}, {number(made.images_per_s)} images/s")
    return taken, ray.get(actor.load.remote(), timeout=timeout_s)


def _control(method: list[Turn], plain: list[Turn], load: float, size: int, machine: dict[str, str]) -> Control:
    rates, per_image = zip(*(_of_turns(turns) for turns in (method, plain)), strict=True)
    return Control(
        method=rates[0],
        plain=rates[1],
        method_cpu=per_image[0],
        plain_cpu=per_image[1],
        images=size,
        load=load,
        device=machine["device"],
        machine=machine["machine"],
    )


def _of_turns(turns: list[Turn]) -> tuple[tuple[float, ...], float]:
    """Images/s of each turn, and CPU seconds per image of all."""
    cpu, images = sum(turn.cpu_seconds for turn in turns), sum(turn.images for turn in turns)
    return tuple(turn.images_per_s for turn in turns), cpu / images
