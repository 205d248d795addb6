"""Makes a pair folder out of MAR checkpoints and their KL autoencoder.

The public ``checkpoint-last.pth`` holds ``model``, ``model_ema`` and trainer leftovers, ``kl16.ckpt`` holds ``model``;
other containers, sizes and grids are told from keys and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spd_core.families.mar import sizes
from spd_core.families.mar.model import Mar, MarConfig, preset
from spd_core.families.mar.sizes import mar_config
from spd_core.families.mar.vae import KlCodec, KlVae, KlVaeConfig
from spd_core.law import SamplerLaw
from spd_core.pairs.checkpoint import TOLD, Take, as_float32, class_names, refuse_existing, require, taken, write_pair
from spd_core.pairs.contents import Weights, read_weights
from spd_core.pairs.pair import PairCard, PairError

#: Guidance the public README samples each model with; its other settings are 256 iterations, 100 steps, linear.
README_GUIDANCE = {"base": 2.9, "large": 3.0, "huge": 3.2}
README_ITERATIONS = 256


def preset_of(config: MarConfig) -> str | None:
    """Name of the public model that has these sizes; None: none has."""
    return next((name for name in README_GUIDANCE if preset(name) == config), None)


def _part(
    path: Path, config: MarConfig | None, vae: KlVaeConfig, asked: str | None, heads: int | None
) -> tuple[Weights, MarConfig]:
    """Checked weights and their configuration."""
    found = read_weights(path, "mar", asked)
    config = config or mar_config(path, found.state, heads, vae)
    require(path, found.state, lambda: Mar(config))
    return found, config


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


@dataclass(frozen=True)
class Configs:
    """Sizes of a pair's models; None: told from the shapes."""

    target: MarConfig | None = None
    draft: MarConfig | None = None
    vae: KlVaeConfig | None = None  #: without such a checkpoint None is KL-16


SHAPES_TELL = Configs()


def convert(
    target: Path,
    draft: Path | None,
    vae: Path | None,
    out: Path,
    name: str,
    *,
    take: Take = TOLD,
    configs: Configs = SHAPES_TELL,
) -> PairCard:
    """Writes a pair folder from MAR checkpoints; nothing is written before everything has been checked.

    Args:
        target, draft: checkpoints of the two models, in whatever container.
        vae: of the autoencoder, such as ``kl16.ckpt``; without it the pair decodes tokens but makes no images.
        out: the pair's folder; must not hold a pair yet.
        name: the pair's name.
        take: what files cannot tell.
        configs: of the models.

    Raises:
        PairError: one line: a file that cannot be read or does not fit, models that do not fit each other.
    """
    refuse_existing(out)
    found: dict[str, Weights] = {}
    vae_config = configs.vae
    if vae is not None:
        found["vae"] = read_weights(vae, "vae")
        vae_config = vae_config or sizes.vae_config(vae, found["vae"].state)
        checked_vae = vae_config
        require(vae, found["vae"].state, lambda: KlVae(checked_vae))
    vae_config = vae_config or KlVaeConfig()
    found["target"], target_config = _part(target, configs.target, vae_config, take.weights, take.target_heads)
    draft_config = None
    if draft is not None:
        found["draft"], draft_config = _part(draft, configs.draft, vae_config, take.weights, take.draft_heads)
        _check_same_tokens(draft, target_config, draft_config)
    _check_latents(target_config, vae_config)
    known = preset_of(target_config)
    card = PairCard(
        name=name,
        family="mar",
        target=target_config,
        draft=draft_config,
        codec=KlCodec(vae=vae_config, patch_size=target_config.patch_size),
        class_names=class_names(take.class_names, target_config.class_num),
        law=readme_law(known, target_config),
        licence="MIT" if known else "not stated by the checkpoint",
        data="ImageNet-1k training set" if known else "not stated by the checkpoint",
        sha256={},
        training=taken({"target": target, "draft": draft, "vae": vae}, found),
    )
    return write_pair(out, {part: as_float32(weights.state) for part, weights in found.items()}, card)


def _check_same_tokens(path: Path, target: MarConfig, draft: MarConfig) -> None:
    for field in ("grid", "token_dim", "patch_size", "class_num"):
        got, allowed = getattr(draft, field), getattr(target, field)
        if got != allowed:
            raise PairError(f"draft: {path} has {field} {got}, allowed: {allowed} (the target's)")


def _check_latents(target: MarConfig, vae: KlVaeConfig) -> None:
    got, allowed = (vae.embed_dim, vae.stride), (target.vae_embed_dim, target.vae_stride)
    if got != allowed:
        raise PairError(f"vae: has (channels, stride) {got}, allowed: {allowed} (the target's)")
