"""Slots of a batch: which image each one decodes, how far it is, and which image comes next (continuous batching).

An image that is done gives its slot to the next one that waits. When none waits, the images still at work move to the
first slots and the other slots are given up. What belongs to a slot is copied for no other reason. A device that
records graphs needs few batch sizes. There the number of slots is halved or stays, and an empty slot goes on without an
image.

The host learns by one small copy a round how far the images are.

Shape legend: B images, A slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spd_core import capture
from spd_core.decode.log import Decoded, Meter, TestLog
from spd_core.progress import tell


@dataclass(frozen=True)
class Change:
    """What becomes of the slots after a round, as int64 tensors."""

    ended: Tensor  #: slots whose images are done
    images: Tensor  #: the images that were there
    taken: Tensor  #: those of `ended` that another image gets
    newcomers: Tensor  #: these images
    source: Tensor  #: slots whose image moves, ...
    goal: Tensor  #: ... and where to
    count: int  #: slots that go on
    images_cpu: list[int]  #: `images` on the host


#: The tensors of a `Change`.
CHANGED = ("ended", "images", "taken", "newcomers", "source", "goal")


class Slots:
    """Which image each of A slots has and how far it is, on the host and on the device.

    Args:
        images: B.
        count: A.
        length: tokens of an image.
        device: of the decoding.
    """

    def __init__(self, images: int, count: int, length: int, device: torch.device) -> None:
        self.total, self.length, self.device = images, length, device
        self.images: list[int] = list(range(min(count, images)))  #: of each slot; -1: none
        self.started = len(self.images)  #: images that have been given a slot
        self.image = torch.arange(self.started, device=device)  #: int64 [A]; an empty slot keeps its last image
        self.made = torch.zeros_like(self.image)  #: int64 [A] tokens decided
        self.made_cpu = [0] * len(self.images)  #: `made` on the host
        self.rounds = [0] * images  #: of every image

    def __len__(self) -> int:
        return len(self.images)

    @property
    def working(self) -> list[int]:
        """Slots that have an image."""
        return [slot for slot, image in enumerate(self.images) if image >= 0]

    @property
    def furthest(self) -> int:
        """Most tokens decided of an image that is not done."""
        return max(self.made_cpu[slot] for slot in self.working)

    def advance(self, made_A: Tensor, made_cpu: list[int] | None = None) -> None:
        """Counts a round.

        Args:
            made_A: tokens decided of every slot now.
            made_cpu: the same, where the host knows it; None: the host waits for the device.
        """
        for slot in self.working:
            self.rounds[self.images[slot]] += 1
        self.made = made_A
        self.made_cpu = made_A.tolist() if made_cpu is None else made_cpu

    def change(self) -> Change | None:
        """Gives the slots of finished images to the next ones and returns what changed; None: no image was done."""
        ended = [slot for slot in self.working if self.made_cpu[slot] == self.length]
        if not ended:
            return None
        images_cpu = [self.images[slot] for slot in ended]
        taken = ended[: self.total - self.started]
        newcomers = list(range(self.started, self.started + len(taken)))
        self.started += len(taken)
        for slot in ended:
            self.images[slot] = -1
        for slot, image in zip(taken, newcomers, strict=True):
            self.images[slot], self.made_cpu[slot] = image, 0
        source, goal, count = self._moves()
        lists = (ended, images_cpu, taken, newcomers, source, goal)
        change = Change(**dict(zip(CHANGED, self._tensors(*lists), strict=True)), count=count, images_cpu=images_cpu)
        self.image.index_copy_(0, change.taken, change.newcomers)
        self.made = self.made.index_fill(0, change.taken, 0)
        for old, new in zip(source, goal, strict=True):
            self.images[new], self.made_cpu[new] = self.images[old], self.made_cpu[old]
        self.images, self.made_cpu = self.images[:count], self.made_cpu[:count]
        self.image, self.made = (moved(of, change) for of in (self.image, self.made))
        return change

    def _moves(self) -> tuple[list[int], list[int], int]:
        """Which slots move where, and how many go on."""
        working, count = self.working, len(self)
        if self.device.type not in capture.RECORDED:
            count = len(working)
        elif working:
            while len(working) <= count // 2:
                count //= 2
        source = [slot for slot in working if slot >= count]
        empty = [slot for slot in range(count) if self.images[slot] < 0]
        return source, empty[: len(source)], count

    def _tensors(self, *lists: list[int]) -> tuple[Tensor, ...]:
        """By one copy to the device."""
        together = torch.tensor([number for part in lists for number in part], dtype=torch.int64)
        return together.to(self.device).split([len(part) for part in lists])


def moved(of_slots: Tensor, change: Change, dim: int = 0) -> Tensor:
    """What belongs to the slots along ``dim``, after their images moved; those that are given up are cut off."""
    if len(change.source):
        of_slots.index_copy_(dim, change.goal, of_slots.index_select(dim, change.source))
    return of_slots.narrow(dim, 0, change.count)


class PerSlot(Protocol):
    """What belongs to the slots of a decoding, such as a reader with its cache."""

    def start(self, labels_A: Tensor) -> None:
        """Gives every slot to an image, which begins at position 0."""

    def change(self, change: Change, labels: Tensor) -> None:
        """Gives slots to other images, of ``labels`` [newcomers], and moves or gives up slots."""


class SlotDecoding(ABC):
    """Rounds of a batch whose images advance independently; a finished image's slot goes to the next one.

    Everything that is the same for codes and for continuous tokens is here. What a round is, a subclass says.

    Args:
        labels_B: int64 class labels of all images; below 0: no class.
        count: images decoded together at most.
        length: tokens of an image.
        parts: what belongs to the slots besides the subclass's own tensors.
    """

    def __init__(self, labels_B: Tensor, count: int, length: int, parts: Sequence[PerSlot]) -> None:
        self.labels, self.parts = labels_B, parts
        self.slots = Slots(len(labels_B), count, length, labels_B.device)
        self.meter, self.log = Meter(labels_B.device), TestLog()
        for part in parts:
            part.start(labels_B[: len(self.slots)])

    def run_rounds(self) -> None:
        """Rounds until every image has all of its tokens."""
        tell(0, self.slots.total, "images")
        while self.slots.working:
            self._round()
            change = self.slots.change()
            if change is not None:
                self._collect(change)
                for part in self.parts:
                    part.change(change, self.labels[change.newcomers])
                self._refill(change)
                tell(self.slots.started - len(self.slots.working), self.slots.total, "images")

    def decoded(self, tokens: Tensor, likeliest: Tensor | None = None) -> Decoded:
        """The result; arguments as the fields of `Decoded`."""
        rounds, counts = torch.tensor(self.slots.rounds), dict(self.meter.counts)
        return Decoded(tokens, rounds, self.log.records(), counts, self.meter.seconds(), likeliest)

    @abstractmethod
    def _round(self) -> None:
        """One round of the images in the slots; ends with `Slots.advance`."""

    @abstractmethod
    def _collect(self, change: Change) -> None:
        """Takes the tokens of finished images out of their slots."""

    @abstractmethod
    def _refill(self, change: Change) -> None:
        """Moves the decoding's own tensors with the slots, and prepares the images that came."""
