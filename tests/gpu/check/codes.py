"""LlamaGen: images/s by model and batch, and lossless speculation at a stated acceptance."""

from __future__ import annotations

from functools import partial

import torch

from spd_core.draws import Draws
from spd_core.families.llamagen.codes import decode_codes_plain
from spd_core.families.llamagen.model import LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.speculation import decode_codes_speculative
from spd_core.law import SamplerLaw, Speculative
from tests.gpu import models
from tests.gpu.check import flops
from tests.gpu.check.ceilings import measured
from tests.gpu.check.imposed import ForcedDraws
from tests.gpu.check.run import Check, Row

LAW = SamplerLaw(cfg=1.75, cfg_schedule="constant", dtype="bfloat16")
#: Share of the drafts that are accepted, imposed from outside.
RATE = 0.8


def model_of(check: Check, name: str) -> LlamaGen:
    if not check.smoke:
        return models.codes(models.code_config(name), check.device)
    return models.codes(models.code_config(name, narrow=True, grid=2).model_copy(update={"n_layer": 2}), check.device)


def plain(check: Check) -> None:
    """Plain decoding of whole images."""
    for name in ("XL", "B", "3B"):
        model = model_of(check, name)
        for batch in (1, 2) if check.smoke else (1, 256, 32):
            label = {"model": name, "batch": batch, "dtype": LAW.dtype}
            check.tried(label, partial(_plain_row, check, model, batch))
        del model


def _plain_seconds(check: Check, model: LlamaGen, batch: int) -> float:
    labels = torch.arange(batch, device=check.device) % model.config.num_classes
    return check.timed(lambda: decode_codes_plain(model, LAW, labels, Draws(labels + 3)), repeats=1)


def _plain_row(check: Check, model: LlamaGen, batch: int) -> Row:
    with check.peak() as peak:
        seconds = _plain_seconds(check, model, batch)
        memory = peak()
    least = _least_seconds(check, model.config, batch)
    return {
        "images_s": round(batch / seconds, 3), "image_s": round(seconds, 3), "peak_gib": memory,
        "token_ms": round(1e3 * seconds / model.config.block_size, 3),
        "share_of_ceiling": round(least / seconds, 3) if least else None,
    }  # fmt: skip


def _least_seconds(check: Check, config: LlamaGenConfig, batch: int) -> float | None:
    """What the device needs at the least: the longer of its products and its reading, by this run's ceilings."""
    products, copies = measured(check, "bfloat16 product", "tflop_s"), measured(check, "copy", "tb_s")
    if not products or not copies:
        return None
    token = max(flops.codes_token(config, 2 * batch) / products, flops.codes_bytes(config, 2 * batch) / copies) / 1e12
    return config.block_size * token


def speculation(check: Check) -> None:
    """XL drafted by B, chains of 4 under the lossless rule: its tests answer as at the stated acceptance."""
    target, draft = model_of(check, "XL"), model_of(check, "B")
    vectors = torch.randn(target.config.vocab_size, 8, device=check.device)
    for batch in (1, 2) if check.smoke else (64, 256, 1):
        label = {"target": "XL", "draft": "B", "batch": batch, "gamma": 4, "imposed_acceptance": RATE}
        check.tried(label, partial(_speculation_row, check, target, draft, vectors, batch))


def _speculation_row(check: Check, target: LlamaGen, draft: LlamaGen, vectors_VE: torch.Tensor, batch: int) -> Row:
    labels = torch.arange(batch, device=check.device) % target.config.num_classes
    without = _plain_seconds(check, target, batch)
    rounds, accepted = 0, 0.0

    def decode() -> None:
        nonlocal rounds, accepted
        draws = ForcedDraws(labels + 3, RATE)
        decoded = decode_codes_speculative(target, draft, vectors_VE, LAW, Speculative(gamma=4), labels, draws)
        rounds, accepted = int(decoded.rounds.max()), float(decoded.drafts.accepted.float().mean())

    with check.peak() as peak:
        seconds = check.timed(decode, repeats=1)
        memory = peak()
    return {
        "images_s": round(batch / seconds, 3), "plain_images_s": round(batch / without, 3),
        "speedup": round(without / seconds, 2), "accepted": round(accepted, 3), "rounds": rounds,
        "round_ms": round(1e3 * seconds / rounds, 2), "peak_gib": memory,
    }  # fmt: skip
