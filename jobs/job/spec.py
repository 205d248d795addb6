"""The spec: the one model that carries every knob of a job. Command line, YAML, plan, card and report share it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from fsspec.utils import get_protocol
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from jobs.job.checks import Checks
from jobs.job.labels import alike, allowed_labels, label_of
from jobs.job.quality import Quality, check_quality
from jobs.job.request_file import RequestFile, RequestFileError
from jobs.job.requirements import Requirements
from jobs.job.urls import UrlError, check_folder, check_url
from jobs.job.yaml_text import parse_assignment, read_yaml
from jobs.words.errors import SpecError
from spd_core.alike import did_you_mean
from spd_core.candidates import admissible
from spd_core.complaints import one_line, refuse_switches, shown
from spd_core.law import Auto, Choice, Guarantee, Method, MethodRequest, SamplerLaw, Settings, Speculative
from spd_core.pairs.pair import PairCard, PairError, bundled_pairs, load_card
from workers import pair_cache
from workers.records import ImageFormat

_LONGEST_S = 30 * 86_400.0  #: longest time that anything may be waited for

#: Fields that decide no byte of the dataset; the hashes of its weights stand for the pair's name.
UNFIXED = frozenset({"workers", "output", "storage_options", "pair", "requirements", "quality", "checks"})


#: What a spec without a method asks for: the fastest of the few likely exact ones, as one worker finds in a moment.
UNNAMED = Auto(candidates="few", seconds=10.0)
#: Fields whose default is another one on a GPU or in another version: a resume takes those not given from the plan.
_OPEN = ("method", "batch", "shard_size", "image.effort")
_ON_GPU = {"batch": 256, "shard_size": 512}
#: Fields newer than the first plans, with the value that stands for what was done before: plans that know them not
#: have the same fingerprint as plans with this value.
ADDED = {"image.effort": "small", "method.images_per_s": 0.0}


class Requests(Settings):
    """Which images to make."""

    count: int = Field(256, ge=1, le=10_000_000_000, description="images of the dataset")
    labels: Annotated[tuple[int, ...], Field(min_length=1)] | Literal["balanced"] = Field(
        "balanced",
        description="label of each image, number or class name, repeated as often as needed; balanced: all classes in "
        "turn",
    )
    file: str | None = Field(
        None,
        description="fsspec URL of the requests, one a row: .parquet, .csv or .jsonl with label and, if wanted, id and "
        "seed; count is then its rows; opened with storage_options if it is where the output is",
    )
    sha256: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="of the file's rows: checked if given, found out otherwise",
        json_schema_extra={"allowed": "64 hexadecimal digits"},
    )


class Workers(Settings):
    """Ray actors and what each one holds. None of this changes a byte of the images."""

    count: int = Field(0, ge=0, le=100_000, description="actors; 0: one per free CPU, or per GPU if num_gpus is set")
    num_cpus: float = Field(1.0, ge=0, le=1024, description="CPUs reserved per actor")
    num_gpus: float = Field(0.0, ge=0, le=1024, description="GPUs reserved per actor; above 0 the models run on cuda")
    accelerator_type: str | None = Field(
        None, description="Ray accelerator type an actor needs, such as L4; a plan predicts its time for that card"
    )
    threads: int = Field(1, ge=1, le=1024, description="torch threads per actor on a CPU")
    encoders: int = Field(
        0,
        ge=0,
        le=1024,
        description="threads per actor that encode images while the next shard is decoded; 0: with num_gpus the GPU's "
        "share of the node's cores, without none",
    )
    start_timeout_s: float = Field(300.0, gt=0, le=_LONGEST_S, description="longest wait for an actor to come up")
    shard_timeout_s: float = Field(
        3600.0, gt=0, le=_LONGEST_S, description="longest wait for one shard before its actor is replaced"
    )
    max_attempts: int = Field(5, ge=1, le=1000, description="tries at one shard before the job fails")
    price_per_hour: float | None = Field(None, ge=0, le=1e6, description="of one actor, for the cost in the report")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="of a Ray that this job starts itself: port on 127.0.0.1 where Prometheus finds the metrics; "
        "0: a free one",
    )

    @property
    def device(self) -> str:
        """Torch device of an actor."""
        return "cuda" if self.num_gpus > 0 else "cpu"


class Spec(Settings):
    """A job: one dataset. What it leaves to a measurement is decided in a `FixedSpec`."""

    name: str = Field(
        "fashion",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name of the dataset",
        json_schema_extra={"allowed": "a letter or digit, then at most 99 letters, digits, dots, dashes, underscores"},
    )
    output: str = Field("", description="fsspec URL the dataset goes to; empty: out/<name>")
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False, description="of the fsspec file system")
    pair: str = Field(
        "fashion-ar",
        description="bundled pair, or a folder or fsspec URL that holds one; a URL is fetched once per node and cached",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="every random draw of an image follows from it and the request id")
    requests: Requests = Requests()
    law: SamplerLaw = Field(description="what is sampled; missing fields are those of the pair's card")
    method: MethodRequest = Field(
        UNNAMED,
        description="how it is decoded: plain, cspd, speculative or null; auto: the fastest, measured before the plan; "
        "default: the fastest of a few exact ones, measured in about ten seconds",
    )
    batch: int | Literal["auto"] = Field(
        32,
        description="images decoded together (1 to 65536); part of the plan: it moves rounding; auto: the fastest with "
        "method auto, otherwise the default; default with num_gpus: 256, or half of it and so on if that does not fit",
    )
    shard_size: int = Field(
        64,
        ge=1,
        le=1_000_000,
        description="images per shard: the unit of work, retry and commit; default with num_gpus: 512",
    )
    image: ImageFormat = ImageFormat()
    features: bool = Field(True, description="write image features and label agreement, for distance and report")
    workers: Workers = Workers()
    quality: Quality = Field(
        Quality(), exclude=True, description="further figures of the images, by a network and a reference of yours"
    )
    checks: Checks = Field(
        Checks(), exclude=True, description="what is tried on the images of the finished dataset, for the report"
    )
    requirements: Requirements = Field(
        Requirements(), exclude=True, description="what `spd nightly` and `spd compare` ask of the figures"
    )
    _open: frozenset[str] = PrivateAttr(frozenset())
    _file_classes: int = PrivateAttr(0)  # different labels in the request file

    @model_validator(mode="before")
    @classmethod
    def _derived_defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        if not raw.get("output"):
            raw = {**raw, "output": f"out/{raw.get('name', cls.model_fields['name'].default)}"}
        return raw

    @field_validator("batch", mode="before")
    @classmethod
    def _batch_in_range(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and 1 <= value <= 65536):
            return value
        # Not two bounds of a union, whose error would name the branches of the type instead of the field.
        raise PydanticCustomError("batch", "a whole number from 1 to 65,536, or auto")

    @field_validator("output")
    @classmethod
    def _no_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @property
    def shards(self) -> int:
        return -(-self.requests.count // self.shard_size)

    def classes(self, of_pair: int) -> int:
        """Different labels among the requests; ``of_pair`` are those of the pair."""
        labels = self.requests.labels
        asked = of_pair if labels == "balanced" else len(set(labels[: self.requests.count]))
        return self._file_classes or min(asked, self.requests.count)

    @property
    def open_fields(self) -> frozenset[str]:
        """Those of `_OPEN` that were not given: they follow from the device and the version, or from a stored plan."""
        return self._open

    def decided(self, choice: Choice) -> FixedSpec:
        """This spec with a method and a batch size."""
        given = {name: getattr(self, name) for name in Spec.model_fields}
        fixed = FixedSpec(**{**given, "method": choice.method, "batch": choice.batch})
        fixed._open, fixed._file_classes = self._open, self._file_classes
        return fixed

    def unmeasured(self, card: PairCard) -> FixedSpec:
        """This spec without a measurement: its pair's own method, and the default batch where it asks for auto."""
        batch = self.batch
        if batch == "auto":
            batch = _ON_GPU["batch"] if self.workers.num_gpus > 0 else Spec.model_fields["batch"].default
        fixed = self.decided(Choice(method=card.of.default_method(card), batch=batch))
        fixed._open |= {"batch"} if self.batch == "auto" else set()
        return fixed

    def with_open(self, values: dict[str, Any]) -> Self:
        """This spec with other values, by path, for fields that are open; those of other fields are left out."""
        found = {path: value for path, value in values.items() if path in self._open}
        image = {path.partition(".")[2]: value for path, value in found.items() if path.startswith("image.")}
        whole = {path: value for path, value in found.items() if "." not in path}
        return self.model_copy(update={**whole, "image": self.image.model_copy(update=image)})


