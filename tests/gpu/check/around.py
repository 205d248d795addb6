"""What surrounds the decoders, and where the time of a decoder goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from spd_core.draws import Draws
from spd_core.families.llamagen.codes import decode_codes_plain
from spd_core.families.llamagen.vq import VqCodec
from spd_core.families.mar.vae import KlCodec
from tests.gpu import models
from tests.gpu.check.codes import LAW
from tests.gpu.check.codes import model_of as code_model_of
from tests.gpu.check.mar import law_of, model_of
from tests.gpu.check.probe import STRETCH, MarProbe
from tests.gpu.check.run import Check, Row


def codecs(check: Check) -> None:
    """Images/s of the autoencoder, the tokenizer and the feature extractor, at 256 px."""
    grid, count = (2, 1) if check.smoke else (16, 32)
    vae, vq = (make(check.device, narrow=check.smoke) for make in (models.kl16, models.vq16))
    tokens = torch.randn(count, grid * grid, 16, device=check.device)
    codes = torch.zeros(count, grid * grid, dtype=torch.int64, device=check.device)
    kl = KlCodec(vae=models.NARROW_VAE) if check.smoke else KlCodec()
    vq_codec = VqCodec(vq=models.NARROW_VQ, size=16 * grid, padded=16 * grid) if check.smoke else VqCodec()
    for name, decode in (("KL-16", partial(kl.decode, tokens, vae)), ("VQ-16", partial(vq_codec.decode, codes, vq))):
        check.tried({"codec": name, "batch": count}, lambda decode=decode: _rate(check, decode, count))
    images = kl.decode(tokens, vae).cpu()
    check.tried({"codec": "features", "batch": count}, partial(_features, check, images))


def _rate(check: Check, run: Callable[[], object], count: int) -> Row:
    return {"images_s": round(count / check.timed(run), 2)}


def _features(check: Check, images: torch.Tensor) -> Row:
    try:
        from spd_core.quality.features import FeatureExtractor
    except ModuleNotFoundError as missing:
        return {"skipped": f"{missing.name} is not installed"}
    return _rate(check, partial(FeatureExtractor(check.device), images), len(images))


def where_time_goes(check: Check) -> None:
    """The device's busy share of some iterations or images, and its longest kernels."""
    for batch in (1, 2) if check.smoke else (1, 64):
        probe = MarProbe(check, model_of(check, "base"), law_of(check, num_iter=64), batch)
        place = len(probe.steps) // 2
        steps = probe.steps[place : place + STRETCH]
        check.tried(
            {"profiled": f"MAR-B plain, batch {batch}"}, lambda p=probe, s=steps: _profiled(check, partial(p.run, s))
        )
    model, labels = code_model_of(check, "XL"), torch.zeros(2, dtype=torch.int64, device=check.device)
    run = partial(decode_codes_plain, model, LAW, labels, Draws(labels + 3))
    check.tried({"profiled": "LlamaGen-XL plain, batch 2"}, partial(_profiled, check, run))


def _profiled(check: Check, run: Callable[[], object]) -> Row:
    run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if check.on_gpu else [])]
    with profile(activities=activities) as profiler:
        began = check.now()
        run()
        seconds = check.now() - began
    time_of = "self_device_time_total" if check.on_gpu else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, time_of))
    busy = sum(getattr(event, time_of) for event in events) / 1e6
    top = [[event.key[:60], round(getattr(event, time_of) / 1e3, 2), event.count] for event in events[:10]]
    return {"seconds": round(seconds, 4), "busy": round(busy / seconds, 3), "longest_ms": top}
