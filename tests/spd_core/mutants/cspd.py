"""Mutants of CSpD: the released variant against the public code's numbers, the paper's against a loop of one image."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from spd_core.accept import cspd as accept
from spd_core.accept.cspd import PROPOSAL_ROUNDS
from spd_core.accept.paths import Gaussian
from spd_core.draws import Draws, Purpose
from spd_core.families.mar import cspd, iterations
from spd_core.families.mar.cspd import decode_cspd, prefill_iterations
from spd_core.families.mar.iterations import TokenRows, contexts, denoise, guidance_scale, left_after, mask_lengths
from spd_core.families.mar.model import Mar
from spd_core.law import Cspd, SamplerLaw
from tests.oracles.files import failing, find
from tests.spd_core.mutants.base import Decoder, Mutant
from tests.tiny_pair import tiny_config, tiny_mar

LAW = SamplerLaw(num_iter=12, head_steps=6, start_level=900, cfg=2.0, temperature=0.9)
#: Each with how far its draft's weights are from the target's; near ones make the resampling thin its proposals.
METHODS = (
    (Cspd(variant="paper", gamma=3, prefill=0.2, inner_temperature=1200.0), 1e-2),
    (Cspd(variant="paper", gamma=4, prefill=0.0, inner_temperature=15000.0, aligned=False), 1e-2),
    (Cspd(variant="paper", gamma=2, prefill=0.1, inner_temperature=1.0), 5e-6),
)
IMAGES = 4


def _models(apart: float) -> tuple[Mar, Mar]:
    target, draft = tiny_mar(tiny_config(2)), tiny_mar(tiny_config(2))
    for model in (target, draft):
        model.head.cond_embed.weight.mul_(10)
    generator = torch.Generator().manual_seed(9)
    for parameter in draft.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * apart)
    return target, draft


class _One:
    """One image of the paper's algorithm, token after token."""

    def __init__(self, method: Cspd, apart: float, label: int, seed: int) -> None:
        self.target, self.draft = _models(apart)
        self.method, self.label = method, torch.tensor([label])
        self.draws, self.length = Draws(torch.tensor([seed])), self.target.config.seq_len
        self.dims = self.target.config.token_dim
        self.order = self.draws.orders(self.length)[0]
        self.lengths = mask_lengths(self.length, LAW.num_iter)
        self.left = left_after(self.lengths)
        self.tokens = torch.zeros(1, self.length, self.dims)

    def _paths(self, model: Mar, masked: int, token: Tensor, scale: Tensor, purposes: tuple[Purpose, Purpose]):
        """Paths of some tokens given those made while ``masked`` were not."""
        visible = self.order[None, masked:].sort(dim=1).values
        image = torch.zeros_like(token)
        z = contexts(model, LAW, self.tokens, visible, self.label).stacked(TokenRows(image, token))
        start = self.draws.normals(purposes[0], image, token, self.dims)
        step = self.draws.normals(purposes[1], image, token, LAW.head_steps * self.dims)
        return denoise(model.head, LAW, z, scale, start, step.view(-1, LAW.head_steps, self.dims))

    def _iteration(self, masked: int) -> tuple[int, float]:
        """What the next iteration leaves masked, and its guidance."""
        step = next(s for s, left in enumerate(self.left) if left < masked)
        return self.left[step], guidance_scale(LAW, self.length, self.lengths[step])

    def run(self) -> Tensor:
        shared, masked, rounds = (Purpose.START, Purpose.STEP), self.length, 0
        for _ in range(prefill_iterations(self.method, LAW.num_iter)):
            left, scale = self._iteration(masked)
            rows = self.order[left:masked]
            self.tokens[0, rows] = self._paths(self.target, masked, rows, torch.full((len(rows), 1), scale), shared).x0
            masked, rounds = left, rounds + 1
        while masked:
            masked -= self._round(masked, rounds)
            rounds += 1
        return self.tokens[0]

    def _round(self, start: int, number: int) -> int:
        """Tokens decided by a block that begins with ``start`` masked ones."""
        masked, block, drafted, scales = start, [], [], []
        for _ in range(self.method.gamma):
            if not masked:
                break
            left, scale = self._iteration(masked)
            rows = self.order[left:masked].flip(0)  # generation goes from the order's end
            path = self._paths(
                self.draft, masked, rows, torch.full((len(rows), 1), scale), (Purpose.START, Purpose.STEP)
            )
            self.tokens[0, rows] = path.x0
            block += rows.tolist()
            drafted += list(zip(path.x0, path.last_std, path.log_std_sum, strict=True))
            scales += [scale] * len(rows)
            masked = left
        rows = torch.tensor(block)
        aligned = (Purpose.START, Purpose.STEP)
        purposes = aligned if self.method.aligned else (Purpose.START_TARGET, Purpose.STEP_TARGET)
        own = self._paths(self.target, start, rows, torch.tensor(scales)[:, None], purposes)
        for place, (token, (x, std, log_std)) in enumerate(zip(block, drafted, strict=True)):
            mean, own_std = own.x0[place], own.last_std[place]
            log_factor = (log_std - own.log_std_sum[place]).sum()
            wide = self.method.inner_temperature * own_std
            log_ratio = log_factor + (std.log() - own_std.log() - 0.5 * ((x - mean) / wide).square()).sum()
            uniform = self._uniform(Purpose.ACCEPT, token, 1, number)[0]
            if uniform.log() < log_ratio:
                continue
            self.tokens[0, token] = self._resampled(token, number, (mean, own_std), (x, std), log_factor)
            return place + 1
        return len(block)

    def _uniform(self, purpose: Purpose, token: int, count: int, number: int, attempt: int = 0) -> Tensor:
        zero = torch.zeros(1, dtype=torch.int64)
        return self.draws.uniforms(purpose, zero, zero + token, count, number, attempt)[0]

    def _resampled(self, token, number, p, q, log_factor) -> Tensor:
        for attempt, count in enumerate(PROPOSAL_ROUNDS):
            zero = torch.zeros(1, dtype=torch.int64)
            normals = self.draws.normals(Purpose.PROPOSAL, zero, zero + token, count * self.dims, number, attempt)
            keep = self._uniform(Purpose.PROPOSAL_KEEP, token, count, number, attempt)
            for noise, uniform in zip(normals.view(count, self.dims), keep, strict=True):
                y = p[0] + p[1] * noise
                log_p, log_q = (-(((y - m) / s).square() / 2 + s.log()).sum() for m, s in (p, q))
                if 1 - (log_q - log_p - log_factor).exp() > uniform:
                    return y
        raise AssertionError("the modified distribution is next to empty")


