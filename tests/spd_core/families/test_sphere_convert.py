"""Converting SphereAR checkpoints in their public containers; the checkpoints are tiny and made here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.cli import main
from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.families.family import Files
from spd_core.families.registry import family
from spd_core.families.sphere.convert import preset_of, readme_law
from spd_core.families.sphere.model import PRESETS, Sphere, SphereConfig
from spd_core.families.sphere.sizes import sphere_config, vae_config
from spd_core.families.sphere.vae import SphereVae, SphereVaeConfig
from spd_core.law import Plain, Speculative
from spd_core.pairs.checkpoint import Take
from spd_core.pairs.contents import kind_of
from spd_core.pairs.pair import PairCard, PairError, load_pair
from spd_core.pairs.pickles import read_file
from tests.tiny_sphere import CONFIG, VAE, tiny_sphere

SMALLER = CONFIG.model_copy(update={"dim": 8, "diff_dim": 8, "n_layer": 1})
HEADS = Take(target_heads=2, draft_heads=2)


def _inside(vae: SphereVae) -> dict[str, Tensor]:
    return {f"vae.{key}": value for key, value in vae.state_dict().items()}


def _saved(model: Sphere, vae: SphereVae, ema: bool = True) -> dict[str, Any]:
    """As training saves it: the average, the last weights, both with the autoencoder inside, and the trainer's."""
    last = {**{key: value + 1 for key, value in model.state_dict().items()}, **_inside(vae)}
    averaged = {**model.state_dict(), **_inside(vae)}
    more = {"optimizer": {"state": {}}, "epochs": 400, "args": argparse.Namespace(model="SphereAR-B", cfg=4.5)}
    return {"model": last if ema else averaged, **more} | ({"ema": averaged} if ema else {})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    vae = SphereVae(VAE)
    torch.save(_saved(tiny_sphere(), vae), tmp_path / "SphereAR_H.pt")
    torch.save(_saved(tiny_sphere(SMALLER), vae, ema=False), tmp_path / "SphereAR_B.pt")
    torch.save({"model": _inside(vae), "model_disc": {"w": torch.zeros(1)}, "epochs": 50}, tmp_path / "vae.pt")
    return {"target": tmp_path / "SphereAR_H.pt", "draft": tmp_path / "SphereAR_B.pt", "vae": tmp_path / "vae.pt"}


def _convert(files: dict[str, Path], out: Path, vae: bool = False, draft: bool = True, take: Take = HEADS) -> PairCard:
    given = Files(files["target"], files["draft"] if draft else None, {"vae": files["vae"]} if vae else {})
    return family("sphere").convert(given, out, "spheres", take)


def test_a_pair_of_two_public_files(files, tmp_path):
    card = _convert(files, tmp_path / "pair")
    assert (card.family, card.target, card.draft, card.codec.vae) == ("sphere", CONFIG, SMALLER, VAE)
    assert card.training["target"]["weights"] == "the weights under ema (not those under model)"
    assert card.training["draft"]["weights"] == "the weights under model"
    assert "not stated" in card.licence and card.image_shape == (8, 8, 1)
    pair = load_pair(str(tmp_path / "pair"))
    expected = tiny_sphere().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in pair.target.state_dict().items())
    saved = torch.load(files["vae"], weights_only=False)["model"]
    assert all(torch.equal(v, saved[f"vae.{key}"]) for key, v in pair.parts["vae"].state_dict().items())
    labels, draws = torch.tensor([0, 2]), Draws(torch.tensor([1, 2]))
    law = card.law.model_copy(update={"head_steps": 5, "dtype": "float32", "cfg": 2.0})
    made = decode(pair, law, Plain(head_window=(2,)), labels, draws)
    assert pair.to_images(made.tokens).shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match=r"got 'speculative' with law.handoff_level 0, allowed: plain, or a law that"):
        decode(pair, law, Speculative(gamma=2), labels, draws)
    decode(pair, law.model_copy(update={"handoff_level": 40}), Speculative(gamma=2, stride=1), labels, draws)


def test_the_autoencoder_from_its_own_file(files, tmp_path):
    raw = torch.load(files["target"], weights_only=False)
    bare = {key: value for key, value in raw["ema"].items() if not key.startswith("vae.")}
    torch.save(bare, files["target"])
    card = _convert(files, tmp_path / "pair", vae=True)
    assert card.training["vae"] == {"file": "vae.pt", "weights": "the weights under model.vae"}
    assert card.training["target"]["weights"] == "the weights that the file is"
    with pytest.raises(PairError, match=r"vae: got none, and the public one makes \(dims, grid\) \(16, 16\), allowed"):
        _convert(files, tmp_path / "alone", draft=False)


def test_kinds_are_told_by_keys(files):
    assert [kind_of(path, read_file(path)) for path in files.values()] == ["sphere", "sphere", "sphere-vae"]


def _with(path: Path, **changes: Any) -> None:
    raw = torch.load(path, weights_only=False)
    for entry in ("ema", "model"):
        if entry in raw:
            raw[entry] = {key: value for key, value in (raw[entry] | changes).items() if value is not None}
    torch.save(raw, path)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("target", {"norm.weight": torch.ones(17)}, "heads: got 2 for .*SphereAR_H.pt, width 17"),
        ("target", {"emb_norm.weight": None}, "does not fit, emb_norm.weight: got none"),
        ("target", {"more": torch.ones(1)}, r"does not fit, more: got \[1\], allowed: none"),
        ("target", {"pos_for_diff.weight": torch.zeros(5, 16)}, "5 tokens an image, allowed: a square"),
        ("target", {"vae.encoder.norm.weight": None}, "encoder.norm.weight: got none"),
        ("draft", {"cls_embedding.weight": torch.zeros(5, 16)}, "has num_classes 4, allowed: 3"),
        ("draft", {"vae.encoder.norm.weight": torch.zeros(16)}, "another autoencoder .encoder.norm.weight differs"),
    ],
)
def test_what_does_not_fit_is_one_line(part, changes, message, files, tmp_path):
    _with(files[part], **changes)
    with pytest.raises(PairError, match=message) as caught:
        _convert(files, tmp_path / "pair")
    assert "\n" not in str(caught.value) and not (tmp_path / "pair").exists()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_sizes_and_laws_of_the_public_models(name):
    config = SphereConfig(**PRESETS[name])
    with torch.device("meta"):
        model, vae = Sphere(config).state_dict(), SphereVae(SphereVaeConfig()).state_dict()
    found = vae_config(Path("vae.pt"), vae)
    assert found == SphereVaeConfig()
    assert sphere_config(Path("x.pt"), model, None, found) == config
    assert preset_of(config) == name and preset_of(CONFIG) is None
    law = readme_law(name)
    assert (law.head_steps, law.cfg_schedule, law.handoff_level, law.dtype) == (101, "linear", 0, "bfloat16")
    assert law.cfg == {"B": 4.5, "L": 4.6, "H": 4.5}[name]


def test_the_command(files, tmp_path, capsys):
    paths = ["--target", str(files["target"]), "--draft", str(files["draft"]), "--heads", "2", "2"]
    assert main(["convert", *paths, "--name", "s", "--out", str(tmp_path / "pair")]) == 0
    assert "vae: the weights under ema.vae (not those under model.vae) of SphereAR_H.pt" in capsys.readouterr().out
    assert main(["convert", *paths[:4], "--name", "s", "--out", str(tmp_path / "other")]) == 2
    assert "heads: got none" in capsys.readouterr().err
