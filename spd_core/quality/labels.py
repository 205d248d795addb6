"""Label agreement: does a classifier of real images see the class an image was asked for?

The classifier is a small CNN trained on the real training set (`spd_core.train.classifier`); its accuracy on the real
test set, in its card, is the agreement that perfect images would reach.

Shape legend: B images, K classes.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from spd_core.law import Settings
from spd_core.quality.files import QualityError, read_card, read_tensors, reference_folder

WEIGHTS, CARD = "classifier.safetensors", "classifier.json"
_BATCH = 500
# Of the Fashion-MNIST training pixels in [0, 1].
_MEAN, _STD = 0.286, 0.353


class ClassifierCard(Settings):
    """Where the classifier comes from and how good it is."""

    data: str
    licence: str
    classes: int = Field(gt=1)
    width: int = Field(gt=0, description="channels of the first convolution")
    sha256: str = Field(description="of the weights file")
    test_accuracy: float = Field(ge=0, le=1, description="of the stored weights on the whole real test set")
    test_images: int = Field(gt=0)
    seed: int
    epochs: int
    recipe: str
    cpu_seconds: float = Field(description="CPU time of the training")


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class LabelClassifier(nn.Module):
    """Five 3x3 convolutions at 28, 14 and 7 px, mean pool, linear.

    Args:
        classes: K.
        width: channels of the first convolution; 32 keeps the float16 weights below 1 MB.
    """

    def __init__(self, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(1, width),
            _conv(width, 2 * width, stride=2), _conv(2 * width, 2 * width),
            _conv(2 * width, 4 * width, stride=2), _conv(4 * width, 4 * width),
        )  # fmt: skip
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * width, classes))

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Logits float32 [B, K] of uint8 images [B, 28, 28, 1]."""
        x = (images_BHWC.permute(0, 3, 1, 2).float() / 255.0 - _MEAN) / _STD
        logits: Tensor = self.head(self.body(x.contiguous(memory_format=torch.channels_last)))
        return logits.float()

    @torch.inference_mode()
    def predict(self, images_BHWC: Tensor) -> Tensor:
        """Most likely class, int64 [B]; the module must be in eval mode."""
        return torch.cat([self(part).argmax(dim=1) for part in torch.split(images_BHWC, _BATCH)])


def load_classifier(folder: Path) -> LabelClassifier:
    """The classifier of a reference folder, in eval mode on the CPU.

    Raises:
        QualityError: missing or corrupt card or weights.
    """
    card = read_card(folder / CARD, ClassifierCard)
    weights = read_tensors(folder / WEIGHTS, card.sha256)
    model = LabelClassifier(card.classes, card.width)
    try:
        model.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    except RuntimeError as error:
        raise QualityError(
            f"quality: {folder / WEIGHTS} does not fit its card: {' '.join(str(error).split())[:200]}"
        ) from error
    model.eval().requires_grad_(False)
    return model


@functools.cache
def _bundled(reference: str) -> LabelClassifier:
    return load_classifier(reference_folder(reference))


def label_agreement(images_BHWC: Tensor, labels_B: Tensor, reference: str = "fashion-mnist") -> Tensor:
    """Whether the reference's classifier sees the label asked for, bool [B].

    Args:
        images_BHWC: uint8 [B, 28, 28, 1] on the CPU.
        labels_B: int64, the classes asked for.
        reference: bundled reference that holds the classifier.

    Raises:
        QualityError: unknown reference, or its classifier is corrupt.
        ValueError: images of another shape or dtype, or another number of labels.
    """
    if images_BHWC.dtype != torch.uint8 or images_BHWC.shape[1:] != (28, 28, 1):
        got = f"{images_BHWC.dtype} {list(images_BHWC.shape)}"
        raise ValueError(f"images: got {got}, allowed: torch.uint8 [B, 28, 28, 1]")
    if labels_B.shape != images_BHWC.shape[:1]:
        raise ValueError(
            f"labels: got {list(labels_B.shape)}, allowed: one label for each of {len(images_BHWC)} images"
        )
    return _bundled(reference).predict(images_BHWC) == labels_B if len(labels_B) else torch.zeros(0, dtype=torch.bool)
