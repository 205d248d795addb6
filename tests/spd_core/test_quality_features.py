"""Feature extractor and label classifier on real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spd_core.data import load_fashion_mnist
from spd_core.quality import features
from spd_core.quality.features import DIMS, FeatureExtractor
from spd_core.quality.files import QualityError, read_card, reference_folder
from spd_core.quality.labels import CARD, WEIGHTS, ClassifierCard, label_agreement, load_classifier
from spd_core.quality.reference import load_reference
from spd_core.train.classifier import accuracy, shifted, train_classifier


@pytest.fixture(scope="module")
def real() -> tuple[torch.Tensor, torch.Tensor]:
    """The first 200 images of the real test set, with labels."""
    with np.load(Path(__file__).parent / "data" / "fashion-test-200.npz") as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor()


def test_reference_features_took_the_same_road(extractor, real):
    made, stored = extractor(real[0][:100]), load_reference("fashion-mnist").features[:100]
    assert made.shape == (100, DIMS)
    assert made.dtype == torch.float32
    assert not made.requires_grad
    # stored in 8 bits of at most 6 (ReLU6): half a step, and a little for another machine's arithmetic
    assert (made - stored).abs().max() < 0.5 * 6 / 255 + 0.02
    assert (made - stored).abs().mean() < 0.005


def test_gray_is_three_equal_channels_and_batches_do_not_matter(extractor, real):
    images = real[0][:70]
    whole = extractor(images)
    torch.testing.assert_close(extractor(images.expand(-1, -1, -1, 3)), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([extractor(images[:3]), extractor(images[3:])]), whole, rtol=1e-4, atol=1e-4)
    assert extractor(images[:0]).shape == (0, DIMS)


def test_other_sizes_are_brought_to_the_same_side(extractor, real):
    images = real[0][:4]
    large = images.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    assert extractor(large).shape == (4, DIMS)
    # the same picture at 8 times the size is nearer to itself than to the next picture
    distances = torch.cdist(extractor(large), extractor(images))
    assert distances.argmin(dim=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [torch.zeros(2, 28, 28, 1), torch.zeros(2, 28, 28, 2, dtype=torch.uint8)])
def test_wrong_images_are_refused(extractor, wrong):
    with pytest.raises(ValueError, match=r"allowed: torch\.uint8"):
        extractor(wrong)


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(features, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(QualityError, match="allowed: 000000000000"):
        FeatureExtractor()


def test_classifier_on_the_bundled_images(real):
    images, labels = real
    card = read_card(reference_folder("fashion-mnist") / CARD, ClassifierCard)
    assert card.test_accuracy >= 0.91
    agree = label_agreement(images, labels)
    assert agree.dtype == torch.bool
    assert agree.float().mean() >= 0.88
    # images asked for as another class hardly ever agree
    assert label_agreement(images, (labels + 1) % 10).float().mean() < 0.05
    assert (reference_folder("fashion-mnist") / WEIGHTS).stat().st_size < 1_000_000


def test_classifier_card_tells_the_measured_accuracy():
    try:
        images, labels = load_fashion_mnist("test")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    card = read_card(reference_folder("fashion-mnist") / CARD, ClassifierCard)
    assert card.test_images == len(images)
    measured = accuracy(load_classifier(reference_folder("fashion-mnist")), images, labels)
    assert measured == pytest.approx(card.test_accuracy, abs=5e-4)  # arithmetic of other machines


def test_agreement_refuses_what_does_not_fit(real):
    with pytest.raises(ValueError, match=r"allowed: torch\.uint8"):
        label_agreement(torch.zeros(2, 32, 32, 1, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="one label for each of 200 images"):
        label_agreement(real[0], real[1][:3])


def test_corrupt_classifier_is_one_clear_line(tmp_path):
    folder = reference_folder("fashion-mnist")
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(raw)
    (tmp_path / CARD).write_bytes((folder / CARD).read_bytes())
    with pytest.raises(QualityError, match=r"classifier\.safetensors has sha256") as caught:
        load_classifier(tmp_path)
    assert "\n" not in str(caught.value)


def test_recipe_learns_stores_and_repeats(tmp_path, real):
    images, labels = (part.repeat(3, *[1] * (part.dim() - 1)) for part in real)
    first = train_classifier(images, labels, *real, tmp_path / "a", seed=3, epochs=5, width=8)
    second = train_classifier(images, labels, *real, tmp_path / "b", seed=3, epochs=5, width=8)
    assert first == second
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert first > 0.3
    assert accuracy(load_classifier(tmp_path / "a"), *real) == first


def test_shifts_move_without_mirroring():
    image = torch.zeros(64, 28, 28, 1, dtype=torch.uint8)
    image[:, 10, 10], image[:, 10, 11] = 1, 2
    moved = shifted(image, torch.Generator().manual_seed(0))
    ones, twos = ((moved == value).nonzero() for value in (1, 2))
    assert len(ones) == len(twos) == 64
    assert torch.equal(twos - ones, torch.tensor([[0, 0, 1, 0]]).expand(64, -1))
    assert ones[:, 1].min() == 8
    assert ones[:, 1].max() == 12
