"""Mistakes one makes when re-implementing MAR, CSpD and LlamaGen: the reference outputs must notice each of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from spd_core import diffusion
from spd_core.accept import cspd as accept
from spd_core.families.llamagen import codes
from spd_core.families.llamagen import model as llamagen
from spd_core.families.llamagen.model import ClassEmbedding, FeedForward, LlamaGenConfig
from spd_core.families.llamagen.vq import Codebook
from spd_core.families.mar import cspd, vae
from spd_core.families.mar import iterations as decoding
from spd_core.families.mar.model import Mar
from spd_core.models.head import TimestepEmbedder
from tests.oracles import OracleError, check
from tests.oracles import mar as mar_oracles
from tests.oracles.files import failing, find

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sines_first(patch: Patch) -> None:
    right = TimestepEmbedder.frequencies
    patch.setattr(TimestepEmbedder, "frequencies", staticmethod(lambda t: right(t).roll(128, dims=1)))


def shifted_timesteps(patch: Patch) -> None:
    right = TimestepEmbedder.frequencies
    patch.setattr(TimestepEmbedder, "frequencies", staticmethod(lambda t: right(t + 1)))


def guided_v(patch: Patch) -> None:
    def guide(out, scale):
        cond, null = out.chunk(2)
        return torch.lerp(null, cond, scale).chunk(2, dim=-1)

    for module in (decoding, mar_oracles):
        patch.setattr(module, "guide", guide)


def temperature_on_start(patch: Patch) -> None:
    right = decoding.denoise
    patch.setattr(
        decoding,
        "denoise",
        lambda head, law, z, s, start, noise: right(head, law, z, s, start * law.temperature, noise),
    )


def no_temperature(patch: Patch) -> None:
    right = decoding.denoise
    patch.setattr(
        decoding, "denoise", lambda head, law, *rest: right(head, law.model_copy(update={"temperature": 1.0}), *rest)
    )


def noise_in_reverse(patch: Patch) -> None:
    right = decoding.denoise
    patch.setattr(
        decoding, "denoise", lambda head, law, z, s, start, noise: right(head, law, z, s, start, noise.flip(1))
    )


def other_variance(patch: Patch) -> None:
    right = diffusion.step_log_std
    for module in (decoding, mar_oracles):
        patch.setattr(module, "step_log_std", lambda step, v: right(step, v.clamp(-1, 1)))


def clipped_x0(patch: Patch) -> None:
    def mean(step, x, eps):
        return step.c_x0 * (step.sqrt_recip * x - step.sqrt_recipm1 * eps).clamp(-1, 1) + step.c_x * x

    for module in (decoding, mar_oracles):
        patch.setattr(module, "step_mean", mean)


def no_diffusion_position(patch: Patch) -> None:
    right = Mar.decode
    patch.setattr(Mar, "decode", lambda self, *a, **k: right(self, *a, **k) - self.diffusion_pos_embed_learned)


def null_is_class_zero(patch: Patch) -> None:
    patch.setattr(Mar, "class_embedding", lambda self, labels: self.class_emb(labels.clamp(min=0)))


def tanh_gelu(patch: Patch) -> None:
    right = nn.functional.gelu
    patch.setattr(nn.functional, "gelu", lambda x: right(x, approximate="tanh") + 1e-3 * x)


def guidance_of_the_step_before(patch: Patch) -> None:
    right = decoding.guidance_scale
    patch.setattr(decoding, "guidance_scale", lambda law, n, masked: right(law, n, min(n, masked + 4)))


def orders_from_the_front(patch: Patch) -> None:
    right = decoding.rows_of
    patch.setattr(decoding, "rows_of", lambda order, left, masked: right(order.flip(1), left, masked))


def bins_twice_as_wide(patch: Patch) -> None:
    patch.setattr(diffusion, "BIN_HALF_WIDTH", 2 / 255)


def paper_sign(patch: Patch) -> None:
    right = cspd.log_path_factor
    patch.setattr(cspd, "log_path_factor", lambda q, p: -right(q, p))


def plain_densities(patch: Patch) -> None:
    right = accept.tempered_log_ratio
    patch.setattr(accept, "tempered_log_ratio", lambda p, q, x, _: right(p, q, x, 1.0))


def own_noise_for_target(patch: Patch) -> None:
    right = cspd.sample_rows
    patch.setattr(
        cspd,
        "sample_rows",
        lambda sampler, z, scale, draws, rows, iteration, *_: right(
            sampler, z.roll(1, 0), scale, draws, rows, iteration
        ),
    )


def unthinned_proposals(patch: Patch) -> None:
    patch.setattr(accept, "thinning", lambda p, q, log_factor, y: torch.ones(y.shape[:-1]))


def symmetric_padding(patch: Patch) -> None:
    patch.setattr(vae.Downsample, "forward", lambda self, x: self.conv(nn.functional.pad(x, (1, 0, 1, 0))))


def no_logvar_clamp(patch: Patch) -> None:
    patch.setattr(vae, "LOGVAR_RANGE", (-1e9, 1e9))


def group_norm_eps(patch: Patch) -> None:
    patch.setattr(vae, "NORM_EPS", 1e-2)


def attention_without_scale(patch: Patch) -> None:
    right = nn.functional.scaled_dot_product_attention
    patch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, **named: right(q, k, v, **{**named, "scale": 1.0}),
    )


def class_token_turned_by_nothing(patch: Patch) -> None:
    right = llamagen.rotary_table
    patch.setattr(
        llamagen, "rotary_table", lambda config: torch.cat([torch.ones_like(right(config)[:1]), right(config)[1:]])
    )


def columns_before_rows(patch: Patch) -> None:
    right = llamagen.rotary_table
    patch.setattr(llamagen, "rotary_table", lambda config: right(config).roll(right(config).shape[1] // 2, dims=1))


def pairs_of_both_halves(patch: Patch) -> None:
    right = torch.view_as_complex
    patch.setattr(
        torch,
        "view_as_complex",
        lambda x: right(x.flatten(-2).unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()),
    )


def gate_on_the_other_branch(patch: Patch) -> None:
    patch.setattr(FeedForward, "forward", lambda self, x: self.w2(nn.functional.silu(self.w3(x)) * self.w1(x)))


def null_embedding_is_class_zero(patch: Patch) -> None:
    patch.setattr(ClassEmbedding, "forward", lambda self, labels: self.embedding_table(labels.clamp(min=0)))


def null_and_class_swapped(patch: Patch) -> None:
    right = codes.LawReader.read
    patch.setattr(codes.LawReader, "read", lambda self, *a, **k: right(self, *a, **k).flip(0))


def guidance_one_code_longer(patch: Patch) -> None:
    right = codes.guidance
    patch.setattr(codes, "guidance", lambda law, position, length: right(law, position - 1, length))


def guidance_one_code_shorter(patch: Patch) -> None:
    right = codes.guidance
    patch.setattr(codes, "guidance", lambda law, position, length: right(law, position + 1, length))


def nothing_above_top_p(patch: Patch) -> None:
    right = torch.Tensor.cumsum
    patch.setattr(torch.Tensor, "cumsum", lambda self, dim: right(self, dim=dim) + self)


def lookup_by_raw_distance(patch: Patch) -> None:
    patch.setattr(Codebook, "nearest", lambda self, unit: torch.cdist(unit, self.embedding.weight).argmin(dim=-1))


def raw_rows_decoded(patch: Patch) -> None:
    patch.setattr(Codebook, "forward", lambda self, index: self.embedding(index))


def smooth_doubling(patch: Patch) -> None:
    right = nn.functional.interpolate
    patch.setattr(nn.functional, "interpolate", lambda x, **named: right(x, **{**named, "mode": "bilinear"}))


MUTANTS: list[tuple[str, Callable[[Patch], None], str]] = [
    ("mar_head", sines_first, "t_freq"),
    ("mar_head", shifted_timesteps, "forward"),
    ("mar_head", guided_v, "cfg/3.0"),
    ("mar_diffusion", sines_first, "loop/25/T1.0/cfg3.0/traj"),
    ("mar_diffusion", guided_v, "loop/25/T1.0/cfg3.0/sample"),
    ("mar_diffusion", temperature_on_start, "loop/25/T0.9/cfg1.0/sample"),
    ("mar_diffusion", no_temperature, "loop/25/T0.9/cfg1.0/sample"),
    ("mar_diffusion", noise_in_reverse, "loop/25/T0.9/cfg1.0/sample"),
    ("mar_diffusion", other_variance, "pmv/100/log_variance"),
    ("mar_diffusion", clipped_x0, "loop/25/T0.9/cfg1.0/traj"),
    ("mar_forward", no_diffusion_position, "z_cond/7"),
    ("mar_forward", null_is_class_zero, "z_null/0"),
    ("mar_forward", tanh_gelu, "z_cond/63"),
    ("mar_forward", attention_without_scale, "enc_cond/32"),
    ("mar_train_loss", bins_twice_as_wide, "vb"),
    ("mar_sample_tokens", orders_from_the_front, "it8_nocfg/gen_step"),
    ("mar_sample_tokens", guidance_of_the_step_before, "it64_linear3/tokens"),
    ("mar_sample_tokens", temperature_on_start, "it8_linear3_T0.9/tokens"),
    ("cspd_released", paper_sign, "cfg1.0/v0/log_factor"),
    ("cspd_released", plain_densities, "cfg3.0/v3/prob"),
    ("cspd_released", own_noise_for_target, "cfg1.0/v2/target_mean"),
    ("cspd_released", unthinned_proposals, "unit/n_tries"),
    ("mar_vae_encoder", symmetric_padding, "moments/1"),
    ("mar_vae_encoder", no_logvar_clamp, "posterior/logvar"),
    ("mar_vae_decoder", group_norm_eps, "image/0"),
    ("mar_vae_decoder", attention_without_scale, "image/1"),
    ("llamagen_gpt", class_token_turned_by_nothing, "logits_full"),
    ("llamagen_gpt", class_token_turned_by_nothing, "logits_cached_null"),
    ("llamagen_gpt", columns_before_rows, "logits_full"),
    ("llamagen_gpt", pairs_of_both_halves, "logits_cached"),
    ("llamagen_gpt", attention_without_scale, "logits_full"),
    ("llamagen_gpt", gate_on_the_other_branch, "logits_full_null"),
    ("llamagen_gpt", null_embedding_is_class_zero, "logits_full_null"),
    ("llamagen_gpt", null_and_class_swapped, "logits_cfg/1.5"),
    ("llamagen_gpt", guidance_one_code_longer, "greedy/cfg3_interval5/margin"),
    ("llamagen_gpt", guidance_one_code_shorter, "greedy/cfg3_interval5/margin"),
    ("llamagen_gpt", nothing_above_top_p, "probs/p0.8"),
    ("llamagen_vq_encoder", symmetric_padding, "pre_quant/1"),
    ("llamagen_vq_encoder", group_norm_eps, "pre_quant/0"),
    ("llamagen_vq_encoder", lookup_by_raw_distance, "indices/1"),
    ("llamagen_vq_decoder", raw_rows_decoded, "image/0"),
    ("llamagen_vq_decoder", attention_without_scale, "image/1"),
    ("llamagen_vq_decoder", smooth_doubling, "image/0"),
]


@pytest.mark.parametrize(("name", "mutant", "key"), MUTANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_mutant_is_noticed(name: str, mutant: Callable[[Patch], None], key: str, monkeypatch: Patch):
    path = find(name)
    mutant(monkeypatch)
    assert key in failing(path, key)


def test_other_width_of_the_feed_forward_is_noticed(monkeypatch: Patch):
    monkeypatch.setattr(LlamaGenConfig, "ffn_dim", property(lambda self: int(8 * self.dim / 3)))
    with pytest.raises(OracleError, match=r"feed_forward\.w1\.weight: got \[256, 64\], allowed: \[170, 64\]"):
        check(find("llamagen_gpt"))


def test_norm_eps_fits_best(monkeypatch: Patch):
    """A neighbouring eps moves the logits by less than what the reference allows, but by far more than rounding."""

    def error(eps: float) -> float:
        monkeypatch.setattr(llamagen, "NORM_EPS", eps)
        return max(finding.error for finding in check(find("llamagen_gpt")) if finding.key.startswith("logits_"))

    own = error(llamagen.NORM_EPS)
    assert all(error(eps) > 3 * own for eps in (1e-6, 3e-6, 3e-5))
