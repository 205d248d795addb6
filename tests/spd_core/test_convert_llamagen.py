"""Converting LlamaGen checkpoints in their public containers; the checkpoints are tiny and made here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.families.llamagen.convert import Configs, convert_llamagen, image_size, preset_of, readme_law
from spd_core.families.llamagen.model import PRESETS, LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.sizes import llamagen_config
from spd_core.families.llamagen.vq import Vq, VqConfig
from spd_core.law import SamplerLaw, Speculative
from spd_core.pairs.contents import kind_of
from spd_core.pairs.pair import PairError, load_card, load_pair
from spd_core.pairs.pickles import read_file

TARGET = LlamaGenConfig(
    dim=16, n_layer=2, n_head=2, vocab_size=12, block_size=16, num_classes=5, multiple_of=8
)  # fmt: skip
DRAFT = TARGET.model_copy(update={"dim": 8, "n_layer": 1})
VQ = VqConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=32, codebook_size=12, codebook_embed_dim=4)
CONFIGS = Configs(TARGET, DRAFT, VQ)

Saver = Callable[[dict[str, Tensor]], dict[str, Any]]


def ddp(state: dict[str, Tensor], side: int = 8) -> dict[str, Any]:
    """As the trainer saves: with its optimizer and arguments."""
    return {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
        "steps": 300_000,
        "args": argparse.Namespace(gpt_model="GPT-B", image_size=side, mixed_precision="bf16"),
    }


def deepspeed(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"module": state, "global_steps": 300_000}


def with_rotary_table(state: dict[str, Tensor]) -> dict[str, Any]:
    return ddp({**state, "freqs_cis": torch.zeros(17, 4, dtype=torch.complex64)})


def plain(state: dict[str, Tensor]) -> dict[str, Any]:
    return state


def official(path: Path, model: nn.Module, saver: Saver = ddp) -> Path:
    torch.save(saver(model.state_dict()), path)
    return path


def tokenizer(path: Path, config: VqConfig = VQ) -> Path:
    used = {"quantize.codebook_used": torch.zeros(65536)}
    torch.save({"model": {**Vq(config).state_dict(), **used}, "discriminator": {}, "steps": 1}, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    return {
        "target": official(tmp_path / "target.pt", LlamaGen(TARGET)),
        "draft": official(tmp_path / "draft.pt", LlamaGen(DRAFT)),
        "vq": tokenizer(tmp_path / "vq.pt"),
        "out": tmp_path / "pair",
    }


def test_converted_pair_loads_and_makes_images(files: dict[str, Path]):
    card = convert_llamagen(**files, name="tiny", configs=CONFIGS)
    assert sorted(path.name for path in files["out"].iterdir()) == [
        "draft.safetensors", "pair.json", "target.safetensors", "vq.safetensors",
    ]  # fmt: skip
    assert (card.family, card.licence, card.reference, card.eagle) == (
        "llamagen",
        "not stated by the checkpoint",
        "",
        None,
    )
    assert card.class_names == ("0", "1", "2", "3", "4")
    assert (card.codec.size, card.codec.padded, card.image_shape) == (8, 8, (8, 8, 3))
    pair = load_pair(str(files["out"]))
    assert pair.card == card
    parts = {"target": pair.target, "draft": pair.draft, "vq": pair.parts["vq"]}
    for part, model in parts.items():
        saved = torch.load(files[part], weights_only=False)["model"]
        saved.pop("quantize.codebook_used", None)
        state = model.state_dict()
        assert state.keys() == saved.keys()
        assert all(torch.equal(value, saved[key]) for key, value in state.items())
    law = card.law.model_copy(update={"cfg": 1.5})
    decoded = decode(pair, law, Speculative(gamma=3), torch.tensor([0, 4]), Draws(torch.tensor([1, 2])))
    assert decoded.tokens.shape == (2, 16)
    assert pair.to_images(decoded.tokens).shape == (2, 8, 8, 3)


@pytest.mark.parametrize("saver", [ddp, deepspeed, with_rotary_table, plain])
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("new_format", [True, False])
def test_every_public_container(saver: Saver, new_format: bool, files: dict[str, Path]):
    model = LlamaGen(TARGET)
    half = {key: value.bfloat16() for key, value in model.state_dict().items()}
    torch.save(saver(half), files["target"], _use_new_zipfile_serialization=new_format)
    assert kind_of(files["target"], read_file(files["target"])) == "llamagen"
    convert_llamagen(files["target"], None, None, files["out"], "alone", 8, configs=Configs(TARGET, vq=VQ))
    pair = load_pair(str(files["out"]))
    assert all(torch.equal(value, half[key].float()) for key, value in pair.target.state_dict().items())
    assert pair.draft is None and "vq" not in pair.parts
    with pytest.raises(PairError, match="no tokenizer"):
        pair.to_images(torch.zeros(1, 16, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "saved", "asked", "expected"),
    [
        ("c2i_XL_384.pt", {}, None, 384),
        ("c2i_B_256.pt", {}, None, 256),
        ("c2i_3B_384.pt", {}, 512, 512),
        ("0300000.pt", ddp({}, 384), None, 384),
        ("c2i_B_256.pt", ddp({}, 384), 384, 384),
        ("0300000.pt", {}, 256, 256),
    ],
)
def test_image_size(name: str, saved: dict[str, Any], asked: int | None, expected: int):
    assert image_size(Path(name), saved, asked, 16) == expected


@pytest.mark.parametrize(
    ("name", "saved", "asked", "expected"),
    [
        ("0300000.pt", {}, None, "got none for 0300000.pt, allowed: a multiple of 16; the public models have 256"),
        ("from_256_to_384.pt", {}, None, "got none"),
        ("c2i_B_256.pt", ddp({}, 384), 256, "got 256, allowed: 384"),
        ("c2i_B_256.pt", {}, 250, "got 250 for"),
        ("c2i_B_256.pt", {}, 0, "got 0 for"),
        ("c2i_B_256.pt", {}, -16, "got -16 for"),
        ("c2i_B_256.pt", {"args": argparse.Namespace(image_size="large")}, None, "got large for"),
    ],
)
def test_wrong_image_size(name: str, saved: dict[str, Any], asked: int | None, expected: str):
    with pytest.raises(PairError, match=f"^image-size: {expected}"):
        image_size(Path(name), saved, asked, 16)


def meta_state(config: LlamaGenConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return LlamaGen(config).state_dict()


@pytest.mark.parametrize(("name", "cfg"), [("B", 2.0), ("L", 2.0), ("XL", 1.75), ("XXL", 1.75), ("3B", 1.65)])
def test_preset_and_its_law_follow_from_the_shapes(name: str, cfg: float):
    assert (
        preset_of(llamagen_config(Path("x"), meta_state(LlamaGenConfig(**PRESETS[name], block_size=576)), None)) == name
    )
    law = readme_law(name)
    assert (law.cfg, law.cfg_schedule, law.cfg_interval) == (cfg, "constant", -1)
    assert (law.temperature, law.top_k, law.top_p) == (1.0, 0, 1.0)


def test_public_model_at_384(monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], tmp_path: Path):
    """A whole conversion of a preset, made small: its law, its size and its words."""
    monkeypatch.setitem(PRESETS, "XL", {"n_layer": 1, "n_head": 12, "dim": 768})
    path = official(tmp_path / "c2i_XL_384.pt", LlamaGen(LlamaGenConfig(**PRESETS["XL"])), plain)
    card = convert_llamagen(path, None, None, files["out"], "xl")
    assert (card.target.block_size, card.target.vocab_size, card.target.num_classes) == (576, 16384, 1000)
    assert card.image_shape == (384, 384, 3) and card.codec.vq == VqConfig()
    assert card.class_names[207] == "golden retriever"
    assert card.law == SamplerLaw(cfg=1.75, cfg_schedule="constant", dtype="bfloat16")
    assert "384 px" in card.data and "resized to 256 px" in card.data
    assert load_card(str(files["out"])) == card


class Touch:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_never_runs(new_format: bool, files: dict[str, Path], tmp_path: Path):
    evil = {**ddp(LlamaGen(TARGET).state_dict()), "args": Touch(tmp_path / "ran")}
    torch.save(evil, files["target"], _use_new_zipfile_serialization=new_format)
    with pytest.raises(PairError, match=r"refused .*target.pt, it asks for \w+\.mkdir"):
        convert_llamagen(**files, name="evil", configs=CONFIGS)
    assert not (tmp_path / "ran").exists() and not files["out"].exists()


def with_state(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        state = dict(LlamaGen(TARGET).state_dict())
        change(state)
        torch.save(ddp(state), path)

    return spoil


WRONG: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": ("target", lambda p: p.unlink(), "cannot read"),
    "empty": ("target", lambda p: p.write_bytes(b""), "no torch file"),
    "random bytes": ("draft", lambda p: p.write_bytes(bytes(range(256)) * 9), "torch file"),
    "truncated": ("vq", lambda p: p.write_bytes(p.read_bytes()[:4000]), "vq.pt"),
    "no state dict": ("target", lambda p: torch.save({"steps": 3}, p), "holds steps, allowed: weights of a class-cond"),
    "a list": ("target", lambda p: torch.save([torch.zeros(1)], p), "holds list"),
    "empty state": ("target", lambda p: torch.save(ddp({}), p), "holds args, model, optimizer, steps"),
    "missing key": ("target", with_state(lambda s: s.pop("norm.weight")), "norm.weight: got none, allowed: [16]"),
    "extra key": ("target", with_state(lambda s: s.update(extra=torch.zeros(1))), "extra: got [1], allowed: none"),
    "shape": ("target", with_state(lambda s: s.update({"norm.weight": torch.zeros(15)})), "got [15], allowed: [16]"),
    "a model as tokenizer": ("vq", lambda p: official(p, LlamaGen(TARGET)), "allowed: weights of a VQ tokenizer"),
    "tokenizer shape": (
        "vq",
        lambda p: tokenizer(p, VQ.model_copy(update={"z_channels": 64})),
        "decoder.conv_in.weight: got [32, 64, 3, 3], allowed: [32, 32, 3, 3]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_checkpoint_is_one_line_and_writes_nothing(case: str, files: dict[str, Path]):
    part, spoil, expected = WRONG[case]
    spoil(files[part])
    with pytest.raises(PairError) as caught:
        convert_llamagen(**files, name="tiny", configs=CONFIGS)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not files["out"].exists()


def test_models_must_fit_each_other(files: dict[str, Path]):
    torch.save(ddp(LlamaGen(DRAFT).state_dict(), side=12), files["draft"])
    with pytest.raises(PairError, match=r"draft: .*draft.pt has block_size 36, allowed: 16 \(the target's\)"):
        convert_llamagen(**files, name="tiny", configs=CONFIGS)
    other = DRAFT.model_copy(update={"num_classes": 6})
    official(files["draft"], LlamaGen(other))
    with pytest.raises(PairError, match="num_classes 6, allowed: 5"):
        convert_llamagen(**files, name="tiny", configs=replace(CONFIGS, draft=other))
    small = VQ.model_copy(update={"codebook_size": 11})
    with pytest.raises(PairError, match=r"vq: has 11 codes, allowed: 12 \(the target's\)"):
        convert_llamagen(files["target"], None, None, files["out"], "tiny", configs=Configs(TARGET, vq=small))


def test_a_pair_is_never_overwritten(files: dict[str, Path]):
    convert_llamagen(**files, name="tiny", configs=CONFIGS)
    with pytest.raises(PairError, match="holds a pair already"):
        convert_llamagen(**files, name="tiny", configs=CONFIGS)
