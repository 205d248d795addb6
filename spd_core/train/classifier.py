"""Recipe of the label classifier: SGD with a one-cycle rate, shifts of up to two pixels.

Every random number follows from the seed. No flips: a mirrored shoe is a shoe no training image shows.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from spd_core.progress import tell
from spd_core.quality.labels import CARD, WEIGHTS, ClassifierCard, LabelClassifier, load_classifier

log = logging.getLogger(__name__)

_BATCH = 128
_RATE = 0.1
_WEIGHT_DECAY = 5e-4
_SHIFT = 2
_RECIPE = (
    f"SGD (Nesterov 0.9), batch {_BATCH}, one-cycle rate up to {_RATE}, weight decay {_WEIGHT_DECAY}, "
    f"label smoothing 0.1, shifts of up to {_SHIFT} px, bfloat16 autocast"
)


def shifted(images_BHWC: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by its own offset, -2..2 pixels per axis; black comes in at the border."""
    batch, height, width, _ = images_BHWC.shape
    padded = nn.functional.pad(images_BHWC, (0, 0, _SHIFT, _SHIFT, _SHIFT, _SHIFT))
    dy, dx = torch.randint(0, 2 * _SHIFT + 1, (2, batch), generator=generator)
    rows = (dy[:, None] + torch.arange(height))[:, :, None]
    columns = (dx[:, None] + torch.arange(width))[:, None, :]
    return padded[torch.arange(batch)[:, None, None], rows, columns]


def accuracy(model: LabelClassifier, images_nHWC: Tensor, labels_n: Tensor) -> float:
    """Share of images [n] whose class the model sees, by a model in eval mode."""
    return int((model.predict(images_nHWC) == labels_n).sum()) / len(labels_n)


def _fit(
    model: LabelClassifier, images_nHWC: Tensor, labels_n: Tensor, generator: torch.Generator, epochs: int
) -> None:
    """Trains the model for that many passes; orders and shifts come from the generator."""
    per_epoch = len(images_nHWC) // _BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=0.9, nesterov=True, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=epochs * per_epoch, pct_start=0.25)
    note = ""
    for epoch in range(epochs):
        losses = []
        order = torch.randperm(len(images_nHWC), generator=generator)
        for index in torch.split(order[: per_epoch * _BATCH], _BATCH):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(shifted(images_nHWC[index], generator))
            loss = nn.functional.cross_entropy(logits, labels_n[index], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            tell(epoch * per_epoch + len(losses), epochs * per_epoch, "steps", note)
        note = f"loss of epoch {epoch + 1} {torch.stack(losses).mean():.4f}"


def train_classifier(
    images_nHWC: Tensor,
    labels_n: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    out_dir: Path,
    seed: int = 0,
    epochs: int = 12,
    width: int = 32,
) -> float:
    """Trains, stores float16 weights and their card in ``out_dir``, and returns the stored weights' test accuracy.

    Args:
        images_nHWC: uint8 [n, 28, 28, 1], n at least one batch.
        labels_n: int64.
        test_images, test_labels: held out; only measured on, never chosen by.
        out_dir: folder, made if it is not there.
        seed: of weights, order, shifts and dropout.
        epochs: passes over the training images.
        width: of `LabelClassifier`.
    """
    classes = int(labels_n.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = LabelClassifier(classes, width).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    began = time.process_time()
    _fit(model, images_nHWC, labels_n, generator, epochs)
    state = model.state_dict()
    raw = save({name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in state.items()})
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / WEIGHTS).write_bytes(raw)
    card = ClassifierCard(
        data=f"Fashion-MNIST training set, {len(images_nHWC):,} images",
        licence="MIT (data and weights)",
        classes=classes,
        width=width,
        sha256=hashlib.sha256(raw).hexdigest(),
        test_accuracy=0.0,
        test_images=len(test_images),
        seed=seed,
        epochs=epochs,
        recipe=_RECIPE,
        cpu_seconds=round(time.process_time() - began, 1),
    )
    # The figure is that of the file: read back, so that the rounding to float16 is in it.
    (out_dir / CARD).write_text(card.model_dump_json(indent=1) + "\n")
    measured = accuracy(load_classifier(out_dir), test_images, test_labels)
    card = card.model_copy(update={"test_accuracy": measured})
    (out_dir / CARD).write_text(card.model_dump_json(indent=1) + "\n")
    log.info("test accuracy %.4f", measured)
    return measured
