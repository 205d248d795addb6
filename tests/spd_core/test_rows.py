"""Features that are not in memory: the same figures, and memory that does not grow with the images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spd_core.quality import published, rows
from spd_core.quality.frechet import Moments, frechet_distance
from spd_core.quality.published import (
    KID_SEED,
    chunks_of,
    inception_score,
    inception_score_of_rows,
    precision_recall,
    published_kid,
)
from spd_core.quality.rows import FileRows, TensorRows, frechet_of_rows, moments
from spd_core.quality.statistics import MadeBy, check_made_by, load_statistics, write_statistics
from tests.oracles.base import load_oracle
from tests.oracles.files import BUNDLED

ROOT = Path(__file__).parents[2]


def in_file(values_nD: torch.Tensor, parts: int = 7) -> FileRows:
    kept = FileRows(values_nD.shape[1])
    for part in values_nD.tensor_split(parts):
        kept.append(part)
    return kept


def test_rows_of_a_file_are_those_that_were_put_in():
    torch.manual_seed(0)
    values = torch.randn(23, 5)
    kept, index = in_file(values), torch.tensor([22, 0, 7, 7])
    assert len(kept) == 23 and kept.dims == 5
    assert torch.equal(kept.read(3, 9), values[3:9]) and torch.equal(kept.read(20, 99), values[20:])
    assert torch.equal(kept.take(index), values[index]) and torch.equal(TensorRows(values).take(index), values[index])
    assert kept.read(5, 5).shape == kept.take(index[:0]).shape == (0, 5)
    with pytest.raises(ValueError, match=r"features: got \[2, 4\], allowed: \[n, 5\]"):
        kept.append(torch.zeros(2, 4))


@pytest.mark.parametrize(("count", "dims"), [(60, 8), (20, 32)], ids=["more images", "more features"])
def test_the_distance_of_rows_is_that_of_their_moments(count: int, dims: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "BLOCK", 9)
    torch.manual_seed(1)
    values, real = torch.randn(count, dims), Moments.from_features(torch.randn(100, dims) + 0.3)
    whole = Moments.from_features(values)
    assert torch.allclose(moments(in_file(values)).covariance, whole.covariance, atol=1e-12)
    assert frechet_of_rows(in_file(values), real) == pytest.approx(frechet_distance(whole, real), rel=1e-9)


def test_figures_of_the_oracles_sets_are_the_same_from_files(monkeypatch: pytest.MonkeyPatch):
    for name, size in (("ROWS", 50), ("COLUMNS", 30)):
        monkeypatch.setattr(published, name, size)
    monkeypatch.setattr(rows, "BLOCK", 40)
    oracle = load_oracle(BUNDLED / "inception_fid.json")
    sets = oracle.inputs.under("set")
    one, two = in_file(sets["1"]), in_file(sets["2"])
    support = precision_recall(one, two)
    got = {
        "frechet/full_rank": frechet_of_rows(one, moments(two)),
        "frechet/rank_deficient": frechet_of_rows(in_file(sets["small1"]), Moments.from_features(sets["small2"])),
        "prc/precision": support.precision,
        "prc/recall": support.recall,
    }
    for name, value in got.items():
        assert value == pytest.approx(float(oracle.expected[name]), rel=1e-6), name
    count, size = 20, len(sets["1"]) // 2
    assert published_kid(one, two, count, size) == published_kid(sets["1"], sets["2"], count, size)


def test_the_score_is_that_of_chunks_of_a_fixed_order():
    torch.manual_seed(2)
    logits = torch.randn(50, 6)
    order = torch.from_numpy(np.random.RandomState(KID_SEED).permutation(50))
    wanted = inception_score(logits[order], chunks_of(50, 20))
    got = inception_score_of_rows(in_file(logits), lambda part: part, 20)
    assert (got.mean, got.std) == pytest.approx((wanted.mean, wanted.std))
    by_class = 100 * torch.eye(8).repeat_interleave(10, dim=0)
    assert inception_score_of_rows(in_file(by_class), lambda part: part, 40).mean > 6, "sorted by class, yet mixed"


def test_statistics_come_back_from_their_file(tmp_path: Path):
    torch.manual_seed(3)
    pool, spatial = (Moments.from_features(torch.randn(40, dims)) for dims in (6, 4))
    made_by = MadeBy(extractor="inception-x", weights_sha256="a" * 64, resize="none", images=40, source="here")
    features = torch.randn(11, 6)
    write_statistics(tmp_path / "s.npz", made_by, {"pool": pool, "spatial": spatial}, in_file(features))
    found = load_statistics("s", tmp_path / "s.npz")
    assert found.form == "spd" and found.made_by == made_by and found.features is not None
    assert torch.equal(found.features.read(0, 99), features)
    assert torch.allclose(found.moments["spatial"].covariance, spatial.covariance)
    arrays = np.load(tmp_path / "s.npz", allow_pickle=False)
    assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays.files), "other tools read it, too"
    check_made_by(found, "inception-x", "a" * 64, "none")


PEAK = """
import sys
import torch
from spd_core.quality.frechet import Moments
from spd_core.quality.published import inception_score_of_rows
from spd_core.quality.rows import FileRows, frechet_of_rows
from workers.machine import peak_memory

count, dims = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
real = Moments.from_gaussian(2, torch.zeros(dims), torch.eye(dims).double())
rows = FileRows(dims)
generator = torch.Generator().manual_seed(0)
for _ in range(0, count, 500):
    rows.append(torch.randn(500, dims, generator=generator))
print(frechet_of_rows(rows, real))
weight = torch.randn(dims, 50, generator=generator)
inception_score_of_rows(rows, lambda pool: pool @ weight)
print(peak_memory(torch.device("cpu"))["host"])
"""


def peak(count: int, dims: int) -> tuple[float, int]:
    """Frechet distance of streamed rows to what they were drawn from, and the most bytes that its process held."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(count), str(dims)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    distance, held = done.stdout.split()
    return float(distance), int(held)


def test_memory_does_not_grow_with_the_images():
    _, few = peak(5_000, 384)
    distance, many = peak(50_000, 384)
    # All rows together are 77 MB.
    assert many - few < 25e6
    assert 0 < distance < 3


@pytest.mark.slow
def test_memory_does_not_grow_at_full_width():
    (_, few), (distance, many) = peak(5_000, 2048), peak(50_000, 2048)
    assert many - few < 60e6, "all rows together are 410 MB"
    assert 0 < distance < 60
