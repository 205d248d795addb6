"""docs/mar.md, docs/llamagen.md, docs/sphere.md: every command runs on files in the public layouts.

The models are tiny. The slow tests run each page's first section on files of the public sizes, gigabytes of them, and
print how long every step takes: ``pytest -m slow -s``. All commands run in this process; Ray starts no workers.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.run import driver
from spd_core.families.llamagen import sizes as llamagen_sizes
from spd_core.families.llamagen.convert import readme_law as llamagen_law
from spd_core.families.llamagen.model import PRESETS as LLAMAGEN
from spd_core.families.llamagen.model import LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.vq import Vq, VqCodec, VqConfig
from spd_core.families.mar import sizes as mar_sizes
from spd_core.families.mar.convert import readme_law as mar_law
from spd_core.families.mar.model import Mar, MarConfig, preset
from spd_core.families.mar.vae import KlCodec, KlVae, KlVaeConfig
from spd_core.families.sphere import sizes as sphere_sizes
from spd_core.families.sphere.codec import SphereCodec
from spd_core.families.sphere.convert import readme_law as sphere_law
from spd_core.families.sphere.model import PRESETS as SPHERE
from spd_core.families.sphere.model import Sphere, SphereConfig
from spd_core.families.sphere.vae import SphereVae, SphereVaeConfig
from spd_core.pairs.checkpoint import class_names
from spd_core.pairs.pair import PairCard
from tests.documented import commands_of, section_of, shown_by
from tests.faults.inline_ray import inline_ray
from tests.public_files import PACKED, Shapes, public_shapes, shapes_of, write

REPOSITORY = Path(__file__).parents[2]
#: By page: the files that its first section begins with, and where its few images go.
PAGES = {
    "mar": (("mar_base/checkpoint-last.pth", "kl16.ckpt"), "mar-try"),
    "llamagen": (("c2i_B_256.pt", "vq_ds16_c2i.pt"), "llamagen-try"),
    "sphere": (("SphereAR_B.pt",), "sphere-try"),
}
FIRST = "From the files to a dataset"
#: Entries that the public files hold and models of ours do not.
NO_WEIGHTS = {"quantize.codebook_used": [65536]}


def _mar(width: int) -> dict[str, list[int]]:
    return shapes_of(
        lambda: Mar(
            MarConfig(
                encoder_embed_dim=width, encoder_depth=1, encoder_num_heads=2, decoder_embed_dim=width,
                decoder_depth=1, decoder_num_heads=2, diffloss_d=1, diffloss_w=width,
            )
        )
    )  # fmt: skip


def _codes(width: int) -> dict[str, list[int]]:
    return shapes_of(lambda: LlamaGen(LlamaGenConfig(dim=width, n_layer=1, n_head=2, vocab_size=64, block_size=256)))


def _sphere(width: int) -> dict[str, list[int]]:
    model = SphereConfig(dim=width, n_layer=1, n_head=2, diff_dim=width, diff_layers=2, diff_adanln_layers=1)
    return shapes_of(lambda: Sphere(model)) | _sphere_vae()


def _sphere_vae() -> dict[str, list[int]]:
    vae = SphereVaeConfig(
        z_channels=32, cnn_chs=(16, 16, 16, 16, 32), encoder_vit_layers=1, decoder_vit_layers=1, conv_in_channels=16,
        head_dim=16,
    )  # fmt: skip
    return shapes_of(lambda: SphereVae(vae), "vae.")


#: Smaller models of the same make, by the path of their file: 1,000 classes, 256 tokens, 256 px as the public ones.
TINY: dict[str, Callable[[], Shapes]] = {
    "mar_base/checkpoint-last.pth": lambda: _mar(32),
    "mar_huge/checkpoint-last.pth": lambda: _mar(64),
    "kl16.ckpt": lambda: shapes_of(lambda: KlVae(KlVaeConfig(ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1))),
    "c2i_B_256.pt": lambda: _codes(32),
    "c2i_L_256.pt": lambda: _codes(64),
    "vq_ds16_c2i.pt": lambda: NO_WEIGHTS | shapes_of(
        lambda: Vq(VqConfig(ch=32, ch_mult=(1,) * 5, num_res_blocks=1, z_channels=32, codebook_size=64))
    ),
    "SphereAR_B.pt": lambda: _sphere(32),
    "SphereAR_H.pt": lambda: _sphere(64),
}  # fmt: skip


def page(name: str) -> str:
    return (REPOSITORY / "docs" / f"{name}.md").read_text()


def check_dataset(output: Path) -> None:
    """Two images of 256 px of the asked classes, validated, with a report."""
    rows = pq.read_table(output / "data").to_pylist()
    assert [row["label"] for row in rows] == [207, 980], "golden retriever and volcano"
    report = json.loads((output / "report.json").read_text())
    assert report["images"]["committed"] == 2 and report["name"] == output.name
    shown = (output / "report.html").read_text()
    assert shown.count("data:image/png") == 2 and ">golden retriever<" in shown


@pytest.fixture
def tiny_heads(monkeypatch):
    """Heads of the tiny widths, which no weight tells; the public widths have theirs in the converters."""
    for heads in (mar_sizes.MAR_HEADS, llamagen_sizes.LLAMAGEN_HEADS, sphere_sizes.HEADS):
        for width in (32, 64):
            monkeypatch.setitem(heads, width, 2)


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_runs(name, tiny_heads, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "running_ray", inline_ray)
    for file, shapes in TINY.items():
        if file in page(name):
            write(tmp_path, file, shapes())
    for words in commands_of(page(name)):
        assert main(words) == 0, (words, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "predicted: at least about" in said and "ok: 2 images" in said
    check_dataset(tmp_path / "out" / PAGES[name][1])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_begins_with_the_files_and_ends_with_a_report(name):
    files, output = PAGES[name]
    ran = [words[0] for words in commands_of(section_of(page(name), FIRST))]
    assert ran == ["convert", "plan", "generate", "report", "validate"]
    convert, *_, validate = commands_of(section_of(page(name), FIRST))
    assert set(files) <= set(convert) and validate == ["validate", f"out/{output}"]


def public_card(name: str) -> PairCard:
    """The card of the pair that a page's first section converts, without weights."""
    if name == "mar":
        made = {"target": preset("base"), "codec": KlCodec(), "law": mar_law("base", preset("base"))}
    elif name == "llamagen":
        target = LlamaGenConfig(**LLAMAGEN["B"], block_size=256)
        made = {"target": target, "codec": VqCodec(), "law": llamagen_law("B")}
    else:
        made = {"target": SphereConfig(**SPHERE["B"]), "codec": SphereCodec(), "law": sphere_law("B")}
    parts = dict.fromkeys(("target", made["codec"].part), "0" * 64)
    names = class_names(None, 1000)
    return PairCard(name=name, family=name, class_names=names, licence="MIT", data="none", sha256=parts, **made)


