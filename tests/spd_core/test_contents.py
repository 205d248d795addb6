"""What checkpoint files hold: families and sizes from keys and shapes, every container and wrapper, harmless types."""

from __future__ import annotations

import argparse
import collections
import pathlib
import time
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spd_core.families.llamagen.model import LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.sizes import llamagen_config, vq_config
from spd_core.families.llamagen.vq import Vq
from spd_core.families.mar.convert import Configs, convert
from spd_core.families.mar.convert import preset_of as mar_preset_of
from spd_core.families.mar.model import Mar, MarConfig, preset
from spd_core.families.mar.sizes import mar_config, vae_config
from spd_core.families.mar.vae import KlVae, KlVaeConfig
from spd_core.pairs.checkpoint import Take, require
from spd_core.pairs.contents import find_weights, kind_of, read_weights
from spd_core.pairs.pair import PairError, load_card
from spd_core.pairs.pickles import check_tensors, read_file
from tests.public_files import public_shapes
from tests.spd_core.test_convert import TARGET, VAE

HERE = Path("file.pt")


def public(name: str) -> dict[str, Tensor]:
    """Tensors of a public file without their numbers."""
    return {key: torch.zeros(shape, device="meta") for key, shape in public_shapes(name).items()}


def meta(model: nn.Module) -> dict[str, Tensor]:
    return {key: torch.zeros(1).expand(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize(("name", "public_name"), [("mar_base", "base"), ("mar_huge", "huge")])
def test_public_mar_models_are_told_from_their_keys(name: str, public_name: str):
    state = public(name)
    config = mar_config(HERE, state, None, KlVaeConfig())
    assert config == preset(public_name) and kind_of(HERE, {"model_ema": state}) == "mar"
    require(HERE, state, lambda: Mar(config))


@pytest.mark.parametrize(("name", "layers", "heads"), [("b", 12, 12), ("3b", 24, 32)])
def test_public_llamagen_models_are_told_from_their_keys(name: str, layers: int, heads: int):
    state = public(f"llamagen_gpt_{name}_c2i")
    config = llamagen_config(HERE, state, None)
    assert (config.n_layer, config.n_head, config.num_classes) == (layers, heads, 1000)
    assert kind_of(HERE, state) == "llamagen"
    require(HERE, state, lambda: LlamaGen(config))


def test_public_autoencoders_are_told_from_their_keys():
    kl = public("mar_vae_kl16")
    assert vae_config(HERE, kl) == KlVaeConfig() and kind_of(HERE, {"model": kl}) == "vae"
    for name, stride in (("llamagen_vq16", 16), ("llamagen_vq8", 8)):
        vq = public(name)
        vq.pop("quantize.codebook_used", None)
        config = vq_config(HERE, vq)
        assert config.stride == stride and kind_of(HERE, {"model": vq}) == "vq"
        require(HERE, vq, lambda config=config: Vq(config))


SMALL = {"encoder_depth": 1, "decoder_depth": 2, "encoder_embed_dim": 768, "decoder_embed_dim": 768}


@pytest.mark.parametrize(
    "change",
    [
        {"diffloss_d": 3, "diffloss_w": 1536},
        {"class_num": 1},
        {"class_num": 100},
        {"img_size": 512},
        {"img_size": 512, "patch_size": 2},
        {"buffer_size": 32, "mlp_ratio": 2.0},
    ],
)
def test_mar_models_of_other_sizes_are_told_from_their_shapes(change: dict[str, Any]):
    config = MarConfig(**SMALL | change)
    with torch.device("meta"):
        state = Mar(config).state_dict()
    assert mar_config(HERE, state, None, KlVaeConfig()) == config
    assert mar_preset_of(config) is None


def test_heads_that_no_weight_tells_are_asked_for():
    config = LlamaGenConfig(dim=48, n_layer=1, n_head=4, vocab_size=12, num_classes=1, multiple_of=8)
    state = LlamaGen(config).state_dict()
    with pytest.raises(PairError, match=r"heads: got none for file\.pt, width 48, allowed: a number"):
        llamagen_config(HERE, state, None)
    with pytest.raises(PairError, match=r"heads: got 5 for file\.pt, width 48, allowed: a divisor of the width"):
        llamagen_config(HERE, state, 5)
    found = llamagen_config(HERE, state, 4)
    assert (found.n_head, found.num_classes, found.ffn_dim) == (4, 1, config.ffn_dim)


MODEL = LlamaGen(LlamaGenConfig(dim=8, n_layer=1, n_head=2, vocab_size=12, block_size=16, num_classes=5, multiple_of=8))
STATE = MODEL.state_dict()
OTHER = {name: value + 1 for name, value in STATE.items()}


def before(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    ("saved", "where"),
    [
        (STATE, ""),
        ({"model": STATE}, "model"),
        ({"ema": STATE, "model": OTHER}, "ema"),
        ({"model": OTHER, "model_ema": STATE}, "model_ema"),
        ({"module": before("module.")}, "module.module"),
        (before("_orig_mod."), ""),
        ({"state_dict": before("model.")}, "state_dict.model"),
        ({"state_dict": {**before("model.", OTHER), **before("ema_model.")}}, "state_dict.ema_model"),
        ({"model": {"state_dict": before("module._orig_mod.")}}, "model.state_dict"),
        ({"ema": {"decay": 0.999, "shadow": STATE}, "model": OTHER}, "ema.shadow"),
        ({"model": {**STATE, "freqs_cis": torch.zeros(2), "num_updates": torch.tensor(3)}}, "model"),
        (before("transformer."), "transformer"),
        ({"optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}}, "model": STATE, "epoch": 3}, "model"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "old"])
def test_weights_are_found_in_every_container(saved: dict[str, Any], where: str, form: str, tmp_path: Path):
    torch.save(saved, tmp_path / "file.pt", _use_new_zipfile_serialization=form == "zip")
    found = read_weights(tmp_path / "file.pt", "llamagen")
    assert found.where == where.replace("module.module", "module")
    assert found.state.keys() == STATE.keys()
    assert all(torch.equal(value, STATE[name]) for name, value in found.state.items())


def test_wrappers_inside_names_are_taken_off(tmp_path: Path):
    inside = {name.replace("layers.0.", "layers.0._orig_mod."): value for name, value in STATE.items()}
    assert find_weights(some_file(tmp_path), inside, "llamagen").state.keys() == STATE.keys()
    with pytest.raises(PairError, match="twice"):
        find_weights(some_file(tmp_path), {**inside, **STATE}, "llamagen")


def some_file(folder: Path) -> Path:
    path = folder / "file.pt"
    path.write_bytes(b"\0" * 100_000)
    return path


def test_a_safetensors_file_is_read_whatever_its_name(tmp_path: Path):
    save_file({name: value.contiguous() for name, value in before("module.").items()}, tmp_path / "weights.bin")
    assert read_weights(tmp_path / "weights.bin", "llamagen").state.keys() == STATE.keys()


def test_which_weights_were_taken_is_said_and_can_be_chosen(tmp_path: Path):
    torch.save({"model": OTHER, "ema": STATE}, tmp_path / "file.pt")
    assert read_weights(tmp_path / "file.pt", "llamagen").words == "the weights under ema (not those under model)"
    chosen = read_weights(tmp_path / "file.pt", "llamagen", "model")
    assert torch.equal(chosen.state["norm.weight"], OTHER["norm.weight"])
    with pytest.raises(PairError, match=r"weights: got 'raw' for .*allowed: model, ema"):
        read_weights(tmp_path / "file.pt", "llamagen", "raw")


def test_the_card_of_a_converted_pair_says_what_was_taken(tmp_path: Path):
    torch.save({"model_ema": Mar(TARGET).state_dict()}, tmp_path / "t.pth")
    torch.save({"model": KlVae(VAE).state_dict()}, tmp_path / "v.ckpt")
    names = ("cat", "dog", "fox", "owl", "yak")
    take = Take(target_heads=2, class_names=names)
    card = convert(tmp_path / "t.pth", None, tmp_path / "v.ckpt", tmp_path / "out", "p", take=take)
    assert card == load_card(str(tmp_path / "out")) and card.class_names == names
    assert card.target == TARGET.model_copy(update={"num_sampling_steps": 100}) and card.codec.vae.ch_mult == (1, 1)
    assert card.training["target"] == {"file": "t.pth", "weights": "the weights under model_ema"}
    with pytest.raises(PairError, match="class-names: got 2, allowed: 5"):
        convert(tmp_path / "t.pth", None, None, tmp_path / "o", "p", take=Take(target_heads=2, class_names=("a", "b")),
                configs=Configs(vae=VAE))  # fmt: skip


HARMLESS = {
    "namespace": argparse.Namespace(lr=1e-4, out=pathlib.PurePosixPath("/x")),
    "path": pathlib.PosixPath("/data/x"),
    "simple": types.SimpleNamespace(a=1),
    "scalar": np.float32(0.5),
    "integer": np.int64(7),
    "flag": np.bool_(True),
    "array": np.arange(3.0),
    "default": collections.defaultdict(list, {"a": [1]}),
    "counter": collections.Counter("aab"),
    "nested": {"a": (1, [2.0, None], {"b"})},
    "dtype": torch.float16,
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("new_format", [True, False])
def test_harmless_types_beside_the_weights_are_read(name: str, new_format: bool, tmp_path: Path):
    saved = {"model": STATE, "extra": HARMLESS[name]}
    torch.save(saved, tmp_path / "file.pt", _use_new_zipfile_serialization=new_format)
    assert read_weights(tmp_path / "file.pt", "llamagen").where == "model"


def test_types_of_other_versions_and_systems_are_read(tmp_path: Path):
    torch.save({"model": STATE, "args": pathlib.PosixPath("/x"), "n": np.float64(1)}, tmp_path / "file.pt")
    new = {b"pathlib\nPosixPath": b"pathlib\nWindowsPath", b"numpy._core.multiarray": b"numpy.core.multiarray"}
    with zipfile.ZipFile(tmp_path / "file.pt") as old, zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        for member in old.infolist():
            data = old.read(member)
            for name, instead in new.items() if member.filename.endswith("data.pkl") else ():
                data = data.replace(name, instead)
            other.writestr(member.filename, data)
    assert read_weights(tmp_path / "other.pt", "llamagen").where == "model"


@pytest.mark.parametrize(
    "key", ["cls_embedding.cap_proj.fc1.weight", "cls_embedding.uncond_embedding", "text_encoder.layer.weight"]
)
def test_text_to_image_models_are_refused_as_such(key: str, tmp_path: Path):
    text = {name: value for name, value in STATE.items() if not name.startswith("cls_embedding")}
    torch.save({"model": {**text, key: torch.zeros(2)}}, tmp_path / "t2i.pt")
    with pytest.raises(PairError, match="is a text-to-image model, allowed: a class-conditional one"):
        read_weights(tmp_path / "t2i.pt", "llamagen")


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path: Path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * (50 << 20) + b".")
    began = time.perf_counter()
    with pytest.raises(PairError, match=r"archive/data\.pkl is compressed"):
        read_file(path)
    assert time.perf_counter() - began < 5


def test_tensors_that_are_more_than_their_bytes_are_refused(tmp_path: Path):
    torch.save({"model": {**STATE, "norm.weight": torch.zeros(1).expand(1 << 40)}}, tmp_path / "file.pt")
    with pytest.raises(PairError, match=r"norm\.weight is repeated from fewer bytes than it has"):
        read_weights(tmp_path / "file.pt", "llamagen")
    shared = torch.zeros(1 << 18)
    torch.save({"model": {**STATE, **{f"layers.{n}.x": shared.view(-1) for n in range(20)}}}, tmp_path / "file.pt")
    with pytest.raises(PairError, match="more than twice the file"):
        read_weights(tmp_path / "file.pt", "llamagen")
    with pytest.raises(PairError, match="no plain tensor"):
        check_tensors(tmp_path / "file.pt", {"x": torch.zeros(2, 2).to_sparse()})


def test_a_folder_and_a_container_inside_itself_are_one_line(tmp_path: Path):
    with pytest.raises(PairError, match="cannot read"):
        read_file(tmp_path)
    deep: dict[str, Any] = {"model": STATE}
    for _ in range(50):
        deep = {"a": deep, "b": deep}
    with pytest.raises(PairError, match="allowed: weights of"):
        find_weights(some_file(tmp_path), deep, "llamagen")


def _pair_of_itself(levels: int) -> bytes:
    """A pickled tuple that holds another twice, and so on; left on the stack."""
    return b")" + b"".join(b"q" + bytes([at]) + b"h" + bytes([at]) + b"\x86" for at in range(levels))


def _archive(path: Path, pickled: bytes) -> Path:
    """A file of ``torch.save`` with another pickle in it."""
    torch.save({"a": torch.zeros(1)}, path.with_suffix(".real"))
    with zipfile.ZipFile(path.with_suffix(".real")) as real, zipfile.ZipFile(path, "w") as made:
        for member in real.infolist():
            made.writestr(member, pickled if member.filename.endswith("data.pkl") else real.read(member))
    return path


BOMBS = {
    "key": b"\x80\x02}" + _pair_of_itself(60) + b"K\x01s.",
    "keys": b"\x80\x02}(" + _pair_of_itself(60) + b"K\x01u.",
    "set": b"\x80\x02cbuiltins\nset\n](" + _pair_of_itself(60) + b"e\x85R.",
    "text": b"\x80\x02cbuiltins\nstr\n" + _pair_of_itself(60) + b"\x85R.",
    "error": b"\x80\x02" + _pair_of_itself(60) + b")R.",
    "path": b"\x80\x02cpathlib\nPosixPath\n" + _pair_of_itself(60) + b"R.",
    "depth": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
    "itself": b"\x80\x02}q\x00h\x00\x85K\x01s.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_that_unfolds_is_refused_at_once(bomb: str, tmp_path: Path):
    began = time.perf_counter()
    with pytest.raises(PairError, match=r"refused .* allowed: a torch file of plain tensors") as caught:
        read_file(_archive(tmp_path / "file.pt", BOMBS[bomb]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert time.perf_counter() - began < 5


def test_a_bomb_in_the_old_format_is_refused_at_once(tmp_path: Path):
    torch.save({"a": 1}, tmp_path / "file.pt", _use_new_zipfile_serialization=False)
    start = (tmp_path / "file.pt").read_bytes()
    parts = start.split(b"\x80\x02")  # of the magic number, the protocol and the system stand before the value's
    (tmp_path / "bomb.pt").write_bytes(b"\x80\x02".join(parts[:4]) + BOMBS["key"])
    assert len(parts) > 4
    began = time.perf_counter()
    with pytest.raises(PairError, match="unfolds to more"):
        read_file(tmp_path / "bomb.pt")
    assert time.perf_counter() - began < 5


def test_what_trainers_share_inside_their_files_is_read(tmp_path: Path):
    shared = {"betas": (0.9, 0.999), "names": ["x"] * 50}
    saved = {
        "model": STATE,
        "groups": [shared] * 2000,
        ("a", 1): collections.OrderedDict({(i, i): i for i in range(5000)}),
    }
    torch.save(saved, tmp_path / "file.pt")
    assert read_file(tmp_path / "file.pt")["groups"] == saved["groups"]


def test_a_file_that_is_cut_off_says_so_in_words(tmp_path: Path):
    (tmp_path / "file.pt").write_bytes(b"\x80\x02h\x69.")  # asks for what was never there: KeyError(105)
    with pytest.raises(PairError, match="is no torch file: its bytes cannot be read as one; allowed"):
        read_file(tmp_path / "file.pt")
