"""Oracles of SphereAR: transformer, flow head, sampler, whole generation, and the two halves of its autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spd_core.families.sphere.blocks import on_sphere
from spd_core.families.sphere.flow import FlowPath, flow_path, guidance, sample, step
from spd_core.families.sphere.head import FlowHead, guided, time_features
from spd_core.families.sphere.model import Sphere, SphereConfig
from spd_core.families.sphere.vae import PowerSpherical, SphereVae, SphereVaeConfig, to_bytes
from spd_core.models.kv import KvCache
from tests.oracles.base import Oracle, load_strict

HEAD = "head."


def sphere_config(raw: Mapping[str, Any], **more: Any) -> SphereConfig:
    given = {key: value for key, value in {**raw, **more}.items() if key != "ffn_hidden"}
    return SphereConfig.model_validate(given)


def flow_head(raw: Mapping[str, Any], weights: Mapping[str, Tensor]) -> FlowHead:
    c = raw
    head = FlowHead(c["ch_target"], c["ch_latent"], c["ch_cond"], c["depth_latent"], c["depth_adanln"])
    return load_strict(head, weights, "head")


def sphere_forward(oracle: Oracle) -> dict[str, Tensor]:
    """Contexts of given tokens, in one pass and position by position, with and without a class."""
    model = Sphere(sphere_config(oracle.config["model"]))
    del model.head  # the file holds the transformer alone
    load_strict(model, oracle.weights, "transformer")
    labels, tokens = oracle.inputs["labels"], oracle.inputs["tokens"]
    previous = tokens.roll(1, dims=1)
    c = model.config
    rotary = torch.view_as_real(model.rotary[: c.cls_token_num + c.seq_len - 1])
    outputs = {"rotary": rotary, "class_positions": model._run(model.emb_norm(model._classes(labels)))}
    for name, who in (("", labels), ("_null", torch.full_like(labels, -1))):
        outputs[f"context_full{name}"] = model.contexts(previous, who)
        outputs[f"z_full{name}"] = model(previous, who)
        cache = _begun(model, who)
        at = [torch.full_like(labels, place) for place in range(c.seq_len)]
        steps = [model.contexts(previous[:, place : place + 1], who, at[place], cache) for place in range(c.seq_len)]
        outputs[f"context_cached{name}"] = torch.cat(steps, dim=1)
    return outputs


def sphere_head(oracle: Oracle) -> dict[str, Tensor]:
    """Velocities of given states, with and without guidance."""
    head = flow_head(oracle.config["head"], oracle.weights)
    x, t = oracle.inputs["x"], oracle.inputs["t"]
    v, null = (head(x, t, oracle.inputs[name]) for name in ("c", "c_null"))
    outputs = {"time_features": time_features(t), "time_embedding": head.net.time_embed(t), "v": v, "v_null": null}
    return outputs | {f"guided/{scale}": guided(v, null, scale) for scale in oracle.config["cfg_scales"]}


def _velocity(head: FlowHead, path: FlowPath, z: Tensor, null: Tensor | None, scale: float) -> Any:
    def of(k: int, x: Tensor) -> Tensor:
        t = torch.full((len(x),), path.t[k])
        v = head(x, t, z)
        return v if null is None or scale <= 1 else guided(v, head(x, t, null), scale)

    return of


def sphere_sampler(oracle: Oracle) -> dict[str, Tensor]:
    """Constants of the path, single steps, and whole loops with given noise."""
    head, inputs = flow_head(oracle.config["head"], oracle.weights), oracle.inputs
    outputs: dict[str, Tensor] = {}
    for count, scale in oracle.config["loops"]:
        path = flow_path(count)
        noise = torch.cat([inputs["init"][None], inputs[f"step_noise/{count}"]])
        states, velocities = sample(path, _velocity(head, path, inputs["c_cond"], inputs["c_null"], scale), noise)
        where = f"loop/{count}/cfg{scale}"
        outputs |= {f"{where}/traj": states, f"{where}/v": velocities, f"{where}/sample": states[-1]}
        outputs[f"sched/{count}/t"] = torch.tensor(path.t, dtype=torch.float32)
        for name in ("mean_x", "mean_v", "std"):
            outputs[f"sched/{count}/{name}"] = torch.tensor(getattr(path, name)[:-1], dtype=torch.float64)
        outputs[f"unit/{count}/next"] = _unit_steps(inputs.under("unit"), count)
    unit = inputs.under("unit")
    outputs["unit/last"] = step(flow_path(1), 1, unit["x"], unit["v"], unit["noise"])
    return outputs


def _unit_steps(unit: Mapping[str, Tensor], count: int) -> Tensor:
    """One stochastic step from any time: the path's formulas at a time that need not lie on its grid."""
    dt, t = 0.96 / count, unit["t"][:, None]
    return (1 - dt) * unit["x"] + (1 + t) * dt * unit["v"] + (2 * (1 - t) * dt).sqrt() * unit["noise"]


