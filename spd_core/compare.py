"""What a benchmark compares: laws and methods of a pair, by name, and what may be wished of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spd_core.law import Acceptance, Cspd, Guarantee, HeadWindow, Plain, SamplerLaw, Settings, Speculative

#: A law with fewer head steps is not compared with itself at still fewer.
FEWEST_HEAD_STEPS = 20


class Naive(Settings):
    """The direct loop of `spd_core.decode.naive`: a measure for plain decoding, not a method of a job."""

    name: Literal["naive"] = "naive"

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee.EXACT


Compared = Plain | Cspd | Speculative | Naive


@dataclass(frozen=True)
class Entry:
    """One line of the table: a law and a method."""

    law: SamplerLaw
    method: Compared
    label: str  #: the entry's name in the table; several laws may share one

    @property
    def is_base(self) -> bool:
        """Whether this is what the others of its law are held against: plain decoding, one head call a step."""
        return isinstance(self.method, Plain) and not self.method.head_window

    @property
    def head_window(self) -> tuple[int, ...]:
        return () if isinstance(self.method, Naive) else self.method.head_window

    @property
    def acceptance(self) -> Acceptance | None:
        return self.method.acceptance if isinstance(self.method, Speculative) else None


@dataclass(frozen=True)
class Wishes:
    """What a user wishes compared; None: what the family compares by itself.

    The fields are flags of ``spd bench``, which says what each means.
    """

    gamma: Sequence[int] | None = None
    head_window: Sequence[int] | None = None
    head_schedule: Sequence[str] | None = None
    head_steps: Sequence[int] | None = None
    num_iter: Sequence[int] | None = None
    paper_gamma: Sequence[int] | None = None
    ablation: bool | None = None
    stride: int | None = None
    delta: Sequence[float] | None = None
    radius: Sequence[float] | None = None
    tree: Sequence[tuple[int, ...]] | None = None
    drafter: str | None = None
    nu: Sequence[float] | None = None
    lam: Sequence[float] | None = None
    lantern_delta: Sequence[float] | None = None


def label_of(law: SamplerLaw, method: Compared) -> str:
    """A name by law, method and its knobs."""
    parts = [*_name(method)]
    if law.falls:
        parts.append(f"{law.head_steps}-{law.head_steps_end} head steps, {law.head_schedule}")
    if not isinstance(method, Naive) and method.head_window:
        parts.append(f"windows {'/'.join(map(str, method.head_window))}")
    return ", ".join(parts)


def _name(method: Plain | Cspd | Speculative | Naive) -> list[str]:
    if isinstance(method, Naive):
        return ["naive loop"]
    if isinstance(method, Plain):
        return ["plain"]
    if isinstance(method, Cspd):
        noise = [] if method.aligned else ["unaligned"]
        return [f"cspd {method.variant}", f"gamma {method.gamma}", f"pre-fill {method.prefill:g}", *noise]
    rule = method.acceptance
    name = "speculative" if rule == Acceptance() else f"speculative {rule.rule}"
    return [name, *rule.chosen.main_in_words, f"gamma {method.gamma}", f"stride {method.stride}"]


def falling_laws(law: SamplerLaw, schedules: Sequence[str], steps: Sequence[int] | None) -> list[SamplerLaw]:
    """The law with head steps that fall along the image, once for each schedule.

    Args:
        law: the pair's own.
        schedules: as `SamplerLaw.head_schedule`.
        steps: the first and the last number; None: a half and a twentieth of the law's.

    Raises:
        ValidationError: no such schedule, or steps that rise.
    """
    first, last = steps or (max(2, law.head_steps // 2), max(2, law.head_steps // 20))
    changed = {"head_steps": first, "head_steps_end": last}
    return [SamplerLaw.model_validate({**law.model_dump(), **changed, "head_schedule": name}) for name in schedules]


def falling(
    law: SamplerLaw, wishes: Wishes, usual: Sequence[str], windows: Sequence[HeadWindow]
) -> list[tuple[SamplerLaw, Plain]]:
    """Plain at laws with falling head steps, one head call a step and with the last windows, which waste fewest rows.

    Args:
        law: the pair's own.
        wishes: of schedules and steps.
        usual: schedules without a wish, unless the law has so few steps that they hardly could fall.
        windows: of head self-speculation.

    Raises:
        ValueError: schedules were wished for a law that falls already.
        ValidationError: no such schedule, or steps that rise.
    """
    schedules = wishes.head_schedule
    if schedules is None:
        schedules = usual if law.head_steps >= FEWEST_HEAD_STEPS and not law.falls else ()
    if schedules and law.falls:
        raise ValueError(
            f"--head-schedule: got {schedules[0]}, allowed: none with law.head_schedule {law.head_schedule}"
        )
    methods = (Plain(), *(Plain(head_window=window) for window in windows[-1:]))
    return [(at, method) for at in falling_laws(law, schedules, wishes.head_steps) for method in methods]