class FixedSpec(Spec):
    """A spec that leaves nothing open: everything that decides a byte of the dataset is in it."""

    method: Method
    batch: int = Field(ge=1, le=65536)

    def fingerprint(self, card: PairCard) -> str:
        """sha256 over everything that decides a byte of the dataset; a resume must match it."""
        spec = self.model_dump(mode="json", exclude={"storage_options"})
        return fingerprint_of(spec, card.sha256, results_of(self, card))


def fixed_fields(spec: dict[str, Any]) -> dict[str, Any]:
    """The fields that decide a byte of the dataset, from the stored form of a spec, its JSON.

    Of a request file that is the hash of its rows, wherever it lies; without one there is no such field, as in jobs of
    versions that knew no request files. Nor are there fields of head steps that fall where they do not, nor fields that
    are `ADDED` at the value of before.
    """
    asked, law = spec["requests"], spec["law"]
    requests = {key: value for key, value in asked.items() if key != "file" and not (key == "sha256" and not value)}
    if law.get("head_schedule", "constant") == "constant":
        law = {key: value for key, value in law.items() if key not in ("head_schedule", "head_steps_end")}
    fixed = {key: value for key, value in spec.items() if key not in UNFIXED} | {"requests": requests, "law": law}
    for path, before in ADDED.items():
        place, _, name = path.partition(".")
        if isinstance(fixed[place], dict) and fixed[place].get(name) == before:
            fixed[place] = {key: value for key, value in fixed[place].items() if key != name}
    return fixed


