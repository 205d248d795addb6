"""What every MAR decoder is made of: the mask schedule, guided context vectors, and one token's denoising path.

Shape legend: B images, N tokens of an image, D token dims, Z context dims, R rows (tokens being made), S head steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spd_core.capture import Captured, cached_on, filled, recorded
from spd_core.decode.head_speculation import Lookahead, speculate_head
from spd_core.decode.log import Meter
from spd_core.decode.path import HeadDraws, PathNoise, by_steps
from spd_core.diffusion import diffusion, guide, step_log_std, step_mean
from spd_core.draws import Draws, Purpose
from spd_core.families.mar.model import Mar
from spd_core.law import SamplerLaw
from spd_core.models.head import DiffusionHead
from spd_core.precision import at_precision

#: Rows whose random numbers are drawn at once, where the tokens of one iteration are fewer.
DRAWN_AHEAD = 16


def mask_lengths(tokens: int, num_iter: int) -> list[int]:
    """Tokens still masked after each iteration: ``max(1, min(masked - 1, floor(N cos(pi/2 (s+1)/num_iter))))``.

    The last entry is 1 although the last iteration makes everything that is left: guidance uses the table's value.
    """
    lengths, masked = [], tokens
    for step in range(num_iter):
        cosine = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / num_iter))
        masked = max(1, min(masked - 1, cosine))
        lengths.append(masked)
    return lengths


def left_after(lengths: Sequence[int]) -> list[int]:
    """Tokens really left after each iteration: `mask_lengths` with the last entry 0."""
    return [*lengths[:-1], 0]


def guidance_scale(law: SamplerLaw, tokens: int, mask_length: int) -> float:
    """Guidance weight of an iteration that leaves ``mask_length`` tokens masked."""
    if law.cfg_schedule == "constant":
        return law.cfg
    return 1.0 + (law.cfg - 1.0) * (tokens - mask_length) / tokens


@dataclass(frozen=True)
class Iteration:
    """One iteration of the mask schedule."""

    step: int  #: 0-based
    masked: int  #: tokens still masked before it
    left: int  #: and after it; as many as before: the iteration makes nothing
    scale: float  #: guidance weight


def schedule(law: SamplerLaw, tokens: int) -> list[Iteration]:
    """All iterations of an image of so many tokens."""
    lengths = mask_lengths(tokens, law.num_iter)
    left = left_after(lengths)
    before = [tokens, *left[:-1]]
    scales = [guidance_scale(law, tokens, length) for length in lengths]
    return [Iteration(step, *of) for step, of in enumerate(zip(before, left, scales, strict=True))]


@dataclass(frozen=True)
class TokenRows:
    """The rows of an iteration: which token of which image, in image-major order."""

    image: Tensor  #: int64 [R]
    token: Tensor  #: int64 [R], raster index

    def __len__(self) -> int:
        return len(self.image)


def rows_of(order_BN: Tensor, left: int, masked: int) -> TokenRows:
    """Rows of the iteration that goes from ``masked`` masked tokens to ``left``, the same for every image."""
    token = order_BN[:, left:masked]
    image = torch.arange(len(order_BN), device=order_BN.device)[:, None].expand_as(token)
    return TokenRows(image.flatten(), token.flatten())


@dataclass(frozen=True)
class RowDraws:
    """The random numbers of R rows' denoising paths."""

    noise: PathNoise
    head: HeadDraws  #: for head self-speculation

    @staticmethod
    def of(
        draws: Draws,
        law: SamplerLaw,
        rows: TokenRows,
        dims: int,
        speculates: bool,
        purposes: tuple[Purpose, Purpose] = (Purpose.START, Purpose.STEP),
    ) -> RowDraws:
        """Draws them; what only head self-speculation needs, if it ``speculates``."""
        start = draws.normals(purposes[0], rows.image, rows.token, dims)
        step = draws.normals(purposes[1], rows.image, rows.token, law.head_steps * dims)
        salt = torch.full_like(rows.token, int(purposes != (Purpose.START, Purpose.STEP)))
        head = HeadDraws(draws, rows.image, rows.token, salt, law.head_steps)
        noise = PathNoise(start, step.view(-1, law.head_steps, dims))
        return RowDraws(noise, head.ahead(dims) if speculates else head)

    def at(self, rows: Tensor) -> RowDraws:
        """Those of some rows."""
        return RowDraws(PathNoise(self.noise.start[rows], self.noise.step[rows]), self.head.of(rows))


