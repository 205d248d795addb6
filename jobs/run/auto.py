"""``method: auto``: what the plan of a spec that asks for it is fixed to, remembered or measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from jobs.job.calibration import Calibration, Measure, TrialFailed, calibrate, most_turns
from jobs.job.plan import changed, parse_plan, refusal, requests_of, utc_now
from jobs.job.spec import FixedSpec, Spec, options_of
from jobs.run.cluster import no_room, reserved
from jobs.run.fleet import raise_if_hopeless, reason_of
from jobs.run.remembered import recall, remember
from jobs.words.errors import JobError, SpecError
from jobs.words.phrases import counted, method_in_words
from jobs.words.progress import Steps, duration
from spd_core.candidates import all_choices, choices
from spd_core.decode.ceilings import Ceilings
from spd_core.decode.trial import Trial
from spd_core.law import Auto, Choice, Guarantee
from spd_core.pairs.pair import PairCard, load_card
from workers import layout
from workers.records import PairSettings, TrialTask
from workers.shard import DamagedCommit, read_commit
from workers.store import Store
from workers.trial import Trier

logger = logging.getLogger(__name__)

#: Images of a trial, at least, if a shard has them: one alone says little of how often drafts are accepted.
FEWEST_IMAGES = 8
#: Where few choices are measured: share of the time that the first turn may take, a batch or the first part of one.
_FIRST_TURN = 0.5
#: Actors that may be lost under one choice before it is left out.
_ACTORS = 2

Decided = tuple[FixedSpec, Calibration | None]


def choices_of(spec: Spec, card: PairCard, at: Ceilings | None = None) -> tuple[Choice, ...]:
    """What a spec that asks for auto leaves to the measurement; empty if it asks for a method.

    Args:
        spec: of the job.
        card: of its pair.
        at: the ceilings of the worker's device, as far as they are known.
    """
    if not isinstance(spec.method, Auto):
        return ()
    return choices(card, spec.method, spec.batch, shard_rows(spec), spec.law, at)


def ceilings_of(facts: dict[str, str]) -> Ceilings | None:
    """The ceilings that a worker on a GPU told of its device (`Trier.ready`)."""
    if "flops" not in facts:
        return None
    return Ceilings(facts["device"], float(facts["flops"]), float(facts["bytes_per_s"]))


def decided_before(spec: Spec, store: Store) -> Decided | None:
    """What is fixed already, by the spec itself or by an earlier run of the same spec; None: it must be measured.

    Raises:
        SpecError: the output holds a job whose spec asked for something else.
        StoreError: the output cannot be read.
    """
    if isinstance(spec, FixedSpec):
        return spec, None
    stored = parse_plan(store.read(layout.PLAN)) if store.exists(layout.PLAN) else None
    if stored is None:
        return _of_commits(spec, store) or _unmeasured(spec)
    kept = stored.calibration
    before = kept.model_dump(mode="json", include={"method", "batch"}) if kept else stored.stored_spec
    asked = {name: spec.model_dump(mode="json")[name] for name in _asked(spec)}
    if found := changed({name: before[name] for name in asked}, asked):
        raise refusal(found)
    if kept is None:
        logger.info("no method is asked for: going on with that of the stored plan, %s", _named(stored.choice, spec))
    measured_on = kept.machine.get("device", "cpu") if kept else "cpu"
    if kept and kept.rows and spec.workers.device == "cuda" and measured_on == "cpu":
        logger.warning("method auto: the stored choice was measured on a CPU; another output is measured on a GPU")
    return spec.decided(stored.choice), kept


def _asked(spec: Spec) -> list[str]:
    """What a resume must find in the stored plan: of a spec without a method, the batch if it names one."""
    if "method" not in spec.open_fields:
        return ["method", "batch"]
    return [] if spec.batch == "auto" else ["batch"]


def _unmeasured(spec: Spec) -> Decided | None:
    """The pair's own method where no time is given to measure others."""
    if budget(spec) > 0:
        return None
    return spec.unmeasured(load_card(spec.pair)), _calibration(spec, unmeasured="method.seconds is 0")


