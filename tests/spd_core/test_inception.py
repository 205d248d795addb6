"""The Inception network of the published FID: the resize, and mistakes the oracle must reject."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from spd_core.quality import inception
from spd_core.quality.files import QualityError
from spd_core.quality.inception import load_inception, resize
from tests.oracles import inception as oracle_code
from tests.oracles.base import compare, load_oracle
from tests.oracles.files import BUNDLED


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return oracle_code.recipe_weights()


@pytest.fixture
def cached_weights(weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle_code, "recipe_weights", lambda salt="": weights)


def _half_pixel(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=(299, 299), mode="bilinear")


def _counts_padding(x: torch.Tensor, pool: str) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1) if pool == "average" else _POOLED(x, pool)


def _average_in_the_last_block(x: torch.Tensor, pool: str) -> torch.Tensor:
    return _POOLED(x, "average" if pool == "maximum" else pool)


_POOLED = inception._pooled
MISTAKES: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "half-pixel centres": ("resize", _half_pixel),
    "antialias": ("resize", lambda x: F.interpolate(x, size=(299, 299), mode="bilinear", antialias=True)),
    "aligned corners": ("resize", lambda x: F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=True)),
    "rounded to bytes": ("resize", lambda x: resize(x).round()),
    "another scale": ("resize", lambda x: (resize(x) / 127.5 - 1) * 128 + 128),
    "blue first": ("resize", lambda x: resize(x).flip(1)),
    "padding counted": ("_pooled", _counts_padding),
    "average in the last block": ("_pooled", _average_in_the_last_block),
}


@pytest.mark.usefixtures("cached_weights")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_oracle_rejects(mistake: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inception, *MISTAKES[mistake])
    oracle = load_oracle(BUNDLED / "inception_fid.json")
    case = "d_256x256"
    outputs = oracle_code.network_outputs(oracle_code.recipe_network(), oracle.inputs.under("image")[case])
    wanted = {key: value for key, value in oracle.expected.items() if key.endswith(f"logits_unbiased/{case}")}
    object.__setattr__(oracle, "expected", wanted)
    (finding,) = compare(oracle, {f"logits_unbiased/{case}": outputs["logits_unbiased"]})
    assert finding.share > 5


def test_an_image_of_the_networks_size_is_not_resized():
    image = torch.randint(0, 256, (1, 3, 299, 299)).float()
    assert torch.equal(resize(image), image)


def test_a_resize_reads_rows_and_columns_by_their_own_size():
    image = torch.arange(40.0)[None, None, :, None].expand(1, 3, 40, 64)
    made = resize(image)
    assert made.shape == (1, 3, 299, 299)
    assert torch.allclose(made[0, 0, :, 7], (torch.arange(299) * (40 / 299)).clamp(max=39), atol=1e-4)


def test_weights_are_read_from_both_forms(weights: dict[str, torch.Tensor], tmp_path: Path):
    torch.save(weights, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")
    loaded = [load_inception(tmp_path / name) for name in ("w.pth", "w.safetensors")]
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        pth, safe, plain = (network(image) for network in (*(x.network for x in loaded), oracle_code.recipe_network()))
    assert torch.equal(pth.pool, safe.pool) and pth.spatial.shape == (2, inception.SPATIAL_DIMS)
    assert torch.allclose(pth.pool, plain.pool, atol=1e-4)
    assert len({x.sha256 for x in loaded}) == 2


class _Harmful:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return Path.touch, ("touched",)


def _write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w, p: p / "none.pth", "cannot read"),
        (lambda w, p: _write(p / "w.pth", [1]), "holds no state dict"),
        (lambda w, p: _write(p / "w.pth", _Harmful()), "it asks for pathlib.Path.touch|refused"),
        (lambda w, p: _write(p / "w.pth", {**w, "extra": torch.zeros(1)}), r"extra is \[1\], allowed: none"),
        (
            lambda w, p: _write(p / "w.pth", {**w, "fc.bias": torch.zeros(1000)}),
            r"fc.bias is \[1000\], allowed: \[1008\]",
        ),
        (lambda w, p: _write(p / "w.pth", {k: v for k, v in w.items() if k != "fc.bias"}), "fc.bias is none"),
    ],
    ids=["missing", "list", "code", "extra", "shape", "incomplete"],
)
def test_other_files_are_refused_in_one_line(
    spoil: Callable[..., Path], message: str, weights: dict[str, torch.Tensor], tmp_path: Path
):
    with pytest.raises(QualityError, match=message) as caught:
        load_inception(spoil(weights, tmp_path))
    assert "\n" not in str(caught.value) and not Path("touched").exists()


def test_public_counters_of_batch_norm_are_tolerated(weights: dict[str, torch.Tensor], tmp_path: Path):
    counters = {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0)}
    assert load_inception(_write(tmp_path / "w.pth", {**weights, **counters})).network.fc.out_features == 1008
