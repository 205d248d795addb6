"""Makes a pair folder out of official MAR checkpoints and the KL-16 autoencoder.

``checkpoint-last.pth`` holds ``model``, ``model_ema`` and trainer leftovers, ``kl16.ckpt`` holds ``model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spd_core.law import SamplerLaw
from spd_core.models.mar import Mar, MarConfig, preset
from spd_core.models.vae import KlCodec, KlVae, KlVaeConfig
from spd_core.pairs.checkpoint import read_checkpoint, refuse_existing, require, write_pair
from spd_core.pairs.pair import PairCard, PairError

#: Guidance the public README samples each model with; its other settings are 256 iterations, 100 steps, linear.
README_GUIDANCE = {"base": 2.9, "large": 3.0, "huge": 3.2}
README_ITERATIONS = 256
WEIGHTS_KEY = {"target": "model_ema", "draft": "model_ema", "vae": "model"}


def preset_of(path: Path, state: Mapping[str, Tensor]) -> str:
    """Name of the public model whose keys and shapes are exactly those of ``state``.

    Raises:
        PairError: names the first difference to the preset of the same width, or the widths there are.
    """
    widths = {preset(name).encoder_embed_dim: name for name in README_GUIDANCE}
    fake = state.get("fake_latent")
    width = fake.shape[-1] if fake is not None else None
    if width not in widths:
        known = ", ".join(f"{d} ({name})" for d, name in widths.items())
        raise PairError(f"checkpoint: {path} has encoder width {width or 'none'}, allowed: {known}")
    require(path, state, lambda: Mar(preset(widths[width])))
    return widths[width]


def _mar_part(path: Path, part: str, config: MarConfig | None) -> tuple[dict[str, Tensor], MarConfig, str | None]:
    """Checked weights, their configuration, and the preset's name if it is one."""
    state = read_checkpoint(path, WEIGHTS_KEY[part])
    if config is not None:
        require(path, state, lambda: Mar(config))
        return state, config, None
    name = preset_of(path, state)
    return state, preset(name), name


def readme_law(name: str | None, config: MarConfig) -> SamplerLaw:
    """The law the public README samples a model at; a model that is no preset: no guidance.

    The public sampler runs under autocast to float16. bfloat16 is as fast, and its range is that of float32: float16
    overflows to NaN on weights of an early training (issues 25 and 76 of the public code). Unlike there, the head's
    output layer is float32.
    """
    return SamplerLaw(
        num_iter=min(README_ITERATIONS, config.seq_len),
        head_steps=config.num_sampling_steps,
        cfg=README_GUIDANCE[name] if name else 1.0,
        cfg_schedule="linear",
        temperature=1.0,
        dtype="bfloat16",
    )


def convert(
    target: Path,
    draft: Path | None,
    vae: Path | None,
    out: Path,
    name: str,
    *,
    target_config: MarConfig | None = None,
    draft_config: MarConfig | None = None,
    vae_config: KlVaeConfig | None = None,
) -> PairCard:
    """Writes a pair folder from official checkpoints; nothing is written before everything has been checked.

    Args:
        target, draft: ``checkpoint-last.pth`` of the two models.
        vae: ``kl16.ckpt``; without it the pair decodes tokens but makes no images.
        out: the pair's folder; must not hold a pair yet.
        name: the pair's name.
        target_config, draft_config: configurations of checkpoints that are no preset; None: base, large or huge,
            told from the shapes.
        vae_config: None: KL-16.

    Raises:
        PairError: one line: a file that cannot be read or does not fit, models that do not fit each other.
    """
    refuse_existing(out)
    weights: dict[str, dict[str, Tensor]] = {}
    weights["target"], target_config, target_preset = _mar_part(target, "target", target_config)
    if draft is not None:
        weights["draft"], draft_config, _ = _mar_part(draft, "draft", draft_config)
        _check_same_tokens(draft, target_config, draft_config)
    else:
        draft_config = None
    vae_config = vae_config or KlVaeConfig()
    _check_latents(target_config, vae_config)
    if vae is not None:
        weights["vae"] = read_checkpoint(vae, WEIGHTS_KEY["vae"])
        require(vae, weights["vae"], lambda: KlVae(vae_config))
    card = PairCard(
        name=name,
        family="mar",
        target=target_config,
        draft=draft_config,
        codec=KlCodec(vae=vae_config, patch_size=target_config.patch_size),
        class_names=tuple(str(label) for label in range(target_config.class_num)),
        law=readme_law(target_preset, target_config),
        licence="MIT",
        data="ImageNet-1k training set" if target_preset else "not stated by the checkpoint",
        sha256={},
    )
    return write_pair(out, weights, card)


def _check_same_tokens(path: Path, target: MarConfig, draft: MarConfig) -> None:
    for field in ("grid", "token_dim", "patch_size", "class_num"):
        got, allowed = getattr(draft, field), getattr(target, field)
        if got != allowed:
            raise PairError(f"draft: {path} has {field} {got}, allowed: {allowed} (the target's)")


def _check_latents(target: MarConfig, vae: KlVaeConfig) -> None:
    got, allowed = (vae.embed_dim, vae.stride), (target.vae_embed_dim, target.vae_stride)
    if got != allowed:
        raise PairError(f"vae: has (channels, stride) {got}, allowed: {allowed} (the target's)")
