from __future__ import annotations

import datetime
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from jobs.bench.table import COLUMNS, Row
from jobs.dataset.card import front_matter, render_card
from jobs.dataset.finish import finish, rewrite_report
from jobs.dataset.report import render
from jobs.dataset.status import status
from jobs.dataset.validate import validate
from jobs.job.plan import read_plan, store_plan
from jobs.job.spec import make_spec
from jobs.run import driver
from jobs.words import phrases as words
from jobs.words.errors import SpecError
from jobs.words.phrases import certificate_in_words, percent
from spd_core.law import Cspd, Speculative
from spd_core.pairs.checkpoint import class_names
from tests.faults.inline_ray import inline_ray
from tests.jobs.test_auto import auto_spec, planned
from tests.jobs.test_pages import QUALITY
from tests.jobs.tree import lose_shard, make_shards, make_tree
from tests.tiny_pair import make_tiny_pair
from workers import layout
from workers.sealed import canonical_json, seal
from workers.store import Store

HOSTILE = '<script>alert("1")</script>'


class Assets(HTMLParser):
    """Collects tags and every address a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> str:
    store = make_tree(tmp_path_factory.mktemp("tree"))
    finish(store.url)
    return store.url


def parsed(page: str) -> Assets:
    assets = Assets()
    assets.feed(page)
    return assets


def test_finish_leaves_a_valid_dataset(output):
    assert validate(output).problems == ()


def test_report_is_self_contained_and_shows_the_images(output):
    page = (Path(output) / layout.REPORT_HTML).read_text()
    assets = parsed(page)
    assert assets.tags.count("img") == 10
    assert all(address.startswith(("data:image/png;base64,", "#word-")) for address in assets.addresses)
    assert not {"script", "link", "iframe"} & set(assets.tags)
    assert not re.search(r"url\(|@import|https?://", page)


def test_report_json_has_the_figures(output):
    report = json.loads((Path(output) / layout.REPORT_JSON).read_text())
    assert report["images"] == {"planned": 10, "committed": 10}
    assert report["guarantee"] == "none" and report["certificate"] is None
    assert len(report["acceptance"]["by_token"]) == 16
    assert len(report["acceptance"]["by_index"]) == 3
    assert report["quality"] == {"skipped": "the job wrote no image features (features: false)"}
    assert [row["images"] for row in report["classes"]] == [4, 3, 3]


def test_a_card_counts_the_classes_that_were_made(output):
    report, plan = json.loads((Path(output) / layout.REPORT_JSON).read_text()), read_plan(Store(output))
    assert "10 images of 3 classes, generated" in render_card(plan, report)
    report["classes"][0]["images"] = report["classes"][2]["images"] = 0
    assert "10 images of 1 class, generated" in render_card(plan, report)


def test_of_many_classes_those_with_images_are_shown(tmp_path, monkeypatch):
    """A pair of 1,000 classes, of which a dataset has two."""
    monkeypatch.setattr(driver, "running_ray", inline_ray)
    pair = str(make_tiny_pair(tmp_path / "pair", class_names=class_names(None, 1000)))
    labels = ["golden retriever", "volcano", 980]
    asked = {"pair": pair, "output": str(tmp_path / "out"), "method": "plain", "features": False}
    driver.generate(make_spec({**asked, "requests": {"count": 3, "labels": labels}}))
    page = (tmp_path / "out" / layout.REPORT_HTML).read_text()
    assert parsed(page).tags.count("img") == 3
    assert ">golden retriever</th>" in page and ">volcano</th>" in page and ">tench</th>" not in page
    assert "There are no images of 998 other classes." in page


def test_no_figure_is_minus_zero():
    figures = {"mean": -0.0, "low": -0.0, "high": 0.25, "excess_per_token": -0.0}
    assert [value for _, value in certificate_in_words(figures)] == ["0 (95 % interval 0 to 0.25)", "0"]
    assert percent(-0.0) == "0.0 %"


def test_hostile_names_are_escaped(output):
    report = json.loads((Path(output) / layout.REPORT_JSON).read_text())
    report["name"] = report["output"] = report["pair"]["data"] = HOSTILE
    report["classes"][0]["name"] = HOSTILE
    page = render(report, {0: ["data:image/png;base64,AA=="]})
    assert "script" not in parsed(page).tags
    assert "&lt;script&gt;" in page


def test_quality_figures_render(output):
    report = json.loads((Path(output) / layout.REPORT_JSON).read_text())
    report["quality"] = {**QUALITY, "frechet": 41.25, "frechet_interval": [36.1, 46.2], "floor": 22.4}
    page = render(report, {})
    for text in ("41.25", "36.1 to 46.2", "22.4", "some-extractor", "81.0 %"):
        assert text in page
    card = render_card(read_plan(Store(output)), report)
    assert "| Frechet distance to real-images at N = 1,000 | 41.25 (95 % interval 36.1 to 46.2) |" in card


@pytest.fixture
def calibrated(tmp_path) -> str:
    """A finished dataset whose method was measured."""
    spec = auto_spec(str(make_tiny_pair(tmp_path / "pair")), tmp_path / "out")
    store, plan = Store(spec.output), planned(spec, 1)
    store_plan(store, plan)
    make_shards(store, spec.decided(plan.choice), plan)
    finish(store.url)
    return store.url


def test_report_and_card_show_how_the_method_was_chosen(calibrated):
    assert validate(calibrated).problems == ()
    report = json.loads((Path(calibrated) / layout.REPORT_JSON).read_text())
    rows = report["calibration"]["rows"]
    assert [(row["method"]["head_window"], row["chosen"]) for row in rows] == [([], False), ([8], True), ([4], False)]
    assert report["method"] == rows[1]["method"] and report["guarantee"] == "exact"
    page = (Path(calibrated) / layout.REPORT_HTML).read_text()
    table = page.split("How the method was chosen")[1].split("</table>")[0]
    shown = re.findall(r"<tr( class=\"chosen\")?><td>(.*?)(?: <span class=\"badge\">chosen</span>)?</td>", table)
    assert shown == [
        (' class="chosen"', "plain (head_window 8)"),
        ("", "plain (head_window 4)"),
        ("", "plain (head_window off)"),
    ]
    card = (Path(calibrated) / layout.CARD).read_text()
    assert "- Guarantee `exact`" in card
    assert "the fastest of 3 that one worker measured, 99 images/s at batch 2; guarantee at least `exact` was" in card


def test_report_shows_failed_choices_and_a_lost_table(calibrated):
    report = json.loads((Path(calibrated) / layout.REPORT_JSON).read_text())
    report["calibration"]["rows"][0] |= {"images_per_s": None, "trials": [], "problem": HOSTILE}
    page = render(report, {})
    assert "failed: &lt;script&gt;" in page and "script" not in parsed(page).tags
    report["calibration"] |= {"rows": [], "machine": {}}
    assert "lost with a damaged plan" in render(report, {})
    plan = read_plan(Store(calibrated))
    lost = plan.model_copy(update={"calibration": plan.calibration.model_copy(update={"rows": ()})})
    assert "- Chosen by `method: auto`: the measurements were lost" in render_card(lost, report)


def test_a_method_that_was_named_has_no_table(output):
    assert json.loads((Path(output) / layout.REPORT_JSON).read_text())["calibration"] is None
    assert "How the method was chosen" not in (Path(output) / layout.REPORT_HTML).read_text()
    assert "Chosen by" not in (Path(output) / layout.CARD).read_text()


def test_card_front_matter_is_the_hubs(output):
    text = (Path(output) / layout.CARD).read_text()
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["configs"] == [{"config_name": "default", "data_files": "data/*.parquet"}]
    assert meta["license"] == "mit"
    assert meta["size_categories"] == ["n<1K"]
    plan = read_plan(Store(output))
    for text in (plan.fingerprint, plan.pair_sha256["target"], "Guarantee `none`", "cspd", "## Load"):
        assert text in body


def test_card_of_another_licence_and_size(output):
    plan = read_plan(Store(output)).model_copy(update={"rows": 50_000})
    meta = front_matter(plan, "Acme: research only")
    assert yaml.safe_load(yaml.safe_dump(meta))["license_name"] == "Acme: research only"
    assert meta["license"] == "other" and meta["size_categories"] == ["10K<n<100K"]


def test_card_escapes_markdown_of_the_pair(output):
    report = json.loads((Path(output) / layout.REPORT_JSON).read_text())
    report["pair"]["data"] = f"{HOSTILE}\n# heading"
    card = render_card(read_plan(Store(output)), report)
    assert "\n# heading" not in card and "<script>" not in card


def test_card_spec_reproduces_the_fingerprint(output):
    from jobs.job.spec import make_spec
    from spd_core.pairs.pair import load_card

    plan = read_plan(Store(output))
    text = (Path(output) / layout.CARD).read_text()
    spec = make_spec(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]))
    assert spec.fingerprint(load_card(spec.pair)) == plan.fingerprint


def test_one_shard_is_no_plural(tmp_path, capsys):
    from jobs.cli import main

    store = make_tree(tmp_path, requests={"count": 1})
    rewrite_report(store.url)
    assert "1 image of 1 class in 1 shard," in (Path(store.url) / layout.REPORT_HTML).read_text()
    assert main(["validate", store.url]) == 0
    assert capsys.readouterr().out.startswith("ok: 1 image, 1 shard, ")


def test_a_new_report_keeps_a_finished_dataset_finished(output):
    rewrite_report(output)
    assert validate(output).ok


def test_status_of_a_finished_job(output):
    found = status(output)
    assert found.state == "finished" and found.committed == found.shards == 3
    assert "3/3 shards, 10/10 images committed (100.0 %)" in found.lines()
    assert "spd validate" in found.next_step


def test_status_and_report_of_an_unfinished_job(tmp_path):
    store = make_tree(tmp_path)
    store.delete(layout.SUCCESS)
    lose_shard(store, 1, 3)
    found = status(store.url)
    assert not found.finished and (found.committed, found.committed_rows) == (2, 6)
    assert re.search(r"images/s, last commit [0-9.]+ s ago, .* left at that rate", "\n".join(found.lines()))
    assert found.next_step == ("stopped: no driver is at work; `spd generate` with the same spec and output resumes")
    assert rewrite_report(store.url)["partial"]
    assert "Partial: 2 of 3 shards" in (Path(store.url) / layout.REPORT_HTML).read_text()


def test_status_names_a_damaged_record_and_all_committed(tmp_path):
    store = make_tree(tmp_path)
    store.delete(layout.SUCCESS)
    assert status(store.url).next_step.endswith("output writes the report and _SUCCESS, all that is missing")
    store.replace(layout.commit(2), b"{}")
    assert any(line.startswith(f"damaged: {layout.commit(2)}") for line in status(store.url).lines())
    assert "resumes" in status(store.url).next_step


@pytest.mark.parametrize(
    ("age_s", "line"),
    [
        (3, r"running: me-1 was at work [34]\.\d s ago; ask again in a minute"),
        (14, r"perhaps running: me-1 was at work 1[45]\.\d s ago, which it shows every 10 s; ask again in a minute"),
        (30, r"perhaps running: .*"),
        (41, r"killed: .*"),
        (3600, r"killed: me-1 was last at work 1 h 00 min ago and did not end in order; .* resumes"),
    ],
)
def test_status_tells_a_driver_at_work_from_a_killed_one(age_s, line, tmp_path):
    store = make_tree(tmp_path)
    store.delete(layout.SUCCESS)
    lose_shard(store, 1, 3)
    seen = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s)
    mark = {"driver": "me-1", "run": "1", "seen": seen.isoformat()}
    store.replace(layout.DRIVER, canonical_json(seal(mark)))
    assert re.fullmatch(line, status(store.url).next_step)


def test_status_of_a_job_that_never_started(tmp_path):
    store = make_tree(tmp_path)
    store.delete(layout.SUCCESS)
    for shard in range(3):
        lose_shard(store, shard, 3)
    assert status(store.url).next_step.startswith("never started: there is a plan and no shard; `spd generate`")
    with pytest.raises(SpecError, match="never started"):
        status(str(tmp_path / "nowhere"))


def test_report_of_a_job_without_any_shard(tmp_path):
    store = make_tree(tmp_path)
    store.delete(layout.SUCCESS)
    for shard in range(3):
        lose_shard(store, shard, 3)
    report = rewrite_report(store.url)
    assert report["partial"] and "Partial: 0 of 3 shards" in (Path(store.url) / layout.REPORT_HTML).read_text()


@pytest.mark.parametrize(
    ("method", "of"),
    [
        (Cspd(), "of every draft"),
        (Cspd(variant="paper"), "of the drafts tested, up to the first rejection of a block"),
        (Speculative(), "of the drafts tested, up to the first rejection of a block"),
    ],
)
def test_acceptance_says_of_which_drafts_it_is_a_share(method, of):
    assert words.acceptance_of(method.model_dump(mode="json")) == of


def test_released_and_paper_acceptance_stand_in_columns_of_their_own():
    row = {"acceptance": 0.25, "method": "cspd"}
    released, paper = (Row.model_construct(**row, settings={"variant": v}) for v in ("released", "paper"))
    heads = ("accepted of tested", "accepted of all")
    assert [COLUMNS[head](released) for head in heads] == ["-", "0.250"]
    assert [COLUMNS[head](paper) for head in heads] == ["0.250", "-"]


def test_records_that_tell_no_memory_are_reported(tmp_path):
    store = make_tree(tmp_path)
    for shard in range(3):
        record = json.loads(store.read(layout.commit(shard)))
        store.replace(layout.commit(shard), canonical_json(seal(record | {"memory": {}})))
    store.delete(layout.SUCCESS)
    assert rewrite_report(store.url)["throughput"]["peak_memory"] == {}
    assert "peak memory" not in (Path(store.url) / layout.REPORT_HTML).read_text()
