from __future__ import annotations

import re

import pytest
import yaml

from jobs.cli import main
from jobs.job.spec import load_spec, make_spec
from jobs.job.spec_text import spec_as_yaml
from jobs.run.estimate import assumed_device, estimate, estimate_lines
from jobs.words.errors import SpecError
from spd_core.decode.predict import images_per_s
from spd_core.law import Auto, Choice, Cspd, Null, Plain, Speculative
from spd_core.pairs.pair import load_card
from tests.jobs.tree import make_tree
from tests.tiny_pair import make_tiny_pair
from workers import layout


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture(scope="module")
def plain_pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "plain", draft=False))


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("spd: ")
    return lines[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("colour=red", "colour: unknown field, got 'red', allowed: the fields that `spd spec` lists"),
        ("law.nosuch=1", "law.nosuch: unknown field"),
        ("method=speculative", "method: got 'speculative', allowed: plain, cspd, null, auto (the mar family"),
        ("method.gamma=-1", "gamma: got -1, allowed: a whole number from 1 to 4,096"),
        ("requests.labels=[0,3]", "requests.labels: got 3, allowed: balanced, or a list of labels, each 0..2"),
        ("requests.count=many", "requests.count: got 'many', allowed: a whole number from 1 to 10,000,000,000"),
        ("pair=nosuch", "pair: got 'nosuch', allowed:"),
        ("law.head_steps=0", "law.head_steps: got 0, allowed: a whole number from 2 to 1,000"),
        ("nonsense", "--set: got 'nonsense', allowed: field.path=value"),
        ("seed.x=1", "seed: got {'x': 1}, allowed: a whole number from 0 to 9,223,372,036,854,775,807"),
        ("batch=0", "batch: got 0, allowed: a whole number from 1 to 65,536, or auto"),
        ("batch=70000", "batch: got 70000, allowed: a whole number from 1 to 65,536, or auto"),
        ("batch=fast", "batch: got 'fast', allowed: a whole number from 1 to 65,536, or auto"),
        (
            "method={name: auto, guarantee: sure}",
            "method.guarantee: got 'sure', allowed: exact, tv, w_inf, none",
        ),
        ("method={name: auto, seconds: -1}", "method.seconds: got -1, allowed: a number from 0 to 86,400"),
        ("method={name: auto, gamma: 4}", "method.gamma: unknown field, got 4"),
        ("method={name: auto, delta: 2}", "allowed: delta belongs to guarantee tv or none, got 2 with exact"),
        (
            "method={name: auto, guarantee: tv, delta: 2}",
            "method.delta: got 2, allowed: 1 (PAIR has no annealed acceptance)",
        ),
        ("output=[1", "output: got '[1', allowed: a YAML value (line "),
    ],
)
@pytest.mark.parametrize("command", ["generate", "plan"])
def test_wrong_input_is_one_line_and_writes_nothing(command, setting, message, pair, tmp_path, capsys):
    out = tmp_path / "out"
    defaults = {"pair": pair, "method.name": "cspd", "output": str(out)}
    others = [f"{field}={value}" for field, value in defaults.items() if field != setting.partition("=")[0]]
    given = [word for each in (*others, setting) for word in ("--set", each)]
    assert main([command, *given]) == 2
    assert message.replace("PAIR", pair) in one_line_error(capsys)
    assert not out.exists()


def test_a_pair_without_draft_cannot_speculate(plain_pair, tmp_path, capsys):
    given = ["--set", f"pair={plain_pair}", "--output", str(tmp_path / "out")]
    assert main(["generate", *given, "--set", "method=cspd"]) == 2
    assert "method: got 'cspd', allowed: plain or null" in one_line_error(capsys)
    assert main(["plan", *given]) == 0


def test_spec_file_that_cannot_be_read(tmp_path, capsys):
    assert main(["plan", str(tmp_path / "none.yaml")]) == 2
    assert "spec: cannot read" in one_line_error(capsys)
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert main(["plan", str(tmp_path / "list.yaml")]) == 2
    assert "allowed: a mapping of fields" in one_line_error(capsys)


def test_corrupt_weights_write_nothing(tmp_path, capsys):
    folder = make_tiny_pair(tmp_path / "pair")
    weights = folder / "target.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    assert main(["generate", "--set", f"pair={folder}", "--output", str(tmp_path / "out")]) == 2
    assert "target.safetensors has sha256" in one_line_error(capsys)
    assert not (tmp_path / "out").exists()