def first_section(name: str) -> str:
    """Of a page; of the README the one that makes a dataset from a public checkpoint."""
    if name == "README":
        return section_of(
            (REPOSITORY / "README.md").read_text(), "From a public checkpoint to a million images on 16 GPUs"
        )
    return section_of(page(name), FIRST)


@pytest.mark.parametrize(("name", "pair"), [*((name, name) for name in PAGES), ("README", "mar")])
def test_the_plan_on_a_page_is_what_the_command_prints(name, pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, plan, *_ = commands_of(first_section(name), others=("aws", "ray"))
    (tmp_path / f"{pair}-b").mkdir()
    (tmp_path / f"{pair}-b" / "pair.json").write_text(public_card(pair).model_dump_json())
    assert main(plan) == 0
    printed, shown = capsys.readouterr().out.splitlines(), shown_by(first_section(name))
    assert {line.split()[0] for line in shown} == {"law", "time", "memory", "cost"}
    assert [line for line in shown if line not in printed] == []


@pytest.mark.parametrize("file", [file for files, _ in PAGES.values() for file in files])
def test_files_of_the_tiny_models_have_the_keys_of_public_ones(file):
    """But for blocks that a smaller model has fewer of."""
    own, public = set(TINY[file]()), set(public_shapes(PACKED[file][0]))
    assert own and own <= public


# At the public sizes: gigabytes of files, minutes.


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PAGES)
def test_the_example_of_a_page_at_the_public_sizes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "running_ray", inline_ray)
    files, output = PAGES[name]
    steps = []
    try:
        for file in files:
            began = time.perf_counter()
            size = write(tmp_path, file).stat().st_size
            steps.append(f"{file}: {size / 1e9:.2f} GB of random weights, {time.perf_counter() - began:.1f} s")
        for words in commands_of(section_of(page(name), FIRST)):
            began = time.perf_counter()
            assert main(words) == 0, (words, capsys.readouterr().err)
            steps.append(f"spd {words[0]}: {time.perf_counter() - began:.1f} s")
        check_dataset(tmp_path / "out" / output)
        said = capsys.readouterr().out
        assert [line for line in shown_by(page(name)) if line not in said.splitlines()] == []
    finally:
        shutil.rmtree(tmp_path)  # pytest would keep the files
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with capsys.disabled():
        print("", *steps, f"at most {peak:.1f} GB of memory", sep="\n")
