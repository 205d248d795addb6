"""``spd convert``: which family a checkpoint is of, and what is refused. The conversions have tests of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.cli import main
from spd_core.families.llamagen.model import PRESETS, LlamaGen, LlamaGenConfig
from spd_core.pairs.pair import load_card


def command(folder: Path, *more: str) -> int:
    return main(["convert", "--target", str(folder / "target.pt"), "--name", "xl", "--out", str(folder / "out"), *more])


def test_command_tells_the_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(PRESETS, "XL", {"n_layer": 1, "n_head": 12, "dim": 768})
    torch.save(LlamaGen(LlamaGenConfig(**PRESETS["XL"])).state_dict(), tmp_path / "target.pt")
    assert command(tmp_path) == 2
    assert "image-size: got none" in capsys.readouterr().err
    assert command(tmp_path, "--image-size", "256") == 0
    assert load_card(str(tmp_path / "out")).target.block_size == 256
    assert "target: the weights that the file is of target.pt" in capsys.readouterr().out
    assert command(tmp_path, "--image-size", "256") == 2
    assert "holds a pair already" in capsys.readouterr().err


MAR = {"diffloss.net.input_proj.weight": torch.zeros(1, 1)}
CODES = {"tok_embeddings.weight": torch.zeros(1, 1)}


@pytest.mark.parametrize(
    ("saved", "more", "expected"),
    [
        ({"model": CODES}, ["--vae", "kl16.ckpt"], "vae: got kl16.ckpt, allowed: with a mar target only"),
        ({"model_ema": MAR}, ["--vq", "vq.pt"], "vq: got vq.pt, allowed: with a llamagen target only"),
        (MAR, ["--image-size", "256"], "image-size: got 256, allowed: with a llamagen target only"),
        ({"model": {}}, [], "holds model, allowed: weights of a MAR model or a class-conditional LlamaGen model"),
        (
            {"model": {"post_quant_conv.weight": torch.zeros(1)}},
            [],
            "which is a KL autoencoder, allowed: a MAR",
        ),
        ({"model": MAR}, ["--weights", "ema"], "weights: got 'ema' for"),
        ({"model": MAR}, ["--heads", "1", "2", "3"], "heads: got 3 numbers"),
        ({"model": MAR}, ["--class-names", "nowhere.txt"], "class-names: cannot read nowhere.txt"),
        ({"model": {**CODES, "cls_embedding.cap_proj.fc1.weight": torch.zeros(1)}}, [], "is a text-to-image model"),
    ],
)
def test_command_refuses_in_one_line(
    saved: dict[str, Any], more: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(saved, tmp_path / "target.pt")
    assert command(tmp_path, *more) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
