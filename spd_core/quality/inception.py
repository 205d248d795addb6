"""The Inception network of the published FID (TensorFlow "inception-2015-12-05"), on images of any size.

Its topology is that of Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) with four changes of the 2015 graph:
average pools leave the padding out of their count, the last block's pool branch takes the maximum, there are 1008
outputs, and there is no auxiliary head. Names and shapes of the state dict are those of the two public PyTorch
conversions, ``pt_inception-2015-12-05-6726825d.pth`` and ``weights-inception-2015-12-05-6726825d.pth``. The weights are
not part of this package: `load_inception` reads a file that the user names. Both public files are the same bytes, whose
hash is `PUBLIC_SHA256`.

Shape legend: B images, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.quality.files import QualityError, read_state

EXTRACTOR = "inception-2015-12-05"
#: Of the two public files, whose names end with its first digits.
PUBLIC_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
RESIZE = "TensorFlow 1 bilinear to 299 px, (x - 128) / 128"
SIDE = 299  #: pixels of a side that the network sees
POOL_DIMS = 2048  #: pool features: FID, KID, precision and recall
SPATIAL_CHANNELS = 7  #: first channels of `SPATIAL_BLOCK`, whose 17 x 17 maps are the features of sFID
SPATIAL_BLOCK = "Mixed_6d"
SPATIAL_DIMS = SPATIAL_CHANNELS * 17 * 17
CLASSES = 1008
_EPS = 1e-3


class Convolution(nn.Module):
    """Convolution without bias, BatchNorm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Layer(NamedTuple):
    """One convolution of a block: its name in the state dict, output channels, kernel and stride."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


class Branch(NamedTuple):
    """A branch of a block: a pool or none, convolutions in turn, and at the end perhaps two side by side."""

    layers: tuple[Layer, ...] = ()
    pool: str = ""
    fork: tuple[Layer, ...] = ()


_WIDE, _TALL, _SQUARE = (1, 7), (7, 1), (3, 3)


def _block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        Branch((Layer("branch1x1", 64),)),
        Branch((Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5)))),
        Branch(
            (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, _SQUARE), Layer("branch3x3dbl_3", 96, _SQUARE))
        ),
        Branch((Layer("branch_pool", pooled),), pool="average"),
    )


def _block_b() -> tuple[Branch, ...]:
    double = (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, _SQUARE))
    return (
        Branch((Layer("branch3x3", 384, _SQUARE, 2),)),
        Branch((*double, Layer("branch3x3dbl_3", 96, _SQUARE, 2))),
        Branch(pool="halve"),
    )


def _block_c(width: int) -> tuple[Branch, ...]:
    double = [Layer("branch7x7dbl_1", width)]
    double += [Layer(f"branch7x7dbl_{i}", width, _WIDE if i % 2 else _TALL) for i in (2, 3, 4)]
    single = (Layer("branch7x7_1", width), Layer("branch7x7_2", width, _WIDE), Layer("branch7x7_3", 192, _TALL))
    return (
        Branch((Layer("branch1x1", 192),)),
        Branch(single),
        Branch((*double, Layer("branch7x7dbl_5", 192, _WIDE))),
        Branch((Layer("branch_pool", 192),), pool="average"),
    )


def _block_d() -> tuple[Branch, ...]:
    long = (Layer("branch7x7x3_1", 192), Layer("branch7x7x3_2", 192, _WIDE), Layer("branch7x7x3_3", 192, _TALL))
    return (
        Branch((Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, _SQUARE, 2))),
        Branch((*long, Layer("branch7x7x3_4", 192, _SQUARE, 2))),
        Branch(pool="halve"),
    )


def _block_e(pool: str) -> tuple[Branch, ...]:
    def fork(name: str) -> tuple[Layer, ...]:
        return Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))

    double = (Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, _SQUARE))
    return (
        Branch((Layer("branch1x1", 320),)),
        Branch((Layer("branch3x3_1", 384),), fork=fork("branch3x3_2")),
        Branch(double, fork=fork("branch3x3dbl_3")),
        Branch((Layer("branch_pool", 192),), pool=pool),
    )


#: Blocks after the stem, in order: name, input channels, branches.
BLOCKS: tuple[tuple[str, int, tuple[Branch, ...]], ...] = (
    ("Mixed_5b", 192, _block_a(32)),
    ("Mixed_5c", 256, _block_a(64)),
    ("Mixed_5d", 288, _block_a(64)),
    ("Mixed_6a", 288, _block_b()),
    ("Mixed_6b", 768, _block_c(128)),
    ("Mixed_6c", 768, _block_c(160)),
    (SPATIAL_BLOCK, 768, _block_c(160)),
    ("Mixed_6e", 768, _block_c(192)),
    ("Mixed_7a", 768, _block_d()),
    ("Mixed_7b", 1280, _block_e("average")),
    ("Mixed_7c", 2048, _block_e("maximum")),
)


def _pooled(x: Tensor, pool: str) -> Tensor:
    if pool == "average":
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    if pool == "maximum":
        return F.max_pool2d(x, 3, stride=1, padding=1)
    return F.max_pool2d(x, 3, stride=2) if pool == "halve" else x


class Mixed(nn.Module):
    """Branches over one input, concatenated over channels."""

    def __init__(self, inputs: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self.branches = branches
        for branch in branches:
            width = inputs
            for layer in branch.layers:
                self._add(width, layer)
                width = layer.outputs
            for layer in branch.fork:
                self._add(width, layer)

    def _add(self, inputs: int, layer: Layer) -> None:
        down, across = layer.kernel
        padding = (0, 0) if layer.stride > 1 else (down // 2, across // 2)
        self.add_module(layer.name, Convolution(inputs, layer.outputs, layer.kernel, layer.stride, padding))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part for branch in self.branches for part in self._branch(branch, x)], dim=1)

    def _branch(self, branch: Branch, x: Tensor) -> list[Tensor]:
        x = _pooled(x, branch.pool)
        for layer in branch.layers:
            x = self.get_submodule(layer.name)(x)
        return [self.get_submodule(layer.name)(x) for layer in branch.fork] or [x]


@dataclass(frozen=True)
class InceptionFeatures:
    """What the published metrics are computed from."""

    pool: Tensor  #: float32 [B, 2048]: FID, KID, precision and recall; `Inception.logits` of it: IS
    spatial: Tensor  #: float32 [B, 2023]: sFID, in the order (row, column, channel)


def resize(images_BCHW: Tensor) -> Tensor:
    """Float images [B, C, H, W] at 299 x 299 by the bilinear rule of TensorFlow 1.

    Output pixel i reads position i * (size / 299): no half-pixel centres, no aligned corners, no antialiasing. The
    bilinear modes of PyTorch are other rules, and a FID with them is another number.
    """
    down, across = (_sources(size, images_BCHW.device) for size in images_BCHW.shape[-2:])
    x = torch.lerp(images_BCHW[..., across.lower], images_BCHW[..., across.upper], across.share)
    return torch.lerp(x[..., down.lower, :], x[..., down.upper, :], down.share[:, None])


class _Sources(NamedTuple):
    """Of each output pixel along one side: the two input pixels it lies between, and how far along."""

    lower: Tensor
    upper: Tensor
    share: Tensor


def _sources(size: int, device: torch.device) -> _Sources:
    scale = torch.tensor(size / SIDE, dtype=torch.float32, device=device)
    at = torch.arange(SIDE, dtype=torch.float32, device=device) * scale
    lower = at.floor().long()
    return _Sources(lower, (lower + 1).clamp(max=size - 1), at - lower)


class Inception(nn.Module):
    """The network; parameters and buffers have the names and shapes of the public conversions."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, _SQUARE, 2, (0, 0))
        self.Conv2d_2a_3x3 = Convolution(32, 32, _SQUARE, 1, (0, 0))
        self.Conv2d_2b_3x3 = Convolution(32, 64, _SQUARE, 1, (1, 1))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1), 1, (0, 0))
        self.Conv2d_4a_3x3 = Convolution(80, 192, _SQUARE, 1, (0, 0))
        for name, inputs, branches in BLOCKS:
            self.add_module(name, Mixed(inputs, branches))
        self.fc = nn.Linear(POOL_DIMS, CLASSES)

    def stages(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Every stage's output by name: ``64`` and ``192`` after the two pools of the stem, then each block's.

        Args:
            images_BCHW: 0 to 255, any real dtype, three channels, any size.
        """
        return dict(self._stages(resize(images_BCHW.float())))

    def _stages(self, resized_BCHW: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = (resized_BCHW - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        yield "64", x
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        yield "192", x
        for name, _, _ in BLOCKS:
            x = self.get_submodule(name)(x)
            yield name, x

    def forward(self, images_BCHW: Tensor) -> InceptionFeatures:
        """Features of images; arguments as for `stages`."""
        return self.of_resized(resize(images_BCHW.float()))

    def of_resized(self, resized_BCHW: Tensor) -> InceptionFeatures:
        """Features of images that have gone through `resize`."""
        kept = {}
        for name, made in self._stages(resized_BCHW):
            if name in (SPATIAL_BLOCK, "Mixed_7c"):
                kept[name] = made
        maps = kept[SPATIAL_BLOCK][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1)
        return InceptionFeatures(kept["Mixed_7c"].mean(dim=(2, 3)), maps.flatten(1))

    def logits(self, pool: Tensor) -> Tensor:
        """[B, 1008] of pool features, without the bias: what the Inception Score reads."""
        return pool @ self.fc.weight.T


@dataclass(frozen=True)
class LoadedInception:
    """The network with a file's weights, in eval mode, and the file's hash."""

    network: Inception
    sha256: str


def load_inception(path: Path, device: torch.device | str = "cpu") -> LoadedInception:
    """Reads the weights from a public ``.pth`` or a ``.safetensors`` file; nothing in the file is executed.

    Raises:
        QualityError: unreadable, not the state dict of this network, or a public file that is damaged.
    """
    state = read_state("quality.weights", path)
    weights = {name: value for name, value in state.tensors.items() if not name.endswith("num_batches_tracked")}
    with torch.device("meta"):
        network = Inception()
    _check_shapes(path, network.state_dict(), weights)
    if path.stem.endswith(PUBLIC_SHA256[:8]) and state.sha256 != PUBLIC_SHA256:
        got = f"sha256 {state.sha256[:12]}..., allowed: {PUBLIC_SHA256[:12]}..."
        raise QualityError(f"quality.weights: {path} has {got} (the public file that its name says)")
    # The public files leave the counters of BatchNorm out; eval mode does not read them.
    counters = {name: torch.zeros((), dtype=torch.int64) for name in network.state_dict() if name.endswith("_tracked")}
    network.load_state_dict({**counters, **{k: _ready(v) for k, v in weights.items()}}, strict=True, assign=True)
    return LoadedInception(network.eval().requires_grad_(False).to(device), state.sha256)


def _ready(weight: Tensor) -> Tensor:
    """In float32, in memory; convolutions channels last, which is the faster layout on a CPU as on a GPU."""
    layout = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
    return weight.float().clone(memory_format=layout)


def _check_shapes(path: Path, own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    needed = {name: value for name, value in own.items() if not name.endswith("num_batches_tracked")}
    for name in sorted(needed.keys() | given.keys()):
        got = list(given[name].shape) if name in given else "none"
        allowed = list(needed[name].shape) if name in needed else "none"
        if got != allowed:
            raise QualityError(f"quality.weights: {path}: {name[:80]} is {got}, allowed: {allowed} ({EXTRACTOR})")
