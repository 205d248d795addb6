"""The plan of a job: what is fixed before the first image, stored once and never changed by a resume."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from jobs.job.calibration import Calibration
from jobs.job.spec import ADDED, FixedSpec, Spec, fingerprint_of, fixed_fields, results_of
from jobs.words.errors import SpecError
from spd_core.draws import image_seed
from spd_core.families.registry import FAMILIES, family_of_old
from spd_core.law import Choice, Settings
from spd_core.pairs.pair import PairError, load_card, pair_folder
from workers import layout
from workers.machine import describe_machine
from workers.records import ShardTask
from workers.redact import public_url
from workers.sealed import canonical_json, check_version, seal, unseal
from workers.store import Conflict, Store, StoreError

#: Of stored plans. A plan of a later version is refused by name: a new field that decides bytes needs a new one.
PLAN_VERSION = 1
_PACKAGES = ("torch", "ray", "pyarrow")


class PairFacts(Settings):
    """What report and card say of the pair, which must not need the pair to be at hand."""

    name: str
    family: str = Field("", description="of its models; empty: the plan is of a version that did not say it")
    licence: str
    data: str = Field(description="what the weights were trained on")
    reference: str = Field(description="bundled statistics the images are compared with; empty: none")

    @field_validator("family")
    @classmethod
    def _known(cls, family: str) -> str:
        if family and family not in FAMILIES:
            raise ValueError(f"family: got {family!r}, allowed: {', '.join(FAMILIES)}")
        return family


class Plan(Settings):
    """Everything that decides a byte of the dataset, and where and when it was decided."""

    version: int = PLAN_VERSION
    spec: FixedSpec = Field(description="without its storage_options, which are never stored")
    fingerprint: str = Field(description="sha256 over the spec's fixed fields, the pair's weights and the results")
    results: int = Field(1, ge=1, le=2, description="version of what a request gives: `jobs.job.spec.results_of`")
    pair: PairFacts
    pair_sha256: dict[str, str]
    guarantee: str
    calibration: Calibration | None = Field(None, description="how method and batch were chosen; None: the spec did it")
    shards: int = Field(gt=0)
    rows: int = Field(gt=0, description="images of the dataset")
    class_names: tuple[str, ...]
    versions: dict[str, str] = Field(description="of the program and the libraries it ran with")
    machine: str = Field(description="where the driver ran")
    created: str = Field(description="UTC, ISO 8601")
    sha256: str = Field("", description="over the stored plan without this field, see `workers.sealed`")

    @field_validator("spec", mode="before")
    @classmethod
    def _effort_of_before(cls, raw: Any) -> Any:
        """A plan that knows no effort made its images at the one of before, not at today's default."""
        if isinstance(raw, dict) and isinstance(raw.get("image"), dict):
            return {**raw, "image": {"effort": ADDED["image.effort"], **raw["image"]}}
        return raw

    @field_serializer("spec")
    def _stored(self, spec: FixedSpec) -> dict[str, Any]:
        return spec.model_dump(mode="json", exclude={"storage_options"}, exclude_unset=True)

    @property
    def stored_spec(self) -> dict[str, Any]:
        """The spec as JSON, with the fields that the plan was stored with: an older version had fewer."""
        return self._stored(self.spec)

    @model_validator(mode="after")
    def _is_consistent(self) -> Plan:
        if self.fingerprint != fingerprint_of(self.stored_spec, self.pair_sha256, self.results):
            raise ValueError("the fingerprint is not that of the spec")
        if self.rows != self.spec.requests.count or self.shards != self.spec.shards:
            raise ValueError("shards or rows are not those of the spec")
        chosen = self.calibration and self.calibration.chosen
        if chosen and Choice(method=chosen.method, batch=chosen.batch) != self.choice:
            raise ValueError("method or batch are not those that the calibration chose")
        return self

    @property
    def choice(self) -> Choice:
        """The method and batch size of every worker and every resume."""
        return Choice(method=self.spec.method, batch=self.spec.batch)

    @property
    def family(self) -> str:
        """Name of the family of the pair's models."""
        return self.pair.family or family_of_old(self.pair_sha256, self.spec.law).name

    def to_bytes(self) -> bytes:
        """Canonical sealed JSON: the same plan gives the same bytes."""
        return canonical_json(seal(self.model_dump(mode="json")))

    def rows_of(self, shard: int) -> range:
        """Indices of the requests of a shard."""
        size = self.spec.shard_size
        return range(shard * size, min((shard + 1) * size, self.rows))


