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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spd_core.families.llamagen import sizes
from spd_core.families.llamagen.model import PRESETS, LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.sizes import llamagen_config
from spd_core.families.llamagen.vq import Vq, VqCodec, VqConfig
from spd_core.law import SamplerLaw
from spd_core.pairs.checkpoint import TOLD, Take, as_float32, class_names, refuse_existing, require, taken, write_pair
from spd_core.pairs.contents import Weights, find_weights, read_weights
from spd_core.pairs.pair import PairCard, PairError
from spd_core.pairs.pickles import read_file

#: Guidance the public evaluation samples each model with; its other settings are temperature 1 and no filter.
README_GUIDANCE = {"B": 2.0, "L": 2.0, "XL": 1.75, "XXL": 1.75, "3B": 1.65}
IMAGE_SIZES = (256, 384, 512)


def readme_law(name: str | None) -> SamplerLaw:
    """The law the public evaluation samples a model at, in its bfloat16; a model that is no preset: no guidance."""
    return SamplerLaw(cfg=README_GUIDANCE[name] if name else 1.0, cfg_schedule="constant", dtype="bfloat16")


def preset_of(config: LlamaGenConfig) -> str | None:
    """Name of the public model that has these sizes, whatever the size of its images; None: none has."""
    shape = {"n_layer": config.n_layer, "n_head": config.n_head, "dim": config.dim}
    rest = LlamaGenConfig(**shape, block_size=config.block_size)
    return next((name for name, public in PRESETS.items() if public == shape and rest == config), None)


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
    path: Path, config: LlamaGenConfig | None, side: int | None, stride: int, asked: str | None, heads: int | None
) -> tuple[Weights, LlamaGenConfig]:
    """Checked weights and their configuration."""
    saved = read_file(path)
    found = find_weights(path, saved, "llamagen", asked)
    config = config or llamagen_config(path, found.state, heads)
    config = config.model_copy(update={"block_size": (image_size(path, saved, side, stride) // stride) ** 2})
    require(path, found.state, lambda: LlamaGen(config))
    return found, config


@dataclass(frozen=True)
class Configs:
    """Sizes of a pair's models; None: told from the shapes; the models' block_size is not looked at."""

    target: LlamaGenConfig | None = None
    draft: LlamaGenConfig | None = None
    vq: VqConfig | None = None  #: without such a checkpoint None is VQ-16


SHAPES_TELL = Configs()


def convert_llamagen(
    target: Path,
    draft: Path | None,
    vq: Path | None,
    out: Path,
    name: str,
    size: int | None = None,
    *,
    take: Take = TOLD,
    configs: Configs = SHAPES_TELL,
) -> PairCard:
    """Writes a pair folder from LlamaGen checkpoints; nothing is written before everything has been checked.

    Args:
        target, draft: checkpoints of the two models, in whatever container.
        vq: of the tokenizer, such as ``vq_ds16_c2i.pt``; without it the pair decodes codes but makes no images.
        out: the pair's folder; must not hold a pair yet.
        name: the pair's name.
        size: side in pixels of the images that both models were trained on; None: told from the files.
        take: what else files cannot tell.
        configs: of the models.

    Raises:
        PairError: one line: a file that cannot be read or does not fit, models that do not fit each other.
    """
    refuse_existing(out)
    found: dict[str, Weights] = {}
    vq_config = configs.vq
    if vq is not None:
        found["vq"] = read_weights(vq, "vq")
        checked_vq = vq_config = vq_config or sizes.vq_config(vq, found["vq"].state)
        require(vq, found["vq"].state, lambda: Vq(checked_vq))
    vq_config = vq_config or VqConfig()
    stride = vq_config.stride
    found["target"], target_config = _part(target, configs.target, size, stride, take.weights, take.target_heads)
    draft_config = None
    if draft is not None:
        found["draft"], draft_config = _part(draft, configs.draft, size, stride, take.weights, take.draft_heads)
        _check_same_codes(draft, target_config, draft_config)
    if vq_config.codebook_size != target_config.vocab_size:
        raise PairError(f"vq: has {vq_config.codebook_size} codes, allowed: {target_config.vocab_size} (the target's)")
    side, known = target_config.grid * stride, preset_of(target_config)
    card = PairCard(
        name=name,
        family="llamagen",
        target=target_config,
        draft=draft_config,
        codec=VqCodec(vq=vq_config, size=side, padded=side),
        class_names=class_names(take.class_names, target_config.num_classes),
        law=readme_law(known),
        licence="MIT" if known else "not stated by the checkpoint",
        data=_data(side) if known else "not stated by the checkpoint",
        sha256={},
        training=taken({"target": target, "draft": draft, "vq": vq}, found),
    )
    return write_pair(out, {part: as_float32(weights.state) for part, weights in found.items()}, card)


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
