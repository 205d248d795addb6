"""Slots of a batch: which image each one decodes, how far it is, and who comes next.

An image that is done gives its slot to the next one that waits. When nobody waits, the images still at work move to the
first slots and the rest are given up; what belongs to a slot is never copied for another reason. A device that records
its work needs few batch sizes: there only halves are given up, and slots in between go on without an image.

The host learns how far the images are by one small copy a round, and decides by it.

Shape legend: B images, A slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spd_core import capture


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
    gone: list[int]  #: `images` as the host knows them


#: The tensors of a `Change`.
CHANGED = ("ended", "images", "taken", "newcomers", "source", "goal")


class Slots:
    """The host's and the device's books of A slots.

    Args:
        images: B.
        count: A.
        length: tokens of an image.
        device: of the decoding.
    """

    def __init__(self, images: int, count: int, length: int, device: torch.device) -> None:
        self.total, self.length, self.device = images, length, device
        self.images: list[int] = list(range(min(count, images)))  #: of each slot; -1: none
        self.known = [0] * len(self.images)  #: tokens decided of each, as the host knows
        self.seated = len(self.images)  #: images that have been given a slot
        self.image = torch.arange(self.seated, device=device)  #: int64 [A]; an empty slot keeps its last image
        self.made = torch.zeros_like(self.image)  #: int64 [A] tokens decided
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
        return max(self.known[slot] for slot in self.working)

    def advance(self, made_A: Tensor, known: list[int] | None = None) -> None:
        """Counts a round.

        Args:
            made_A: tokens decided of every slot now.
            known: the same, where the host knows; None: it waits for the device.
        """
        for slot in self.working:
            self.rounds[self.images[slot]] += 1
        self.made = made_A
        self.known = made_A.tolist() if known is None else known

    def change(self) -> Change | None:
        """Who leaves, comes and moves after a round; None: nobody. The slots are changed by it."""
        ended = [slot for slot in self.working if self.known[slot] == self.length]
        if not ended:
            return None
        gone = [self.images[slot] for slot in ended]
        taken = ended[: self.total - self.seated]
        newcomers = list(range(self.seated, self.seated + len(taken)))
        self.seated += len(taken)
        for slot in ended:
            self.images[slot] = -1
        for slot, image in zip(taken, newcomers, strict=True):
            self.images[slot], self.known[slot] = image, 0
        source, goal, count = self._moves()
        lists = (ended, gone, taken, newcomers, source, goal)
        change = Change(**dict(zip(CHANGED, self._tensors(*lists), strict=True)), count=count, gone=gone)
        self.image.index_copy_(0, change.taken, change.newcomers)
        self.made = self.made.index_fill(0, change.taken, 0)
        for old, new in zip(source, goal, strict=True):
            self.images[new], self.known[new] = self.images[old], self.known[old]
        self.images, self.known = self.images[:count], self.known[:count]
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
