"""What surrounds the decoders on a device: codecs, the worker's engine, converted pairs. Counted whole, not by loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from spd_core.decode import Decoded, decode
from spd_core.draws import Draws
from spd_core.families.llamagen import convert as llamagen_convert
from spd_core.families.llamagen.vq import VqCodec
from spd_core.families.mar import convert as mar_convert
from spd_core.families.mar.vae import KlCodec
from spd_core.law import Cspd, Plain, Speculative
from spd_core.pairs.pair import Pair, load_card, load_pair
from tests.gpu import models
from tests.gpu.pretend import CUDA, RECORDER
from tests.gpu.subjects import Counts
from tests.tiny_codes import make_tiny_code_pair
from tests.tiny_pair import make_tiny_pair
from workers.engine import Engine
from workers.records import ImageFormat, ShardTask, WorkerSettings

CPU = torch.device("cpu")
#: Tokens per image side where images are made.
GRID = 4


@dataclass(frozen=True)
class Work:
    """Something that is counted whole."""

    unit: str
    #: makes what it needs, and gives what does the work once
    made: Callable[[Path], Callable[[], object]]

    def count(self) -> Counts:
        """What the work asks when it is done the second time: constants and captured regions are there."""
        with tempfile.TemporaryDirectory() as folder:
            run = self.made(Path(folder))
            run()
            with RECORDER.recording() as ledger:
                run()
        return Counts(self.unit, ledger, 1)


def _kl16(folder: Path) -> Callable[[], object]:
    vae, tokens = models.kl16(CUDA, narrow=True), torch.randn(2, GRID * GRID, 16, device=CUDA)
    return lambda: KlCodec(vae=models.NARROW_VAE).decode(tokens, vae)


def _vq16(folder: Path) -> Callable[[], object]:
    vq, codes = models.vq16(CUDA, narrow=True), torch.zeros(2, GRID * GRID, dtype=torch.int64, device=CUDA)
    return lambda: VqCodec(vq=models.NARROW_VQ, size=16 * GRID, padded=16 * GRID).decode(codes, vq)


def engine(folder: Path, pair: Path, method: Plain | Cspd | Speculative, device: str = "cuda:0") -> Engine:
    """A worker's engine on a tiny pair, with features."""
    card = load_card(str(pair))
    settings = WorkerSettings(
        output=str(folder / "out"), pair=str(pair), pair_sha256=card.sha256, law=card.law, method=method, batch=2,
        image=ImageFormat(), features=True, device=device, threads=1, fingerprint="f" * 64, shards=1,
    )  # fmt: skip
    return Engine(settings)


#: Four images in two batches.
SHARD = ShardTask(shard=0, attempt=0, request_ids=tuple("abcd"), labels=(0, 1, 2, 0), seeds=(1, 2, 3, 4))


def _shard(method: Plain | Cspd | Speculative) -> Callable[[Path], Callable[[], object]]:
    def made(folder: Path) -> Callable[[], object]:
        make_pair = make_tiny_code_pair if isinstance(method, Speculative) else make_tiny_pair
        worker = engine(folder, make_pair(folder / "pair"), method)
        return lambda: worker.make(SHARD)

    return made


WORKS: dict[str, Work] = {
    "KL-16 decoder": Work("batch", _kl16),
    "VQ-16 decoder": Work("batch", _vq16),
    "engine, plain": Work("shard", _shard(Plain())),
    "engine, CSpD": Work("shard", _shard(Cspd(gamma=3))),
    "engine, codes": Work("shard", _shard(Speculative(gamma=3))),
}


def converted_mar(folder: Path) -> Path:
    """A pair converted from checkpoints of MAR-H, MAR-B and KL-16 at their depth, narrow; its folder."""
    target, draft = (models.mar_config(name, narrow=True, grid=GRID) for name in ("huge", "base"))
    parts = {"target": models.mar(target, CPU), "draft": models.mar(draft, CPU), "vae": models.kl16(CPU, narrow=True)}
    for part, model in parts.items():
        torch.save({"model" if part == "vae" else "model_ema": model.state_dict()}, folder / f"{part}.pth")
    mar_convert.convert(
        folder / "target.pth", folder / "draft.pth", folder / "vae.pth", folder / "mar", "converted",
        configs=mar_convert.Configs(target, draft, models.NARROW_VAE),
    )  # fmt: skip
    return folder / "mar"


def converted_codes(folder: Path) -> Path:
    """The same of LlamaGen-XL, LlamaGen-B and VQ-16."""
    target, draft = (models.code_config(name, narrow=True, grid=GRID) for name in ("XL", "B"))
    parts = {
        "target": models.codes(target, CPU),
        "draft": models.codes(draft, CPU),
        "vq": models.vq16(CPU, narrow=True),
    }
    for part, model in parts.items():
        torch.save({"model": model.state_dict()}, folder / f"{part}.pt")
    llamagen_convert.convert_llamagen(
        folder / "target.pt", folder / "draft.pt", folder / "vq.pt", folder / "codes", "converted", 16 * GRID,
        configs=llamagen_convert.Configs(target, draft, models.NARROW_VQ),
    )  # fmt: skip
    return folder / "codes"


def decoded(folder: Path, device: torch.device, method: Plain | Cspd | Speculative) -> tuple[Pair, Decoded]:
    """A pair loaded on a device, and two images of it at its law, of few iterations and head steps."""
    pair = load_pair(str(folder), device)
    law = pair.card.law.model_copy(update={"num_iter": 4, "head_steps": 5, "cfg": 2.0, "dtype": "float32"})
    labels = torch.tensor([0, 1]).to(device)
    return pair, decode(pair, law, method, labels, Draws(torch.tensor([3, 4]).to(device)))
