"""Converting checkpoints in the public container format; the checkpoints are tiny and made here."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.families.mar.convert import Configs, convert, preset_of, readme_law
from spd_core.families.mar.model import Mar, MarConfig, preset
from spd_core.families.mar.sizes import mar_config
from spd_core.families.mar.vae import KlVae, KlVaeConfig
from spd_core.law import Cspd
from spd_core.pairs import checkpoint
from spd_core.pairs.contents import read_weights
from spd_core.pairs.pair import PairError, load_pair

TARGET = MarConfig(
    img_size=8, vae_stride=2, patch_size=1, vae_embed_dim=4, encoder_embed_dim=16, encoder_depth=2, encoder_num_heads=2,
    decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, class_num=5, buffer_size=2, diffloss_d=1, diffloss_w=8,
    num_sampling_steps=4,
)  # fmt: skip
DRAFT = TARGET.model_copy(update={"encoder_depth": 1, "diffloss_w": 4})
VAE = KlVaeConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, embed_dim=4, resolution=32)


def official(path: Path, model: torch.nn.Module, **change: Any) -> Path:
    """A trainer's checkpoint: raw and averaged weights, optimizer state, epoch and arguments."""
    state = model.state_dict()
    saved = {
        "model": {key: torch.full_like(value, 9.0) for key, value in state.items()},
        "model_ema": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 399,
        "args": argparse.Namespace(model="mar_tiny", num_sampling_steps="100", device="cuda"),
        **change,
    }
    torch.save({key: value for key, value in saved.items() if value is not None}, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    kl16 = tmp_path / "kl16.ckpt"
    torch.save({"model": KlVae(VAE).state_dict()}, kl16)
    return {
        "target": official(tmp_path / "target.pth", Mar(TARGET)),
        "draft": official(tmp_path / "draft.pth", Mar(DRAFT)),
        "vae": kl16,
        "out": tmp_path / "pair",
    }


CONFIGS = Configs(TARGET, DRAFT, VAE)


def test_converted_pair_loads_and_makes_images(files: dict[str, Path]):
    card = convert(**files, name="tiny", configs=CONFIGS)
    out = files["out"]
    assert sorted(path.name for path in out.iterdir()) == [
        "draft.safetensors", "pair.json", "target.safetensors", "vae.safetensors",
    ]  # fmt: skip
    for part, digest in card.sha256.items():
        assert hashlib.sha256((out / f"{part}.safetensors").read_bytes()).hexdigest() == digest
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.iterdir())
    assert card.class_names == ("0", "1", "2", "3", "4")
    pair = load_pair(str(out))
    assert pair.card == card
    for part, model in (("target", pair.target), ("draft", pair.draft)):
        averaged = read_weights(files[part], "mar", "model_ema").state
        assert all(torch.equal(value, averaged[key]) for key, value in model.state_dict().items())
    labels = torch.tensor([0, 4])
    decoded = decode(pair, card.law, Cspd(gamma=2), labels, Draws(torch.tensor([1, 2])))
    assert pair.to_images(decoded.tokens).shape == (2, 8, 8, 3)


def test_target_alone_without_autoencoder(files: dict[str, Path]):
    card = convert(files["target"], None, None, files["out"], "alone", configs=Configs(TARGET, vae=VAE))
    assert card.draft is None and set(card.sha256) == {"target"}
    pair = load_pair(str(files["out"]))
    with pytest.raises(PairError, match="no autoencoder"):
        pair.to_images(torch.zeros(1, 16, 4))


def test_changed_weights_are_noticed_at_load(files: dict[str, Path]):
    convert(**files, name="tiny", configs=CONFIGS)
    path = files["out"] / "vae.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(PairError, match=r"vae\.safetensors has sha256"):
        load_pair(str(files["out"]))


def test_old_format_and_half_precision(files: dict[str, Path], tmp_path: Path):
    state = {key: value.half() for key, value in Mar(TARGET).state_dict().items()}
    path = tmp_path / "old.pth"
    torch.save({"model_ema": state}, path, _use_new_zipfile_serialization=False)
    convert(path, None, None, files["out"], "old", configs=Configs(TARGET, vae=VAE))
    assert load_pair(str(files["out"])).target.mask_token.dtype == torch.float32


