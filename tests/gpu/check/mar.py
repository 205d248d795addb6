"""MAR: images/s by model, batch and iterations; CSpD; honest competitors; head self-speculation; the direct loop."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from spd_core.decode.naive import NaiveSampler
from spd_core.draws import Draws
from spd_core.families.mar.cspd import decode_cspd, prefill_iterations
from spd_core.families.mar.iterations import contexts, rows_of
from spd_core.families.mar.model import Mar, MarConfig
from spd_core.families.mar.plain import decode_plain
from spd_core.law import Cspd, SamplerLaw
from spd_core.precision import arithmetic
from tests.gpu import models
from tests.gpu.check import flops
from tests.gpu.check.ceilings import measured
from tests.gpu.check.imposed import PatternDraws, recorded_pattern
from tests.gpu.check.probe import STRETCH, MarProbe, summed
from tests.gpu.check.published import CSPD_SPEEDUP
from tests.gpu.check.run import Check, Row

NAMES = ("base", "large", "huge")


def law_of(check: Check, **changes: object) -> SamplerLaw:
    """The public samplers' law, in bfloat16; of few head steps and iterations in the smoke run."""
    law = SamplerLaw(num_iter=256, head_steps=100, cfg=3.0, dtype="bfloat16").model_copy(update=changes)
    return law.model_copy(update={"num_iter": min(law.num_iter, 6), "head_steps": 6}) if check.smoke else law


def config_of(check: Check, name: str) -> MarConfig:
    if not check.smoke:
        return models.mar_config(name)
    shallow = {"encoder_depth": 1, "decoder_depth": 1, "diffloss_d": 2}
    return models.mar_config(name, narrow=True, grid=4).model_copy(update=shallow)


def model_of(check: Check, name: str) -> Mar:
    return models.mar(config_of(check, name), check.device)


def _plain_row(check: Check, model: Mar, law: SamplerLaw, batch: int) -> Row:
    with check.peak() as peak:
        probe = MarProbe(check, model, law, batch)
        seconds = summed(probe.seconds(3 if batch >= 128 else 4), 0, len(probe.steps))
        memory = peak()
    ceiling = measured(check, f"{law.dtype} product", "tflop_s")
    rate = batch * flops.mar_image(model.config, law) / seconds / 1e12
    return {
        "images_s": round(batch / seconds, 3), "batch_s": round(seconds, 3), "peak_gib": memory,
        "tflop_s": round(rate, 2), "share_of_ceiling": round(rate / ceiling, 3) if ceiling else None,
    }  # fmt: skip


def plain(check: Check) -> None:
    """MAR-B, L and H at 64 and 256 iterations; the largest batch of the largest model first."""
    for name in reversed(NAMES):
        model = model_of(check, name)
        for batch in (1, 2) if check.smoke else (256, 1, 32):
            for iterations in (64, 256):
                law = law_of(check, num_iter=iterations)
                label = {"model": name, "batch": batch, "iterations": iterations, "dtype": law.dtype}
                check.tried(label, partial(_plain_row, check, model, law, batch))
        del model
    model = model_of(check, "base")
    batch = 2 if check.smoke else 32
    for dtype in ("tf32", "float32"):
        law = law_of(check, num_iter=64, dtype=dtype)
        label = {"model": "base", "batch": batch, "iterations": 64, "dtype": dtype}
        check.tried(label, partial(_plain_row, check, model, law, batch))
    check.tried({"what": "a whole decoding over the sum of its probes"}, partial(_whole, check, model))


def _whole(check: Check, model: Mar) -> Row:
    """Whether a whole decoding takes what the probes say."""
    law = law_of(check, num_iter=64)
    probe = MarProbe(check, model, law, 1)
    expected = summed(probe.seconds(), 0, len(probe.steps))
    seconds = check.timed(lambda: decode_plain(model, law, probe.labels, probe.draws), repeats=1)
    return {"model": "base", "batch": 1, "seconds": round(seconds, 3), "ratio": round(seconds / expected, 3)}


def honest(check: Check) -> None:
    """What a user could do instead of speculating: fewer iterations, or head steps that fall along the image."""
    batch = 2 if check.smoke else 32
    for name in ("huge", "base"):
        model = model_of(check, name)
        for iterations in (64, 32, 16, 8):
            law = law_of(check, num_iter=iterations)
            label = {"model": name, "batch": batch, "law": f"{iterations} iterations"}
            check.tried(label, partial(_plain_row, check, model, law, batch))
        for schedule in ("linear", "two-stage"):
            law = law_of(check, num_iter=64, head_steps=50).model_copy(update={"head_schedule": schedule})
            label = {"model": name, "batch": batch, "law": f"64 iterations, head steps falling ({schedule})"}
            check.tried(label, partial(_plain_row, check, model, law, batch))
        del model


def cspd_table(check: Check) -> None:
    """CSpD's Table 1 at 256 iterations: released, every draft rejected.

    Released CSpD rolls nothing back, so its time does not depend on the acceptance. What is rejected is replaced,
    which takes no call of a network but has to run: an inner temperature of a millionth lets only the target's own
    token pass.
    """
    method = Cspd(variant="released", prefill=0.05, inner_temperature=1e-6)
    law = law_of(check)
    for batch in (1, 2) if check.smoke else (256, 1, 8, 128):
        timed: dict[str, tuple[MarProbe, list[tuple[int, float]]]] = {}
        for target, draft in (("huge", "base"), ("huge", "large"), ("large", "base")):
            for name in (target, draft):
                if name not in timed and not check.late:
                    probe = MarProbe(check, model_of(check, name), law, batch)
                    timed[name] = (probe, probe.seconds(3))
            for gamma in (4, 2) if check.smoke else (32, 4, 8, 16):
                label = {"target": target, "draft": draft, "batch": batch, "gamma": gamma}
                if check.tried(label, partial(_cspd_row, check, timed, target, draft, gamma, method)) is None:
                    return
    check.tried({"what": "a whole CSpD decoding"}, partial(_whole_cspd, check, method))


