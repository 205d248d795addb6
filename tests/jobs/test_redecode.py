"""Batch invariance: a sample decoded again at another batch size, where all bytes agree and where they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.dataset.commits import read_committed
from jobs.dataset.finish import finish
from jobs.dataset.redecoded import Again, read_sampled, redecode, sampled_rows
from jobs.dataset.validate import validate
from jobs.job.plan import read_plan
from jobs.run import driver
from jobs.run import redecode as run_redecode
from tests.faults.inline_ray import inline_ray
from tests.jobs.tree import lose_shard, make_tree
from tests.tiny_pair import make_tiny_pair
from workers import layout
from workers.engine import Engine
from workers.store import Store


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture
def output(tmp_path) -> str:
    """Ten images in three shards, made two at a time."""
    store = make_tree(tmp_path)
    finish(store.url)
    return store.url


@pytest.fixture
def perturbed(monkeypatch) -> None:
    """Images that depend on the batch size: alone, every image has one pixel that is off by 3."""
    sound = Engine._images

    def off(self, tokens_BND, seeds_B, seconds):
        images = sound(self, tokens_BND, seeds_B, seconds)
        if self.settings.batch == 1:
            images[:, 2, 3] = (images[:, 2, 3].int() - 3).abs().to(images.dtype)
        return images

    monkeypatch.setattr(Engine, "_images", off)


def report_of(output: str) -> dict[str, object]:
    return json.loads((Path(output) / layout.REPORT_JSON).read_text())


def test_a_pair_whose_images_do_not_depend_on_the_batch(output, capsys):
    assert "batch_invariance" not in report_of(output)
    assert main(["validate", output, "--redecode", "6"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    told = (
        "6 of 6 images decoded again at batch 1 in place of 2 and in other company have the same bytes, "
        "by another process of the same machine; platforms: "
    )
    assert said.startswith(f"batch invariance: {told}")
    assert told in (Path(output) / layout.REPORT_HTML).read_text()
    assert f"| batch invariance | {told}" in (Path(output) / layout.CARD).read_text().replace("\\", "")
    found = report_of(output)["batch_invariance"]
    assert (found["images"], found["equal"], found["largest_difference"], found["differing"]) == (6, 6, 0, [])
    assert validate(output).problems == (), "the manifest covers the new report"


def test_a_pair_whose_images_depend_on_the_batch(output, perturbed, capsys):
    assert main(["validate", output, "--redecode", "10"]) == 0, "other bytes at another batch are no damage"
    said = capsys.readouterr().out.splitlines()[-1]
    assert "0 of 10 images decoded again at batch 1 in place of 2" in said
    assert "the others differ by at most 3 of 255 in a pixel, in 2.8 % of all pixels (first: 00000000, " in said
    found = report_of(output)["batch_invariance"]
    assert (found["equal"], found["largest_difference"], len(found["differing"])) == (0, 3, 10)
    assert main(["validate", output, "--redecode", "10", "--redecode-batch", "3"]) == 0
    assert "10 of 10 images decoded again at batch 3 in place of 2" in capsys.readouterr().out
    assert report_of(output)["batch_invariance"]["equal"] == 10, "the report tells the last"


def test_a_job_does_it_when_it_is_asked_and_once(pair, tmp_path, monkeypatch, perturbed):
    monkeypatch.setattr(driver, "running_ray", inline_ray)
    monkeypatch.setattr(run_redecode, "running_ray", inline_ray)
    out = str(tmp_path / "out")
    given = ["generate", "--pair", pair, "--count", "9", "--workers", "1", "--output", out, "--set", "method=plain"]
    given += ["--set", "features=false", "--set", "shard_size=4", "--set", "batch=4"]
    assert main(given) == 0
    assert not Store(out).exists(layout.REDECODED)
    assert main([*given, "--set", "checks.batch_invariance=5"]) == 0, "a finished dataset can be asked, too"
    first = report_of(out)["batch_invariance"]
    assert (first["images"], first["equal"], first["batch"], first["again_batch"]) == (5, 0, 4, 1)
    assert main([*given, "--set", "checks.batch_invariance=5"]) == 0
    assert report_of(out)["batch_invariance"] == first
    assert main([*given, "--set", "checks={batch_invariance: 5, batch: 2}"]) == 0
    assert report_of(out)["batch_invariance"]["equal"] == 5
    assert validate(out).problems == ()


def test_what_was_found_of_a_shard_that_is_made_again_is_not_told_any_more(output):
    assert main(["validate", output, "--redecode", "10"]) == 0
    store = Store(output)
    record = json.loads(store.read(layout.REDECODED))
    store.replace(layout.REDECODED, store.read(layout.REDECODED).replace(record["data"].encode(), b"0" * 64))
    finish(output)
    assert "batch_invariance" not in report_of(output)


def test_each_image_goes_to_another_machine_than_the_one_that_made_it(output):
    store = Store(output)
    plan = read_plan(store)
    records = read_committed(store, plan).records
    sampled = read_sampled(store, plan, records, 8)
    assert len(sampled) == 8 and {one.host for one in sampled} != {"elsewhere"}
    stored = {one.task.request_ids[0]: one.stored for one in sampled}
    asked: list[str] = []

    def worker(name: str) -> Again:
        def images(task):
            asked.append(name)
            return [stored[request] for request in task.request_ids]

        return Again(name, f"platform of {name}", images)

    here, there = worker(f"{sampled[0].host}-7"), worker("elsewhere-1")
    found = redecode(plan, sampled, 1, [here, there], "")
    assert (asked, found.elsewhere, found.equal) == (["elsewhere-1"], 8, 8)
    assert found.again_platforms == ("platform of elsewhere-1",)
    assert redecode(plan, sampled, 1, [here], "").elsewhere == 0


def test_the_sample_is_drawn_from_all_shards_and_is_the_same_for_the_same_plan(output):
    plan = read_plan(Store(output))
    rows = sampled_rows(plan, 6)
    assert rows == sampled_rows(plan, 6) and sum(map(len, rows.values())) == 6
    assert {shard: sorted(every) for shard, every in sampled_rows(plan, 99).items()} == {
        0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [0, 1]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--redecode", "-1"], "--redecode: got -1, allowed: a whole number from 0 to 10,000"),
        (["--redecode", "2", "--redecode-batch", "-1"], "--redecode-batch: got -1, allowed: a whole number from 0 to"),
    ],
)
def test_wrong_flags_are_one_line(output, capsys, more, message):
    assert main(["validate", output, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_dataset_is_not_decoded_again(output, capsys):
    lose_shard(Store(output), 1, 3)
    assert main(["validate", output, "--redecode", "4"]) == 1
    assert "batch invariance" not in capsys.readouterr().out
