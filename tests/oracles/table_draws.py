"""Random numbers looked up in an oracle's tables, behind the interface of `spd_core.draws.Draws`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from spd_core.draws import Draws, Purpose
from tests.oracles.base import OracleError


@dataclass(frozen=True)
class RoundTable:
    """Numbers of one verification, by row; ``index`` says which (image, token) a row belongs to."""

    index: Tensor  #: int64 [n, 2]
    accept: Tensor  #: [n]
    proposal: Tensor  #: [tries, n, D]
    keep: Tensor  #: [tries, n]


@dataclass(frozen=True)
class Request:
    """One call: what was asked for, for which rows."""

    purpose: Purpose
    image: Tensor
    token: Tensor


@dataclass
class TableDraws(Draws):
    """Draws of a batch of B images of N tokens of D dims from tables.

    A row or attempt the tables do not hold gives NaN, which no tolerance admits.
    """

    order: Tensor  #: int64 [B, N]
    start: Tensor  #: [B, N, D]
    step: Tensor  #: [B, N, S, D], entry k belongs to respaced step k
    rounds: tuple[RoundTable, ...] = ()
    requests: list[Request] = field(default_factory=list)  #: every call so far

    def __post_init__(self) -> None:
        super().__init__(torch.arange(len(self.order)))
        expected = torch.arange(self.order.shape[1]).expand_as(self.order)
        if not torch.equal(self.order.sort(dim=1).values, expected):
            raise OracleError("inputs orders: got rows that are no permutations, allowed: a permutation per image")

    def orders(self, tokens: int) -> Tensor:
        if tokens != self.order.shape[1]:
            raise OracleError(f"inputs orders: got {self.order.shape[1]} tokens, allowed: {tokens} (the model's)")
        return self.order

    def normals(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int,
        round_R: Tensor | int = 0,
        attempt: Tensor | int = 0,
    ) -> Tensor:
        self.requests.append(Request(purpose, image_R, token_R))
        if purpose is Purpose.START:
            values = self.start[image_R, token_R]
        elif purpose is Purpose.STEP:
            values = self.step[image_R, token_R].flatten(1)
        elif purpose is Purpose.PROPOSAL:
            values = self._looked_up("proposal", image_R, token_R, round_R, attempt, count)
        else:
            raise OracleError(f"draws: got {purpose.name}, allowed: START, STEP, PROPOSAL (the tables' normals)")
        if values.shape[1] != count:
            raise OracleError(f"inputs noise: got {values.shape[1]} numbers per token, allowed: {count} (the model's)")
        return values

    def uniforms(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int = 1,
        round_R: Tensor | int = 0,
        attempt: Tensor | int = 0,
    ) -> Tensor:
        self.requests.append(Request(purpose, image_R, token_R))
        names = {Purpose.ACCEPT: "accept", Purpose.PROPOSAL_KEEP: "keep"}
        if purpose not in names or count != 1:
            raise OracleError(f"draws: got {count} of {purpose.name}, allowed: 1 of ACCEPT or PROPOSAL_KEEP")
        return self._looked_up(names[purpose], image_R, token_R, round_R, attempt, 1)

    def _looked_up(
        self, name: str, image_R: Tensor, token_R: Tensor, round_R: Tensor | int, attempt: Tensor | int, count: int
    ) -> Tensor:
        """[R, count] numbers of each row's own round."""
        rounds, tries = (x.tolist() if isinstance(x, Tensor) else [x] * len(image_R) for x in (round_R, attempt))
        values = torch.full((len(image_R), count), torch.nan)
        rows = enumerate(zip(rounds, tries, image_R.tolist(), token_R.tolist(), strict=True))
        for row, (number, attempt, image, token) in rows:
            if number >= len(self.rounds):
                continue
            table = self.rounds[number]
            held = getattr(table, name)
            held = held[None] if name == "accept" else held
            at = (table.index == torch.tensor([image, token])).all(dim=1).nonzero()
            if len(at) and attempt < len(held):
                values[row] = held[attempt, int(at[0])]
        return values
