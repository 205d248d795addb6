"""Classifiers of the user's: exported graphs without PyTorch's loader, and state dicts of known layouts."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.quality.classifiers import PREDICTED, ResNet, load_classifier_file
from spd_core.quality.exported import OPERATORS, load_exported
from spd_core.quality.files import QualityError
from spd_core.quality.labels import LabelClassifier


class Small(nn.Module):
    """Convolution, BatchNorm and a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.register_buffer("mean", torch.full((3, 1, 1), 0.4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x - self.mean, size=(8, 8), mode="bilinear", antialias=True)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.norm(self.conv(x))), 1).flatten(1))


class Attending(nn.Module):
    """Patches, attention and a class token: shapes that follow the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.token, self.head = nn.Parameter(torch.ones(1, 1, 16)), nn.Sequential(nn.GELU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.patch(x)).flatten(2).transpose(1, 2)
        x = self.norm(torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1))
        return self.head((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


def exported(model: nn.Module, path: Path, batch: int | None = None) -> Path:
    torch.manual_seed(0)
    shapes = None if batch else {"x": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model.eval(), (torch.rand(batch or 4, 3, 12, 12),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return exported(Small(), tmp_path_factory.mktemp("exported") / "small.pt2")


@pytest.mark.parametrize(("kind", "batch"), [(Small, None), (Small, 4), (Attending, None)])
def test_an_exported_classifier_sees_what_its_model_does(kind: type[nn.Module], batch: int | None, tmp_path: Path):
    torch.manual_seed(2)
    model = kind()
    classifier = load_classifier_file(exported(model, tmp_path / "c.pt2", batch))
    images = torch.randint(0, 256, (7, 12, 12, 3), dtype=torch.uint8)
    with torch.no_grad():
        x = images.permute(0, 3, 1, 2).float() / 255
        logits = torch.cat([model(part) for part in x.split(1)]) if batch is None else model(x)
        seen = classifier.logits(images.permute(0, 3, 1, 2))
    assert torch.allclose(seen, logits, atol=1e-5)
    assert torch.equal(classifier(images)[PREDICTED], logits.argmax(dim=1))
    assert classifier.classes == 5


def rewritten(path: Path, to: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive with its members changed; None leaves one out."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            made = change(name, source.read(name))
            if made is not None:
                target.writestr(name, made)
    return to


def with_program(path: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    def changed(name: str, raw: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return raw
        program = json.loads(raw)
        change(program["graph_module"])
        return json.dumps(program).encode()

    return rewritten(path, to, changed)


def test_pickles_of_an_archive_are_not_opened(small: Path, tmp_path: Path):
    spoiled = rewritten(small, tmp_path / "c.pt2", lambda name, raw: b"no pickle" if name.endswith(".pt") else raw)
    assert load_exported(spoiled).output_shape[-1] == 5


@pytest.mark.parametrize(
    "target",
    ["torch.ops.aten.from_file.default", "os.system", "torch.ops.prims.add", "torch.ops.aten.__class__.default", ""],
)
def test_only_listed_operators_are_called(target: str, small: Path, tmp_path: Path):
    def change(module: dict[str, Any]) -> None:
        module["graph"]["nodes"][0]["target"] = target

    with pytest.raises(QualityError, match=r"refused .* it calls") as caught:
        load_exported(with_program(small, tmp_path / "c.pt2", change))
    assert "\n" not in str(caught.value)


def test_no_listed_operator_reads_a_file_or_makes_random_numbers():
    assert not [name for name in OPERATORS if any(bad in name for bad in ("file", "rand", "bernoulli", "resize_"))]
    for name in OPERATORS:
        operation, overload = name.split(".")
        assert overload in getattr(torch.ops.aten, operation).overloads(), name


def _as_pickle(name: str, raw: bytes) -> bytes:
    return raw.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("weights_config.json") else raw


def _short(name: str, raw: bytes) -> bytes:
    return raw[:4] if name.endswith("weight_0") else raw


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_as_pickle, "is a pickle"),
        (_short, "is repeated from fewer bytes than it has"),
        (lambda name, raw: None if name.endswith("model.json") else raw, "has no models/model.json"),
        (lambda name, raw: b"{" if name.endswith("model.json") else raw, "cannot read"),
        (lambda name, raw: b"[]" if name.endswith("model.json") else raw, "is no mapping"),
        (lambda name, raw: None if name.endswith("weight_1") else raw, "cannot read"),
    ],
)
def test_damaged_archives_are_one_line(change: Callable[[str, bytes], bytes | None], words: str, small: Path, tmp_path):
    with pytest.raises(QualityError, match=words) as caught:
        load_classifier_file(rewritten(small, tmp_path / "c.pt2", change))
    assert "\n" not in str(caught.value)


def test_images_that_a_graph_does_not_take_are_one_line(tmp_path: Path):
    classifier = load_classifier_file(exported(Attending(), tmp_path / "c.pt2"))
    assert classifier(torch.zeros(1, 12, 12, 3, dtype=torch.uint8))[PREDICTED].shape == (1,)
    with pytest.raises(QualityError, match=r"does not run on images \[2, 2, 3\]"):
        classifier(torch.zeros(2, 2, 2, 3, dtype=torch.uint8))


def resnet_weights(blocks: tuple[int, ...], bottleneck: bool, classes: int = 1000) -> dict[str, Tensor]:
    """Shapes of the published ResNets, as meta tensors."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes.update({f"{norm}.{each}": (outputs,) for each in ("weight", "bias", "running_mean", "running_var")})

    convolution("conv1", "bn1", 64, 3, 7)
    width = 64
    for layer, count in enumerate(blocks):
        inner = 64 * 2**layer
        sizes = [(inner, 1), (inner, 3), (4 * inner, 1)] if bottleneck else [(inner, 3), (inner, 3)]
        for block in range(count):
            at, inputs = f"layer{layer + 1}.{block}", width
            for place, (outputs, kernel) in enumerate(sizes, 1):
                convolution(f"{at}.conv{place}", f"{at}.bn{place}", outputs, inputs, kernel)
                inputs = outputs
            if block == 0 and (layer or bottleneck):
                convolution(f"{at}.downsample.0", f"{at}.downsample.1", inputs, width, 1)
            width = inputs
    shapes |= {"fc.weight": (classes, width), "fc.bias": (classes,)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "parameters"),
    [((2, 2, 2, 2), False, 11_689_512), ((3, 4, 6, 3), False, 21_797_672), ((3, 4, 6, 3), True, 25_557_032)],
)
def test_resnets_have_the_published_sizes(blocks: tuple[int, ...], bottleneck: bool, parameters: int):
    weights = resnet_weights(blocks, bottleneck)
    with torch.device("meta"):
        model = ResNet.of(weights)
    own = {name: value.shape for name, value in model.state_dict().items() if "tracked" not in name}
    assert own == {name: value.shape for name, value in weights.items()}
    assert sum(each.numel() for each in model.parameters()) == parameters


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_resnet_is_read_and_asked(suffix: str, tmp_path: Path):
    torch.manual_seed(0)
    weights = {name: torch.rand(value.shape) * 0.1 for name, value in resnet_weights((1, 1, 1, 1), False, 7).items()}
    path = tmp_path / f"r.{suffix}"
    torch.save(weights, path) if suffix == "pth" else save_file(weights, path)
    classifier = load_classifier_file(path)
    images = torch.randint(0, 256, (2, 300, 260, 3), dtype=torch.uint8)
    assert classifier.classes == 7 and classifier(images)[PREDICTED].shape == (2,)
    assert classifier.name == "resnet" and len(classifier.sha256) == 64


def test_our_own_classifier_is_a_known_layout(tmp_path: Path):
    torch.manual_seed(0)
    model = LabelClassifier(4, 8).eval()
    save_file(model.state_dict(), tmp_path / "c.safetensors")
    images = torch.randint(0, 256, (5, 28, 28, 1), dtype=torch.uint8)
    classifier = load_classifier_file(tmp_path / "c.safetensors")
    with torch.no_grad():
        assert torch.equal(classifier(images)[PREDICTED], model(images).argmax(dim=1))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": torch.zeros(2)}, "weights of no known layout"),
        ({"body.0.0.weight": torch.zeros(8, 1, 3, 3), "head.3.weight": torch.zeros(4, 32)}, "is none, allowed"),
    ],
)
def test_other_weights_are_refused(weights: dict[str, Tensor], words: str, tmp_path: Path):
    save_file(weights, tmp_path / "c.safetensors")
    with pytest.raises(QualityError, match=words):
        load_classifier_file(tmp_path / "c.safetensors")