def _of_commits(spec: Spec, store: Store) -> Decided | None:
    """The choice under which shards were committed, when the plan that named it is lost or damaged.

    A commit record holds the plan's fingerprint, and each choice has its own.
    """
    card = load_card(spec.pair)
    if not isinstance(spec.method, Auto):
        raise TypeError("a spec with a method, expected one with auto")
    # Earlier versions decoded by others of the pair's methods where none was asked for.
    ways = [spec.method] if "method" not in spec.open_fields else [spec.method, Auto(guarantee=Guarantee.NONE)]
    possible = [choice for auto in ways for choice in all_choices(card, auto, spec.batch, shard_rows(spec))]
    for path in sorted(store.list(layout.COMMITS)):
        found = layout.parse_commit(path)
        try:
            record = read_commit(store, found[0]) if found else None
        except DamagedCommit:
            continue
        if record is None:
            continue
        for choice in possible:
            fixed = spec.decided(choice)
            if fixed.fingerprint(card) == record.fingerprint:
                return fixed, _calibration(spec)
        raise SpecError(f"output: {path} belongs to another job, allowed: another output")
    return None


def _calibration(spec: Spec, **measured: Any) -> Calibration:
    nothing: dict[str, Any] = {"rows": (), "machine": {}, "seconds": 0.0}
    return Calibration.model_validate({"method": spec.method, "batch": spec.batch, **nothing, **measured})


class _TooSlow(Exception):
    """The time for the measurement is too short for this pair on this device."""


def decide(ray: Any, spec: Spec) -> Decided:
    """Fixes the spec to the fastest choice, as one worker measures it or as it was measured on such a device before.

    Args:
        ray: the ray module, connected.
        spec: with method auto.

    Raises:
        PairError: the worker refuses the pair.
        JobError: no worker comes up, or every method fails.
    """
    card = load_card(spec.pair)
    trials = Trials(ray, spec, card)
    try:
        trials.start()
        remembered = recall(spec, card, trials.machine)
        if remembered is not None and remembered.chosen is not None:
            best = Choice(method=remembered.chosen.method, batch=remembered.chosen.batch)
            logger.info("method auto: %s, as measured before on such a device", _named(best, spec))
            return spec.decided(best), remembered.model_copy(update={"remembered": True})
        options = choices_of(spec, card, ceilings_of(trials.machine))
        logger.info("method auto: measuring %s", measured_in_words(spec, options))
        with Steps(most_turns(len(options), is_brief(spec))) as steps:
            measure = _given_up(told(trials.measure, steps), spec)
            best, rows, seconds = calibrate(options, measure, budget(spec), is_brief(spec))
    except _TooSlow:
        fixed, why = spec.unmeasured(card), f"the first turn takes more than {duration(_FIRST_TURN * budget(spec))}"
        logger.warning(
            "method auto: %s: taking %s unmeasured", why, _named(Choice(method=fixed.method, batch=fixed.batch), spec)
        )
        return fixed, _calibration(spec, machine=trials.machine, unmeasured=why)
    except TrialFailed as error:
        raise JobError(f"method auto: {error}") from error
    finally:
        trials.stop()
    logger.info("method auto: %s, after %s", _named(best, spec), duration(seconds))
    found = _calibration(spec, rows=rows, machine=trials.machine, seconds=seconds, made=utc_now())
    remember(spec, card, found)
    return spec.decided(best), found


def _given_up(measure: Measure, spec: Spec) -> Measure:
    """The same measurement, which a brief one gives up where its first turn leaves no time for others (`_TooSlow`)."""
    longest = _FIRST_TURN * budget(spec) if is_brief(spec) else math.inf

    def measured(choice: Choice, lap: int, limit_s: float) -> Trial:
        trial = measure(choice, lap, limit_s)
        # A device's first call of all may wait for kernels to be made.
        if lap == 0 and trial.seconds > longest and measure(choice, lap, limit_s).seconds > longest:
            raise _TooSlow
        return trial

    return measured


def _named(choice: Choice, spec: Spec) -> str:
    family = load_card(spec.pair).family
    return f"{method_in_words(choice.method.model_dump(), family)} at batch {choice.batch}"


def told(measure: Measure, steps: Steps) -> Measure:
    """The same measurement, which also says how far it is."""

    def measured(choice: Choice, lap: int, limit_s: float) -> Trial:
        rate = "failed"
        try:
            trial = measure(choice, lap, limit_s)
            rate = f"{trial.images_per_s:.3g} images/s"
        finally:
            steps.did(f"{choice.method.name}, batch {choice.batch}, {rate}")
        return trial

    return measured


def budget(spec: Spec) -> float:
    """Seconds that the measurement may take, about; 0: there is none."""
    return spec.method.seconds if isinstance(spec.method, Auto) else 0.0


