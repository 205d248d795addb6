"""Pages say what they show: words with meanings, axes with titles, tables with heads, ink that can be read."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jobs.dataset.aggregate import throughput
from jobs.dataset.card import render_card
from jobs.dataset.finish import finish
from jobs.dataset.page import Words, ticks
from jobs.dataset.report import render
from jobs.dataset.totals import Totals
from jobs.job.plan import read_plan
from jobs.job.requirements import Requirements
from jobs.nightly.pages import pages_of
from jobs.nightly.verdict import State, compare, judge
from jobs.words.glossary import GLOSSARY, SPANS
from spd_core.quality.metrics import gap_to_floor
from tests.jobs.nights_tree import a_night, thirty_nights
from tests.jobs.test_aggregate import record
from tests.jobs.tree import make_tree
from workers import layout
from workers.store import Store

ROOT = Path(__file__).parents[2]
QUALITY = {
    "extractor": "some-extractor",
    "reference": "real-images",
    "n": 1000,
    "frechet": 41.0,
    "frechet_interval": [38.0, 44.0],
    "floor": 22.0,
    "floor_spread": 4 / 1.959964,
    "floor_n": 1000,
    "kid": 0.034,
    "kid_interval": [0.02, 0.048],
    "label_agreement": 0.81,
    "label_agreement_interval": [0.73, 0.87],
    "classes": [],
}
CERTIFICATE = {"mean": 0.05, "low": 0.03, "high": 0.07, "images": 10, "excess_per_token": 0.001}


class Page(HTMLParser):
    """Charts with their texts, heads of tables, links and their ends, language."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts: list[list[str]] = []  #: titles of the axes of each chart
        self.heads: list[dict[str, str | None]] = []
        self.links: set[str] = set()
        self.ids: list[str] = []
        self.images: list[str | None] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._axis = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "svg":
            self.charts.append([])
        if tag == "th":
            self.heads.append(given)
        if tag == "a":
            self.links.add(given["href"])
        if tag == "img":
            self.images.append(given.get("alt"))
        self._axis = tag == "text" and given.get("class") == "axis"

    def handle_data(self, data):
        if self._axis and data.strip():
            self.charts[-1].append(data.strip())

    def handle_endtag(self, tag):
        self._axis = False


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> str:
    store = make_tree(tmp_path_factory.mktemp("tree"))
    finish(store.url)
    return store.url


@pytest.fixture
def report(output):
    """A report with everything in it that a page can show."""
    found = json.loads((Path(output) / layout.REPORT_JSON).read_text())
    return found | {"quality": QUALITY, "guarantee": "tv", "certificate": CERTIFICATE}


def shown(report) -> str:
    return render(report, {0: ["data:image/png;base64,AA=="]})


def trend() -> str:
    nights = thirty_nights(0.08)
    return pages_of("trend", judge(nights, Requirements()), nights)["trend.html"].decode()


def comparison() -> str:
    pair = a_night(0), a_night(1, figures={"frechet": 440.0, "images_per_s": 20.0})
    return pages_of("compare", compare(*pair, Requirements()), pair)["compare.html"].decode()


@pytest.fixture(params=["report", "trend", "compare"])
def page(request, report) -> str:
    return {"report": lambda: shown(report), "trend": trend, "compare": comparison}[request.param]()


def test_every_linked_word_stands_at_the_foot_and_nothing_else_does(page):
    found = Page(page)
    words = {f"#{name}" for name in found.ids if name.startswith("word-")}
    assert found.links == words and words
    assert len(found.ids) == len(set(found.ids))


def test_every_table_head_says_what_it_heads_and_the_page_its_language(page):
    found = Page(page)
    assert all(head.get("scope") in ("col", "row") or head.get("aria-hidden") for head in found.heads)
    assert ("html", {"lang": "en"}) in found.tags
    assert all(found.images), "an image without a text"
    assert all(given.get("aria-label") for _, given in found.tags if given.get("role") == "img")


def test_every_page_stands_alone(page):
    assert not re.search(r"url\((?!#)|@import|https?://|<script|<link", page)
    assert {"@media print", "prefers-color-scheme: dark"} <= set(
        re.findall(r"@media print|prefers-color-scheme: dark", page)
    )


def test_every_chart_names_both_axes(report):
    for charts in (Page(shown(report)).charts, Page(trend()).charts):
        assert charts and all(len(titles) == 2 for titles in charts), charts


def test_axes_say_their_units(report):
    titles = [title for chart in Page(shown(report)).charts for title in chart]
    assert titles == [
        "images",
        "Frechet distance, no unit",
        "accepted, % of those tested",
        "place of the draft in its block",
        "row of the token",
        "column of the token",
    ]
    assert {"ratio"} <= {chart[0] for chart in Page(trend()).charts}


def test_the_tint_of_the_heat_map_has_a_scale(report):
    known = [share for share in report["acceptance"]["by_token"] if share is not None]
    scale = shown(report).partition('id="tint"')[2].partition("</svg>")[0]
    assert f">{100 * min(known):.1f} %<" in scale and f">{100 * max(known):.1f} %<" in scale


