"""Makes a pair folder out of the public class-conditional LlamaGen checkpoints and their VQ-16 tokenizer.

``c2i_B_256.pt`` and its like hold the weights under ``model`` with trainer leftovers (trained with DDP), under
``module`` (DeepSpeed), or are the weights themselves (FSDP); ``vq_ds16_c2i.pt`` holds ``model``. Old files hold the
rotary table too, and the tokenizer a record of the codes it used; neither is a weight, and both are dropped.

No weight tells the size of the images that a model was trained on and so can make. The trainer's arguments do where
the file still holds them, or the file's name.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spd_core.law import SamplerLaw
from spd_core.models.llamagen import PRESETS, LlamaGen, LlamaGenConfig
from spd_core.models.vq import Vq, VqCodec, VqConfig
from spd_core.pairs.checkpoint import as_state, held, read_checkpoint, read_file, refuse_existing, require, write_pair
from spd_core.pairs.pair import PairCard, PairError

#: Guidance the public evaluation samples each model with; its other settings are temperature 1 and no filter.
README_GUIDANCE = {"B": 2.0, "L": 2.0, "XL": 1.75, "XXL": 1.75, "3B": 1.65}
CONTAINERS = ("model", "module", "state_dict")
ROTARY = "freqs_cis"
CODES_USED = "quantize.codebook_used"
IMAGE_SIZES = (256, 384, 512)


def readme_law(name: str | None) -> SamplerLaw:
    """The law the public evaluation samples a model at, in its bfloat16; a model that is no preset: no guidance."""
    return SamplerLaw(cfg=README_GUIDANCE[name] if name else 1.0, cfg_schedule="constant", dtype="bfloat16")


def preset_of(path: Path, state: Mapping[str, Tensor]) -> str:
    """Name of the public model whose keys and shapes are exactly those of ``state``.

    Raises:
        PairError: names the first difference to the preset of the same width, or the widths there are.
    """
    widths = {sizes["dim"]: name for name, sizes in PRESETS.items()}
    codes = state.get("tok_embeddings.weight")
    width = codes.shape[-1] if codes is not None and codes.dim() else None
    if width not in widths:
        known = ", ".join(f"{d} ({name})" for d, name in widths.items())
        raise PairError(f"checkpoint: {path} has width {width or 'none'}, allowed: {known}")
    require(path, state, lambda: LlamaGen(LlamaGenConfig(**PRESETS[widths[width]])))
    return widths[width]


def image_size(path: Path, saved: Any, asked: int | None, stride: int) -> int:
    """Side in pixels of the images that a checkpoint was trained on.

    Args:
        path: the file; the number in its name is the last resort.
        saved: what it holds; a trainer's ``args`` state the size.
        asked: what the user says it is.
        stride: pixels per code and side.

    Raises:
        PairError: nothing tells, or the user says something else than the file.
    """
    arguments = saved.get("args") if isinstance(saved, dict) else None
    stated = getattr(arguments, "image_size", None) if isinstance(arguments, argparse.Namespace) else None
    if asked is not None and stated not in (None, asked):
        raise PairError(f"image-size: got {asked}, allowed: {stated} (the trainer's arguments in {path})")
    named = {int(number) for number in re.findall(r"(?<!\d)\d{3}(?!\d)", path.stem)} & set(IMAGE_SIZES)
    size = next((size for size in (asked, stated) if size is not None), named.pop() if len(named) == 1 else None)
    if not isinstance(size, int) or size < stride or size % stride:
        allowed = f"a multiple of {stride}; the public models have {', '.join(map(str, IMAGE_SIZES))}"
        raise PairError(f"image-size: got {'none' if size is None else size} for {path}, allowed: {allowed}")
    return size


def _part(
    path: Path, config: LlamaGenConfig | None, asked: int | None, stride: int
) -> tuple[dict[str, Tensor], LlamaGenConfig, str | None]:
    """Checked weights, their configuration, and the preset's name if it is one."""
    saved = read_file(path)
    containers = (saved.get(key) for key in CONTAINERS) if isinstance(saved, dict) else ()
    state = next((state for value in (*containers, saved) if (state := as_state(value, ROTARY))), None)
    if state is None:
        raise PairError(
            f"checkpoint: {path} holds {held(saved)}, allowed: weights, or a state dict under {', '.join(CONTAINERS)}"
        )
    name = None
    if config is None:
        name = preset_of(path, state)
        config = LlamaGenConfig(**PRESETS[name])
    else:
        require(path, state, lambda: LlamaGen(config))
    side = image_size(path, saved, asked, stride)
    return state, config.model_copy(update={"block_size": (side // stride) ** 2}), name


def convert_llamagen(
    target: Path,
    draft: Path | None,
    vq: Path | None,
    out: Path,
    name: str,
    size: int | None = None,
    *,
    target_config: LlamaGenConfig | None = None,
    draft_config: LlamaGenConfig | None = None,
    vq_config: VqConfig | None = None,
) -> PairCard:
    """Writes a pair folder from public checkpoints; nothing is written before everything has been checked.

    Args:
        target, draft: checkpoints of the two models.
        vq: ``vq_ds16_c2i.pt``; without it the pair decodes codes but makes no images.
        out: the pair's folder; must not hold a pair yet.
        name: the pair's name.
        size: side in pixels of the images that both models were trained on; None: told from the files.
        target_config, draft_config: configurations of checkpoints that are no preset, whose block_size is not looked
            at; None: B, L, XL, XXL or 3B, told from the shapes.
        vq_config: None: VQ-16.

    Raises:
        PairError: one line: a file that cannot be read or does not fit, models that do not fit each other.
    """
    refuse_existing(out)
    vq_config = vq_config or VqConfig()
    weights: dict[str, dict[str, Tensor]] = {}
    weights["target"], target_config, preset = _part(target, target_config, size, vq_config.stride)
    if draft is not None:
        weights["draft"], draft_config, _ = _part(draft, draft_config, size, vq_config.stride)
        _check_same_codes(draft, target_config, draft_config)
    else:
        draft_config = None
    if vq_config.codebook_size != target_config.vocab_size:
        raise PairError(f"vq: has {vq_config.codebook_size} codes, allowed: {target_config.vocab_size} (the target's)")
    if vq is not None:
        weights["vq"] = read_checkpoint(vq, "model", CODES_USED)
        require(vq, weights["vq"], lambda: Vq(vq_config))
    side = target_config.grid * vq_config.stride
    card = PairCard(
        name=name,
        family="llamagen",
        target=target_config,
        draft=draft_config,
        codec=VqCodec(vq=vq_config, size=side, padded=side),
        class_names=tuple(str(label) for label in range(target_config.num_classes)),
        law=readme_law(preset),
        licence="MIT",
        data=_data(side) if preset else "not stated by the checkpoint",
        sha256={},
    )
    return write_pair(out, weights, card)


def _data(side: int) -> str:
    resized = (
        "" if side == 256 else "; the published figures are of its images resized to 256 px, which is not done here"
    )
    return f"ImageNet-1k training set at {side} px{resized}"


def _check_same_codes(path: Path, target: LlamaGenConfig, draft: LlamaGenConfig) -> None:
    for field in ("block_size", "vocab_size", "num_classes"):
        got, allowed = getattr(draft, field), getattr(target, field)
        if got != allowed:
            raise PairError(f"draft: {path} has {field} {got}, allowed: {allowed} (the target's)")
