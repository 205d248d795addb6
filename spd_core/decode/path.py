"""Denoising paths of tokens: one head at one law, evaluated at any mix of tokens and steps.

A path is the states y_S, ..., y_0 of a token. Step k takes y_k to y_{k-1} = mean + std * noise. The mean is
``c_x0[k] x0 + c_x[k] y_k`` with the head's prediction x0 at y_k. MAR heads predict eps and a variance, causal heads the
velocity at a fixed variance (`spd_core.families.causal.model` says why).

Shape legend: R rows (tokens being made), M evaluations, K steps of a path in the order they are made, S all steps,
D token dims, Z context dims, W head width, L steps of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from spd_core.capture import Captured, cached_on, recorded
from spd_core.draws import Draws, Purpose
from spd_core.law import SamplerLaw
from spd_core.models.head import Head, StepModulation
from spd_core.models.linear import Linear
from spd_core.models.variance import PosteriorVariance
from spd_core.precision import at_precision

#: Rows of one head call; more are evaluated in chunks, which bounds the memory of their modulations.
HEAD_ROWS = 4096
#: Residual proposals of a block; a path needs about one proposal for each step tested.
PROPOSALS = 128
#: Blocks of a path's proposals that are drawn ahead, and the most rows for which they are.
STOCK = (2, 16)


def by_steps(law: SamplerLaw, index_R: Tensor, count: int) -> Iterator[tuple[SamplerLaw, Tensor | slice]]:
    """The rows made at each number of head steps, most steps first.

    Args:
        law: what is sampled.
        index_R: int64, the iteration (MAR) or token (causal) that each row belongs to, 0-based.
        count: iterations or tokens of an image.

    Yields:
        the law with that constant number, and which rows they are. A law whose steps do not fall gives all rows at
        once and asks the device nothing.
    """
    if not law.falls:
        yield law, slice(None)
        return
    steps = torch.tensor([law.steps_at(index, count) for index in range(count)], device=index_R.device)[index_R]
    for number in reversed(steps.unique().tolist()):
        yield law.with_steps(number), (steps == number).nonzero()[:, 0]


@dataclass(frozen=True)
class Prediction:
    """The head's prediction at a state: the token, and for a learned variance its place between the two bounds."""

    x0: Tensor  #: [..., D]
    v: Tensor | None  #: [..., D]; None: the variance is fixed


class LawHead:
    """A head at a law: its step embeddings and constants, shared by all tokens of a decoding.

    Args:
        head: the head.
        law: what is sampled. If head steps fall along the image, this object has those of the image's beginning; `at`
            gives the others.
        of: the same head at a law with other head steps; what does not depend on them is taken from there.
    """

    def __init__(self, head: Head, law: SamplerLaw, of: LawHead | None = None) -> None:
        law = law.at(0, 2)
        self.head = head = at_precision(head, law.dtype)
        self.law = law
        self._by_steps: dict[int, LawHead] = {law.head_steps: self} if of is None else of._by_steps
        #: functions recorded of it, and how many rounds of head self-speculation its last call needed
        self.captured: dict[Hashable, Captured] = {}
        self.expected: dict[Hashable, int] = {}
        self.learned_variance = head.out_channels == 2 * head.in_channels
        self.table = head.steps(law)
        self.step_embeddings = head.embeddings(self.table)
        self.modulation: Linear = head.fused_modulation() if of is None else of.modulation
        self.variance = head.variance
        if self.variance is not None:
            self.level_embeddings = self.variance.level_embeddings(self.table.timesteps)
        #: [S] std of a fixed variance with temperature, 0 at the noiseless last step
        self.fixed_std = self.table.fixed_std * self.table.noisy * law.temperature
        #: [S] difference of two means in stds per difference of their x0
        self.shift_per_x0 = self.table.c_x0 / (self.table.fixed_std * law.temperature)
        #: [S] what a step's unit noise moves x0, per relative variance: T (c_x0 / s) (1 - abar); 0 at the last step
        self.gain_per_variance = (
            law.temperature * self.table.noisy * self.table.c_x0 / self.table.fixed_std * self.table.noise.square()
        )

    @classmethod
    def of(cls, head: Head, law: SamplerLaw) -> LawHead:
        """The head at a law. A device that records graphs gets the same object every time, with its graphs."""
        if not recorded(head.device):
            return cls(head, law)
        return cached_on(at_precision(head, law.dtype), ("law", law), lambda: cls(head, law))

    @cached_property
    def fixed_std_list(self) -> list[float]:
        """`fixed_std` on the host, copied once."""
        return list(self.fixed_std.tolist())

    def at(self, law: SamplerLaw) -> LawHead:
        """The head at a law that differs in the number of head steps only; built once for each number."""
        if law.head_steps not in self._by_steps:
            self._by_steps[law.head_steps] = LawHead(self.head, law, of=self)
        return self._by_steps[law.head_steps]

    @property
    def guided_rows(self) -> int:
        """Head rows per evaluation: two under guidance."""
        return 1 + (self.law.cfg != 1.0)

    def evaluate(self, y_MD: Tensor, modulation: Tensor) -> Tensor:
        """Raw head output [M, out_channels], under guidance [2 M, out_channels], of rows at any steps."""
        return self.head.apply_step(y_MD, self.head.split_modulation(modulation))

    def modulate(self, embedding: Tensor) -> Tensor:
        """Fused modulations of (time embedding + condition) rows."""
        return self.modulation(F.silu(embedding))

    def gains(self, variance: PosteriorVariance, k: Tensor, embedding: Tensor) -> Tensor:
        """[..., D] along the variance's axes: what a unit of step k's noise moves x0; ``embedding`` is [..., W]."""
        return variance.relative(embedding) * self.gain_per_variance[k][..., None]

    def bind(self, z: Tensor, scale: float | Tensor) -> BoundHead:
        """The head given the rows' contexts.

        Args:
            z: [R, Z], under guidance [2 R, Z] with the conditional rows first.
            scale: guidance weight, one number or one per row [R, 1].
        """
        return BoundHead(self, z, scale)