class Touch:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_never_runs(new_format: bool, files: dict[str, Path], tmp_path: Path):
    torch.save(
        {"model_ema": Mar(TARGET).state_dict(), "args": Touch(tmp_path / "ran")},
        files["target"],
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(PairError, match=r"refused .*target.pth, it asks for \w+\.mkdir"):
        convert(**files, name="evil", configs=CONFIGS)
    assert not (tmp_path / "ran").exists() and not files["out"].exists()


def _rewrite(path: Path, **change: Any) -> None:
    official(path, Mar(TARGET), **change)


def _ema_with(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        state = Mar(TARGET).state_dict()
        change(state)
        _rewrite(path, model_ema=state)

    return spoil


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: p.unlink(), "cannot read"),
    "empty": (lambda p: p.write_bytes(b""), "no torch file"),
    "random bytes": (lambda p: p.write_bytes(bytes(range(256)) * 9), "torch file"),
    "text": (lambda p: p.write_text("hello world"), "torch file"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:4000]), "target.pth"),
    "no state dict": (lambda p: torch.save({"model_ema": {"a": 1}}, p), "allowed: weights of a MAR model"),
    "a bare tensor": (lambda p: torch.save(torch.zeros(3), p), "holds Tensor"),
    "missing key": (_ema_with(lambda s: s.pop("mask_token")), "mask_token: got none, allowed: [1, 1, 16]"),
    "extra key": (_ema_with(lambda s: s.update(extra=torch.zeros(1))), "extra: got [1], allowed: none"),
    "shape": (_ema_with(lambda s: s.update(mask_token=torch.zeros(1, 1, 15))), "got [1, 1, 15], allowed: [1, 1, 16]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_checkpoint_is_one_line_and_writes_nothing(case: str, files: dict[str, Path]):
    spoil, expected = WRONG[case]
    spoil(files["target"])
    with pytest.raises(PairError) as caught:
        convert(**files, name="tiny", configs=CONFIGS)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not files["out"].exists()


def test_models_must_fit_each_other(files: dict[str, Path]):
    other = DRAFT.model_copy(update={"img_size": 12})
    official(files["draft"], Mar(other))
    with pytest.raises(PairError, match=r"grid 6, allowed: 4"):
        convert(**files, name="tiny", configs=replace(CONFIGS, draft=other))
    deeper = VAE.model_copy(update={"ch_mult": (1, 1, 1)})
    with pytest.raises(PairError, match=r"\(4, 4\), allowed: \(4, 2\)"):
        convert(files["target"], None, None, files["out"], "tiny", configs=Configs(TARGET, vae=deeper))


def test_a_pair_is_never_overwritten(files: dict[str, Path]):
    convert(**files, name="tiny", configs=CONFIGS)
    with pytest.raises(PairError, match="holds a pair already"):
        convert(**files, name="tiny", configs=CONFIGS)


def test_folder_that_cannot_be_written(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    files["out"].write_text("a file")
    with pytest.raises(PairError, match=r"out: cannot write .*pair: File exists; allowed: a writable folder"):
        convert(**files, name="tiny", configs=CONFIGS)
    files["out"].unlink()

    def full_disk(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(PairError, match=r"out: cannot write .*No space left"):
        convert(**files, name="tiny", configs=CONFIGS)
    monkeypatch.undo()
    convert(**files, name="tiny", configs=CONFIGS)


def meta_state(config: MarConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return Mar(config).state_dict()


@pytest.mark.parametrize(("name", "cfg"), [("base", 2.9), ("large", 3.0), ("huge", 3.2)])
def test_preset_and_its_law_follow_from_the_shapes(name: str, cfg: float):
    assert preset_of(mar_config(Path("x"), meta_state(preset(name)), None, KlVaeConfig())) == name
    law = readme_law(name, preset(name))
    assert (law.num_iter, law.head_steps, law.cfg, law.cfg_schedule, law.temperature) == (256, 100, cfg, "linear", 1.0)
