"""``spd bench``: what the rows hold, that ratios compare like with like, and wrong input."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image

from jobs.bench import command as bench
from jobs.bench import plot as bench_plot
from jobs.bench.measure import Bench, Tally, loaded, requests
from jobs.bench.predicted import predicted_speedup
from jobs.bench.table import Row
from jobs.cli import main
from spd_core.codec import PixelCodec
from spd_core.compare import Entry, Naive, falling_laws
from spd_core.data import FASHION_CLASSES
from spd_core.decode import Decoded
from spd_core.decode.cost import CallTimes
from spd_core.decode.log import DraftRecords
from spd_core.families.causal import compare as of_causal
from spd_core.families.causal.tokens import PathLaw
from spd_core.families.llamagen import compare as of_codes
from spd_core.families.mar import compare as of_mar
from spd_core.families.registry import family
from spd_core.law import Acceptance, Cspd, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import load_pair
from tests.jobs.code_pair import make_code_pair
from tests.tiny_causal import make_tiny_causal_pair
from tests.tiny_pair import make_tiny_pair


def named(name, compared):
    """Entries as a benchmark of the family has them."""
    return [Entry(law, method, family(name).label(law, method)) for law, method in compared]


def mar_entries(*given):
    return named("mar", of_mar.methods(*given))


def ablation_entries(*given):
    return named("mar", of_mar.ablations(*given))


def causal_entries(*given, **also):
    return named("causal", of_causal.methods(*given, **also))


def code_entries(*given):
    return named("llamagen", of_codes.methods(*given))


FIELDS = {
    "pair", "law", "method", "batch", "threads", "gamma", "images_per_s", "speedup_vs_plain", "acceptance",
    "tokens_per_round", "head_calls_per_token", "head_rows_per_token", "distance", "label_agreement", "n",
    "head_window", "stride", "rule", "delta", "radius", "guarantee", "certificate", "excess_per_token",
    "predicted_speedup",
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return str(make_tiny_causal_pair(tmp_path_factory.mktemp("pairs") / "tiny-ar"))


@pytest.fixture(scope="module")
def causal_rows(causal, tmp_path_factory):
    """One run with every kind of entry."""
    folder = tmp_path_factory.mktemp("bench")
    given = ["--gamma", "2", "3", "--stride", "1", "--head-window", "3", "--delta", "4", "--radius", "0.5"]
    given += ["--fills", "2", "--repeats", "1"]
    files = ["--json", str(folder / "b.json"), "--markdown", str(folder / "b.md")]
    assert main(["bench", "--pair", causal, *given, "--batch", "2", "--n", "0", *files]) == 0
    return json.loads((folder / "b.json").read_text())["rows"], (folder / "b.md").read_text()


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "tiny-vq"
    return str(make_code_pair(folder, class_names=FASHION_CLASSES, reference="fashion-mnist"))


@pytest.fixture(scope="module")
def code_run(codes, tmp_path_factory):
    """The folder of one run with every kind of entry, distances of two of them."""
    folder = tmp_path_factory.mktemp("bench-codes")
    given = ["--gamma", "2", "3", "--tree", "2,1", "--delta", "2", "--lam", "2", "--lantern-delta", "0.1"]
    given += [
        "--fills",
        "2",
        "--repeats",
        "1",
        "--batch",
        "1",
        "2",
        "--n",
        "20",
        "--quality-of",
        "plain",
        "tree 2-1, lam",
    ]
    files = [word for kind in ("json", "markdown") for word in (f"--{kind}", str(folder / f"b.{kind}"))]
    assert main(["bench", "--pair", codes, *given, *files, "--plot", str(folder / "b.svg")]) == 0
    return folder


def test_rows_and_table(pair, tmp_path):
    out, table = tmp_path / "b.json", tmp_path / "b.md"
    arguments = ["--gamma", "2", "4", "--paper-gamma", "3", "--num-iter", "4", "--head-window", "2"]
    arguments += ["--batch", "1", "2", "--n", "0"]
    assert main(["bench", "--pair", pair, *arguments, "--json", str(out), "--markdown", str(table)]) == 0
    found = json.loads(out.read_text())
    assert set(found) == {"machine", "rows"}
    rows = found["rows"]
    assert all(set(row) >= FIELDS for row in rows)
    methods = [(row["batch"], row["method"], row["gamma"], row["law"]["num_iter"]) for row in rows]
    one = [("plain", None, 8), ("plain", None, 4), ("plain", None, 8), ("cspd", 2, 8), ("cspd", 4, 8), ("cspd", 3, 8)]
    assert methods == [(batch, *entry) for batch in (1, 2) for entry in [*one, ("naive", None, 8)]]
    for row in rows:
        assert row["images_per_s"] > 0
        assert row["guarantee"] == ("none" if row["method"] == "cspd" else "exact")
        assert row["predicted_speedup"] is None
        if row["method"] == "plain" and not row["head_window"]:
            assert row["speedup_vs_plain"] == 1.0, "plain is its own measure at its own law"
    full, windowed = rows[0], rows[2]
    assert full["head_calls_per_token"] == pytest.approx(4 * 8 / 16)  # head steps x iterations / tokens
    assert full["head_rows_per_token"] == pytest.approx(4)
    assert windowed["head_window"] == [2]
    assert windowed["head_rows_per_token"] > full["head_rows_per_token"], "a random head is not worth running ahead on"
    assert table.read_text().count("| cspd ") == 6
    assert table.read_text().count("| naive loop ") == 2


def test_quality_of_some_entries(tmp_path):
    folder = make_tiny_pair(
        tmp_path / "real-size", codec=PixelCodec(), class_names=FASHION_CLASSES, reference="fashion-mnist"
    )
    out = tmp_path / "b.json"
    sizes = ["--batch", "24", "--n", "40", "--repeats", "1", "--quality-of", "plain", "windows", "cspd"]
    entries = ["--set", "law.num_iter=2", "--num-iter", "2", "--gamma", "1", "--head-window", "2", "--paper-gamma"]
    assert main(["bench", "--pair", str(folder), *entries, *sizes, "--json", str(out)]) == 0
    plain, windowed, cspd, naive = json.loads(out.read_text())["rows"]
    for row in (plain, windowed, cspd):
        assert row["n"] == 40
        assert row["distance"] > row["floor"] > 0, "noise is further from real images than real images are"
        assert row["label_agreement_interval"][0] <= row["label_agreement"] <= row["label_agreement_interval"][1]
    assert naive["n"] is None
    assert naive["distance"] is None
    assert plain["acceptance"] is None
    assert 0 <= cspd["acceptance"] <= 1
    assert plain["tokens_per_round"] == 32


def test_every_method_is_measured_against_plain_at_its_law():
    law = SamplerLaw(num_iter=8)
    entries = mar_entries(law, [8, 4], [2], [2], [(4,)]) + ablation_entries(law, 2)
    entries += causal_entries(law, [2], [2.0], [0.5], [(4,)], 1, has_draft=True)
    base = {entry.law for entry in entries if entry.is_base}
    assert all(entry.law in base for entry in entries)
    shares = {entry.method.prefill for entry in ablation_entries(law, 2) if isinstance(entry.method, Cspd)}
    aligned = {entry.method.aligned for entry in ablation_entries(law, 2) if isinstance(entry.method, Cspd)}
    assert shares == {0.0, 0.05, 0.15}
    assert aligned == {True, False}


def test_falling_head_steps_are_further_rows_of_plain_decoding(pair, tmp_path):
    assert [(law.head_steps, law.head_steps_end) for law in falling_laws(SamplerLaw(), ["cosine"], None)] == [(50, 5)]
    out, table = tmp_path / "b.json", tmp_path / "b.md"
    own = ["--num-iter", "8", "--gamma", "4", "--paper-gamma", "--head-window", "2", "--batch", "2", "--n", "0"]
    falls = ["--head-schedule", "linear", "two-stage", "--head-steps", "4", "2"]
    assert main(["bench", "--pair", pair, *own, *falls, "--json", str(out), "--markdown", str(table)]) == 0
    rows = [row for row in json.loads(out.read_text())["rows"] if row["law"]["head_schedule"] != "constant"]
    assert [row["label"] for row in rows] == [
        "plain, 4-2 head steps, linear",
        "plain, 4-2 head steps, linear, windows 2",
        "plain, 4-2 head steps, two-stage",
        "plain, 4-2 head steps, two-stage, windows 2",
    ]
    assert rows[0]["speedup_vs_plain"] == rows[2]["speedup_vs_plain"] == 1.0, "plain is its own measure at its own law"
    assert rows[2]["head_calls_per_token"] == pytest.approx(4 * (4 + 2) / 16)
    assert table.read_text().count("| plain, 4-2 head steps, ") == 4


def test_the_law_of_every_row_may_fall(causal, tmp_path):
    out = tmp_path / "b.json"
    own = ["--gamma", "2", "--stride", "1", "--delta", "2", "--radius", "0.5", "--head-window", "3"]
    own += ["--fills", "2", "--repeats", "1"]
    falls = ["--set", "law.head_schedule=linear", "--set", "law.head_steps_end=3"]
    assert main(["bench", "--pair", causal, *own, *falls, "--batch", "2", "--n", "0", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["law"]["head_schedule"] for row in rows} == {"linear"}
    assert all(row["predicted_speedup"] > 0 for row in rows if row["rule"] != "coupled" and row["method"] != "naive")
    plain = rows[0]
    # Of 8, 7, ..., 3 steps for 9 tokens, those above each hand-off.
    paths = [PathLaw(SamplerLaw.model_validate(plain["law"]), 9).at(position) for position in range(9)]
    assert plain["head_calls_per_token"] == pytest.approx(sum(path.above for path in paths) / 9)


def test_quality_of_a_whole_name_is_of_that_entry_only():
    entries = mar_entries(SamplerLaw(), [64, 32], [4], [], [(4,)])
    assert bench._assessed(entries, ["plain"], family("mar")) == entries[:2]
    assert bench._assessed(entries, ["windows"], family("mar")) == entries[2:3]


def test_entries_of_a_causal_pair():
    law = SamplerLaw(handoff_level=90)
    entries = causal_entries(law, [4, 8], [2.0], [0.5], [(6, 3), (2,)], 15, has_draft=True)
    given = {"stride": 15, "head_window": (6, 3)}
    assert [entry.method for entry in entries] == [
        Plain(),
        Plain(head_window=(6, 3)),
        Plain(head_window=(2,)),
        Speculative(gamma=4, **given),
        Speculative(gamma=8, **given),
        Speculative(gamma=8, stride=15),
        Speculative(gamma=8, **given, acceptance=Acceptance(rule="annealed", delta=2.0)),
        Speculative(gamma=8, **given, acceptance=Acceptance(rule="coupled", radius=0.5)),
        Naive(),
    ]
    assert len({entry.label for entry in entries}) == len(entries), "each has its own name"
    without_draft = causal_entries(law, [4], [2.0], [], [(6, 3)], 15, has_draft=False)
    assert [entry.method for entry in without_draft] == [Plain(), Plain(head_window=(6, 3)), Naive()]


def test_rows_of_a_causal_pair(causal_rows):
    rows, _ = causal_rows
    assert all(set(row) >= FIELDS for row in rows)
    plain, windowed, short, long, bare, annealed, coupled, naive = rows
    assert [row["guarantee"] for row in rows] == ["exact"] * 5 + ["tv", "w_inf", "exact"]
    assert (short["gamma"], long["gamma"], bare["gamma"]) == (2, 3, 3)
    assert (annealed["rule"], annealed["delta"], coupled["rule"], coupled["radius"]) == ("annealed", 4, "coupled", 0.5)
    assert plain["speedup_vs_plain"] == plain["predicted_speedup"] == 1.0
    # 8 steps from level 999, handed over at level 285, which is nearest to 250: 5 above, 3 below.
    assert plain["head_calls_per_token"] == naive["head_calls_per_token"] == 5
    assert plain["head_rows_per_token"] == naive["head_rows_per_token"] == 5
    assert plain["finish_calls"] == naive["finish_calls"] == 3
    assert windowed["head_calls_per_token"] < 5
    for row in (short, long, bare, annealed, coupled):
        assert 0 < row["acceptance"] <= 1
        assert len(row["acceptance_by_place"]) <= row["gamma"]
        assert 1 < row["tokens_per_round"] <= row["gamma"] + 1
    for row in (plain, windowed, naive):
        assert row["acceptance"] is None
        assert row["tokens_per_round"] == 1


def test_only_a_tv_row_has_a_certificate(causal_rows):
    *others, annealed, coupled, naive = causal_rows[0]
    assert all(row["certificate"] is row["excess_per_token"] is None for row in (*others, coupled, naive))
    low, high = annealed["certificate_interval"]
    assert 0 <= low < annealed["certificate"] < high <= 1
    assert annealed["excess_per_token"] > 0


def test_predictions_of_a_causal_pair(causal_rows):
    rows, table = causal_rows
    *predicted, coupled, naive = rows
    for row in predicted:
        assert row["predicted_speedup"] > 0
        assert all(row["calls"][name] > 0 for name in ("context", "head", "head_windowed", "finish", "finish_windowed"))
        drafts = [row["calls"][name] > 0 for name in ("drafted", "verification", "residual")]
        assert drafts == [row["method"] == "speculative"] * 3
    assert coupled["predicted_speedup"] is naive["predicted_speedup"] is None
    long, annealed = predicted[3], predicted[5]
    assert long["calls"] == annealed["calls"], "what a draft must pass does not change its calls"
    assert "| predicted |" in table
    assert "| excess per token | certificate (95 %) |" in table
    assert "Milliseconds a call" in table


def test_a_prediction_counts_calls():
    """Every call a second: 4 tokens, one round of 3 drafts that all stand, and the token after them."""
    times, method = CallTimes(*[1.0] * 8), Speculative(gamma=3, stride=1)

    def tally(accepted):
        every, excess = torch.tensor([8, 8, 8]), torch.zeros(1, dtype=torch.float64)
        return Tally(every, every * accepted, 24.0 * accepted, 1, excess, excess)

    plain = 4 * 2 + 1
    assert predicted_speedup(times, times, Plain(), tally(0), 4, 1, 1) == 1
    assert predicted_speedup(times, times, method, tally(1), 4, 1, 1) == pytest.approx(plain / (3 + 1 + 1 + 1))
    assert predicted_speedup(times, times, method, tally(1), 4, 1, 2) == pytest.approx(plain / (3 + 1 + 1 + 1))
    assert predicted_speedup(times, times, method, tally(0), 4, 1, 1) == pytest.approx(plain / (4 * (3 + 1 + 1) + 1))


def test_a_family_without_a_cost_model_has_no_call_times(pair):
    loaded_pair = load_pair(pair)
    assert loaded_pair.card.of.call_times(loaded_pair, SamplerLaw(), Plain(), *requests(loaded_pair, 0, 0, 1)) is None


def test_entries_of_a_pair_of_codes():
    law = SamplerLaw(cfg_schedule="constant")
    rules = of_codes.relaxed_rules([2.0], [0.7, 0.0], [1.5], [0.1])
    entries = code_entries(law, [2, 4], [(2, 1), (3,)], rules, ["eagle", "draft"])
    kind = {"gamma": 4, "drafter": "eagle"}
    assert [entry.method for entry in entries] == [
        Plain(),
        Speculative(gamma=2, drafter="eagle"),
        Speculative(**kind),
        Speculative(gamma=4, drafter="draft"),
        Speculative(**kind, tree=(2, 1)),
        Speculative(**kind, tree=(3,)),
        Speculative(**kind, acceptance=Acceptance(rule="annealed", delta=2.0, nu=0.7)),
        Speculative(**kind, acceptance=Acceptance(rule="annealed", delta=2.0, nu=0.0)),
        Speculative(**kind, acceptance=Acceptance(rule="lantern++", lam=1.5)),
        Speculative(**kind, acceptance=Acceptance(rule="lantern", delta=0.1)),
        Speculative(**kind, tree=(2, 1), acceptance=Acceptance(rule="lantern++", lam=1.5)),
    ]
    labels = [entry.label for entry in entries]
    assert len(set(labels)) == len(labels), "each has its own name"
    assert labels[3] == "lossless, gamma 4"
    assert labels[-1] == "lantern++, k 100, eagle, tree 2-1, lam 1.5"
    assert [entry.method for entry in code_entries(law, [2], [], rules, [])] == [Plain()]
    judged = bench._assessed(entries, None, family("llamagen"))
    assert judged == [entries[0], entries[1], *entries[6:]], "one lossless entry speaks for all"


def test_rows_of_a_pair_of_codes(code_run):
    rows = json.loads((code_run / "b.json").read_text())["rows"]
    assert all(set(row) >= FIELDS for row in rows)
    assert [row["batch"] for row in rows] == [1] * 10 + [2] * 10
    for row in rows:
        assert row["head_calls_per_token"] == 0
        assert (row["stride"], row["head_window"]) == (None, [])
        if row["method"] == "plain":
            assert row["speedup_vs_plain"] == row["step_compression"] == row["tokens_per_round"] == 1
            continue
        assert set(row["pass_ms"]) == {"draft", "context", "accept"}
        depth = len(row["settings"]["tree"]) or row["gamma"]
        assert 1 <= row["tokens_per_round"] <= depth + 1
        assert 1 <= row["step_compression"] <= depth + 1
        assert (row["certificate"] is None) == (row["guarantee"] == "exact") == (row["rule"] == "lossless")
        if row["certificate"] is not None:
            low, high = row["certificate_interval"]
            assert 0 <= low <= row["certificate"] <= high <= 1
            assert row["certificate"] <= 16 * row["excess_per_token"] + 0.5, "up to chance: 2 images"
    for batch in (1, 2):
        lossless = [row["speedup_vs_lossless"] for row in rows if row["batch"] == batch and row["rule"] == "lossless"]
        assert len(lossless) == 4
        assert max(lossless) == 1, "the fastest of them is the measure"
    for row in rows:  # at batch 1 no image waits for another one
        if row["batch"] == 1 and row["n"] is None:
            assert row["step_compression"] == pytest.approx(row["tokens_per_round"])


def test_distances_of_a_pair_of_codes(code_run):
    rows = json.loads((code_run / "b.json").read_text())["rows"]
    judged = [row for row in rows if row["n"]]
    assert {row["label"] for row in judged} == {"plain", "lantern++, k 100, tree 2-1, lam 2"}
    for row in judged:
        assert row["n"] == 20
        assert row["distance"] > row["floor"] > 0


def test_the_table_of_a_pair_of_codes(code_run, tmp_path):
    table = (code_run / "b.markdown").read_text()
    for head in ("x lossless", "accepted length", "step compression", "certificate (95 %)", "target | test"):
        assert table.count(f"| {head} |") == 2
    assert not any(word in table for word in ("head calls", "head steps", "stride", "iterations", "window"))
    again = ["--rows", str(code_run / "b.json"), "--markdown", str(tmp_path / "b.md")]
    assert main(["bench", *again, "--plot", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "b.md").read_text() == table
    with Image.open(tmp_path / "b.png") as image:
        assert image.width > 1000


def test_the_picture_has_two_panels_a_batch_and_a_line_a_rule(code_run):
    picture = (code_run / "b.svg").read_text()
    assert picture.count('<g id="axes_') == 4
    assert '<g id="legend_1">' in picture
    rows = [Row.model_validate(row) for row in json.loads((code_run / "b.json").read_text())["rows"]]
    styled = list(bench_plot._styled(rows))
    assert [len(own) for own, _ in styled] == [2] * len(styled), "of every entry both batches, no two entries mixed"
    relaxed = [style["color"] for own, style in styled if own[0].guarantee == "tv"]
    assert len(set(relaxed)) == len(relaxed) == 5
    assert bench_plot._excess(rows[1]) == (0.0, None)


def _decoded(image, place, accepted, excess, rounds):
    image, place = torch.tensor(image), torch.tensor(place)
    log_ratio = torch.where(torch.tensor(accepted), 1.0, -math.log(2))
    drafts = DraftRecords(image, image, place, log_ratio, torch.tensor(accepted), torch.tensor(excess))
    return Decoded(torch.zeros(len(rounds), 4, 1), torch.tensor(rounds), drafts, {}, {})


def test_a_tally_adds_up():
    first = _decoded([0, 0, 1], [0, 1, 0], [True, False, False], [0.25, 0.5, 0.5], [2, 3])
    second = _decoded([0], [0], [True], [0.125], [1])
    tally = Tally.total([Tally.of(first), Tally.of(second)])
    assert tally.tested.tolist() == [3, 1]
    assert tally.accepted.tolist() == [2, 0]
    assert tally.overlap == pytest.approx((2 * 1 + 2 * 0.5) / 4)
    assert tally.acceptance(3) == pytest.approx([2 / 3, 0, 0])
    assert tally.excess.tolist() == [0.75, 0.5, 0.125]
    law = SamplerLaw()
    annealed = Speculative(acceptance=Acceptance(rule="annealed", delta=2.0))
    figures = tally.figures(bench.Entry(law, annealed, "annealed"), tokens=4)
    assert figures["acceptance"] == 0.5
    assert figures["tokens_per_round"] == 3 * 4 / 6
    assert figures["excess_per_token"] == pytest.approx((0.75 + 0.5 + 0.125) / 3 / 4)
    assert figures["certificate"] == pytest.approx(float(tally.certificates.mean()))
    low, high = figures["certificate_interval"]
    assert 0 <= low < figures["certificate"] < high <= 1
    assert not {"certificate", "excess_per_token"} & set(
        tally.figures(bench.Entry(law, Speculative(), "lossless"), tokens=4)
    )


def test_a_deeper_target_has_the_same_images(causal, tmp_path):
    shallow, deep = (load_pair(causal), loaded(Bench(causal, "cpu", 1, 0, deepen=2)))
    assert len(deep.target.blocks) == 3 * len(shallow.target.blocks)
    assert deep.draft.config == shallow.draft.config
    out = tmp_path / "b.json"
    arguments = ["--gamma", "2", "--stride", "1", "--delta", "--batch", "2", "--n", "0", "--repeats", "1"]
    rows = []
    for deepen in ([], ["--deepen", "2"]):
        assert main(["bench", "--pair", causal, *arguments, *deepen, "--json", str(out)]) == 0
        rows.append(json.loads(out.read_text())["rows"])
    for own, other in zip(*rows, strict=True):
        assert (own["deepen"], other["deepen"]) == (0, 2)
        assert own["acceptance"] == other["acceptance"]
        assert own["head_calls_per_token"] == other["head_calls_per_token"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gamma", "0"], "--gamma"),
        (["--batch", "-1"], "--batch"),
        (["--n", "1"], "--n"),
        (["--head-window", "0"], "--head-window"),
        (["--fills", "0"], "--fills"),
        (["--json", "no/such/folder/b.json"], "--json"),
        (["--pair", "nothing"], "pair"),
        (["--set", "law.cfg=0"], "cfg"),
        (["--delta", "2"], "--delta"),
        (["--deepen", "2"], "--deepen"),
        (["--quality-of", "plain", "nothing"], "'nothing'"),
        (["--head-schedule", "linear", "--head-steps", "5", "9"], "--head-steps: got"),
        (["--head-schedule", "falling"], "head_schedule: got 'falling'"),
        (["--head-schedule", "linear", "--head-steps", "4", "1"], "head_steps_end: got 1"),
        (
            ["--head-schedule", "linear", "--set", "law.head_schedule=cosine", "--set", "law.head_steps_end=2"],
            "--head-schedule: got linear",
        ),
    ],
)
def test_wrong_input_is_one_line(pair, capsys, arguments, named):
    usual = [
        word for name, value in (("--pair", pair), ("--n", "0")) if name not in arguments for word in (name, value)
    ]
    _is_one_line(["bench", *usual, *arguments], capsys, named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--ablation"], "--ablation"),
        (["--num-iter", "4"], "--num-iter"),
        (["--delta", "0.5"], "--delta"),
        (["--radius", "-1"], "--radius"),
        (["--deepen", "0"], "--deepen"),
    ],
)
def test_wrong_input_for_a_causal_pair_is_one_line(causal, capsys, arguments, named):
    _is_one_line(["bench", "--pair", causal, "--n", "0", *arguments], capsys, named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--ablation"], "--ablation: got set"),
        (["--stride", "2"], "allowed: a pair of the causal or sphere family"),
        (["--head-window", "4"], "allowed: a pair of the mar, causal or sphere family"),
        (["--delta", "0.5"], "--delta"),
        (["--nu", "-1"], "--nu"),
        (["--lam", "0.5"], "--lam"),
        (["--lantern-delta", "1.5"], "--lantern-delta: got 1.5, allowed: 0 to 1"),
        (["--tree", "2,0"], "--tree: got '2,0'"),
        (["--tree", "wide"], "--tree: got 'wide'"),
        (["--tree", "64,64,64"], "--tree"),
        (["--plot", "b.pdf"], "--plot: got 'b.pdf', allowed: a file name that ends in .svg or .png"),
        (["--plot", "no/such/folder/b.svg"], "--plot"),
        (["--set", "law.num_iter=0"], "num_iter"),
        (["--rows", "no/such/file.json"], "--rows"),
    ],
)
def test_wrong_input_for_a_pair_of_codes_is_one_line(codes, capsys, arguments, named):
    _is_one_line(["bench", "--pair", codes, "--n", "0", *arguments], capsys, named)


@pytest.mark.parametrize("flag", ["--nu", "--lam", "--lantern-delta", "--tree", "--plot"])
def test_flags_of_codes_are_refused_for_others(causal, tmp_path, capsys, flag):
    value = str(tmp_path / "b.svg") if flag == "--plot" else "1"
    _is_one_line(["bench", "--pair", causal, "--n", "0", flag, value], capsys, f"{flag}: got")


def test_a_draft_that_the_pair_lacks(tmp_path, capsys):
    folder = str(make_code_pair(tmp_path / "one-draft", drafts=("draft",)))
    _is_one_line(["bench", "--pair", folder, "--n", "0", "--drafter", "eagle"], capsys, "allowed: draft")


def test_a_picture_needs_the_plot_extra(codes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_plot, "find_spec", lambda _name: None)
    given = ["bench", "--pair", codes, "--n", "0", "--plot", str(tmp_path / "b.svg")]
    _is_one_line(given, capsys, "pip install 'spd[plot]'")


@pytest.mark.parametrize("content", ["{}", "[1]", "no JSON", '{"machine": {}, "rows": []}', '{"rows": [{}]}'])
def test_rows_that_are_none(tmp_path, capsys, content):
    (tmp_path / "b.json").write_text(content)
    _is_one_line(["bench", "--rows", str(tmp_path / "b.json")], capsys, "--rows")


def test_rows_of_another_family_are_no_picture(causal_rows, tmp_path, capsys):
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"machine": {"cpu": "a CPU"}, "rows": causal_rows[0]}))
    _is_one_line(["bench", "--rows", str(file), "--plot", str(tmp_path / "b.svg")], capsys, "llamagen")


def _is_one_line(arguments, capsys, named):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
