"""What a family of models answers: everything that the rest of the program must know of it.

Decoding, pair cards, job specs, reports and benchmarks ask the `Family` of a pair and know no family by name. A new one
is a folder beside this file with a `Family` in it, and a line in `spd_core.families.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel
from torch import Tensor, nn

from spd_core.accept.rules import Evidence, names_for
from spd_core.codec import Codec
from spd_core.compare import Compared, Wishes, label_of
from spd_core.law import Acceptance, Auto, Choice, Cspd, HeadWindow, Method, Null, Plain, SamplerLaw, Speculative
from spd_core.models.grid import ModelConfig

if TYPE_CHECKING:
    from spd_core.decode.ceilings import Ceilings
    from spd_core.decode.cost import CallTimes
    from spd_core.decode.log import Decoded
    from spd_core.draws import Draws
    from spd_core.pairs.checkpoint import Take
    from spd_core.pairs.pair import Pair, PairCard
    from spd_core.train.acceptance import TeacherForced
    from spd_core.train.loop import Recipe

#: Fields of a law that every family takes at any value, whether it reads them or not: the first versions refused none
#: of them, and their jobs must still resume.
NEVER_REFUSED = frozenset({"num_iter", "head_steps", "start_level"})


#: Methods that a family decodes by.
Decoding = Plain | Cspd | Speculative


@dataclass(frozen=True)
class Held:
    """What one model holds at the largest moment of decoding, beside its weights."""

    cache: int = 0  #: numbers of keys and values
    activations: int = 0  #: bytes of a transformer's pass over the batch
    head: int = 0  #: bytes of the rows of a head that denoises tokens, with the random numbers of their paths


@dataclass(frozen=True)
class Keys:
    """How a model is recognised in a public checkpoint."""

    title: str  #: after "a" or "an": what the file holds
    has: str  #: a key that every such model has
    lacks: str = ""  #: a key that it has not, where another kind of model has the first too
    texts: bool = False  #: whether there are models with the key that make images of texts


@dataclass(frozen=True)
class Part:
    """A weights file of a pair, ``<name>.safetensors``."""

    make: Callable[[], nn.Module]
    of_draft: bool = False  #: plain decoding does without it
    optional: bool = False  #: a pair may lack it
    small: bool = False  #: not counted in estimates of memory


@dataclass(frozen=True)
class Files:
    """What a conversion is given."""

    target: Path
    draft: Path | None = None
    #: Values of the family's `convert_options` that were given.
    options: Mapping[str, Any] = field(default_factory=dict)


class Family(ABC):
    """A family of models: its configurations, what it can be asked for, and how it decodes."""

    name: ClassVar[str]  #: as a card's ``family`` names it
    #: Sizes by field of a card: of target and draft, and of further drafts.
    configs: ClassVar[Mapping[str, type[BaseModel]]]
    codecs: ClassVar[tuple[type[Codec], ...]]
    #: Decoding methods, and the fields of each that mean something here; others are refused and not told.
    methods: ClassVar[Mapping[str, frozenset[str]]]
    #: Fields of a law that mean something here; others are refused, but for `NEVER_REFUSED`, and not told.
    law_fields: ClassVar[frozenset[str]]
    #: Kinds of evidence that its decoders give an acceptance rule; none: no method takes a rule.
    evidence: ClassVar[tuple[type[Evidence], ...]] = ()
    #: Windows of head self-speculation worth trying on a pair that has none of its own: long ones for few sequential
    #: calls, short ones for few rows; none: its models have no head that speculates.
    windows: ClassVar[tuple[tuple[int, ...], ...]] = ()
    #: Methods whose decoders ask for the start noise of a token's path each time before they make it, so that a
    #: measurement can stop them halfway: `spd_core.decode.trial`.
    stoppable: ClassVar[frozenset[str]] = frozenset()
    #: Public models that the converter knows, by kind: the family's own under its name, then parts of its pairs.
    keys: ClassVar[Mapping[str, Keys]] = MappingProxyType({})
    #: Arguments of the converter beside target and draft: files of parts, and what no file tells.
    convert_options: ClassVar[tuple[str, ...]] = ()
    #: Fields of `spd_core.compare.Wishes` that a benchmark of a pair may be asked for; also "deepen" and "plot".
    wishes: ClassVar[frozenset[str]] = frozenset()
    #: Columns of a benchmark's table: `jobs.bench.table.COLUMNS`.
    columns: ClassVar[tuple[str, ...]] = (
        "method", "guarantee", "images/s", "x plain", "accepted of tested", "tokens/target pass", "distance (95 %)",
        "label agreement",
    )  # fmt: skip
    #: What the table's ratios are, after "x plain is against plain at the same law".
    ratios: ClassVar[str] = "."
    #: Batches in one timed decoding: more where an image is made in a moment, and how many rounds it takes varies.
    fills: ClassVar[int] = 1
    #: Whether the images of one lossless entry stand for those of all in a benchmark's distances.
    lossless_alike: ClassVar[bool] = False
    #: Version of the random numbers that its decoders draw: `jobs.job.spec.results_of`.
    results: ClassVar[int] = 1

    @property
    def rules(self) -> tuple[str, ...]:
        """Acceptance rules of speculative decoding: those that its decoders can apply."""
        return names_for(*self.evidence)

    def relaxed(self, auto: Auto) -> list[Acceptance]:
        """The relaxed rules among them for which a measurement names a knob."""
        return [rule for rule in auto.relaxed() if rule.rule in self.rules]

    @abstractmethod
    def build(self, config: ModelConfig) -> nn.Module:
        """A model of these sizes, with its first weights."""

    @abstractmethod
    def decode(
        self,
        pair: Pair,
        law: SamplerLaw,
        method: Decoding,
        labels_B: Tensor,
        draws: Draws,
        slots: int,
    ) -> Decoded:
        """Decodes images of a pair of this family.

        Args:
            pair: loaded models; its draft is there if the method uses one.
            law: what is sampled.
            method: how; one of `methods`.
            labels_B: int64 class labels on the pair's device.
            draws: random numbers of the images.
            slots: images decoded together, at most. Only speculative decoding is given more images than that.
        """

    def parts(self, card: PairCard) -> dict[str, Part]:
        """The weights files that a pair with this card may have."""
        target, draft, codec = card.target, card.draft, card.codec
        found = {"target": Part(lambda: self.build(target))}
        if draft is not None:
            found["draft"] = Part(lambda: self.build(draft), of_draft=True)
        if codec.part:
            found[codec.part] = Part(codec.network, optional=True)
        return found

    def assemble(self, parts: Mapping[str, nn.Module]) -> None:  # noqa: B027, most have nothing to do
        """Puts loaded parts into each other where a model holds another."""

    def default_method(self, card: PairCard) -> Decoding:
        """What is taken where nothing is measured: an exact method, as a rule the fastest."""
        return Plain()

    def offered(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        """Every method that could pay on a pair, whatever it promises; plain decoding first.

        Args:
            card: of the pair.
            auto: its delta and radius add relaxed rules.
            windows: of head self-speculation, the best first.
        """
        yield Plain()
        yield from (Plain(head_window=window) for window in windows)

    def likely(self, card: PairCard, auto: Auto, windows: Sequence[HeadWindow]) -> Iterator[Method]:
        """The few of those offered that are most often the fastest, plain decoding first; arguments as there."""
        yield Plain()
        yield from (Plain(head_window=window) for window in windows)

    def decode_naive(self, target: nn.Module, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
        """Samples images by the direct loop that plain decoding is measured against: `spd_core.decode.naive`.

        Raises:
            TypeError: the family has none.
        """
        raise TypeError(f"naive: got the {self.name} family, allowed: one whose tokens a diffusion head makes")

    def batch_seconds(self, card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
        """Predicted seconds of a batch on a device that is known by its ceilings; None: it cannot be predicted."""
        return None

    def compared(self, card: PairCard, law: SamplerLaw, wishes: Wishes) -> list[tuple[SamplerLaw, Compared]]:
        """Laws and methods that a benchmark compares, plain decoding at the pair's own law first.

        Args:
            card: of the pair.
            law: the pair's own.
            wishes: of the user.

        Raises:
            ValueError, ValidationError: a wish that the law does not allow.
        """
        return [(law, method) for method in dict.fromkeys([Plain(), self.default_method(card)])]

    def label(self, law: SamplerLaw, method: Compared) -> str:
        """Name of a line of a benchmark's table."""
        return label_of(law, method)

    def series(self, method: Speculative) -> str:
        """What methods have in common that differ in their rule's main knob only: a line of a benchmark's picture."""
        return method.acceptance.rule

    def deepened(self, target: nn.Module, blocks: int) -> nn.Module:
        """A target of the same law at a higher cost: so many idle blocks after each of its own.

        Raises:
            TypeError: the family has none.
        """
        raise TypeError(f"deepen: got the {self.name} family, allowed: one that wishes for it")

    def call_times(
        self, pair: Pair, law: SamplerLaw, method: Plain | Speculative, labels: Tensor, draws: Draws
    ) -> CallTimes | None:
        """Measured times of the calls that decoding consists of, for `spd_core.decode.cost`; None: no model knows them.

        Args:
            pair: loaded models.
            law: what is sampled.
            method: gives windows and, if speculative, gamma, stride and proposals; its acceptance rule is not used.
            labels: of a batch.
            draws: its random numbers.
        """
        return None

    def memory(self, config: ModelConfig, law: SamplerLaw, images: int, block: int) -> Held:
        """What a model of these sizes holds while ``images`` are decoded, ``block`` positions a pass.

        Without an answer of the family a plan counts the weights alone.
        """
        return Held()

    def law_in_words(self, law: SamplerLaw) -> str:
        """One line: the fields of a law that mean something here."""
        return ", ".join(f"{name} {value}" for name, value in law if name in self.law_fields)

    def convert(self, files: Files, out: Path, name: str, take: Take) -> PairCard:
        """Writes a pair folder from public checkpoints; nothing is written before everything has been checked.

        Args:
            files: to read, and this family's own arguments.
            out: the pair's folder; must not hold a pair yet.
            name: the pair's name.
            take: what files cannot tell.

        Raises:
            PairError: one line: a file that cannot be read or does not fit, models that do not fit each other.
        """
        raise NotImplementedError(f"the {self.name} family knows no public checkpoints")

    def bundled(self) -> Mapping[str, tuple[SamplerLaw, Mapping[str, Recipe]]]:
        """The pairs of this family that come with the program: their law, and the recipes of their weights by run."""
        return {}

    def teacher_forced(
        self,
        models: tuple[nn.Module, nn.Module],
        law: SamplerLaw,
        stride: int,
        tokens: Tensor,
        labels: Tensor,
    ) -> TeacherForced:
        """How much a target would keep of what a draft makes after each token of real images.

        Args:
            models: target and draft.
            law: what is sampled.
            stride: steps for which the draft holds each prediction.
            tokens: of the images [n, N, D].
            labels: of the images [n].

        Raises:
            ValueError: the family has no such figure.
        """
        raise ValueError(f"acceptance: got the {self.name} family, allowed: one that drafts whole paths")

    def refused_law(self, law: SamplerLaw, pair: str) -> str | None:
        """The complaint about a field of a law that means nothing here; None: there is none."""
        return self._refused(law, "law", self.law_fields | NEVER_REFUSED, pair)

    def refused_method(self, card: PairCard, method: Method, pair: str) -> str | None:
        """The complaint about a method, or a field of it, that a pair cannot honour; None: there is none.

        Args:
            card: of the pair.
            method: asked for.
            pair: its name, as the user knows it.
        """
        if isinstance(method, Null):
            return None
        if method.name not in self.methods:
            allowed = ", ".join(self.methods)
            return f"method: got {method.name!r}, allowed: {allowed} (the {self.name} family of {pair})"
        if method.uses_draft and not card.drafters:
            return f"method: got {method.name!r}, allowed: plain or null ({pair} has no draft)"
        if (complaint := self._refused(method, "method", self.methods[method.name], pair)) is not None:
            return complaint
        if not isinstance(method, Speculative):
            return None
        if (rule := method.acceptance.rule) not in self.rules:
            return f"method.acceptance.rule: got {rule!r}, allowed: {', '.join(self.rules)} (of {pair})"
        if method.drafter not in card.drafters:
            return f"method.drafter: got {method.drafter!r}, allowed: {' or '.join(card.drafters)} (of {pair})"
        return None

    def refused_at(self, law: SamplerLaw, method: Method) -> str | None:
        """The complaint about a method that the pair can honour, but not at this law; None: there is none."""
        return None

    def _refused(self, settings: BaseModel, place: str, meant: frozenset[str], pair: str) -> str | None:
        for name, known in type(settings).model_fields.items():
            value = getattr(settings, name)
            if name not in meant and name != "name" and value != known.default:
                allowed = f"{known.default!r} ({pair} is of the {self.name} family)"
                return f"{place}.{name}: got {value!r}, allowed: {allowed}"
        return None


def every_field(method: type[BaseModel]) -> frozenset[str]:
    """The fields of a method, for families in which all of them mean something."""
    return frozenset(method.model_fields) - {"name"}