def is_brief(spec: Spec) -> bool:
    """Whether few choices are measured in a moment, a batch each."""
    return isinstance(spec.method, Auto) and spec.method.candidates == "few"


def measured_in_words(spec: Spec, options: Sequence[Choice]) -> str:
    """How much is measured, and in what time."""
    methods, batches = (len({getattr(choice, name) for choice in options}) for name in ("method", "batch"))
    sizes = f"{batches} batch sizes" if batches > 1 else f"batch {options[0].batch}"
    return f"{counted(methods, 'method', 'methods')} at {sizes}, about {duration(budget(spec))}"


def trial_settings(spec: Spec, card: PairCard) -> PairSettings:
    """What the worker that measures is told."""
    return PairSettings(
        pair=spec.pair,
        pair_options=options_of(spec, spec.pair),
        pair_sha256=card.sha256,
        law=spec.law,
        device=spec.workers.device,
        threads=spec.workers.threads,
    )


def shard_rows(spec: Spec) -> int:
    """Images of a whole shard."""
    return min(spec.shard_size, spec.requests.count)


def trial_rows(spec: Spec, choice: Choice, limit_s: float = 0.0) -> int:
    """Images of a trial: of a shard, as many as show slots being filled again.

    Of a brief measurement those of a batch, and where a batch is to be whole no others.
    """
    if math.isinf(limit_s):
        return min(shard_rows(spec), choice.batch)
    fills = 1 if is_brief(spec) else 4
    return min(shard_rows(spec), max(FEWEST_IMAGES, fills * choice.batch))


def trial_task(spec: Spec, card: PairCard, choice: Choice, size: int, lap: int, limit_s: float) -> TrialTask:
    """The first ``size`` real requests of the lap's shard, filled up with the first ones where the job ends.

    A request file is not read: in its place every class has its turn, which costs as much to decode.
    """
    wanted = spec.requests
    indices = [(lap * shard_rows(spec) + place) % wanted.count for place in range(size)]
    made = requests_of(indices, wanted.labels, len(card.class_names), spec.seed)
    return TrialTask(choice=choice, labels=made.labels, seeds=made.seeds, limit_s=limit_s)


class Trials:
    """Takes the trials to an actor with the resources of the job's workers; a lost one is replaced."""

    def __init__(self, ray: Any, spec: Spec, card: PairCard) -> None:
        self._ray, self._spec, self._card = ray, spec, card
        self._actor: Any = None
        self.machine: dict[str, str] = {}

    def start(self) -> None:
        """Returns when the actor is up.

        Raises:
            PairError: it refuses the pair.
            JobError: it does not come up.
        """
        workers = self._spec.workers
        settings = trial_settings(self._spec, self._card)
        self._actor = self._ray.remote(Trier).options(**reserved(workers)).remote(settings)
        try:
            self.machine = self._ray.get(self._actor.ready.remote(), timeout=workers.start_timeout_s)
        except self._ray.exceptions.GetTimeoutError as error:
            raise JobError(no_room(self._ray, workers)) from error
        except self._ray.exceptions.RayError as error:
            raise_if_hopeless(error)
            raise JobError(f"the worker that measures did not come up: {reason_of(error)}") from error

    def stop(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor, no_restart=True)
            self._actor = None

    def measure(self, choice: Choice, lap: int, limit_s: float) -> Trial:
        """One trial.

        Raises:
            TrialFailed: the decoder failed, or took two actors with it.
        """
        rows = trial_rows(self._spec, choice, limit_s)
        return self.ask(trial_task(self._spec, self._card, choice, rows, lap, limit_s))

    def ask(self, task: TrialTask, whole: bool = False) -> Trial:
        """A trial of some requests; all of them, made into images, if it is to be whole.

        Raises:
            TrialFailed: as `measure`.
        """
        limit_s = 0.0 if whole or math.isinf(task.limit_s) else task.limit_s
        longest = limit_s + self._spec.workers.shard_timeout_s
        for _ in range(_ACTORS):
            if self._actor is None:
                self.start()
            try:
                call = self._actor.run_whole if whole else self._actor.run
                trial: Trial = self._ray.get(call.remote(task), timeout=longest)
            except self._ray.exceptions.RayTaskError as error:
                raise TrialFailed(reason_of(error)) from error
            except self._ray.exceptions.RayError as error:
                logger.warning("the worker that measures is lost: %s", reason_of(error))
                self.stop()
                continue
            return trial
        raise TrialFailed(f"{_ACTORS} workers were lost over it")
