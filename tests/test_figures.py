"""The pages show what the files of figures hold."""

from __future__ import annotations

import sys

import pytest

from tests import figures
from tests.figures import PAGES, as_text, fastest_exact, measured, names, rendered, shown, stored


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_as_its_figures_say(page):
    text = page.read_text()
    assert rendered(text) == text, f"{page.name}: python -m tests.figures --render"


def test_every_file_is_shown_and_names_its_origin():
    assert set(names()) == {name for page in PAGES for name in shown(page.read_text())}
    for name in names():
        found = stored(name)
        assert found["command"].split()[0] in ("spd", "python") and found["machine"] and found["printed"]
        assert found["commit"] and "+changes" not in found["commit"], f"{name}: measured on uncommitted code"


def test_a_changed_figure_is_noticed(monkeypatch):
    monkeypatch.setattr(figures, "stored", lambda _: {**found, "printed": ["| a | 2.1 |"]})
    found = {
        "command": "spd bench",
        "machine": "m",
        "commit": "c",
        "date": "d",
        "minutes": 1.0,
        "printed": ["| a | 2 |"],
    }
    page = f"before\n<!-- figures: one -->\n\n{as_text(found)}\n<!-- end of figures -->\nafter\n"
    changed = rendered(page)
    assert changed != page
    assert changed == page.replace("| a | 2 |", "| a | 2.1 |")


def test_what_is_no_table_is_shown_as_it_was_printed():
    found = {"command": "c", "machine": "m", "commit": "c", "date": "d", "minutes": 1.0, "printed": ["p 0.9"]}
    assert "```\np 0.9\n```" in as_text(found)


def test_a_command_is_run_and_what_it_prints_is_kept(monkeypatch):
    found = measured("python -c 'print(1); print(2)'")
    assert found["printed"] == ["1", "2"] and found["values"] is None
    with pytest.raises(ValueError, match="begins with spd or python"):
        measured(f"{sys.executable} -c 1")


def test_the_fastest_exact_way_is_chosen_by_its_ratio(monkeypatch):
    row = {
        "pair": "p", "family": "causal", "law": {}, "settings": {}, "fills": 1, "threads": 1, "gamma": None,
        "stride": None, "head_window": [], "rule": None, "delta": None, "radius": None, "speedup_range": [1, 1],
        "speedup_vs_full": 1.0, "acceptance": None, "acceptance_by_place": None, "tokens_per_round": None,
        "head_calls_per_token": 1.0, "head_rows_per_token": 1.0, "finish_calls": 0.0, "finish_rows_per_token": 0.0,
        "certificate": None, "seconds_split": {}, "batch": 1, "images_per_s": 2.0,
    }  # fmt: skip
    rows = [
        {**row, "label": "plain", "method": "plain", "guarantee": "exact", "speedup_vs_plain": 1.0},
        {**row, "label": "plain, windows 9/8", "method": "plain", "guarantee": "exact", "speedup_vs_plain": 3.0},
        {**row, "label": "lossless", "method": "speculative", "guarantee": "exact", "speedup_vs_plain": 0.5},
        {**row, "label": "relaxed", "method": "speculative", "guarantee": "tv", "speedup_vs_plain": 9.0},
    ]
    monkeypatch.setattr(figures, "stored", lambda _: {"values": {"rows": rows}})
    assert fastest_exact(["one"]).splitlines()[-1] == "| p | 1 | 2 | plain, windows | 3.00 | lossless | 0.50 |"