class BoundHead:
    """A head bound to the contexts of R rows."""

    def __init__(self, at_law: LawHead, z: Tensor, scale: float | Tensor) -> None:
        self.at_law = at_law
        self.table = at_law.table
        self.z = z
        self.scale = scale
        self._lowest = 0
        self._table: Tensor | None = None
        self._gains: Tensor | None = None

    @property
    def equal_stds(self) -> bool:
        """Whether two predictions at one state differ in their means only."""
        return not self.at_law.learned_variance

    @cached_property
    def condition(self) -> Tensor:
        return self.at_law.head.condition(self.z)

    def predict(self, row_M: Tensor, k_M: Tensor, y_MD: Tensor) -> Prediction:
        """Predictions at states ``y_MD`` of rows ``row_M`` before steps ``k_M``: one head call, whatever the mix."""
        parts = [
            self._predict(*chunk)
            for chunk in zip(*(t.split(HEAD_ROWS // self.at_law.guided_rows) for t in (row_M, k_M, y_MD)), strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        v = torch.cat([p.v for p in parts if p.v is not None]) if self.at_law.learned_variance else None
        return Prediction(torch.cat([p.x0 for p in parts]), v)

    def _predict(self, row: Tensor, k: Tensor, y: Tensor) -> Prediction:
        if self.at_law.guided_rows == 1:
            return self._prediction(self.at_law.evaluate(y, self._modulations(row, k)), k[:, None], y)
        both = torch.cat([row, row + len(self.condition) // 2])
        out = self.at_law.evaluate(y, self._modulations(both, torch.cat([k, k])))
        scale = self.scale[row] if isinstance(self.scale, Tensor) else self.scale
        return self._prediction(self.guided(out, scale), k[:, None], y)

    def _modulations(self, row: Tensor, k: Tensor) -> Tensor:
        if self._table is not None:
            return self._table.index_select(0, (k - self._lowest) * len(self.condition) + row)
        return self.at_law.modulate(self.at_law.step_embeddings[k] + self.condition[row])

    def hoist(self, first: int, last: int) -> None:
        """Computes the modulations of all rows at steps ``first`` to ``last`` by one product.

        The caller must ask for no other step afterwards. It pays where a caller reads nearly every step of every row,
        many of them more than once, a few rows at a time. Above `HEAD_ROWS` rows and steps the table would be too
        large; then nothing is computed ahead, and every later call computes what it needs.
        """
        if self._table is None and len(self.condition) * (first - last + 1) <= HEAD_ROWS:
            self._lowest, at = last, slice(last, first + 1)
            self._table = self.at_law.modulate(self.at_law.step_embeddings[at, None] + self.condition).flatten(0, 1)
            if self.at_law.variance is not None:
                k = torch.arange(last, first + 1, device=self.z.device)[:, None]
                embedding = self.at_law.level_embeddings[at, None] + self._certainty
                self._gains = self.at_law.gains(self.at_law.variance, k, embedding)

    @cached_property
    def _certainty(self) -> Tensor:
        """[R, W]: the conditional rows' part of what the variance is read from."""
        variance = self.at_law.variance
        if variance is None:
            raise ValueError("variance: got none, allowed: a head that has one")
        return variance.condition(self.z[: len(self.z) // self.at_law.guided_rows])

    def prior_mean(self) -> Tensor:
        """[R, D] predictions before the first head call: the token's mean given its context or, if unknown, 0."""
        if self.at_law.variance is None:
            return self.z.new_zeros(len(self.z) // self.at_law.guided_rows, self.at_law.head.in_channels)
        return self.at_law.variance.prior_mean(self.z[: len(self.z) // self.at_law.guided_rows])

    def moved(self, row: Tensor, k: Tensor, noise: Tensor) -> Tensor:
        """How far [..., D] the prediction moves with the noise [..., D] of step k; 0 if its variance is not known.

        ``row`` and ``k`` have the shape of ``noise`` without its last dim, or one that broadcasts to it.
        """
        variance = self.at_law.variance
        if variance is None:
            return torch.zeros_like(noise)
        if self._gains is not None:
            gains = self._gains[k - self._lowest, row]
        else:
            gains = self.at_law.gains(variance, k, self.at_law.level_embeddings[k] + self._certainty[row])
        return (noise @ variance.axes * gains) @ variance.axes.T

    def follow(self, row_R: Tensor, k_RL: Tensor, x0_RD: Tensor, noise_RLD: Tensor) -> Tensor:
        """Predictions [R, L, D] before each step of ``k_RL``: the first one, moved with the noise; no head calls."""
        if self.at_law.variance is None:
            return x0_RD[:, None].expand_as(noise_RLD)
        moves = self.moved(row_R[:, None], k_RL, noise_RLD)
        return x0_RD[:, None] + moves.cumsum(dim=1) - moves

    def followed(self, row_R: Tensor, k_L: Tensor, x0_RD: Tensor, states_RLD: Tensor) -> Tensor:
        """`follow` on given states instead of given noise: what a draft that holds x0 would have predicted there."""
        if self.at_law.variance is None:
            return x0_RD[:, None].expand_as(states_RLD)
        x0, made = x0_RD, [x0_RD]
        for step, (y, after) in enumerate(pairwise(states_RLD.unbind(dim=1))):
            k = k_L[..., step]
            noise = (after - self.mean(k, x0, y)) / self.std(k, None)
            x0 = x0 + self.moved(row_R, k, noise)
            made.append(x0)
        return torch.stack(made, dim=1)

    def guided(self, out: Tensor, scale: float | Tensor) -> Tensor:
        """The guided output; guidance acts on the prediction alone, and a learned variance is the conditional row's."""
        dims = self.at_law.head.in_channels
        cond, null = out.chunk(2)
        return torch.cat([torch.lerp(null[:, :dims], cond[:, :dims], scale), cond[:, dims:]], dim=-1)

    def _prediction(self, out: Tensor, k: Tensor | int, y: Tensor) -> Prediction:
        t = self.table
        if self.at_law.learned_variance:
            eps, v = out.chunk(2, dim=-1)
            return Prediction(t.sqrt_recip[k] * y - t.sqrt_recipm1[k] * eps, v)
        return Prediction(t.signal[k] * y - t.noise[k] * out, None)

    def log_std(self, k: Tensor, v: Tensor) -> Tensor:
        """log std of a learned variance before temperature; ``k`` has the shape of ``v`` without its last dim."""
        return v * self.table.v_scale[k][..., None] + self.table.log_std_mid[k][..., None]

    def std(self, k: Tensor, v: Tensor | None) -> Tensor:
        """std [..., D] or, if fixed, [..., 1] of the noise of steps ``k``, with temperature; 0 at the last step."""
        if v is None:
            return self.at_law.fixed_std[k][..., None]
        return self.log_std(k, v).exp() * (self.table.noisy[k][..., None] * self.at_law.law.temperature)

    def mean(self, k: Tensor, x0: Tensor, y: Tensor) -> Tensor:
        return self.table.c_x0[k][..., None] * x0 + self.table.c_x[k][..., None] * y

    def shift(self, k: Tensor, own_x0: Tensor, other_x0: Tensor, own_std: Tensor | None = None) -> Tensor:
        """(own mean - other mean) / own std [..., D] of two predictions at one state; at step 0 it means nothing.

        ``own_std`` is that of a learned variance with temperature; None: the fixed one.
        """
        if own_std is None:
            return self.at_law.shift_per_x0[k][..., None] * (own_x0 - other_x0)
        noiseless = 1 - self.table.noisy[k][..., None]
        return self.table.c_x0[k][..., None] / (own_std + noiseless) * (own_x0 - other_x0)

    def roll(self, k_RL: Tensor, y_RD: Tensor, x0_RLD: Tensor, noise_RLD: Tensor) -> Tensor:
        """States [R, L, D] after each step of ``k_RL`` by the predictions ``x0_RLD``; ``noise_RLD`` carries its std.

        ``k_RL`` descends by one; a row may repeat its last step as padding, and the padding means nothing.
        """
        carry = self.table.carry[k_RL[:, :, None], k_RL[:, None, :]].tril()
        drift = torch.addcmul(noise_RLD, self.table.c_x0[k_RL][..., None], x0_RLD)
        drift[:, 0] += self.table.c_x[k_RL[:, 0]][..., None] * y_RD
        return carry @ drift


@dataclass(frozen=True)
class PathNoise:
    """The random numbers of R paths."""

    start: Tensor  #: [R, D]
    step: Tensor  #: [R, K', D]; entry k - offset belongs to step k
    offset: int = 0  #: the lowest step that has noise here

    def of_steps(self, row: Tensor, k: Tensor) -> Tensor:
        """Noise of steps ``k`` (any shape, ``row`` broadcasting with it)."""
        return self.step[row, k - self.offset]


@dataclass(frozen=True)
class HeadDraws:
    """Counter-based random numbers of head self-speculation on R paths.

    Args:
        salt: int64 [R], tells the paths of one token apart: 0 for that of plain decoding, 1, 2, ... for proposals.
    """

    draws: Draws
    image: Tensor
    token: Tensor
    salt: Tensor
    steps: int
    #: [R, S] what `uniforms` gives, where it was drawn for more rows at once
    drawn: Tensor | None = None
    #: what `first_proposals` gives, likewise
    stock: tuple[Tensor, Tensor] | None = None

    def uniforms(self) -> Tensor:
        """[R, S], one per step of the path."""
        if self.drawn is not None:
            return self.drawn
        return self.draws.uniforms(Purpose.HEAD_ACCEPT, self.image, self.token, self.steps, self.salt)

    def ahead(self, dims: int | None = None) -> HeadDraws:
        """The same numbers, of which those that are always used are drawn now, for all parts that `of` gives later.

        Args:
            dims: also the first proposals for residuals of so many dims, if the rows are few.
        """
        stock = self.first_proposals(dims) if dims is not None and len(self.salt) <= STOCK[1] else None
        return replace(self, drawn=self.uniforms(), stock=stock)

    def of(self, rows: slice | Tensor) -> HeadDraws:
        """Those of some rows."""
        drawn = None if self.drawn is None else self.drawn[rows]
        stock = None if self.stock is None else (self.stock[0][rows], self.stock[1][rows])
        return HeadDraws(self.draws, self.image[rows], self.token[rows], self.salt[rows], self.steps, drawn, stock)

    def first_proposals(self, dims: int) -> tuple[Tensor, Tensor]:
        """Normals [R, H, D] and uniforms [R, H] for residuals: the first block of every path, of few rows `STOCK`."""
        rows = len(self.salt)
        if self.stock is not None:
            return self.stock
        block = torch.arange(STOCK[0] if rows <= STOCK[1] else 1, device=self.salt.device)
        row = torch.arange(rows, device=self.salt.device).repeat_interleave(len(block))
        normals, uniforms = self.proposals(row, block.repeat(rows), dims)
        return normals.view(rows, -1, dims), uniforms.view(rows, -1)

    def proposals(self, row: Tensor, block: Tensor, dims: int) -> tuple[Tensor, Tensor]:
        """Normals [M, P, D] and uniforms [M, P]: block number 0, 1, 2, ... of a path's proposals."""
        number = self.salt[row] + (block << 16)
        return self.draws.proposals(Purpose.HEAD_PROPOSAL, self.image[row], self.token[row], PROPOSALS, dims, number)


@dataclass(frozen=True)
class Trace:
    """A path step by step, in the order the steps were made."""

    states: Tensor  #: [R, K, D] before each step
    x0: Tensor  #: [R, K, D] the prediction that made the step
    noise: Tensor  #: [R, K, D] (state after - mean) / std; means nothing at the noiseless last step


@dataclass(frozen=True)
class Path:
    """R paths or parts of paths."""

    end: Tensor  #: [R, D]
    x0: Tensor  #: [R, D] the newest prediction, moved with the noise drawn since
    calls: int  #: sequential head calls
    rows: int  #: head rows, a guided evaluation counting once
    trace: Trace | None


@dataclass(frozen=True)
class TracedPath(Path):
    """R paths whose steps are all known."""

    trace: Trace


def steps_down(first: int, last: int, device: torch.device) -> Tensor:
    """int64 [K]: first, first - 1, ..., last."""
    return torch.arange(first, last - 1, -1, device=device)


def walk(head: BoundHead, y_RD: Tensor, first: int, last: int, noise: PathNoise, trace: bool = False) -> Path:
    """The path from y before step ``first`` to the state after step ``last``, one fixed-variance head call a step.

    Everything that does not depend on y is computed for many steps at once. A device that records launches all steps
    at once.
    """
    if recorded(y_RD.device):
        made = on_rows("path", _walked, head, y_RD, noise, first=first, last=last, trace=trace)
    else:
        made = _walked(head, y_RD, noise, first, last, trace)
    end, x0, *states = made
    return Path(end, x0, first - last + 1, len(end) * (first - last + 1), Trace(*states) if trace else None)


def _walked(head: BoundHead, y_RD: Tensor, noise: PathNoise, first: int, last: int, trace: bool) -> tuple[Tensor, ...]:
    """End, newest prediction and, with a trace, states, predictions and noise of every step."""
    steps = head.at_law.law.head_steps
    coefficients = head.table.path[steps - 1 - first : steps - last]
    std = head.at_law.fixed_std_list
    y, x0, states, predictions = y_RD, y_RD, [], []
    for step, modulation in zip(coefficients, _modulations(head, first, last), strict=True):
        out = head.at_law.head.apply_step(y, modulation)
        if head.at_law.guided_rows == 2:
            out = head.guided(out, head.scale)
        x0 = torch.sub(y / step.sqrt_recip, out, alpha=step.sqrt_recipm1 / step.sqrt_recip)
        if trace:
            states.append(y)
            predictions.append(x0)
        y = torch.add(x0 * step.c_x0, y, alpha=step.c_x)
        if not step.noiseless:
            y = torch.add(y, noise.step[:, step.k - noise.offset], alpha=std[step.k])
    if not trace:
        return y, x0
    row = torch.arange(len(y), device=y.device)[:, None]
    made = noise.of_steps(row, steps_down(first, last, y.device)[None])
    return y, x0, torch.stack(states, dim=1), torch.stack(predictions, dim=1), made


def on_rows(
    name: str,
    function: Callable[..., tuple[Tensor, ...]],
    head: BoundHead,
    y_RD: Tensor,
    noise: PathNoise,
    **constants: Hashable,
) -> tuple[Tensor, ...]:
    """The results of a function of paths, recorded as graphs for numbers of rows that are powers of two, with padding.

    Args:
        name: under which its graphs are listed.
        function: of a head, states and noise, and constants; returns tensors [R, ...].
        head: bound to the rows' contexts.
        y_RD: states to start from.
        noise: of the rows.
        constants: whatever else decides what the function does.
    """
    at_law, rows = head.at_law, len(y_RD)
    more = (1 << (rows - 1).bit_length()) - rows
    scale = head.scale if isinstance(head.scale, Tensor) else y_RD.new_full((rows, 1), head.scale)
    z = F.pad(head.z.unflatten(0, (-1, rows)), (0, 0, 0, more)).flatten(0, 1)
    given = (z, F.pad(scale, (0, 0, 0, more)), F.pad(y_RD, (0, 0, 0, more)), F.pad(noise.step, (0, 0, 0, 0, 0, more)))

    def run(
        z: Tensor, scale: Tensor, y: Tensor, step: Tensor, offset: int, **constants: Hashable
    ) -> tuple[Tensor, ...]:
        return function(at_law.bind(z, scale), y, PathNoise(y, step, offset), **constants)

    captured = at_law.captured.setdefault(name, Captured(run, name))
    # Copies, for the next call writes over the graph's own.
    return tuple(made[:rows].clone() for made in captured(*given, offset=noise.offset, **constants))


def _modulations(head: BoundHead, first: int, last: int) -> Iterator[StepModulation]:
    """The modulations of all rows for steps ``first`` down to ``last``, many steps by one product."""
    rows, at_law = len(head.condition), head.at_law
    for k in steps_down(first, last, head.condition.device).split(max(1, HEAD_ROWS // 2 // rows)):
        fused = at_law.modulate(at_law.step_embeddings[k, None] + head.condition)
        yield from map(at_law.head.split_modulation, fused.unbind())


@lru_cache(maxsize=256)
def windows_by_step(windows: tuple[int, ...], steps: int, device: torch.device) -> Tensor:
    """int64 [S]: the window length at each step k, the path cut into as many equal slices as there are ``windows``."""
    done = torch.arange(steps - 1, -1, -1, device=device)
    return torch.tensor(windows, device=device)[done * len(windows) // steps]
