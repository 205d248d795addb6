"""Oracles of the MAR transformer, its diffusion head, the diffusion process and the training loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from spd_core import codec
from spd_core.diffusion import TrainingLoss, diffusion, guide, step_log_std, step_mean
from spd_core.families.mar import iterations as decoding
from spd_core.families.mar.model import Mar, MarConfig
from spd_core.law import SamplerLaw
from spd_core.models.head import DiffusionHead, StepModulation
from tests.oracles.base import Named, Oracle, OracleError, load_strict, without_prefix

HEAD_PREFIX = "diffloss.net."
#: Constructor arguments of the public class that only training uses and our configuration leaves out.
TRAINING_ARGUMENTS = {"mask_ratio_min", "label_drop_prob", "diffusion_batch_mul", "grad_checkpointing"}


class HeadConfig(BaseModel):
    """Constructor arguments of the public head."""

    in_channels: int
    model_channels: int
    out_channels: int
    z_channels: int
    num_res_blocks: int


def mar_config(raw: dict[str, Any]) -> MarConfig:
    return MarConfig.model_validate({key: value for key, value in raw.items() if key not in TRAINING_ARGUMENTS})


def load_mar(raw_config: dict[str, Any], weights: dict[str, Tensor], what: str = "model") -> Mar:
    return load_strict(Mar(mar_config(raw_config)), weights, what)


def load_head(raw_config: dict[str, Any], weights: dict[str, Tensor]) -> DiffusionHead:
    """A head whose keys may carry the prefix they have inside the full model."""
    config = HeadConfig.model_validate(raw_config)
    return load_strict(DiffusionHead(**config.model_dump()), without_prefix(weights, HEAD_PREFIX), "head")


def mar_forward(oracle: Oracle) -> dict[str, Tensor]:
    """Encoder output and context vectors z for every mask of the file, and patchify."""
    model = load_mar(oracle.config, oracle.weights)
    tokens, labels = oracle.inputs["tokens"], oracle.inputs["labels"]
    outputs = {}
    for case, mask in oracle.inputs.under("mask").items():
        counts = (~mask.bool()).sum(dim=1).tolist()
        if len(set(counts)) > 1:
            raise OracleError(f"mask/{case}: got {counts} visible tokens per image, allowed: the same number in each")
        visible = mask.bool().to(torch.uint8).argsort(dim=1, stable=True)[:, : counts[0]]
        outputs[f"enc_cond/{case}"] = model.encode(tokens, visible, model.class_embedding(labels))
        outputs[f"z_cond/{case}"] = model(tokens, visible, labels)
        outputs[f"z_null/{case}"] = model(tokens, visible, torch.full_like(labels, -1))
    for name, maps in oracle.inputs.items():
        if name == "latent" or name.startswith("latent_p"):
            patch = int(name.removeprefix("latent_p")) if name != "latent" else model.config.patch_size
            outputs[name.replace("latent", "patchify")] = codec.patchify(maps, patch)
    return outputs


def mar_head(oracle: Oracle) -> dict[str, Tensor]:
    """Time features, time embedding, the head itself and its guided output."""
    head, inputs = load_head(oracle.config, oracle.weights), oracle.inputs
    outputs = {
        "t_freq": head.time_embed.frequencies(inputs["t"]),
        "t_emb": head.time_embed(inputs["t"]),
        "forward": head(inputs["x"], inputs["t"], inputs["c"]),
    }
    for scale in oracle.config["cfg_scales"]:
        x = inputs["x_cfg"].chunk(2)[0].repeat(2, 1)
        out = head(x, inputs["t_cfg"], inputs["c_cfg"])
        eps, v = guide(out, scale)
        v_null = out.chunk(2)[1].chunk(2, dim=1)[1]
        outputs[f"cfg/{scale}"] = torch.cat([torch.cat([eps, v], dim=1), torch.cat([eps, v_null], dim=1)])
    return outputs


class RecordingHead:
    """Stands in for a head inside our denoising loop and keeps every state it was asked about and its answer."""

    def __init__(self, head: DiffusionHead) -> None:
        self._head = head
        self.states: list[Tensor] = []
        self.answers: list[Tensor] = []

    def modulations(self, z: Tensor, timesteps: Sequence[int]) -> Iterator[StepModulation]:
        return self._head.modulations(z, timesteps)

    def apply_step(self, x: Tensor, modulation: StepModulation) -> Tensor:
        answer = self._head.apply_step(x, modulation)
        # Under guidance the loop may hand over each state once or once per branch; the first half is the state.
        self.states.append(x.clone())
        self.answers.append(answer)
        return answer


def _schedule(steps: int) -> dict[str, Tensor]:
    process = diffusion(steps)
    names = (
        "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
        "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance", "posterior_log_variance_clipped",
        "log_betas",
    )  # fmt: skip
    constants = {name: torch.from_numpy(getattr(process, name)) for name in names}
    return {"timestep_map": torch.tensor(process.timesteps), **constants}


def _statistics(steps: int, inputs: Named) -> dict[str, Tensor]:
    """p_mean_variance of given network outputs at given respaced indices."""
    path = {step.k: step for step in diffusion(steps).path}
    chosen = [path[int(k)] for k in inputs["k"]]
    rows: dict[str, list[Tensor]] = {"mean": [], "log_variance": [], "pred_xstart": []}
    for step, x, out in zip(chosen, inputs["x"], inputs["model_output"], strict=True):
        eps, v = out.chunk(2)
        rows["mean"].append(step_mean(step, x, eps))
        rows["log_variance"].append(2 * step_log_std(step, v))
        rows["pred_xstart"].append(step.sqrt_recip * x - step.sqrt_recipm1 * eps)
    outputs = {name: torch.stack(values) for name, values in rows.items()}
    outputs["variance"] = outputs["log_variance"].exp()
    return {"t_network": torch.tensor([step.timestep for step in chosen]), **outputs}


def _loop(head: DiffusionHead, law: SamplerLaw, inputs: Named, noise: Tensor) -> dict[str, Tensor]:
    """Our denoising loop with every state and x0 prediction of the way."""
    guided, recorder, start = law.cfg != 1.0, RecordingHead(head), inputs["x_T"]
    z = torch.cat([inputs["z_cond"], inputs["z_null"]]) if guided else inputs["z_cond"]
    paths = decoding.denoise(recorder, law, z, law.cfg, start, noise.transpose(0, 1))  # type: ignore[arg-type]
    states = [state[: len(start)] for state in recorder.states]
    predictions = []
    for step, state, answer in zip(diffusion(law.head_steps).path, states, recorder.answers, strict=True):
        eps = (guide(answer, law.cfg) if guided else answer.chunk(2, dim=-1))[0]
        predictions.append(step.sqrt_recip * state - step.sqrt_recipm1 * eps)
    trajectory = torch.stack([*states[1:], paths.x0])
    return {"traj": trajectory, "pred_xstart": torch.stack(predictions), "sample": paths.x0}


def mar_diffusion(oracle: Oracle) -> dict[str, Tensor]:
    """Schedule constants, posterior statistics and whole denoising loops."""
    head, config = load_head(oracle.config["head"], oracle.weights), oracle.config
    outputs: dict[str, Tensor] = {}

    def put(prefix: str, values: dict[str, Tensor]) -> None:
        outputs.update({f"{prefix}/{name}": value for name, value in values.items()})

    for steps in config["schedules"]:
        put(f"sched/{steps}", _schedule(int(steps)))
    for steps in config["pmv_schedules"]:
        put(f"pmv/{steps}", _statistics(int(steps), oracle.inputs.under(f"pmv/{steps}")))
    for steps, temperature, cfg in config["loops"]:
        law = SamplerLaw(head_steps=int(steps), temperature=temperature, cfg=cfg)
        noise = oracle.inputs[f"step_noise/{steps}"]
        put(f"loop/{steps}/T{temperature}/cfg{cfg}", _loop(head, law, oracle.inputs, noise))
    return outputs


def mar_train_loss(oracle: Oracle) -> dict[str, Tensor]:
    """Loss terms per row, their masked mean and its gradients."""
    head, inputs, loss = load_head(oracle.config["head"], oracle.weights), oracle.inputs, TrainingLoss()
    prefix = HEAD_PREFIX if any(key.startswith(HEAD_PREFIX) for key in oracle.weights) else ""
    with torch.enable_grad():
        z = inputs["z"].requires_grad_()
        parameters = {name: p.requires_grad_() for name, p in head.named_parameters()}
        x0, t, noise = inputs["target"], inputs["t"], inputs["noise"]
        x_t = loss.noised(x0, t, noise)
        terms = loss(x0, x_t, t, noise, head(x_t, t, z))
        per_row = terms.mse + terms.vb
        total = (per_row * inputs["mask"]).sum() / inputs["mask"].sum()
        gradients = torch.autograd.grad(total, [z, *parameters.values()])
    outputs = {"mse": terms.mse, "vb": terms.vb, "loss_per_row": per_row, "loss": total, "grad_z": gradients[0]}
    named = zip(parameters, gradients[1:], strict=True)
    return outputs | {f"grad/{prefix}{name}": gradient for name, gradient in named}