def utc_now() -> str:
    """Now, in the form of every time in the store."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def package_version(name: str) -> str:
    """Version of an installed distribution without importing it; "unknown" for a source tree that is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def check_weights(pair: str, sha256: dict[str, str]) -> None:
    """Hashes the weights files against the card, without loading a model; those of a URL are left to the workers.

    Raises:
        PairError: one line that names a file that is missing or not the card's.
    """
    if "://" in pair:
        return  # every node verifies what it fetches; the driver's need not be one that decodes
    folder = pair_folder(pair)
    for part, expected in sha256.items():
        path = folder / f"{part}.safetensors"
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise PairError(f"pair: cannot read {path}: {error.strerror}") from error
        if digest != expected:
            raise PairError(f"pair: {path} has sha256 {digest[:12]}..., allowed: {expected[:12]}... (its card)")


def make_plan(spec: FixedSpec, calibration: Calibration | None = None) -> Plan:
    """The plan of a spec; reads the pair's card, not its weights.

    Args:
        spec: with its method and batch decided.
        calibration: how they were.

    Raises:
        PairError: unknown pair or damaged card.
    """
    card = load_card(spec.pair)
    dump = spec.model_dump(mode="json", exclude={"storage_options"})
    file = public_url(spec.requests.file) if spec.requests.file else None
    return Plan(
        spec=FixedSpec.model_validate(
            {
                **dump,
                "output": public_url(spec.output),
                "pair": public_url(spec.pair),
                "requests": {**dump["requests"], "file": file},
            }
        ),
        fingerprint=spec.fingerprint(card),
        results=results_of(spec, card),
        pair=PairFacts(
            name=card.name, family=card.family, licence=card.licence, data=card.data, reference=card.reference
        ),
        pair_sha256=card.sha256,
        guarantee=str(spec.method.guarantee),
        calibration=calibration,
        shards=spec.shards,
        rows=spec.requests.count,
        class_names=card.class_names,
        versions={
            "spd": package_version("spd"),
            "python": platform.python_version(),
            **{name: package_version(name) for name in _PACKAGES},
        },
        machine=describe_machine(),
        created=utc_now(),
    )


def request_id(index: int) -> str:
    """Id of a request: sorts like its index."""
    return f"{index:08d}"


@dataclass(frozen=True)
class Requests:
    """Some requests of a job, in order."""

    ids: tuple[str, ...]
    labels: tuple[int, ...]
    seeds: tuple[int, ...]


def requests_of(
    indices: Sequence[int], labels: Sequence[int] | Literal["balanced"], classes: int, seed: int
) -> Requests:
    """The requests with these indices; ``labels`` and ``seed`` as in the spec."""
    cycle = range(classes) if labels == "balanced" else labels
    ids = tuple(request_id(index) for index in indices)
    return Requests(
        ids, tuple(cycle[index % len(cycle)] for index in indices), tuple(image_seed(seed, name) for name in ids)
    )


def task_of(plan: Plan, shard: int, attempt: int) -> ShardTask:
    """The requests of one shard of a plan without a request file, made when they are needed.

    No list of a job's requests ever exists. `jobs.job.requests.Tasks` knows both kinds of plans.
    """
    made = requests_of(plan.rows_of(shard), plan.spec.requests.labels, len(plan.class_names), plan.spec.seed)
    return ShardTask(shard=shard, attempt=attempt, request_ids=made.ids, labels=made.labels, seeds=made.seeds)


def parse_plan(raw: bytes) -> Plan | None:
    """The plan, or None if the bytes are not a plan as it was stored.

    Raises:
        UnknownVersion: a later program stored it.
    """
    try:
        content = unseal(raw)
        check_version(content, layout.PLAN, PLAN_VERSION)
        return Plan.model_validate(content)
    except (ValueError, KeyError, TypeError):
        return None