def test_unwritable_output(pair, tmp_path, capsys):
    # A file where the folder should be stops root too, whom permissions do not.
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["generate", "--set", f"pair={pair}", "--output", str(tmp_path / "file" / "out")]) == 2
    assert "output: cannot" in one_line_error(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_with_someone_elses_readme_is_refused(pair, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert main(["generate", "--set", f"pair={pair}", "--output", str(tmp_path)]) == 2
    assert "holds a README.md of no job" in one_line_error(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_resume_with_another_spec_is_refused(tmp_path, capsys):
    store = make_tree(tmp_path)
    before = {path: store.read(path) for path in store.list()}
    given = ["--set", f"pair={tmp_path / 'pair'}", "--set", "features=false", "--set", "requests.count=10"]
    given += ["--set", "shard_size=4", "--set", "batch=2", "--set", "method={name: cspd, gamma: 2}"]
    assert main(["generate", *given, "--output", store.url]) == 2
    assert "method.gamma: got 2, stored 3; allowed: the stored value, or another output" in one_line_error(capsys)
    assert {path: store.read(path) for path in store.list()} == before


@pytest.mark.parametrize("command", ["status", "report"])
def test_no_job_there(command, tmp_path, capsys):
    assert main([command, str(tmp_path / "none")]) == 2
    assert "allowed: an output of `spd generate`" in one_line_error(capsys)


def test_storage_options_are_parsed_and_never_shown(tmp_path, capsys):
    assert main(["status", "s3://nobody/x", "--storage-option", "hunter2"]) == 2
    assert "--storage-option: got 'hunter2', allowed: KEY=VALUE" in one_line_error(capsys)
    assert main(["status", str(tmp_path), "--storage-option", "auto_mkdir=false"]) == 2
    assert "never started, or elsewhere" in one_line_error(capsys)


def test_validate_reports_problems_with_exit_1(tmp_path, capsys):
    store = make_tree(tmp_path)
    assert main(["validate", store.url]) == 0
    assert capsys.readouterr().out.startswith("ok: 10 images, 3 shards")
    store.delete(layout.data(1, 3))
    assert main(["validate", store.url]) == 1
    assert layout.data(1, 3) in capsys.readouterr().out


def test_status_and_report_print_where_things_are(tmp_path, capsys):
    store = make_tree(tmp_path)
    assert main(["status", store.url]) == 0
    assert "3/3 shards, 10/10 images" in capsys.readouterr().out
    assert main(["report", store.url]) == 0
    assert capsys.readouterr().out.strip() == f"10 images: {store.url}/report.html"
    assert main(["validate", store.url]) == 0


def test_plan_writes_nothing_and_prices_what_is_known(pair, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["plan", "--set", f"pair={pair}", "--set", "requests.count=1000", "--output", str(out)]
    assert main([*given, "--set", "workers.price_per_hour=1", "--set", "method=cspd"]) == 0
    text = capsys.readouterr().out
    assert "1,000 of 3 classes, 16 shards" in text
    assert "unknown: the pair's card has no figures at this law and method" in text
    assert not out.exists()


def test_plan_of_auto_says_what_will_be_measured_and_invents_no_figure(pair, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["plan", "--set", f"pair={pair}", "--output", str(out), "--set", "method={name: auto, guarantee: none}"]
    assert main([*given, "--set", "batch=auto", "--set", "shard_size=20"]) == 0
    text = capsys.readouterr().out
    assert "auto, guarantee at least none" in text
    assert "7 methods at 3 batch sizes, about 2 min 00 s, by one worker" in text
    assert "plain (head_window 8), guarantee exact, batch 1, 4, 16\n" in text
    assert "cspd (variant released, gamma 32" in text
    assert "time         unknown: the method is still to be measured" in text
    assert "fingerprint  follows from the method" in text
    assert main([*given, "--set", "batch=8"]) == 0
    assert "7 methods at batch 8, about" in capsys.readouterr().out
    assert not out.exists()


def test_estimate_takes_the_nearest_measured_batch(pair):
    workers = {"count": 2, "price_per_hour": 36.0}
    spec = make_spec({"pair": pair, "method": "cspd", "requests": {"count": 100}, "workers": workers})
    settings = spec.method.model_dump(mode="json", exclude={"name"})
    row = {"method": "cspd", "settings": settings, "law": spec.law.model_dump(), "batch": 1, "images_per_s": 1.0}
    others = [{**row, "batch": 24, "images_per_s": 5.0}, {**row, "method": "plain", "images_per_s": 9.0}]
    card = load_card(pair).model_copy(update={"figures": {"bench": {"rows": [row, *others]}}})
    guess = estimate(card, spec)
    assert guess.images_per_s_per_worker == 5.0
    assert guess.seconds == pytest.approx(10.0)
    assert guess.cost == pytest.approx(36.0 * 2 * 10 / 3600)
    assert any("about 10.0 s" in line for line in estimate_lines(card, spec, guess))
    unnamed = make_spec({"pair": pair, "batch": 1})
    plain = {**row, "method": "plain"}
    others = [{**plain, "settings": {"head_window": [*w]}, "images_per_s": 3.0 + sum(w)} for w in ((), (8,))]
    card = card.model_copy(update={"figures": {"bench": {"rows": [row, *others]}}})
    assert estimate(card, unnamed).images_per_s_per_worker == 11.0, (
        "of the exact methods that may be taken, the fastest"
    )


def test_a_plan_says_on_which_machine_the_speed_behind_its_time_was_measured():
    spec, card = make_spec({"pair": "fashion-ar"}), load_card("fashion-ar")
    (time,) = (line for line in estimate_lines(card, spec, estimate(card, spec)) if line.startswith("time"))
    assert time.endswith(f" s at the speed in the pair's card, measured on {card.figures['bench']['machine']['cpu']}")
    unnamed = estimate(card, spec).model_copy(update={"measured_on": ""})
    assert any(line.endswith("card, measured on another machine") for line in estimate_lines(card, spec, unnamed))


def test_on_gpus_a_plan_predicts_and_says_so(pair, capsys):
    """The pretend H100 of every plan: this machine has no GPU."""
    given = ["plan", "--set", f"pair={pair}", "--set", "workers.num_gpus=1", "--set", "workers.count=1"]
    assert main([*given, "--set", "method=plain", "--set", "requests.count=1000"]) == 0
    text = capsys.readouterr().out
    assert "time         predicted for one NVIDIA H100 a worker, not measured: at least about" in text
    spec = make_spec({"pair": pair, "method": "plain", "batch": 16, "workers": {"num_gpus": 1, "count": 1}})
    card, at = load_card(pair), assumed_device(spec)
    guess = estimate(card, spec)
    assert guess.predicted_for == at.name == "NVIDIA H100"
    assert guess.images_per_s_per_worker == images_per_s(card, spec.law, Choice(method=Plain(), batch=16), at)
    assert main([*given, "--set", "method=auto", "--set", "batch=4"]) == 0
    assert "batch 4 (predicted " in capsys.readouterr().out
    assert estimate(card, make_spec({"pair": pair, "method": "plain"})).predicted_for == "", "a CPU has no ceilings"


def test_what_cannot_be_predicted_stays_unknown_on_gpus(pair):
    spec = make_spec({"pair": pair, "method": {"name": "cspd", "variant": "paper"}, "workers": {"num_gpus": 1}})
    guess = estimate(load_card(pair), spec)
    assert (guess.seconds, guess.predicted_for) == (None, "")


def test_spec_text_is_the_default_spec():
    text = spec_as_yaml()
    raw = yaml.safe_load(text)
    assert raw["method"] == {
        "name": "auto", "guarantee": "exact", "candidates": "few", "seconds": 10.0, "delta": 1.0, "radius": 0.0
    }  # fmt: skip
    assert "# method auto, guarantee at least exact: The fastest" in text and "#   seconds: 120.0" in text
    assert "# images decoded together (1 to 65536)" in text
    assert "# images of the dataset (>= 1, <= 10000000000)" in text and "(one of paper, released)" in text
    assert make_spec(raw).model_dump() == make_spec({}).model_dump()


def test_the_fields_of_each_method_in_the_spec_text_are_yaml_that_makes_it():
    blocks = re.split(r"^# method (\w+), guarantee.*\n", spec_as_yaml(), flags=re.MULTILINE)[1:]
    for name, block in zip(blocks[::2], blocks[1::2], strict=True):
        fields = yaml.safe_load(re.sub(r"^#   ", "", block, flags=re.MULTILINE))
        kind = {"plain": Plain, "cspd": Cspd, "speculative": Speculative, "null": Null, "auto": Auto}[name]
        assert kind.model_validate(fields) == kind() and fields == kind().model_dump(mode="json", exclude={"name"})


def test_the_spec_text_says_why_the_default_method_has_other_values_than_the_method_alone():
    assert make_spec({}).method != make_spec({"method": "auto"}).method
    assert "A spec that names none measures a few for a moment: its values, above, are others" in spec_as_yaml()


def test_shorthands_and_yaml_null_method(pair, tmp_path):
    spec = load_spec(None, [f"pair={pair}", "method=null", "output='a: b'"])
    assert (spec.method.name, spec.output) == ("null", "a: b")
    with pytest.raises(SpecError, match="method"):
        load_spec(None, [f"pair={pair}", "method=magic"])


def test_a_former_name_of_a_command_still_runs_it_and_says_the_new_one(monkeypatch, capsys):
    ran: list[str] = []
    monkeypatch.setattr("jobs.bench.overhead.run", lambda args: ran.append(args.command) or 0)
    assert main(["road", "--images", "7"]) == 0 and ran == ["overhead"]
    assert one_line_error(capsys) == "spd: `spd road` is now `spd overhead`; running that"


def test_no_command_lists_the_commands_on_stderr(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("usage: spd") and "make a dataset, or finish one that was begun" in shown.err
    assert shown.out == ""
