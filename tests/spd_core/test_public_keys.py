"""SphereAR, its autoencoder and the Inception network have the keys, shapes and counts of the public files.

No model is allocated. MAR and LlamaGen are held against theirs in `test_oracles` and `test_contents`.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from spd_core.families.sphere.convert import MODEL, VAE, preset_of
from spd_core.families.sphere.model import PRESETS, Sphere, SphereConfig
from spd_core.families.sphere.sizes import sphere_config, vae_config
from spd_core.families.sphere.vae import SphereVae, SphereVaeConfig
from spd_core.pairs.checkpoint import require
from spd_core.pairs.contents import kind_of
from spd_core.pairs.pair import PairError
from spd_core.quality.inception import Inception
from tests.public_files import public_shapes, shapes_of, stated

HERE = Path("file.pt")
#: Parameters of a model's file, and of the model in it without the autoencoder.
COUNTS = {
    "B": (279_892_513, 204_499_216), "L": (551_773_473, 476_380_176), "H": (1_019_247_393, 943_854_096),
}  # fmt: skip
AUTOENCODER, INCEPTION = 75_393_297, 23_885_392


def counted(shapes: dict[str, list[int]]) -> int:
    """Parameters; rotary tables are none."""
    return sum(math.prod(shape) for key, shape in shapes.items() if not key.endswith("freqs_cis"))


def sphere(name: str) -> dict[str, list[int]]:
    return shapes_of(lambda: Sphere(SphereConfig(**PRESETS[name])))


def autoencoder() -> dict[str, list[int]]:
    return shapes_of(lambda: SphereVae(SphereVaeConfig()), "vae.")


@pytest.mark.parametrize("name", COUNTS)
def test_a_public_model_is_made_of_exactly_these_tensors(name: str):
    public = stated(f"sphere_{name.lower()}")
    own = sphere(name) | autoencoder()
    assert own == public["keys"] and len(own) == public["n_tensors"]
    assert (counted(own), counted(sphere(name))) == COUNTS[name]
    assert COUNTS[name] == (public["total_parameters"], public["parameters_without_vae"])
    for part, count in public["parameters_by_part"].items():
        assert counted({key: shape for key, shape in own.items() if key.startswith(f"{part}.")}) == count, part


def test_every_preset_is_held_against_a_public_file():
    assert PRESETS.keys() == COUNTS.keys()


def test_the_public_autoencoder_is_made_of_exactly_these_tensors():
    public = stated("sphere_vae")
    assert autoencoder() == public["keys"]
    assert counted(autoencoder()) == AUTOENCODER == public["total_parameters"]


def test_the_inception_network_is_made_of_exactly_these_tensors():
    public = stated("inception_2015")
    own = {key: shape for key, shape in shapes_of(Inception).items() if not key.endswith("num_batches_tracked")}
    assert own == public["keys"] and len(own) == public["n_tensors"]
    assert counted(own) == INCEPTION == public["total_parameters"]


@pytest.mark.parametrize("name", COUNTS)
def test_a_public_file_tells_its_model(name: str):
    state = {key: torch.zeros(shape, device="meta") for key, shape in public_shapes(f"sphere_{name.lower()}").items()}
    assert kind_of(HERE, {"ema": state, "model": state}) == MODEL
    own = {key: value for key, value in state.items() if not key.startswith("vae.")}
    config = sphere_config(HERE, own, None, SphereVaeConfig())
    assert (config, preset_of(config)) == (SphereConfig(**PRESETS[name]), name)
    require(HERE, own, lambda: Sphere(config))
    with pytest.raises(PairError, match=r"does not fit, norm.weight: got none, allowed: \[\d+\]$"):
        require(HERE, {key: value for key, value in own.items() if key != "norm.weight"}, lambda: Sphere(config))


def test_the_file_of_the_autoencoder_tells_its_sizes():
    state = {key: torch.zeros(shape, device="meta") for key, shape in public_shapes("sphere_vae").items()}
    assert kind_of(HERE, {"model": state}) == VAE
    own = {key.removeprefix("vae."): value for key, value in state.items()}
    assert vae_config(HERE, own) == SphereVaeConfig()
