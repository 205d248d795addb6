"""Classifiers that a user names: does one see in an image the class that was asked for?

Three kinds of file: a ``.pt2`` of ``torch.export.save`` (`spd_core.quality.exported`); a state dict of a ResNet under
the names of torchvision's, ``.pth`` or ``.safetensors``; and one of this program's `LabelClassifier`, of 28 x 28 grey
images.

Shape legend: n images of a call, B of a pass, H, W pixels, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.precision import arithmetic
from spd_core.quality.exported import Exported, load_exported
from spd_core.quality.extractors import RowKinds, as_rgb, batch_of, by_size
from spd_core.quality.files import QualityError, read_state
from spd_core.quality.labels import LabelClassifier

PREDICTED = "predicted"
#: Of ImageNet's pixels in [0, 1], as all public ResNets are trained.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RESIZED, _CROPPED = 256, 224
_EPS = 1e-5
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Classifier:
    """A network of logits, ready to be asked for the classes that it sees."""

    name: str
    sha256: str
    classes: int | None  #: K; None: the file does not say
    logits: Callable[[Tensor], Tensor]  #: [B, K] of uint8 images [B, 3, H, W] on its device
    device: torch.device
    rows: RowKinds

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """The class [n] with the largest logit; arguments as of `spd_core.quality.extractors.Measurer`.

        Raises:
            QualityError: the network does not run on such images.
        """
        found = torch.empty(len(images), dtype=torch.int64)
        with arithmetic("float32"):
            for index, batch in by_size(images, batch_of(self.device)):
                try:
                    logits = self.logits(as_rgb(batch, self.device))
                except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
                    text = " ".join(str(error).split())[:160]
                    raise QualityError(
                        f"quality.classifier: {self.name} does not run on images {list(batch.shape[1:])}: {text}"
                    ) from error
                if logits.shape != (len(batch), self.classes or logits.shape[-1]):
                    raise QualityError(
                        f"quality.classifier: {self.name} gives {list(logits.shape)} for {len(batch)} images, allowed: "
                        "logits [images, classes]"
                    )
                found[index] = logits.argmax(dim=1).cpu()
        return {PREDICTED: found}


def load_classifier_file(path: Path, device: torch.device | str = "cpu") -> Classifier:
    """A classifier from a file of one of the three kinds; nothing in the file is executed.

    Raises:
        QualityError: another file.
    """
    place = torch.device(device)
    rows: RowKinds = {PREDICTED: (torch.int64, ())}
    if path.suffix == ".pt2":
        exported = load_exported(path).to(place)
        if len(exported.input_shape) != 4:
            raise QualityError(
                f"quality.classifier: {path} takes {len(exported.input_shape)} dimensions, allowed: images [B, C, H, W]"
            )
        return Classifier("exported", exported.sha256, exported.output_shape[-1], _of_exported(exported), place, rows)
    state = read_state("quality.classifier", path)
    weights = {name: value for name, value in state.tensors.items() if not name.endswith("num_batches_tracked")}
    name, model, logits = _of_layout(path, weights)
    _fill(path, model, weights)
    model = model.eval().requires_grad_(False).to(place)
    classes = int(next(reversed(list(model.parameters()))).shape[0])
    return Classifier(name, state.sha256, classes, logits(model), place, rows)


def _of_exported(exported: Exported) -> Callable[[Tensor], Tensor]:
    batch, channels, *_ = exported.input_shape

    def logits(images: Tensor) -> Tensor:
        x = images.float() / 255
        if channels == 1:
            x = (x * torch.tensor(_GREY, device=x.device)[:, None, None]).sum(dim=1, keepdim=True)
        if batch is None:
            return exported(x)
        # A graph of one batch size gets batches of that size, the last one filled up.
        short = -len(x) % batch
        filled = torch.cat([x, x[-1:].expand(short, -1, -1, -1)]) if short else x
        return torch.cat([exported(part) for part in filled.split(batch)])[: len(x)]

    return logits


def _of_layout(
    path: Path, weights: Mapping[str, Tensor]
) -> tuple[str, nn.Module, Callable[[nn.Module], Callable[[Tensor], Tensor]]]:
    """Name, network and how it is asked, by the names of the weights."""
    if "conv1.weight" in weights and "layer4.0.conv1.weight" in weights and weights.get("fc.weight") is not None:
        with torch.device("meta"):
            return "resnet", ResNet.of(weights), _of_imagenet
    if "body.0.0.weight" in weights and "head.3.weight" in weights:
        width, classes = weights["body.0.0.weight"].shape[0], weights["head.3.weight"].shape[0]
        with torch.device("meta"):
            return "label-classifier", LabelClassifier(classes, width), _of_grey
    known = "a ResNet's under torchvision's names, or this program's classifier's; another one as .pt2"
    raise QualityError(f"quality.classifier: {path} has weights of no known layout, allowed: {known}")


def _fill(path: Path, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    for name in sorted(needed | weights.keys()):
        got = list(weights[name].shape) if name in weights else "none"
        allowed = list(own[name].shape) if name in needed else "none"
        if got != allowed:
            raise QualityError(f"quality.classifier: {path}: {name[:80]} is {got}, allowed: {allowed}")
    counters = {name: torch.zeros((), dtype=torch.int64) for name in own if name not in needed}
    model.load_state_dict({**counters, **{k: v.float().clone() for k, v in weights.items()}}, assign=True)


def _of_imagenet(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Shorter side to 256 px where it is another, middle 224 x 224, ImageNet's mean and standard deviation."""

    def logits(images: Tensor) -> Tensor:
        x = images.float() / 255
        shorter = min(x.shape[-2:])
        if shorter != _RESIZED:
            size = [round(side * _RESIZED / shorter) for side in x.shape[-2:]]
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        top, left = ((side - _CROPPED) // 2 for side in x.shape[-2:])
        x = x[..., top : top + _CROPPED, left : left + _CROPPED]
        mean, std = (torch.tensor(each, device=x.device)[:, None, None] for each in (_MEAN, _STD))
        return model((x - mean) / std)

    return logits


def _of_grey(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def logits(images: Tensor) -> Tensor:
        if images.shape[-2:] != (28, 28):
            raise ValueError("it takes 28 x 28 grey images")
        return model(images[:, :1].permute(0, 2, 3, 1))

    return logits


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with the stride in the middle (He et al. 2015)."""

    def __init__(self, inputs: int, sizes: Sequence[tuple[int, int]], stride: int, shortcut: bool) -> None:
        super().__init__()
        self.depth = len(sizes)
        at, width = (1 if self.depth == 3 else 0), inputs
        for place, (outputs, kernel) in enumerate(sizes):
            step = stride if place == at else 1
            self.add_module(f"conv{place + 1}", nn.Conv2d(width, outputs, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{place + 1}", nn.BatchNorm2d(outputs, eps=_EPS))
            width = outputs
        self.width = width
        self.downsample = None
        if shortcut:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width, eps=_EPS)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for place in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{place}")(self.get_submodule(f"conv{place}")(y))
            y = F.relu(y) if place < self.depth else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A ResNet of any depth; parameters have the names of torchvision's (arXiv:1512.03385, stride in the 3x3)."""

    def __init__(self, stages: Sequence[Sequence[_Block]], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=_EPS)
        for place, blocks in enumerate(stages):
            self.add_module(f"layer{place + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(stages[-1][-1].width, classes)

    @staticmethod
    def of(weights: Mapping[str, Tensor]) -> ResNet:
        """The network that weights of these names are of; their shapes are for the caller to check."""
        stages = []
        inputs = 64
        for layer in range(1, 5):
            found = {int(m[1]) for name in weights if (m := re.match(rf"layer{layer}\.(\d{{1,3}})\.", name))}
            blocks = []
            for block in range(len(found)):
                at = f"layer{layer}.{block}"
                sizes = [
                    (weights[f"{at}.conv{place}.weight"].shape[0], weights[f"{at}.conv{place}.weight"].shape[-1])
                    for place in (1, 2, 3)
                    if f"{at}.conv{place}.weight" in weights
                ]
                stride = 2 if layer > 1 and block == 0 else 1
                blocks.append(_Block(inputs, sizes, stride, f"{at}.downsample.0.weight" in weights))
                inputs = sizes[-1][0] if sizes else inputs
            stages.append(blocks)
        return ResNet(stages, weights["fc.weight"].shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of normalised images [B, 3, H, W]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for layer in range(1, 5):
            x = self.get_submodule(f"layer{layer}")(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