def test_a_word_without_a_meaning_is_refused():
    words = Words()
    with pytest.raises(KeyError):
        words("flux capacitor")
    assert words.used == []


def test_the_map_of_the_code_means_the_same_by_the_same_words():
    rows = re.findall(r"^\| ([^|`]+) \| ([^|]+) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    meant: dict[str, str] = {}
    for names, meaning in rows:
        words, parts = names.split(", "), meaning.split("; ")
        meant |= dict(zip(words, parts, strict=True)) if len(words) == len(parts) else {names: meaning}
    both = GLOSSARY.keys() & meant.keys()
    assert {word: GLOSSARY[word] for word in both} == {word: meant[word] for word in both}
    assert {"law", "guarantee", "certificate", "floor", "gap", "worker", "block"} <= both
    assert {*State} <= GLOSSARY.keys()


def test_every_span_that_is_measured_is_explained():
    places = (*(ROOT / "spd_core").rglob("*.py"), *(ROOT / "workers").rglob("*.py"))
    sources = "".join(path.read_text() for path in places)
    assert set(re.findall(r'(?:\.span\(|timed\(\w+(?:\.\w+)?, )"(\w+)"', sources)) <= SPANS.keys()


def test_an_exact_dataset_says_nothing_of_certificates(report):
    assert "certificate" in shown(report).partition("<body>")[2].lower()
    exact = shown(report | {"guarantee": "exact", "certificate": None})
    assert "certificate" not in exact.partition("<body>")[2].lower()


def test_the_card_of_an_exact_dataset_explains_its_words_and_no_certificate(output, report):
    plan = read_plan(Store(output))
    relaxed = render_card(plan.model_copy(update={"guarantee": "tv"}), report)
    exact = render_card(plan.model_copy(update={"guarantee": "exact"}), report | {"certificate": None})
    assert "- certificate: " in relaxed and "`certificate` (only its mean over images bounds anything)" in relaxed
    assert "- certificate: " not in exact and "`certificate` (0: the method is exact)" in exact
    assert f"- law: {GLOSSARY['law']}\n" in exact


def test_quality_leads_with_the_gap_and_its_interval(report):
    gap = gap_to_floor(QUALITY)
    assert gap.value == pytest.approx(19) and gap.interval == pytest.approx((14, 24))
    text = re.sub(r"<[^>]+>", "", shown(report).partition("<h2>Distance to real images</h2>")[2]).strip()
    assert text.startswith("The Frechet distance is 19 above the floor (95 % interval 14 to 24): 41 for these 1,000")
    assert gap_to_floor(QUALITY | {"frechet_interval": None}).interval is None


def test_the_rows_of_the_workers_are_the_records(output, report):
    records = [record(0, 0, 10), record(1, 10, 30), record(2, 0, 8, "b"), record(3, 8, 6, "b"), record(4, 1, 9, "c")]
    totals = Totals.of(records)
    plan = read_plan(Store(output))
    table = shown(report | {"throughput": throughput(plan, totals)}).partition('<table class="workers">')[2]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table.partition("</table>")[0])[1:]
    cells = [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]
    assert [row[:7] for row in cells] == [
        ["a straggler", "0.5", "45.0 %", "20", "2", "40.0 s", "30.0 s"],
        ["c", "1.11", "100.0 %", "10", "1", "9.0 s", "9.0 s"],
        ["b", "1.43", "128.6 %", "20", "2", "14.0 s", "8.0 s"],
    ]
    assert [re.findall(r"(?:left|width): ([\d.]+)%", row) for row in rows] == [
        ["0.00", "100.00"],
        ["2.50", "22.50"],
        ["0.00", "35.00"],
    ]


def test_a_cost_has_a_unit_or_says_how_it_gets_one(report):
    assert "the spec sets no workers.price_per_hour" in shown(report | {"cost": None})
    paid = {"price_per_hour": 2.0, "worker_hours": 0.5, "per_1000_images": 100.0}
    assert "at workers.price_per_hour = 2, in its currency" in shown(report | {"cost": paid})


def test_a_comparison_draws_changes_with_their_intervals():
    row = comparison().partition("Frechet distance to real images")[2].partition("</tr>")[0]
    # 337 -> 440: 30.6 % of the 50 % at the edge; an error of 2 % each.
    assert re.findall(r"(?:left|right): ([\d.]+)%", row) == ["50.00", "19.44", "73.33", "12.20"]


def luminance(colour: str) -> float:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_have_contrast_on_every_ground(scheme):
    css = (ROOT / "jobs" / "dataset" / "look.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    texts = [(ink, ground) for ink in ("ink", "soft", "accent", "odd", "worse") for ground in ("card", "page")]
    poor = {pair: contrast(*pair) for pair in (*texts, ("warn-ink", "warn"), ("soft", "warn")) if contrast(*pair) < 4.5}
    assert not poor
    assert contrast("accent", "card") >= 3


def test_ticks_are_round_and_inside():
    assert ticks(0, 1500) == [0, 500, 1000, 1500]
    assert ticks(1.7, 2.5) == pytest.approx([1.8, 2.0, 2.2, 2.4])