def _cspd_row(
    check: Check,
    timed: dict[str, tuple[MarProbe, list[tuple[int, float]]]],
    target: str,
    draft: str,
    gamma: int,
    method: Cspd,
) -> Row:
    probe, of_target = timed[target]
    of_draft, count = timed[draft][1], len(probe.steps)
    prefill = prefill_iterations(method, probe.law.num_iter)
    ends = [step for step in range(prefill, count) if (step % gamma == 0 and step > 0) or step == count - 1]
    places = sorted({ends[0], ends[len(ends) // 2], ends[-1]})
    verified = [(step, probe.verification(step, gamma, method)) for step in places]
    verifying = summed(verified, ends[0], ends[-1] + 1) / (ends[-1] + 1 - ends[0]) * len(ends)
    plain_s = summed(of_target, 0, count)
    seconds = summed(of_target, 0, prefill) + summed(of_draft, prefill, count) + verifying
    batch = len(probe.labels)
    return {
        "images_s": round(batch / seconds, 3), "speedup": round(plain_s / seconds, 2),
        "published": CSPD_SPEEDUP.get((target, draft, gamma), {}).get(batch), "verify_s": round(verifying, 3),
    }  # fmt: skip


def _whole_cspd(check: Check, method: Cspd) -> Row:
    """A whole decoding of small batch, and that its drafts were rejected."""
    target, draft, law = model_of(check, "large"), model_of(check, "base"), law_of(check, num_iter=32)
    labels = torch.arange(2, device=check.device)
    began = check.now()
    decoded = decode_cspd(target, draft, law, method.model_copy(update={"gamma": 4}), labels, Draws(labels + 3))
    seconds = check.now() - began
    accepted = float(decoded.drafts.accepted.float().mean())
    return {"seconds": round(seconds, 2), "accepted": round(accepted, 4), "ok": accepted == 0.0}


def windows(check: Check) -> None:
    """Head self-speculation on MAR-B at 256 iterations, rejected where fashion-mar's own paths were."""
    model, law = model_of(check, "base"), law_of(check)
    for batch, schedule in ((1, 0), (2, 1)) if check.smoke else ((1, 0), (32, 1), (32, 0)):
        lengths, rejected = recorded_pattern(schedule)
        if check.smoke:
            lengths, rejected = (3, 2), rejected[:, : law.head_steps]
        label = {"model": "base", "batch": batch, "windows": lengths}
        check.tried(label, partial(_window_row, check, model, law, batch, lengths, rejected))


def _window_row(
    check: Check, model: Mar, law: SamplerLaw, batch: int, lengths: tuple[int, ...], rejected: Tensor
) -> Row:
    off = MarProbe(check, model, law, batch)
    without = summed(off.seconds(), 0, len(off.steps))
    on = MarProbe(check, model, law, batch, lengths, partial(PatternDraws, rejected_PS=rejected))
    seconds = summed(on.seconds(), 0, len(on.steps))
    runs = on.sampler.meter.counts["target_context_calls"]
    return {
        "images_s": round(batch / seconds, 3), "without_images_s": round(batch / without, 3),
        "speedup": round(without / seconds, 2),
        "head_calls_an_iteration": round(on.sampler.meter.counts["target_head_calls"] / runs, 1),
    }  # fmt: skip


def direct_loop(check: Check) -> None:
    """Ours over the public sampler's direct loop: MAR-B, iterations from the middle of 64."""
    model, law = model_of(check, "base"), law_of(check, num_iter=64)
    for batch in (1, 2) if check.smoke else (1, 256):
        check.tried({"model": "base", "batch": batch}, partial(_loop_row, check, model, law, batch))


def _loop_row(check: Check, model: Mar, law: SamplerLaw, batch: int) -> Row:
    probe = MarProbe(check, model, law, batch)
    place = len(probe.steps) // 2
    steps = probe.steps[place : place + STRETCH]
    ours = check.timed(lambda: probe.run(steps), repeats=2)
    sampler, order = NaiveSampler(probe.sampler.model.head, law), probe.draws.orders(probe.length)

    def naively() -> None:
        for step in steps:
            of = probe.schedule[step]
            rows = rows_of(order, of.left, of.masked)
            visible = order[:, of.masked :].sort(dim=1).values
            z = contexts(probe.sampler.model, law, probe.tokens, visible, probe.labels).stacked(rows)
            start = torch.randn(len(rows), probe.dims, device=check.device)
            noise = torch.randn(len(rows), law.head_steps, probe.dims, device=check.device)
            sampler(start, z, of.scale, noise, law.head_steps - 1, 0)

    with arithmetic(law.dtype):
        theirs = check.timed(naively, repeats=1)
    return {"ours_s": round(ours, 4), "direct_s": round(theirs, 4), "ratio": round(theirs / ours, 2)}