def results_of(spec: FixedSpec, card: PairCard) -> int:
    """Version of what this program gives to a request; shards of different versions make no dataset.

    Version 2 draws codes by numbers of 53 bits, in version 1 they had 23; and certificates of images are those of
    `spd_core.accept.certificate`, in version 1 they were sums of excess. What neither changes has stayed version 1.
    """
    return 2 if spec.method.guarantee is Guarantee.TV else card.of.results


def fingerprint_of(spec: dict[str, Any], pair_sha256: dict[str, str], results: int) -> str:
    """`FixedSpec.fingerprint` of the stored form of a spec, so that a plan of another version can be checked.

    Version 1 of the results is not part of it: plans of that version did not say it.
    """
    fixed = fixed_fields(spec) | ({"results": results} if results > 1 else {})
    canonical = json.dumps({**fixed, "pair_sha256": pair_sha256}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_auto(method: Auto, card: PairCard, pair: str) -> None:
    rules = {m.acceptance.rule for m in admissible(card, method) if isinstance(m, Speculative)}
    for rule in method.offered_rules():
        if rule.name not in rules:
            knob, fields = str(rule.auto_knob), type(method).model_fields
            got, unset = getattr(method, knob), fields[knob].default
            raise SpecError(f"method.{knob}: got {got:g}, allowed: {unset:g} ({pair} has no {rule.name} acceptance)")


def _check_against_card(spec: Spec, card: PairCard) -> None:
    method, family = spec.method, card.of
    methods = (*family.methods, "null", "auto")
    if method.name not in methods:
        allowed = f"{', '.join(methods)} (the {family.name} family of {spec.pair})"
        raise SpecError(f"method: got {method.name!r}, allowed: {allowed}")
    if isinstance(method, Auto):
        _check_auto(method, card, spec.pair)
    elif complaint := family.refused_method(card, method, spec.pair):
        raise SpecError(complaint)
    if complaint := family.refused_law(spec.law, spec.pair):
        raise SpecError(complaint)
    if not isinstance(method, Auto) and (complaint := family.refused_at(spec.law, method)):
        raise SpecError(complaint)


def options_of(spec: Spec, url: str) -> dict[str, Any]:
    """The storage options of a URL that is read: those of the output, if it is of the same protocol."""
    return spec.storage_options if get_protocol(url) == get_protocol(spec.output) else {}


def request_file(spec: Spec, names: tuple[str, ...]) -> RequestFile:
    """The request file of a spec that names one; ``names`` are the classes of its pair."""
    url = spec.requests.file or ""
    return RequestFile(url, options_of(spec, url), names)


def _with_request_file(spec: Spec, names: tuple[str, ...]) -> Spec:
    """The spec with the rows of its request file counted and hashed; the same spec if it has none."""
    given = spec.requests
    if given.file is None:
        if given.sha256:
            raise SpecError(f"requests.sha256: got {given.sha256!r}, allowed: only with requests.file")
        return spec
    if given.labels != "balanced":
        raise SpecError(f"requests.labels: got {list(given.labels)}, allowed: none beside requests.file")
    source = request_file(spec, names)
    try:
        found = source.scan()
    except RequestFileError as error:
        raise SpecError(str(error)) from error
    if "count" in given.model_fields_set and given.count != found.count:
        raise SpecError(f"requests.count: got {given.count}, allowed: {found.count} (the rows of {source.shown})")
    if given.sha256 not in ("", found.sha256):
        raise SpecError(
            f"requests.sha256: got {given.sha256[:12]}..., allowed: {found.sha256[:12]}... (the rows of {source.shown})"
        )
    counted = given.model_copy(update={"count": found.count, "sha256": found.sha256})
    spec = spec.model_copy(update={"requests": counted})
    spec._file_classes = found.classes
    return spec


def _labels(given: Any, card: PairCard) -> Any:
    """Labels as numbers, whatever way they are written."""
    names = card.class_names
    if given == "balanced":
        return given
    listed = given if isinstance(given, (list, tuple)) else [given]
    allowed = f"balanced, or a list of labels, each {allowed_labels(names)} (the classes of {card.name})"
    if not listed:
        raise SpecError(f"requests.labels: got an empty list, allowed: {allowed}")
    numbers = [label_of(value, names) for value in listed]
    if None in numbers:
        wrong = listed[numbers.index(None)]
        near = alike(wrong, names) or (did_you_mean(wrong, ["balanced"]) if isinstance(wrong, str) else "")
        raise SpecError(f"requests.labels: got {shown(wrong)}, allowed: {allowed}{near}")
    return numbers


def make_spec(raw: dict[str, Any]) -> Spec:
    """Validates raw values; the law's missing fields come from the pair's card, the count from a request file.

    Returns:
        a `FixedSpec` unless the method is auto.

    Raises:
        SpecError: one line that names the field, the value and what is allowed.
    """
    try:
        asked_pair = raw.get("pair", Spec.model_fields["pair"].default)
        if not isinstance(asked_pair, str) or not asked_pair:
            raise SpecError(
                f"pair: got {shown(asked_pair or None)}, allowed: {', '.join(bundled_pairs())}, a folder or a URL"
            )
        check_url("pair", asked_pair)
        options = raw.get("storage_options")
        if isinstance(options, dict) and get_protocol(asked_pair) == get_protocol(str(raw.get("output", ""))):
            pair_cache.use_options(asked_pair, options)
        card = load_card(asked_pair)
        law = raw.get("law", {})
        if isinstance(law, dict):
            raw = {**raw, "law": {**card.law.model_dump(), **law}}
        if isinstance(asked := raw.get("requests"), dict) and "labels" in asked:
            raw = {**raw, "requests": {**asked, "labels": _labels(asked["labels"], card)}}
        method = raw.get("method", {})
        if isinstance(method, dict) and "name" not in method:
            raw = {**raw, "method": {**_meant(method, card).model_dump(), **method}}
            raw = raw if method else {key: value for key, value in raw.items() if key != "method"}
        if complaint := refuse_switches(raw, Spec):
            raise SpecError(complaint)
        spec = Spec.model_validate(raw)
        if spec.batch == "auto" and not isinstance(spec.method, Auto):
            # Nothing is measured for a method by name: the batch is as open as if it were left out.
            raw = {name: value for name, value in raw.items() if name != "batch"}
            spec = Spec.model_validate(raw)
        spec._open = frozenset(path for path in _OPEN if not _given(raw, path))
        spec = spec.with_open(_ON_GPU if spec.workers.num_gpus > 0 else {})
        check_url("output", spec.output)
        check_folder("output", spec.output)
        check_url("requests.file", spec.requests.file or "")
    except (PairError, UrlError) as error:
        raise SpecError(str(error)) from error
    except ValidationError as error:
        raise SpecError(one_line(error, Spec)) from error
    check_quality(spec.quality)
    _check_against_card(spec, card)
    spec = _with_request_file(spec, card.class_names)
    if isinstance(spec.method, Auto) or spec.batch == "auto":
        return spec
    return spec.decided(Choice(method=spec.method, batch=spec.batch))


def _meant(fields: dict[str, Any], card: PairCard) -> Method | Auto:
    """The method that fields without a name belong to: the default, or the first of the pair's that has them all."""
    own = card.of.default_method(card)
    known = [UNNAMED, own, *card.of.offered(card, Auto(guarantee=Guarantee.NONE), card.windows)]
    return next((method for method in known if fields.keys() <= type(method).model_fields.keys()), own)


def _given(raw: dict[str, Any], path: str) -> bool:
    place, _, name = path.partition(".")
    return place in raw and (not name or name in raw[place])


def load_spec(path: str | None, overrides: list[str]) -> Spec:
    """Spec from a YAML file (None: defaults) and ``field.path=value`` overrides, values read as YAML.

    Raises:
        SpecError: unreadable file, a malformed override or a wrong value.
    """
    raw: Any = {}
    if path is not None:
        try:
            raw = read_yaml(Path(path))
        except OSError as error:
            raise SpecError(f"spec: cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:  # no such YAML, or no such path
            raise SpecError(f"spec: cannot read {path!r}: {error}") from error
        raw = {} if raw is None else raw
        if not isinstance(raw, dict):
            raise SpecError(f"spec: got {shown(raw)} in {path}, allowed: a mapping of fields")
        # Blocks that only hold an anchor, as in Compose files.
        raw = {name: value for name, value in raw.items() if not str(name).startswith("x-")}
    given: set[str] = set()
    for override in overrides:
        key, value = parse_assignment(override, "--set", "field.path=value")
        if key in given:
            raise SpecError(f"{key}: given twice on the command line, allowed: once")
        given.add(key)
        node = raw
        *parents, leaf = key.split(".")
        for parent in parents:
            child = node.get(parent, {})
            if isinstance(child, str) and parent == "method":
                child = {"name": child}
            if not isinstance(child, dict):
                raise SpecError(f"{key}: got a field below {parent!r}, which holds {child!r}; allowed: a field path")
            node[parent] = child
            node = child
        node[leaf] = value
    return make_spec(raw)
