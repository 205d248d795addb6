"""Makes a pair folder out of the public SphereAR checkpoints.

``SphereAR_B.pt`` and its like hold the weights under ``ema`` and ``model`` (or one of them) beside the trainer's state,
and inside them the whole autoencoder under ``vae.``; ``vae.pt`` holds the autoencoder alone, under ``vae.`` too. The
average of a run does not touch the autoencoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spd_core.families.sphere import sizes
from spd_core.families.sphere.codec import SphereCodec
from spd_core.families.sphere.model import PRESETS, Sphere, SphereConfig
from spd_core.families.sphere.vae import SphereVae, SphereVaeConfig
from spd_core.law import SamplerLaw
from spd_core.pairs.checkpoint import Take, as_float32, class_names, refuse_existing, require, taken, write_pair
from spd_core.pairs.contents import Weights, find_weights, read_weights
from spd_core.pairs.pair import PairCard, PairError
from spd_core.pairs.pickles import read_file

#: Kinds of `spd_core.pairs.contents`.
MODEL, VAE = "sphere", "sphere-vae"
_INSIDE = "vae."
#: Guidance of the published figures; their other settings are 100 steps with noise and one without, and linear.
README_GUIDANCE = {"B": 4.5, "L": 4.6, "H": 4.5}
README_STEPS = 101


def preset_of(config: SphereConfig) -> str | None:
    """Name of the public model that has these sizes; None: none has."""
    return next((name for name, preset in PRESETS.items() if SphereConfig(**preset) == config), None)


def readme_law(name: str | None) -> SamplerLaw:
    """The law of the published figures; a model that is no preset: no guidance."""
    return SamplerLaw(
        head_steps=README_STEPS, cfg=README_GUIDANCE[name] if name else 1.0, cfg_schedule="linear", dtype="bfloat16"
    )


def convert_sphere(target: Path, draft: Path | None, vae: Path | None, out: Path, name: str, take: Take) -> PairCard:
    """Writes a pair folder from SphereAR checkpoints; nothing is written before everything has been checked.

    Args:
        target, draft: checkpoints of the two models.
        vae: of the autoencoder, ``vae.pt``; None: the one inside the target's file, if it holds one.
        out: the pair's folder; must not hold a pair yet.
        name: the pair's name.
        take: what files cannot tell.

    Raises:
        PairError: one line: a file that cannot be read or does not fit, models that do not fit each other.
    """
    refuse_existing(out)
    found, files = {}, {"target": target, "draft": draft, "vae": vae or target}
    saved = read_file(target)
    autoencoder = _autoencoder(target, saved) if vae is None else read_weights(vae, VAE)
    vae_config = SphereVaeConfig()
    if autoencoder is not None:
        found["vae"], vae_config = autoencoder, sizes.vae_config(files["vae"] or target, autoencoder.state)
        require(files["vae"] or target, autoencoder.state, lambda: SphereVae(vae_config))
    found["target"], target_config = _model(target, saved, vae_config, take.weights, take.target_heads)
    draft_config = None
    if draft is not None:
        drafted = read_file(draft)
        found["draft"], draft_config = _model(draft, drafted, vae_config, take.weights, take.draft_heads)
        _check_same_tokens(draft, target_config, draft_config)
        _check_same_autoencoder(draft, _autoencoder(draft, drafted), autoencoder)
    _check_latents(target_config, vae_config, autoencoder is not None)
    known = preset_of(target_config)
    card = PairCard(
        name=name,
        family="sphere",
        target=target_config,
        draft=draft_config,
        codec=SphereCodec(vae=vae_config),
        class_names=class_names(take.class_names, target_config.num_classes),
        law=readme_law(known),
        licence="not stated by the checkpoint, nor by the public code",
        data="ImageNet-1k training set" if known else "not stated by the checkpoint",
        sha256={},
        training=taken(files, found),
    )
    return write_pair(out, {part: as_float32(weights.state) for part, weights in found.items()}, card)


def _model(
    path: Path, saved: Any, vae: SphereVaeConfig, asked: str | None, heads: int | None
) -> tuple[Weights, SphereConfig]:
    """Checked weights, without the autoencoder's, and their sizes."""
    found = find_weights(path, saved, MODEL, asked)
    own = {key: value for key, value in found.state.items() if not key.startswith(_INSIDE)}
    config = sizes.sphere_config(path, own, heads, vae)
    require(path, own, lambda: Sphere(config))
    return Weights(own, found.where, found.others), config


def _autoencoder(path: Path, saved: Any) -> Weights | None:
    """The one inside a model's file; None: there is none."""
    try:
        return find_weights(path, saved, VAE)
    except PairError:
        return None


def _check_same_tokens(path: Path, target: SphereConfig, draft: SphereConfig) -> None:
    for field in ("seq_len", "latent_dim", "num_classes"):
        got, allowed = getattr(draft, field), getattr(target, field)
        if got != allowed:
            raise PairError(f"draft: {path} has {field} {got}, allowed: {allowed} (the target's)")


def _check_same_autoencoder(path: Path, own: Weights | None, pairs: Weights | None) -> None:
    """A draft of another autoencoder's tokens would be rejected all the time, or draft what is no token."""
    if own is None or pairs is None:
        return
    for key, value in pairs.state.items():
        if key not in own.state or not torch.equal(own.state[key], value):
            raise PairError(f"draft: {path} has another autoencoder ({key} differs), allowed: the target's")


def _check_latents(target: SphereConfig, vae: SphereVaeConfig, given: bool) -> None:
    got, allowed = (vae.latent_dim, vae.grid), (target.latent_dim, target.grid)
    if got != allowed:
        which = "makes" if given else "got none, and the public one makes"
        raise PairError(f"vae: {which} (dims, grid) {got}, allowed: {allowed} (the target's)")
