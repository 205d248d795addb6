"""Bundled reference, floor, and the record of all figures: agreement with real images, power against bad ones."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch

from spd_core.quality.evaluate import QualityFigures, evaluate
from spd_core.quality.features import EXTRACTOR, FeatureExtractor
from spd_core.quality.files import QualityError, reference_folder
from spd_core.quality.frechet import Moments, frechet_of_features
from spd_core.quality.reference import CARD, STATISTICS, load_reference, pack, read_reference, unpack
from spd_core.train import reference as recipe

NAME = "fashion-mnist"


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    """Features of 200 images of uniform noise."""
    images = torch.randint(0, 256, (200, 28, 28, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return FeatureExtractor()(images)


def balanced(n: int) -> torch.Tensor:
    return torch.arange(n) % 10


def test_real_images_score_the_floor():
    reference = load_reference(NAME)
    half = torch.arange(0, 10_000, 2)[:1000]
    agree = torch.ones(1000, dtype=torch.bool)
    agree[:40] = False
    figures = evaluate(reference.features[half], reference.labels[half], agree, NAME)
    assert figures.floor_n == figures.n == 1000
    assert figures.frechet == pytest.approx(figures.floor, rel=0.03)
    assert figures.frechet_interval[0] < figures.frechet < figures.frechet_interval[1]
    assert figures.kid_interval[0] < 0.01
    assert figures.label_agreement == 0.96
    assert figures.label_agreement_interval[0] < 0.96 < figures.label_agreement_interval[1]
    assert sum(row.images for row in figures.classes) == 1000
    assert sum(row.agreeing for row in figures.classes) == 960
    assert figures.classes[0].name == "T-shirt/top"
    assert figures.extractor == EXTRACTOR
    assert QualityFigures.model_validate_json(figures.model_dump_json()) == figures


def test_noise_is_far_above_the_floor(noise):
    figures = evaluate(noise, balanced(200), None, NAME)
    assert figures.frechet_interval[0] > 2 * figures.floor
    assert figures.kid_interval[0] > 0
    assert figures.label_agreement is None
    assert figures.classes[3].agreement is None


def test_a_share_of_bad_images_and_a_lost_class_are_seen(noise):
    reference = load_reference(NAME)
    index = reference.subsets(200)[0]
    floor = reference.floor(200)
    mixed = torch.cat([reference.features[index[:180]], noise[:20]])
    assert frechet_of_features(mixed, reference.moments) > floor.value + 4 * floor.spread
    no_trousers = (reference.labels != 1).nonzero().flatten()[:200]
    assert frechet_of_features(reference.features[no_trousers], reference.moments) > floor.value + 4 * floor.spread


def test_floor_falls_with_n_and_says_how_many_it_used():
    reference = load_reference(NAME)
    small, larger = reference.floor(100), reference.floor(400)
    assert small.value > larger.value > 0
    assert small.spread > 0
    assert (small.n, larger.n) == (100, 400)
    indices = torch.cat(reference.subsets(400))
    assert len(indices.unique()) == len(indices) == 5 * 400
    assert torch.bincount(reference.labels[reference.subsets(103)[0]]).tolist() == [11, 11, 11] + [10] * 7
    assert [len(index) for index in reference.subsets(60_000)] == [10_000]
    with pytest.raises(ValueError, match="got 1, allowed: at least 2"):
        reference.floor(1)


@pytest.mark.slow
def test_floor_of_more_images_than_there_are():
    reference = load_reference(NAME)
    floor = reference.floor(50_000)
    assert floor.n == 10_000
    assert 0 < floor.spread < floor.value < reference.floor(1000).value


def test_few_images():
    features, labels = load_reference(NAME).features, load_reference(NAME).labels
    figures = evaluate(features[:2], labels[:2], None, NAME)
    assert figures.frechet > 0
    assert figures.frechet_interval is figures.kid is figures.kid_interval is None
    for n in (0, 1):
        with pytest.raises(ValueError, match=f"images: got {n}, allowed: at least 2"):
            evaluate(features[:n], labels[:n], None, NAME)


def test_half_precision_features_change_little():
    features, labels = load_reference(NAME).features[:60], load_reference(NAME).labels[:60]
    exact, half = (evaluate(x, labels, None, NAME).frechet for x in (features, features.half()))
    assert half == pytest.approx(exact, rel=1e-4)


def test_wrong_input_is_refused():
    features, labels = torch.zeros(30, 1280), balanced(30)
    with pytest.raises(ValueError, match=r"features: got \[30, 7\]"):
        evaluate(features[:, :7], labels, None, NAME)
    with pytest.raises(ValueError, match="not finite"):
        evaluate(features / 0, labels, None, NAME)
    with pytest.raises(ValueError, match=r"labels: got 0\.\.10, allowed: 0\.\.9"):
        evaluate(features, torch.where(labels == 9, 10, labels), None, NAME)
    with pytest.raises(ValueError, match=r"agreement: got \[29\]"):
        evaluate(features, labels, torch.ones(29, dtype=torch.bool), NAME)
    with pytest.raises(QualityError, match="got 'cifar', allowed: fashion-mnist"):
        evaluate(features, labels, None, "cifar")


def test_card_and_storage_error():
    card = load_reference(NAME).card
    assert card.licence.startswith("MIT")
    assert card.bytes < 13_000_000
    assert (card.train_images, card.test_images) == (60_000, 10_000)
    assert load_reference(NAME).moments.count == 60_000
    # far below the floor's own spread
    assert all(abs(change) < 0.02 for change in card.storage_error.values())


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "card", "extractor", "other"])
def test_damaged_reference_is_one_clear_line(tmp_path, damage):
    folder = tmp_path / NAME
    shutil.copytree(reference_folder(NAME), folder)
    raw = bytearray((folder / STATISTICS).read_bytes())
    card = json.loads((folder / CARD).read_text())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    if damage == "cut":
        del raw[-1000:]
    if damage == "other":
        raw = bytearray(b"not an archive")
        card["sha256"] = hashlib.sha256(raw).hexdigest()
    if damage == "extractor":
        card["extractor"] = "inception"
    (folder / STATISTICS).write_bytes(raw)
    (folder / CARD).write_text("{" if damage == "card" else json.dumps(card))
    if damage == "gone":
        (folder / STATISTICS).unlink()
    with pytest.raises(QualityError) as caught:
        read_reference(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_pack_round_trip():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(50, 12, generator=generator) * torch.arange(12)
    moments = Moments.from_features(torch.rand(400, 12, generator=generator))
    labels = balanced(50)
    read_moments, read_features, read_labels = unpack(pack(moments, features, labels))
    torch.testing.assert_close(read_moments.covariance, moments.covariance, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(read_moments.mean, moments.mean)
    assert torch.equal(read_labels, labels)
    assert ((read_features - features).abs() <= features.amax(dim=0) / 255 * 0.501 + 1e-6).all()
    assert pack(moments, features, labels) == pack(moments, features, labels)


def test_recipe_builds_a_reference_that_loads(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 28, 28, 1), generator=generator).to(torch.uint8)

    class Fake:
        def __init__(self, device: str) -> None:
            self.device = device

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :40].float() / 255

    monkeypatch.setattr(recipe, "FeatureExtractor", Fake)
    monkeypatch.setattr(recipe, "load_fashion_mnist", lambda split: (images, balanced(300)))
    card = recipe.build_reference(tmp_path / "new")
    reference = read_reference(tmp_path / "new")
    assert reference.card == card
    torch.testing.assert_close(reference.moments.mean, Fake("cpu")(images).double().mean(dim=0))
    assert all(abs(change) < 1e-2 for change in card.storage_error.values())
