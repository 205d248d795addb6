"""How far rounding moves a token's law between two ways of one target's pass: ``python -m tests.precision``.

"Exact" speaks of real numbers. A token's law as plain decoding computes it (one position a pass, one head call a step)
and as a verification computes it (all positions in one pass, all steps in one head call) differ by rounding. Measured
on the bundled pairs along teacher-forced images, by the total variation of each token's law: of codes the half of the
sum of differences, of paths that of Gaussians as far apart as the path's steps are together, erf(sqrt(KL) / 2).
What is printed is the table of ``spd_core/pairs/rounding.json``.

Shape legend: B images, N tokens, S head steps, D token dims, R rows.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch import Tensor

from spd_core.decode import decode
from spd_core.decode.path import LawHead, walk
from spd_core.diffusion import diffusion, guide, step_log_std, step_mean
from spd_core.draws import Draws, Purpose
from spd_core.families.causal.model import Causal
from spd_core.families.causal.tokens import ContextReader, PathLaw, noise_above, previous_tokens
from spd_core.families.llamagen.codes import LawReader
from spd_core.families.llamagen.model import LlamaGen
from spd_core.families.mar.iterations import contexts, rows_of
from spd_core.families.mar.model import Mar
from spd_core.law import Plain, SamplerLaw
from spd_core.pairs.pair import Pair, bundled_pairs, load_pair
from spd_core.precision import at_precision

LABELS = torch.arange(8)


def of_codes(target: LlamaGen, law: SamplerLaw, codes_BN: Tensor) -> Tensor:
    """Total variation [B, N] between one position a pass and all positions in one."""
    batch, length = codes_BN.shape
    previous = torch.cat([torch.zeros_like(codes_BN[:, :1]), codes_BN[:, :-1]], dim=1)
    position = torch.arange(length).expand(batch, -1)
    alone = LawReader(target, target, law, LABELS[:batch], 1)
    single = [
        alone.distribution(alone.read(previous[:, at, None], position[:, at]), position[:, at, None])
        for at in range(length)
    ]
    whole = LawReader(target, target, law, LABELS[:batch], length)
    block = whole.distribution(whole.read(previous, position[:, 0]), position)
    return (torch.cat(single, dim=1) - block).abs().sum(dim=-1) / 2


def of_causal(target: Causal, law: SamplerLaw, tokens_BND: Tensor) -> Tensor:
    """Total variation [B N] of a token's path above the hand-off."""
    batch, length, dims = tokens_BND.shape
    path, head, image = PathLaw(law, length), LawHead(target.head, law), torch.arange(batch)
    alone, whole = (ContextReader(target, law, LABELS[:batch]) for _ in range(2))
    block = whole.read(previous_tokens(tokens_BND, image, image * 0, length), image * 0)
    found = []
    for at in range(length):
        here = torch.full_like(image, at)
        z = alone.read(previous_tokens(tokens_BND, image, here, 1), here)[:, :, 0].flatten(0, 1)
        noise = noise_above(Draws(image), image, here, path, dims)
        one = head.bind(z, path.scale(here))
        trace = walk(one, noise.start, path.first, path.handoff + 1, noise, trace=True).trace
        steps = torch.arange(path.first, path.handoff, -1).expand(batch, -1)
        many = head.bind(block[:, :, at].flatten(0, 1), path.scale(here))
        row = image[:, None].expand_as(steps)
        x0 = many.predict(row.flatten(), steps.flatten(), trace.states.flatten(0, 1)).x0.view_as(trace.x0)
        found.append(_of_kl(one.shift(steps, trace.x0, x0).square().sum(dim=(1, 2)) / 2))
    return torch.cat(found)


def of_mar(target: Mar, law: SamplerLaw, tokens_BND: Tensor) -> Tensor:
    """Total variation [R] of the paths of an iteration's tokens, head step after head step or all in one call."""
    target, batch = at_precision(target, law.dtype), len(tokens_BND)
    order, dims = Draws(LABELS[:batch]).orders(tokens_BND.shape[1]), tokens_BND.shape[2]
    half = tokens_BND.shape[1] // 2
    rows = rows_of(order, half - 4, half)
    visible = order[:, half:].sort(dim=1).values
    z = contexts(target, law, tokens_BND, visible, LABELS[:batch]).stacked(rows)
    draws, process = Draws(LABELS[:batch]), diffusion(law.head_steps, law.start_level)
    x = draws.normals(Purpose.START, rows.image, rows.token, dims)
    noise = draws.normals(Purpose.STEP, rows.image, rows.token, law.head_steps * dims).view(len(x), -1, dims)
    states, means, log_stds = [], [], []
    for step, modulation in zip(process.path, target.head.modulations(z, process.timesteps[::-1]), strict=True):
        out = target.head.apply_step(x, modulation)
        eps, v = guide(out, law.cfg) if law.cfg != 1.0 else out.chunk(2, dim=-1)
        states.append(x)
        means.append(step_mean(step, x, eps))
        log_stds.append(step_log_std(step, v))
        x = means[-1] + log_stds[-1].exp() * law.temperature * noise[:, step.k]
    head = LawHead(target.head, law).bind(z, law.cfg)
    y, mean, log_std = (torch.stack(column, dim=1)[:, :-1] for column in (states, means, log_stds))
    k = torch.arange(law.head_steps - 1, 0, -1).expand(len(y), -1)
    row = torch.arange(len(y))[:, None].expand_as(k)
    other = head.predict(row.flatten(), k.flatten(), y.flatten(0, 1))
    shift = (head.mean(k, other.x0.view_as(y), y) - mean) / (log_std.exp() * law.temperature)
    scale = head.log_std(k, other.v.view_as(y)) - log_std
    return _of_kl((shift.square() / 2 + scale.square()).sum(dim=(1, 2)))


def _of_kl(kl: Tensor) -> Tensor:
    return torch.erf(kl.clamp(min=0).sqrt() / 2)


@torch.inference_mode()
def measured(pair: Pair, law: SamplerLaw, images: int) -> Tensor:
    """Total variation of the tokens' laws along the pair's own images."""
    tokens = decode(pair, law, Plain(), LABELS[:images], Draws(LABELS[:images])).tokens
    of = {"llamagen": of_codes, "causal": of_causal, "mar": of_mar}[pair.card.family]
    return of(pair.target, law, tokens).flatten()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="images of a pair, at most 8")
    images = parser.parse_args().images
    table = {}
    for name in bundled_pairs():
        pair = load_pair(name, draft=False)
        table[name] = {"target": pair.card.sha256["target"]}
        for dtype in ("float32", "bfloat16"):
            found = measured(pair, pair.card.law.model_copy(update={"dtype": dtype}), images)
            table[name][dtype] = {"mean": float(f"{found.mean():.1e}"), "largest": float(f"{found.max():.1e}")}
    sys.stdout.write(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
