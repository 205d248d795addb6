"""Makes a pair folder out of official MAR checkpoints and the KL-16 autoencoder.

The released files are pickles: ``checkpoint-last.pth`` holds ``model``, ``model_ema`` and trainer leftovers,
``kl16.ckpt`` holds ``model``. They are read with PyTorch's restricted unpickler, which builds tensors and plain
containers, plus ``argparse.Namespace`` for the trainer's arguments, and refuses everything else.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spd_core.law import SamplerLaw
from spd_core.models.mar import Mar, MarConfig, preset
from spd_core.models.vae import KlCodec, KlVae, KlVaeConfig
from spd_core.pairs.pair import PairCard, PairError

#: Guidance the public README samples each model with; its other settings are 256 iterations, 100 steps, linear.
README_GUIDANCE = {"base": 2.9, "large": 3.0, "huge": 3.2}
README_ITERATIONS = 256
WEIGHTS_KEY = {"target": "model_ema", "draft": "model_ema", "vae": "model"}


def read_checkpoint(path: Path, key: str) -> dict[str, Tensor]:
    """The state dict under ``key`` of a checkpoint file, as float32; zip-format files are mapped, not read.

    Raises:
        PairError: a file that cannot be read, holds anything but plain data, or has no state dict of that name.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise PairError(f"checkpoint: cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        named = re.search(r"unsupported (?:global|class):? (?:global )?([\w.]+)", str(error), re.IGNORECASE)
        reason = f"it asks for {named[1]}" if named else "it is no torch file"
        raise PairError(f"checkpoint: refused {path}, {reason}; allowed: a torch file of plain tensors") from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # A restricted unpickler fed with damaged bytes fails in any of these ways.
        raise PairError(f"checkpoint: {path} is no torch file: {_one_line(error)}; allowed: a checkpoint") from error
    state = saved.get(key) if isinstance(saved, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        held = ", ".join(sorted(map(str, saved))) if isinstance(saved, dict) else type(saved).__name__
        raise PairError(f"checkpoint: {path} holds {held[:120]}, allowed: a state dict under {key!r}")
    return {name: value.float() for name, value in state.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def shapes_of(make: type[Mar] | type[KlVae], config: Any) -> dict[str, list[int]]:
    """State-dict shapes of a model that is never allocated."""
    with torch.device("meta"):
        model: nn.Module = make(config)
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def _misfit(state: Mapping[str, Tensor], allowed: Mapping[str, list[int]]) -> str | None:
    """The first key that is missing, unexpected or of another shape; None if there is none."""
    for name in sorted(allowed.keys() | state.keys()):
        got = list(state[name].shape) if name in state else "none"
        if got != allowed.get(name, "none"):
            return f"{name}: got {got}, allowed: {allowed.get(name, 'none')}"
    return None


def _require(path: Path, state: Mapping[str, Tensor], make: type[Mar] | type[KlVae], config: Any) -> None:
    if (misfit := _misfit(state, shapes_of(make, config))) is not None:
        raise PairError(f"checkpoint: {path} does not fit, {misfit}")


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
    _require(path, state, Mar, preset(widths[width]))
    return widths[width]


def _mar_part(path: Path, part: str, config: MarConfig | None) -> tuple[dict[str, Tensor], MarConfig, str | None]:
    """Checked weights, their configuration, and the preset's name if it is one."""
    state = read_checkpoint(path, WEIGHTS_KEY[part])
    if config is not None:
        _require(path, state, Mar, config)
        return state, config, None
    name = preset_of(path, state)
    return state, preset(name), name


def readme_law(name: str | None, config: MarConfig) -> SamplerLaw:
    """The law the public README samples a model at; a model that is no preset: no guidance."""
    return SamplerLaw(
        num_iter=min(README_ITERATIONS, config.seq_len),
        head_steps=config.num_sampling_steps,
        cfg=README_GUIDANCE[name] if name else 1.0,
        cfg_schedule="linear",
        temperature=1.0,
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
    if (out / "pair.json").exists():
        raise PairError(f"out: got {out}, which holds a pair already; allowed: a new folder")
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
        _require(vae, weights["vae"], KlVae, vae_config)
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
        sha256=_write_weights(out, weights),
    )
    (out / "pair.json").write_text(card.model_dump_json(indent=1) + "\n")
    return card


def _check_same_tokens(path: Path, target: MarConfig, draft: MarConfig) -> None:
    for field in ("grid", "token_dim", "patch_size", "class_num"):
        got, allowed = getattr(draft, field), getattr(target, field)
        if got != allowed:
            raise PairError(f"draft: {path} has {field} {got}, allowed: {allowed} (the target's)")


def _check_latents(target: MarConfig, vae: KlVaeConfig) -> None:
    got, allowed = (vae.embed_dim, vae.stride), (target.vae_embed_dim, target.vae_stride)
    if got != allowed:
        raise PairError(f"vae: has (channels, stride) {got}, allowed: {allowed} (the target's)")


def _write_weights(out: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Writes ``<part>.safetensors`` and returns the files' hashes."""
    digests = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for part, state in weights.items():
            path = out / f"{part}.safetensors"
            save_file({name: value.contiguous() for name, value in state.items()}, path)
            path.chmod(0o644)  # safetensors leaves it readable by its owner alone; workers may run as another user
            with path.open("rb") as file:
                digests[part] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PairError(f"out: cannot write {out}: {error.strerror or error}; allowed: a writable folder") from error
    return digests