def _begun(model: Sphere, labels: Tensor) -> KvCache:
    """A cache for images of these classes."""
    cache = model.cache(len(labels))
    model.begin(cache, torch.arange(len(labels)), labels)
    return cache


def sphere_generate(oracle: Oracle) -> dict[str, Tensor]:
    """Whole generations; under the linear schedule the null branch samples a first token of its own."""
    model = load_strict(Sphere(sphere_config(oracle.config["model"])), oracle.weights, "model")
    outputs: dict[str, Tensor] = {}
    for run in oracle.config.runs():
        made = _generate(model, run, oracle.inputs)
        outputs |= {f"{run['name']}/{key}": value for key, value in made.items()}
    return outputs


def _generate(model: Sphere, run: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    labels, path = inputs["labels"], flow_path(run["S"])
    noise = inputs[f"noise/{run['S']}"]
    length, has_null = model.config.seq_len, run["cfg"] > 1
    branches = [labels, torch.full_like(labels, -1)] if has_null else [labels]
    caches = [_begun(model, who) for who in branches]
    previous = [torch.zeros(len(labels), 1, model.config.latent_dim) for _ in branches]
    made: dict[str, list[Tensor]] = {key: [] for key in ("tokens", "raw", "z", "z_null")}
    first_null: Tensor | None = None
    for place in range(length):
        at = torch.full_like(labels, place)
        read = zip(previous, branches, caches, strict=True)
        contexts = [model(token, who, at, cache)[:, 0] for token, who, cache in read]
        scale = guidance(run["cfg"], run["schedule"], place, length)
        null = contexts[1] if has_null else None
        draws = noise[:, place].transpose(0, 1)
        raw = sample(path, _velocity(model.head, path, contexts[0], null, scale), draws)[0][-1]
        token = on_sphere(raw)
        previous = [token[:, None] for _ in branches]
        if has_null and place == 0:
            first_null = token
            if scale <= 1:
                own = inputs[f"null_first_noise/{run['S']}"].transpose(0, 1)
                first_null = on_sphere(sample(path, _velocity(model.head, path, contexts[1], None, 1.0), own)[0][-1])
                previous[1] = first_null[:, None]
        for key, value in (("tokens", token), ("raw", raw), ("z", contexts[0]), ("z_null", null)):
            if value is not None:
                made[key].append(value)
    outputs = {key: torch.stack(values, dim=1) for key, values in made.items() if values}
    scales = [guidance(run["cfg"], run["schedule"], place, length) for place in range(length)]
    outputs["cfg_scale"] = torch.tensor(scales, dtype=torch.float64)
    return outputs | ({} if first_null is None else {"null_first_token": first_null})


def _half(oracle: Oracle, left_out: tuple[str, str]) -> SphereVae:
    vae = SphereVae(SphereVaeConfig.model_validate(oracle.config["vae"]))
    for name in left_out:
        delattr(vae, name)
    return load_strict(vae, oracle.weights, "autoencoder")


def sphere_vae_encoder(oracle: Oracle) -> dict[str, Tensor]:
    """Features, posteriors and samples of images; the law on given unit cases."""
    vae, inputs = _half(oracle, ("decoder", "post_quant_proj")), oracle.inputs
    radius = math.sqrt(vae.config.latent_dim)
    outputs: dict[str, Tensor] = {}
    for case, image in inputs.under("image").items():
        features = vae.encoder(image)
        law = vae.law_of(features)
        drawn = law.at(inputs[f"beta/{case}"], inputs[f"direction/{case}"])
        values = {"features": features, "mu": law.mean, "kappa": law.kappa, "kl": law.kl_to_uniform()}
        values |= {"mode": law.mean * radius, "sample": drawn * radius}
        outputs |= {f"{name}/{case}": value for name, value in values.items()}
    unit = inputs.under("psd")
    law = PowerSpherical(unit["mu"], unit["kappa"])
    drawn = law.at(unit["beta"], unit["direction"])
    return outputs | {
        "psd/sample": drawn, "psd/log_prob": law.log_prob(drawn), "psd/kl_to_uniform": law.kl_to_uniform()
    }  # fmt: skip


def sphere_vae_decoder(oracle: Oracle) -> dict[str, Tensor]:
    """Images of latents; bytes of pixels."""
    vae = _half(oracle, ("encoder", "quant_proj"))
    outputs = {"bytes": to_bytes(oracle.inputs["pixels"])}
    for case, latent in oracle.inputs.under("latent").items():
        tokens = on_sphere(latent)
        outputs |= {f"normalised/{case}": tokens, f"image/{case}": vae.decode(tokens)}
    return outputs
