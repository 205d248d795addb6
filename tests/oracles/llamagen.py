"""Oracles of the model of codes and of the two halves of its tokenizer.

Shape legend: B images, N codes of an image, V codes of the codebook, E code dims, h, w cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spd_core.accept.codes import probabilities
from spd_core.draws import Draws
from spd_core.families.llamagen import codes as decoding
from spd_core.families.llamagen.model import LlamaGen, LlamaGenConfig, rotary_table
from spd_core.families.llamagen.vq import Vq, VqConfig
from spd_core.law import SamplerLaw
from tests.oracles.base import Named, Oracle, OracleError, load_strict
from tests.oracles.decoding import recorded


def _config(raw: dict[str, Any]) -> LlamaGenConfig:
    given = dict(raw)
    if (tokens := given.pop("cls_token_num", 1)) != 1:
        raise OracleError(f"config cls_token_num: got {tokens!r}, allowed: 1, the class")
    return LlamaGenConfig.model_validate(given)


def _cached(model: LlamaGen, previous_BN: Tensor, labels_B: Tensor) -> Tensor:
    """Logits [B, N, V] read position after position."""
    cache = model.cache(len(labels_B))
    made = []
    for position in range(previous_BN.shape[1]):
        first = torch.full_like(labels_B, position)
        made.append(model(previous_BN[:, position, None], labels_B, first, cache))
    return model.logits(torch.cat(made, dim=1))


def _guided(model: LlamaGen, scale: float, previous_BN: Tensor, labels_B: Tensor) -> Tensor:
    """The logits [B, N, V] that our decoders hand to the law, all positions in one pass."""
    length = previous_BN.shape[1]
    reader = decoding.LawReader(model, model, SamplerLaw(cfg=scale, cfg_schedule="constant"), labels_B, length)
    features = reader.read(previous_BN, torch.zeros_like(labels_B))
    with recorded((decoding, "probabilities")) as calls:
        reader.distribution(features, torch.arange(length).expand_as(previous_BN))
    return calls[0].args[0]


def _greedy(model: LlamaGen, run: Named, labels_B: Tensor) -> dict[str, Tensor]:
    """Our plain decoder at the law that leaves only the likeliest code."""
    law = SamplerLaw(cfg=run["cfg"], cfg_schedule="constant", cfg_interval=run["cfg_interval"], top_k=1)
    with recorded((decoding, "probabilities")) as calls:
        codes = decoding.decode_codes_plain(model, law, labels_B, Draws(torch.zeros_like(labels_B))).tokens
    best = torch.cat([call.args[0] for call in calls], dim=1).topk(2).values
    return {"codes": codes, "margin": best[..., 0] - best[..., 1]}


def llamagen_gpt(oracle: Oracle) -> dict[str, Tensor]:
    """Rotary table, logits of whole and cached sequences, with guidance, greedy images, and the law's filters."""
    config, inputs = oracle.config, oracle.inputs
    model = load_strict(LlamaGen(_config(config["model"])), oracle.weights, "model")
    labels = inputs["labels"]
    null = torch.full_like(labels, -1)
    previous = inputs["codes"].roll(1, dims=1)  # what is read at each position; at the first one only the class is
    outputs = {
        "freqs_cis": torch.view_as_real(rotary_table(model.config)),
        "logits_full": model.logits(model(previous, labels)),
        "logits_full_null": model.logits(model(previous, null)),
        "logits_cached": _cached(model, previous, labels),
        "logits_cached_null": _cached(model, previous, null),
    }
    outputs |= {f"logits_cfg/{scale}": _guided(model, scale, previous, labels) for scale in config["cfg_scales"]}
    for run in (Named("config greedy", run) for run in config["greedy"]):
        outputs |= {f"greedy/{run['name']}/{key}": value for key, value in _greedy(model, run, labels).items()}
    for run in (Named("config filters", run) for run in config["filters"]):
        law = SamplerLaw(temperature=run["temperature"], top_k=run["top_k"], top_p=run["top_p"])
        outputs[f"probs/{run['name']}"] = probabilities(inputs["filter_logits"], law)
    return outputs


def _half(config: dict[str, Any], weights: dict[str, Tensor], left_out: tuple[str, str]) -> Vq:
    vq = Vq(VqConfig.model_validate(dict(config)))
    for name in left_out:
        delattr(vq, name)
    return load_strict(vq, weights, "tokenizer")


def _channels_first(vectors_BhwE: Tensor) -> Tensor:
    return vectors_BhwE.permute(0, 3, 1, 2)


def llamagen_vq_encoder(oracle: Oracle) -> dict[str, Tensor]:
    """Codes of images, what was looked up, and how near the second nearest code was."""
    vq = _half(oracle.config, oracle.weights, ("decoder", "post_quant_conv"))
    outputs = {}
    for case, image in oracle.inputs.under("image").items():
        z = vq.project(image)
        codes = vq.encode(image)
        unit = torch.nn.functional.normalize(z, dim=1).permute(0, 2, 3, 1)
        near = torch.cdist(unit, vq.quantize.vectors).square().topk(2, largest=False).values
        raw = torch.cdist(z.permute(0, 2, 3, 1), vq.quantize.embedding.weight).argmin(dim=-1)
        outputs |= {
            f"pre_quant/{case}": z,
            f"indices/{case}": codes,
            f"quant/{case}": _channels_first(vq.quantize(codes)),
            f"margin/{case}": near[..., 1] - near[..., 0],
            f"n_differs_from_raw_metric/{case}": (raw != codes).sum(),
        }
    return outputs


def llamagen_vq_decoder(oracle: Oracle) -> dict[str, Tensor]:
    """Vectors and images of codes."""
    vq = _half(oracle.config, oracle.weights, ("encoder", "quant_conv"))
    outputs = {}
    for case, codes in oracle.inputs.under("indices").items():
        vectors = _channels_first(vq.quantize(codes))
        outputs |= {f"codes/{case}": vectors, f"image/{case}": vq.decode(vectors)}
    return outputs
