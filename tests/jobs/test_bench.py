"""``spd bench``: what the rows hold, that ratios compare like with like, and wrong input."""

from __future__ import annotations

import json
import math

import pytest
import torch

from jobs import bench
from jobs.bench_calls import measure_calls, predicted_speedup
from jobs.bench_entries import Naive, ablation_entries, causal_entries, mar_entries
from jobs.bench_measure import Bench, Tally, loaded
from jobs.cli import main
from spd_core.codec import PixelCodec
from spd_core.data import FASHION_CLASSES
from spd_core.decode import Decoded
from spd_core.decode.cost import CallTimes
from spd_core.decode.log import DraftRecords
from spd_core.law import Acceptance, Cspd, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import load_pair
from tests.tiny_causal import make_tiny_causal_pair
from tests.tiny_pair import make_tiny_pair

FIELDS = {
    "pair", "law", "method", "batch", "threads", "gamma", "images_per_s", "speedup_vs_plain", "acceptance",
    "tokens_per_round", "head_calls_per_token", "head_rows_per_token", "distance", "label_agreement", "n",
    "head_window", "stride", "rule", "delta", "radius", "guarantee", "certificate_per_image", "certificate_per_token",
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
    given += ["--fills", "2"]
    files = ["--json", str(folder / "b.json"), "--markdown", str(folder / "b.md")]
    assert main(["bench", "--pair", causal, *given, "--batch", "2", "--n", "0", *files]) == 0
    return json.loads((folder / "b.json").read_text())["rows"], (folder / "b.md").read_text()


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
    sizes = ["--batch", "24", "--n", "40", "--repeats", "1", "--quality-of", "plain", "cspd"]
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
    assert all(row["certificate_per_image"] is None for row in (*others, coupled, naive))
    low, high = annealed["certificate_per_image_interval"]
    assert 0 <= low < annealed["certificate_per_image"] < high
    assert annealed["certificate_per_token"] == pytest.approx(annealed["certificate_per_image"] / 9)


def test_predictions_of_a_causal_pair(causal_rows):
    rows, table = causal_rows
    *predicted, coupled, naive = rows
    for row in predicted:
        assert row["predicted_speedup"] > 0
        assert all(row["calls"][name] > 0 for name in ("context", "head", "own", "finish", "own_finish"))
        drafts = [row["calls"][name] > 0 for name in ("drafted", "verification", "residual")]
        assert drafts == [row["method"] == "speculative"] * 3
    assert coupled["predicted_speedup"] is naive["predicted_speedup"] is None
    long, annealed = predicted[3], predicted[5]
    assert long["calls"] == annealed["calls"], "what a draft must pass does not change its calls"
    assert "| predicted |" in table
    assert "certificate per image" in table
    assert "Milliseconds a call" in table


def test_a_prediction_counts_calls():
    """Every call a second: 4 tokens, one round of 3 drafts that all stand, and the token after them."""
    times, method = CallTimes(*[1.0] * 8), Speculative(gamma=3, stride=1)

    def tally(accepted):
        every, excess = torch.tensor([8, 8, 8]), torch.zeros(1, dtype=torch.float64)
        return Tally(every, every * accepted, 24.0 * accepted, 1, excess)

    plain = 4 * 2 + 1
    assert predicted_speedup(times, times, Plain(), tally(0), 4, 1, 1) == 1
    assert predicted_speedup(times, times, method, tally(1), 4, 1, 1) == pytest.approx(plain / (3 + 1 + 1 + 1))
    assert predicted_speedup(times, times, method, tally(1), 4, 1, 2) == pytest.approx(plain / (3 + 1 + 1 + 1))
    assert predicted_speedup(times, times, method, tally(0), 4, 1, 1) == pytest.approx(plain / (4 * (3 + 1 + 1) + 1))


def test_call_times_need_a_causal_pair(pair):
    with pytest.raises(TypeError, match="family mar"):
        measure_calls(load_pair(pair), SamplerLaw(), Plain(), 1, 0)


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
    figures = tally.figures(bench.Entry(law, annealed), tokens=4)
    assert figures["acceptance"] == 0.5
    assert figures["tokens_per_round"] == 3 * 4 / 6
    mean = (0.75 + 0.5 + 0.125) / 3
    reach = 4.302653 * torch.tensor([0.75, 0.5, 0.125]).std().item() / math.sqrt(3)
    assert figures["certificate_per_image"] == pytest.approx(mean)
    assert figures["certificate_per_image_interval"] == pytest.approx((max(0, mean - reach), mean + reach), rel=1e-4)
    assert figures["certificate_per_token"] == pytest.approx(mean / 4)
    assert "certificate_per_image" not in tally.figures(bench.Entry(law, Speculative()), tokens=4)


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
    ],
)
def test_wrong_input_is_one_line(pair, capsys, arguments, named):
    _is_one_line(["bench", "--pair", pair, "--n", "0", *arguments], capsys, named)


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


def _is_one_line(arguments, capsys, named):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