def read_plan(store: Store) -> Plan:
    """The stored plan of an output.

    Raises:
        SpecError: there is none, or it is damaged.
    """
    url = public_url(store.url)
    if not store.exists(layout.PLAN):
        raise SpecError(
            f"output: got {url}, allowed: an output of `spd generate` (never started, or elsewhere: no {layout.PLAN})"
        )
    plan = parse_plan(store.read(layout.PLAN))
    if plan is None:
        raise SpecError(f"output: {url}/{layout.PLAN} is damaged; `spd generate` with the same spec repairs it")
    return plan


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted paths."""
    if not isinstance(value, dict):
        return {path: value}
    leaves = (flat(child, f"{path}.{key}" if path else key) for key, child in value.items())
    return {key: leaf for leaf_map in leaves for key, leaf in leaf_map.items()}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def changed(stored: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``field: got new, stored old`` for every field in which two nested mappings differ."""
    nothing = "nothing"
    old, now = flat(stored), flat(new)
    return [
        f"{key}: got {_shown(now.get(key, nothing))}, stored {_shown(old.get(key, nothing))}"
        for key in {**now, **old}
        if now.get(key, nothing) != old.get(key, nothing)
    ]


def refusal(found: list[str]) -> SpecError:
    """The error of a resume with another spec, from the `changed` fields."""
    return SpecError(f"{'; '.join(found[:3])}; allowed: the stored value, or another output")


def differences(stored: Plan, new: Plan) -> list[str]:
    """`changed` over every fixed field of two plans."""
    old, now = (
        {
            **fixed_fields(plan.stored_spec),
            "pair_sha256": plan.pair_sha256,
            "results (version of images and certificates)": plan.results,
        }
        for plan in (stored, new)
    )
    return changed(old, now)


def _check_same(stored: Plan, new: Plan) -> Plan:
    if stored.fingerprint != new.fingerprint:
        if stored.results < new.results:
            raise SpecError(
                f"output: holds a dataset begun by an earlier version of spd (results of version {stored.results}), "
                f"allowed: another output, or the version that began it (results now: version {new.results})"
            )
        raise refusal(differences(stored, new))
    return stored


def stored_plan(store: Store, plan: Plan) -> Plan | None:
    """The stored plan that this one resumes; None: none is stored, or a damaged one that this one may replace.

    Raises:
        SpecError: another job's plan or commit records are there.
    """
    if not store.exists(layout.PLAN):
        return None
    stored = parse_plan(store.read(layout.PLAN))
    if stored is not None:
        return _check_same(stored, plan)
    # The driver refuses another job's commit records, plan or no plan, so this one can only be ours to repair.
    return None


def as_planned(spec: Spec, store: Store) -> Spec:
    """The spec with what it leaves open as the stored plan has it, if there is one: a resume changes no byte."""
    if not spec.open_fields or not store.exists(layout.PLAN):
        return spec
    plan = parse_plan(store.read(layout.PLAN))
    if plan is None:
        return spec
    stored = plan.spec
    asked = plan.calibration.batch if plan.calibration else stored.batch
    return spec.with_open({"batch": asked, "shard_size": stored.shard_size, "image.effort": stored.image.effort})


def store_plan(store: Store, plan: Plan) -> Plan:
    """Stores the plan create-only and returns the one that holds: this one, or the equal one stored before.

    Raises:
        SpecError: another job's plan is there; names the first fields that differ.
        StoreError: the store cannot be read or written.
    """
    stored = stored_plan(store, plan)
    if stored is not None:
        return stored
    if store.exists(layout.PLAN):
        store.replace(layout.PLAN, plan.to_bytes())
        return plan
    try:
        store.create(layout.PLAN, plan.to_bytes())
    except Conflict as error:
        raced = parse_plan(store.read(layout.PLAN))
        if raced is None:
            raise StoreError(f"output: {layout.PLAN} was written by another process and is damaged") from error
        return _check_same(raced, plan)
    return plan