@cache
@torch.inference_mode()
def _reference(method: Cspd, apart: float) -> Tensor:
    return torch.stack([_One(method, apart, image % 3, 50 + image).run() for image in range(IMAGES)])


@torch.inference_mode()
def paper() -> None:
    for method, apart in METHODS:
        expected = _reference(method, apart)
        decoded = decode_cspd(*_models(apart), LAW, method, torch.arange(IMAGES) % 3, Draws(torch.arange(IMAGES) + 50))
        torch.testing.assert_close(decoded.tokens, expected, rtol=1e-3, atol=1e-3)
        assert 0 < decoded.drafts.accepted.float().mean() < 1


def released() -> None:
    assert not failing(find("cspd_released"))


CHECKS = {"paper": paper, "released": released}

_SWAPPED = {Purpose.START: Purpose.STEP, Purpose.ACCEPT: Purpose.PROPOSAL_KEEP, Purpose.PROPOSAL_KEEP: Purpose.ACCEPT}


def _other_purpose(kind, of):
    def mutant(right):
        def draw(self, purpose, *given, **named):
            return right(self, _SWAPPED[purpose] if purpose is of else purpose, *given, **named)

        return draw

    return mutant


MUTANTS = (
    Mutant("the public code's sign of the factor", cspd, "log_path_factor", lambda r: lambda q, p: -r(q, p), "paper"),
    Mutant("no path factor", cspd, "log_path_factor", lambda r: lambda q, p: 0 * r(q, p), "paper"),
    Mutant(
        "true densities in the test",
        accept,
        "tempered_log_ratio",
        lambda r: lambda p, q, x, t: r(p, q, x, 1.0),
        "paper",
    ),
    Mutant(
        "target and draft swapped in the test",
        accept,
        "tempered_log_ratio",
        lambda r: lambda p, q, x, t: r(q, p, x, t),
        "paper",
    ),
    Mutant(
        "every draft is accepted",
        accept,
        "accept",
        lambda r: lambda ratio, u: torch.ones_like(u, dtype=torch.bool),
        "paper",
    ),
    Mutant(
        "no draft is accepted",
        accept,
        "accept",
        lambda r: lambda ratio, u: torch.zeros_like(u, dtype=torch.bool),
        "paper",
    ),
    Mutant(
        "the test's number from the resampling", Draws, "uniforms", _other_purpose("uniforms", Purpose.ACCEPT), "paper"
    ),
    Mutant(
        "the resampling's number from the test",
        Draws,
        "uniforms",
        _other_purpose("uniforms", Purpose.PROPOSAL_KEEP),
        "paper",
    ),
    Mutant(
        "drafts accepted beyond the first rejection",
        cspd,
        "num_accepted",
        lambda r: lambda accepted: accepted.sum(dim=1),
        "paper",
    ),
    Mutant(
        "one draft less is accepted",
        cspd,
        "num_accepted",
        lambda r: lambda accepted: (r(accepted) - 1).clamp(min=0),
        "paper",
    ),
    Mutant(
        "a rejected token becomes the target's mean",
        cspd,
        "resample_modified",
        lambda r: lambda target, *given, **named: target.mean,
        "paper",
    ),
    Mutant(
        "resampled without the factor",
        cspd,
        "resample_modified",
        lambda r: lambda p, q, factor, *given, **named: r(p, q, factor - 5.0, *given, **named),
        "paper",
    ),
    Mutant(
        "resampled from the draft's law",
        cspd,
        "resample_modified",
        lambda r: lambda p, q, *given, **named: r(q, p, *given, **named),
        "paper",
    ),
    Mutant(
        "pre-fill one iteration longer",
        cspd,
        "prefill_iterations",
        lambda r: lambda method, n: min(n, r(method, n) + 1),
        "paper",
    ),
    Mutant(
        "guidance of another iteration",
        iterations,
        "guidance_scale",
        lambda r: lambda law, n, masked: r(law, n, min(n, masked + 1)),
        "paper",
    ),
    Mutant("unaligned noise where it should be shared", cspd, "_SHARED", lambda r: cspd._OWN, "paper"),
    Mutant("shared noise where it should not be", cspd, "_OWN", lambda r: cspd._SHARED, "paper"),
    Mutant(
        "the target sees the block's drafts",
        cspd,
        "_ragged_visible",
        lambda r: lambda order, active, masked, most: r(order, active, (masked - 1).clamp(min=0), most),
        "paper",
    ),
    Mutant("released: paper's sign", cspd, "log_path_factor", lambda r: lambda q, p: -r(q, p), "released"),
    Mutant(
        "released: true densities in the test",
        accept,
        "tempered_log_ratio",
        lambda r: lambda p, q, x, t: r(p, q, x, 1.0),
        "released",
    ),
    Mutant(
        "released: stop at the first rejection",
        accept,
        "accept",
        lambda r: lambda ratio, u: r(ratio, u).long().cumprod(0).bool(),
        "released",
    ),
    Mutant(
        "released: proposals are never thinned",
        accept,
        "thinning",
        lambda r: lambda p, q, factor, y: torch.ones_like(r(p, q, factor, y)),
        "released",
    ),
    Mutant(
        "released: the first dim's std for all",
        cspd,
        "_gaussian",
        lambda r: lambda paths: Gaussian(paths.x0, paths.last_std[:, :1].expand_as(paths.x0)),
        "released",
    ),
    Mutant(
        "released: guidance of the block's first iteration",
        iterations,
        "guidance_scale",
        lambda r: lambda law, n, masked: r(law, n, min(n, masked + 1)),
        "released",
    ),
)

DECODER = Decoder("CSpD (released, paper)", CHECKS, MUTANTS)
