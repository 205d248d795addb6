"""The quality block: measured while a job runs or afterwards, by a network of true shapes with weights of a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.cli import main
from jobs.dataset import comparison
from jobs.dataset.finish import finish
from jobs.dataset.validate import validate
from jobs.job.plan import make_plan, task_of
from jobs.job.quality import parse_quality
from jobs.job.spec import make_spec
from jobs.words.errors import SpecError
from jobs.words.phrases import comparison_in_words
from spd_core.quality.files import sha256_of
from tests.faults.in_process import TARGET, in_process, job, run
from tests.jobs.tree import make_tree, tree_spec, worker_settings
from tests.oracles.inception import recipe_weights
from tests.tiny_pair import make_tiny_pair
from workers import layout
from workers.engine import Engine
from workers.records import QualityFile, QualitySettings
from workers.sealed import canonical_json, seal
from workers.shard import commit_shard
from workers.store import Store


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``w.pth`` with the recipe's weights and ``adm.npz`` of the ADM evaluator's form."""
    folder = tmp_path_factory.mktemp("quality")
    torch.save(recipe_weights(), folder / "w.pth")
    generator = np.random.default_rng(0)
    spread = {dims: np.diag(generator.uniform(0.5, 2, dims)) for dims in (2048, 2023)}
    arrays = {"mu": np.full(2048, 0.4), "sigma": spread[2048], "mu_s": np.full(2023, 0.3), "sigma_s": spread[2023]}
    np.savez(folder / "adm.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8), **arrays)
    np.savez(folder / "bare.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    return folder


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_tree(tmp_path_factory.mktemp("compared"))
    finish(store.url)
    return Path(store.url)


@pytest.fixture
def public(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's weights pass for the public ones."""
    monkeypatch.setattr("spd_core.quality.comparison.PUBLIC_SHA256", sha256_of(files / "w.pth"))


def asking(files: Path, reference: str = "adm.npz", weights: str = "w.pth") -> list[str]:
    settings = {"extractor": "inception", "weights": str(files / weights), "reference": str(files / reference)}
    return [word for name, value in settings.items() for word in ("--quality", f"{name}={value}")]


def compared(output: Path) -> dict:
    return json.loads((output / layout.REPORT_JSON).read_text())["comparison"]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("spd: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.usefixtures("public")
def test_an_output_gets_the_published_figures_and_stays_valid(output: Path, files: Path):
    plan, commits = (output / layout.PLAN).read_bytes(), sorted((output / layout.COMMITS).iterdir())
    assert main(["report", str(output), *asking(files)]) == 0
    made = compared(output)
    assert made["is_fid"] and made["fid"] > 0 and made["sfid"] > 0 and made["n"] == 10
    assert made["inception_score"]["mean"] >= 1 and made["weights_sha256"] == sha256_of(files / "w.pth")
    assert validate(str(output)).ok
    assert plan == (output / layout.PLAN).read_bytes() and commits == sorted((output / layout.COMMITS).iterdir())
    page, card = ((output / name).read_text() for name in (layout.REPORT_HTML, layout.CARD))
    for text in (page, card):
        assert "FID to adm.npz at N = 10" in text and "sFID to" in text and "the FID of 10 images is too high" in text
    # A report that asks nothing shows what was found before.
    assert main(["report", str(output)]) == 0
    assert compared(output) == made


@pytest.mark.usefixtures("public")
def test_a_stopped_report_goes_on_where_it_was(output: Path, files: Path, monkeypatch: pytest.MonkeyPatch):
    assert main(["report", str(output), *asking(files)]) == 0
    before, (lost, damaged, kept) = compared(output), sorted((output / layout.QUALITY).rglob("*.safetensors"))
    lost.unlink()
    raw = damaged.read_bytes()
    damaged.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    (output / layout.COMPARISON).unlink()
    untouched, read = kept.stat().st_mtime_ns, []
    images = comparison.images_of
    monkeypatch.setattr(comparison, "images_of", lambda path, data: read.append(path) or images(path, data))
    assert main(["report", str(output), *asking(files)]) == 0
    assert compared(output) == before and len(read) == 2 and kept.stat().st_mtime_ns == untouched


@pytest.mark.usefixtures("public")
def test_a_job_measures_while_it_runs(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    in_process(monkeypatch)
    monkeypatch.setattr(comparison, "images_of", None)  # nothing is left to measure for the driver
    block = {"extractor": "inception", "weights": str(files / "w.pth"), "reference": str(files / "adm.npz")}
    block["classifier"] = str(exported(tmp_path / "c.pt2"))
    spec = job(str(make_tiny_pair(tmp_path / "pair")), requests={"count": 5}, quality=block)
    assert run(spec) is None
    store = Store(TARGET["url"], TARGET["options"])
    report = json.loads(store.read(layout.REPORT_JSON))
    assert report["comparison"]["n"] == 5 and report["comparison"]["fid"] > 0
    assert report["comparison"]["label_agreement"]["share"] == 0.4
    assert "quality" in report["throughput"]["seconds"]
    assert "quality" not in report["spec"] and "quality" not in json.loads(store.read(layout.PLAN))["spec"]
    assert validate(TARGET["url"], TARGET["options"]).ok
    # A finished job that is asked again gets the figures that it lacks.
    store.delete(layout.COMPARISON)
    assert run(spec) is None
    assert store.exists(layout.COMPARISON) and validate(TARGET["url"], TARGET["options"]).ok


def test_a_job_with_a_block_is_the_job_without(tmp_path: Path):
    pair = str(make_tiny_pair(tmp_path / "pair"))
    raw = {"pair": pair, "method": "null", "output": str(tmp_path / "out")}
    block = {"extractor": "inception", "weights": "somewhere.pth"}
    plans = [make_plan(make_spec(each)) for each in (raw, {**raw, "quality": block})]
    assert plans[0].fingerprint == plans[1].fingerprint
    assert plans[0].model_dump(exclude={"created"}) == plans[1].model_dump(exclude={"created"})


@pytest.mark.usefixtures("public")
def test_jpeg_images_are_measured_as_their_files_hold_them(files: Path, tmp_path: Path):
    spec = tree_spec(tmp_path, image={"format": "jpeg", "quality": 20}, requests={"count": 4})
    plan, store = make_plan(spec), Store(spec.output)
    block = QualitySettings(
        extractor="inception", weights=QualityFile(place=str(files / "w.pth"), sha256=sha256_of(files / "w.pth"))
    )
    settings = worker_settings(spec, plan).model_copy(update={"quality": block})
    result = Engine(settings).make(task_of(plan, 0, 0))
    (rows,) = result.measured.values()
    commit_shard(store, settings, task_of(plan, 0, 0), result)
    ((_, data),) = [(path, store.read(path)) for path in store.list(layout.DATA)]
    asked = comparison.resolve(parse_quality(asking(files)[1::2]), spec.output, {}, plan.class_names)
    (images,) = comparison.images_of("data", data)
    assert torch.allclose(asked.extractor(images)["pool"], rows["pool"], atol=1e-4)


class Brightness(torch.nn.Module):
    """Sees the first class in every image, or one too many classes."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = torch.nn.Linear(1, classes)
        self.head.weight.data.zero_()
        self.head.bias.data = -torch.arange(float(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(1, 2, 3), keepdim=False)[:, None])


def exported(path: Path, classes: int = 3) -> Path:
    batch = {"x": {0: torch.export.Dim.DYNAMIC}}
    torch.export.save(torch.export.export(Brightness(classes), (torch.rand(4, 3, 6, 6),), dynamic_shapes=batch), path)
    return path


def test_a_classifier_of_the_users_tells_label_agreement(output: Path, tmp_path: Path):
    path = exported(tmp_path / "c.pt2")
    assert main(["report", str(output), "--quality", f"classifier={path}"]) == 0
    made = compared(output)["label_agreement"]
    assert (made["images"], made["share"]) == (10, 0.4) and made["interval"][0] < 0.4 < made["interval"][1]
    assert [(each["images"], each["agreeing"]) for each in made["classes"]] == [(4, 4), (3, 0), (3, 0)]
    assert "label agreement by classifier exported, N = 10" in (output / layout.CARD).read_text()
    assert "extractor" not in compared(output)
    (output / layout.COMPARISON).unlink()
    assert main(["report", str(output), "--quality", f"classifier={path}"]) == 0
    assert compared(output)["label_agreement"] == made, "what was predicted is kept"


def test_a_classifier_of_other_classes_is_refused(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(output), "--quality", f"classifier={exported(tmp_path / 'c.pt2', 4)}"]) == 2
    assert "quality.classifier: got one of 4 classes, allowed: 3" in complaint(capsys)


@pytest.mark.parametrize(
    ("reference", "is_public", "words"),
    [("adm.npz", False, "the weights are not the public file"), ("bare.npz", True, "does not say which network")],
)
def test_what_is_no_fid_is_not_called_one(
    reference: str, is_public: bool, words: str, output: Path, files: Path, request: pytest.FixtureRequest
):
    if is_public:
        request.getfixturevalue("public")
    (output / layout.COMPARISON).unlink(missing_ok=True)  # what was found before stays
    assert main(["report", str(output), *asking(files, reference)]) == 0
    made = compared(output)
    assert not made["is_fid"] and "fid" not in made and made["frechet"] > 0
    rows = dict(comparison_in_words(made))
    assert words in rows["not called FID"] and not [name for name in rows if name.startswith(("FID", "sFID"))]


def _spoiled(files: Path, folder: Path, what: str) -> list[str]:
    arrays = dict(np.load(files / "adm.npz"))
    match what:
        case "no weights":
            return asking(files, weights="none.pth")
        case "weights of another network":
            weights = recipe_weights()
            torch.save({**weights, "fc.bias": torch.zeros(1000)}, folder / "w.pth")
            return [*asking(files)[:2], "--quality", f"weights={folder / 'w.pth'}"]
        case "a damaged download":
            torch.save(recipe_weights(), folder / "pt_inception-2015-12-05-6726825d.pth")
            return asking(files, weights=str(folder / "pt_inception-2015-12-05-6726825d.pth"))
        case "no statistics":
            np.savez(folder / "r.npz", arr_0=arrays["arr_0"])
        case "of another size":
            np.savez(folder / "r.npz", mu=np.zeros(64), sigma=np.eye(64))
        case "objects":
            np.savez(folder / "r.npz", mu=np.array([{}], dtype=object), sigma=arrays["sigma"])
        case "not finite":
            np.savez(folder / "r.npz", mu=arrays["mu"] * np.nan, sigma=arrays["sigma"])
        case "no zip":
            (folder / "r.npz").write_bytes(b"no zip")
        case "bundled":
            return [*asking(files)[:4], "--quality", "reference=fashion-mnist"]
    return [*asking(files)[:4], "--quality", f"reference={folder / 'r.npz'}"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no weights", "quality.weights: got"),
        ("weights of another network", "fc.bias is [1000], allowed: [1008]"),
        ("a damaged download", "(the public file that its name says)"),
        ("no statistics", "has no mu and sigma"),
        ("of another size", "has mu of 64 numbers and not 2048"),
        ("objects", "mu holds objects"),
        ("not finite", "mu has values that are not finite"),
        ("no zip", "cannot be read"),
        ("bundled", "was made by extractor efficientnet-lite0-64px-1280, allowed: inception-2015-12-05"),
    ],
)
def test_wrong_files_are_one_line(
    what: str, words: str, output: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["report", str(output), *_spoiled(files, tmp_path, what)]) == 2
    assert words in complaint(capsys)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["extractor=inception"], "quality.weights: got nothing"),
        (["weights=w.pth"], "only with quality.extractor inception"),
        (["extractor=vgg"], "quality.extractor: got 'vgg', allowed: efficientnet, inception"),
        (["colour=red"], "quality.colour: unknown field"),
        (["nonsense"], "--quality: got 'nonsense', allowed: FIELD=VALUE"),
        (["extractor=efficientnet"], "allowed: inception, a reference or a classifier"),
        (["extractor=inception", "extractor=inception"], "given twice"),
    ],
)
def test_wrong_blocks_are_refused(settings: list[str], words: str):
    with pytest.raises(SpecError) as caught:
        parse_quality(settings)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_data_file_is_not_measured(
    output: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(output, tmp_path / "out", ignore=shutil.ignore_patterns(layout.QUALITY))
    path = next((tmp_path / "out" / layout.DATA).iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["report", str(tmp_path / "out"), *asking(files)]) == 1
    assert "the dataset is damaged" in complaint(capsys)
    assert not list((tmp_path / "out").glob(f"{layout.QUALITY}/*.json"))


def test_a_comparison_of_strangers_is_no_traceback(output: Path, tmp_path: Path):
    shutil.copytree(output, tmp_path / "out")
    path = tmp_path / "out" / layout.COMPARISON
    asking_for = ["--quality", f"classifier={exported(tmp_path / 'c.pt2')}"]
    assert main(["report", str(tmp_path / "out"), *asking_for]) == 0
    hostile = {**json.loads(path.read_text()), "n": "<script>", "fid": {}, "extractor": 7}
    path.write_bytes(canonical_json(seal({name: value for name, value in hostile.items() if name != "sha256"})))
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "comparison" not in json.loads((tmp_path / "out" / layout.REPORT_JSON).read_text())