def _stretches(law: SamplerLaw, tokens: int) -> list[tuple[int, SamplerLaw]]:
    """The law of each stretch of iterations with the same head steps, and the tokens masked after it; first to last."""
    if not law.falls:
        return [(0, law)]
    left: dict[SamplerLaw, int] = {}
    for step, masked in enumerate(left_after(mask_lengths(tokens, law.num_iter))):
        left[law.at(step, law.num_iter)] = masked
    return [(masked, constant) for constant, masked in left.items()]


class OrderDraws:
    """The random numbers of a batch whose tokens are made in an order known beforehand.

    A draw costs about the same for one row as for a dozen, so small iterations are drawn several at a time, those whose
    heads make the same number of steps.

    Args:
        draws: of the images.
        law: what is sampled.
        tokens: of an image.
        dims: of a token.
        speculates: whether heads run ahead of themselves.
    """

    def __init__(self, draws: Draws, law: SamplerLaw, tokens: int, dims: int, speculates: bool) -> None:
        self.order = draws.orders(tokens)  #: int64 [B, N], made from the end
        self._draw = partial(RowDraws.of, draws, dims=dims, speculates=speculates)
        self._stretches = _stretches(law, tokens)
        self._low, self._high = tokens, tokens  # the part of the order that is drawn
        self._drawn: RowDraws | None = None

    def of(self, left: int, masked: int) -> tuple[TokenRows, RowDraws]:
        """The rows of the iteration from ``masked`` masked tokens to ``left``, and their random numbers."""
        batch = len(self.order)
        if self._drawn is None or not self._low <= left < masked <= self._high:
            lowest, law = next(part for part in self._stretches if part[0] < masked)
            self._low, self._high = min(left, max(lowest, masked - DRAWN_AHEAD // batch)), masked
            self._drawn = self._draw(law, rows_of(self.order, self._low, self._high))
        at = torch.arange(batch * (self._high - self._low), device=self.order.device).view(batch, -1)
        here = at[:, left - self._low : masked - self._low].flatten()
        return rows_of(self.order, left, masked), self._drawn.at(here)


@dataclass(frozen=True)
class Contexts:
    """Context vectors [B, N, Z] of the conditional rows and, under guidance, of the null rows; or those wanted."""

    cond: Tensor
    null: Tensor | None

    def stacked(self, rows: TokenRows) -> Tensor:
        """[R, Z] or, under guidance, [2 R, Z] with the conditional rows first; of all tokens' vectors."""
        parts = [self.cond] if self.null is None else [self.cond, self.null]
        return torch.cat([part[rows.image, rows.token] for part in parts])

    def flat(self) -> Tensor:
        """Every vector, image-major, otherwise like `stacked`."""
        parts = [self.cond] if self.null is None else [self.cond, self.null]
        return torch.cat([part.flatten(0, 1) for part in parts])


def contexts(
    model: Mar,
    law: SamplerLaw,
    tokens_BND: Tensor,
    visible_BV: Tensor,
    labels_B: Tensor,
    counts_B: Tensor | None = None,
    wanted_BQ: Tensor | None = None,
) -> Contexts:
    """One transformer pass over the batch (conditional and null rows together under guidance); z is float32.

    Arguments as for `Mar.forward`; the model is the one for the law's precision (`spd_core.precision`).
    """
    guided = law.cfg != 1.0
    if guided:
        tokens_BND, visible_BV = tokens_BND.repeat(2, 1, 1), visible_BV.repeat(2, 1)
        labels_B = torch.cat([labels_B, torch.full_like(labels_B, -1)])
        counts_B = counts_B.repeat(2) if counts_B is not None else None
        wanted_BQ = wanted_BQ.repeat(2, 1) if wanted_BQ is not None else None
    z = model(tokens_BND, visible_BV, labels_B, counts_B, wanted_BQ).float()
    return Contexts(*z.chunk(2)) if guided else Contexts(z, None)


@dataclass(frozen=True)
class TokenPaths:
    """End of R denoising paths, and what CSpD needs to know of the way."""

    x0: Tensor  #: [R, D] the tokens: mean of the noiseless last step
    last_std: Tensor  #: [R, D] std the last step would have had, times temperature
    log_std_sum: Tensor  #: [R, D] sum of log std over the noisy steps, without temperature
    head_calls: int = 0  #: sequential
    head_rows: int = 0  #: a guided evaluation counting once

    @staticmethod
    def concatenate(parts: Sequence[TokenPaths], at_R: Tensor) -> TokenPaths:
        """The rows of all parts in the order ``at_R``; calls and rows of the head are not carried over."""
        x0, last_std = torch.cat([part.x0 for part in parts]), torch.cat([part.last_std for part in parts])
        return TokenPaths(x0[at_R], last_std[at_R], torch.cat([part.log_std_sum for part in parts])[at_R])


def denoise(
    head: DiffusionHead, law: SamplerLaw, z: Tensor, scale: float | Tensor, start_RD: Tensor, noise_RSD: Tensor
) -> TokenPaths:
    """Runs the whole diffusion path of R tokens.

    Args:
        head: the diffusion head.
        law: head steps, guidance on or off, temperature (scales the step noise only, never the start).
        z: context rows from `Contexts.stacked`.
        scale: guidance weight, one number or one per row [R, 1]; not used when the law has no guidance.
        start_RD: start noise.
        noise_RSD: step noise; entry k belongs to respaced step k, entry 0 is never used.
    """
    process = diffusion(law.head_steps, law.start_level)
    if not recorded(z.device):
        ends = _denoise(z, start_RD, noise_RSD, scale, head=head, law=law, timesteps=process.timesteps[::-1])
    else:
        weight = scale if isinstance(scale, Tensor) else z.new_full((1, 1), scale)
        x, last_std, log_std_sum = _denoising(head, law, z.device).fresh(z, start_RD, noise_RSD, weight)
        ends = x, last_std, log_std_sum
    return TokenPaths(*ends, law.head_steps, len(start_RD) * law.head_steps)


def _denoising(head: DiffusionHead, law: SamplerLaw, device: torch.device) -> Captured:
    """`_denoise` of a head at a law, the whole loop one graph for every number of rows."""

    def make() -> Captured:
        timesteps = torch.tensor(diffusion(law.head_steps, law.start_level).timesteps[::-1], device=device)
        return Captured(partial(_denoise, head=head, law=law, timesteps=timesteps), f"denoise {law.head_steps} steps")

    key = (law.head_steps, law.start_level, law.cfg != 1.0, law.temperature, law.dtype)
    return cached_on(head, ("denoise", device, *key), make)


def _denoise(
    z: Tensor,
    start_RD: Tensor,
    noise_RSD: Tensor,
    scale: float | Tensor,
    head: DiffusionHead,
    law: SamplerLaw,
    timesteps: Sequence[int] | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`denoise` as a captured function: the columns of `TokenPaths`; ``timesteps`` in the order of the steps."""
    process, guided = diffusion(law.head_steps, law.start_level), law.cfg != 1.0
    noise_SRD = (noise_RSD * law.temperature).transpose(0, 1).contiguous()
    x, log_std_sum, log_std = start_RD, torch.zeros_like(start_RD), torch.zeros_like(start_RD)
    for step, modulation in zip(process.path, head.modulations(z, timesteps), strict=True):
        out = head.apply_step(x, modulation)
        eps, v = guide(out, scale) if guided else out.chunk(2, dim=-1)
        log_std = step_log_std(step, v)
        x = step_mean(step, x, eps)
        if not step.noiseless:
            x = torch.addcmul(x, log_std.exp(), noise_SRD[step.k])
            log_std_sum += log_std
    return x, log_std.exp() * law.temperature, log_std_sum


@dataclass(frozen=True)
class Sampler:
    """A model at a law, and where its calls and time are booked."""

    model: Mar  #: for the law's precision
    law: SamplerLaw
    who: str  #: "target" or "draft": the name in the books
    meter: Meter
    ahead: Lookahead | None  #: its head if it is to run ahead of itself; None: one head call a step

    @staticmethod
    def of(model: Mar, law: SamplerLaw, who: str, meter: Meter, windows: tuple[int, ...]) -> Sampler:
        """The sampler of a model at a law; ``windows`` are those of head self-speculation, none: without."""
        model = at_precision(model, law.dtype)
        return Sampler(model, law, who, meter, Lookahead.of(model.head, law, windows))

    @property
    def copies(self) -> int:
        """Rows of a call for each row that is made: two under guidance."""
        return 1 + (self.law.cfg != 1.0)

    def book(self, images: int, paths: TokenPaths) -> None:
        """Counts one context pass over so many images and the head's calls for their paths."""
        self.meter.add(
            **{
                f"{self.who}_context_calls": 1,
                f"{self.who}_context_rows": images * self.copies,
                f"{self.who}_head_calls": paths.head_calls,
                f"{self.who}_head_rows": paths.head_rows * self.copies,
            }
        )


def sample_rows(
    sampler: Sampler,
    z: Tensor,
    scale: float | Tensor,
    draws: Draws,
    rows: TokenRows,
    iteration_R: Tensor,
    purposes: tuple[Purpose, Purpose] = (Purpose.START, Purpose.STEP),
    ragged: bool = False,
) -> TokenPaths:
    """`sample_paths` with random numbers drawn now, for rows of any iterations; the calls are those of all rows.

    Args:
        sampler: the law's head steps may fall.
        z, scale: as for `sample_paths`.
        draws: of the images.
        rows: which tokens.
        iteration_R: int64, of each row.
        purposes: of start and step noise.
        ragged: that their number varies from call to call; where functions are recorded it is filled up to one of few.
    """
    count = len(rows)
    if ragged and recorded(z.device):
        more = torch.arange(filled(count), device=z.device).clamp(max=count - 1)
        z = z.unflatten(0, (-1, count))[:, more].flatten(0, 1)
        scale = scale[more] if isinstance(scale, Tensor) else scale
        rows, iteration_R = TokenRows(rows.image[more], rows.token[more]), iteration_R[more]
        paths = sample_rows(sampler, z, scale, draws, rows, iteration_R, purposes)
        return replace(paths, **{name: getattr(paths, name)[:count] for name in ("x0", "last_std", "log_std_sum")})
    model, law, ahead = sampler.model, sampler.law, sampler.ahead
    dims, parts, places = model.config.token_dim, [], []
    for constant, at in by_steps(law, iteration_R, law.num_iter):
        if isinstance(at, slice):
            own = RowDraws.of(draws, constant, rows, dims, ahead is not None, purposes)
            return sample_paths(model, constant, z, scale, own, ahead)
        own = RowDraws.of(draws, constant, TokenRows(rows.image[at], rows.token[at]), dims, ahead is not None, purposes)
        z_at = z.unflatten(0, (sampler.copies, -1))[:, at].flatten(0, 1)
        parts.append(sample_paths(model, constant, z_at, scale[at] if isinstance(scale, Tensor) else scale, own, ahead))
        places.append(at)
    whole = TokenPaths.concatenate(parts, torch.argsort(torch.cat(places)))
    return replace(whole, head_calls=sum(p.head_calls for p in parts), head_rows=sum(p.head_rows for p in parts))


def sample_paths(
    model: Mar, law: SamplerLaw, z: Tensor, scale: float | Tensor, own: RowDraws, ahead: Lookahead | None = None
) -> TokenPaths:
    """`denoise` with the rows' own random numbers; with ``ahead`` by head self-speculation, at the same law.

    The law's head steps are constant, those of the rows' iteration; ``ahead`` may be of the law they fall by.
    """
    noise = own.noise
    if ahead is None:
        return denoise(model.head, law, z, scale, noise.start, noise.step)
    bound = ahead.head.at(law).bind(z, scale)
    path, log_stds = speculate_head(bound, law.head_steps - 1, 0, noise, own.head, ahead.windows)
    return TokenPaths(path.end, log_stds.last.exp() * law.temperature, log_stds.total, path.calls, path.rows)


def mar_step(
    sampler: Sampler, iteration: Iteration, tokens_BND: Tensor, draws: OrderDraws, labels_B: Tensor
) -> tuple[TokenRows, TokenPaths]:
    """One ordinary MAR iteration: makes tokens ``order[left:masked]`` of every image.

    Args:
        sampler: who makes them.
        iteration: which.
        tokens_BND: what is made so far.
        draws: orders and random numbers of the images.
        labels_B: int64 class labels; below 0: no class.

    Returns:
        the rows and their paths; the canvas is not written.
    """
    law, meter = sampler.law.at(iteration.step, sampler.law.num_iter), sampler.meter
    context, head = ("context", "head") if sampler.who == "target" else ("draft", "draft")
    with meter.span(head):
        rows, own = draws.of(iteration.left, iteration.masked)
    with meter.span(context):
        visible = draws.order[:, iteration.masked :].sort(dim=1).values
        wanted = rows.token.view(len(labels_B), -1)
        z = contexts(sampler.model, law, tokens_BND, visible, labels_B, wanted_BQ=wanted).flat()
    with meter.span(head):
        paths = sample_paths(sampler.model, law, z, iteration.scale, own, sampler.ahead)
    sampler.book(len(tokens_BND), paths)
    return rows, paths
