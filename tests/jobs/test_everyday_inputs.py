"""What people write into spec files, request files and flags: taken as meant, or refused in one line."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.arguments import ADD, PARTS, TRAINED
from jobs.cli import main
from jobs.job.plan import make_plan
from jobs.job.request_file import RequestFile
from jobs.job.spec import load_spec
from jobs.job.yaml_text import YamlError, parse_yaml
from jobs.words.errors import SpecError
from spd_core.pairs.pair import load_card

INPUTS = Path(__file__).parents[1] / "data" / "inputs"
NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def refusal(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """The one line of a command that wrote nothing else and ended with exit code 2."""
    try:
        code = main([*given])
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("spd: ") and not shown.out
    assert "Input should" not in lines[0] and "Traceback" not in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("repeated_block.yaml", "line 4: workers is given a second time"),
        ("repeated_field.yaml", "line 2: count is given a second time"),
        ("sexagesimal.yaml", "requests.count: got '1:30', allowed: a whole number from 1 to"),
    ],
)
def test_spec_files_that_were_misread_are_refused(name, says, capsys):
    assert says in refusal(capsys, "plan", str(INPUTS / name))


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("{name: speculative, acceptance: {rule: coupled, radius: NUMBER}}", "method.acceptance.radius"),
        ("{name: speculative, acceptance: {rule: annealed, delta: NUMBER}}", "method.acceptance.delta"),
        ("{name: auto, guarantee: w_inf, radius: NUMBER}", "method.radius"),
        ("{name: cspd, inner_temperature: NUMBER}", "method.inner_temperature"),
        ("{name: null, images_per_s: NUMBER}", "method.images_per_s"),
    ],
)
def test_infinite_numbers_are_refused_before_anything_is_written(method, field, number, tmp_path, capsys):
    given = f"method={method.replace('NUMBER', number)}"
    line = refusal(capsys, "generate", "--set", given, "--set", f"output={tmp_path}/out")
    assert f"{field}: got {number.replace('.', '')}, allowed: a number" in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize("temperature", ["0", "1e-39"])
def test_a_temperature_at_which_logits_overflow_is_refused(temperature, capsys):
    line = refusal(capsys, "plan", "--set", "pair=fashion-vq", "--set", f"law.temperature={temperature}")
    assert line.endswith("allowed: a number from 0.001 to 10")


def test_spec_files_that_were_refused_are_read():
    assert load_spec(str(INPUTS / "anchor.yaml"), []).workers.count == 1
    assert load_spec(str(INPUTS / "class_names.yaml"), []).requests.labels == (8,)
    assert load_spec(str(INPUTS / "one_label.yaml"), []).requests.labels == (3,)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("utf16.csv", "got UTF-16 text in"),
        ("repeated_key.jsonl", "row: got 'label twice' in row 1"),
        ("huge_seed.csv", "seed: got '9999999"),
    ],
)
def test_request_files_that_were_misread_are_refused(name, says, capsys):
    line = refusal(capsys, "plan", "--set", "method=null", "--set", f"requests.file={INPUTS / name}")
    assert says in line and "allowed: " in line


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("blank_lines.jsonl", [3, 4]),
        ("class_names.csv", [0, 8]),
        ("large_string.parquet", [1, 2]),
        ("pandas_sorted.parquet", [1, 2, 3]),
    ],
)
def test_request_files_that_were_refused_are_read(name, labels):
    source = RequestFile(str(INPUTS / name), {}, NAMES)
    assert source.scan().count == len(labels)
    assert [label for rows in source.rows() for label in rows.labels.tolist()] == labels


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"), ("no", "no"), ("on", "on"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"),
        ("0o10", 8), ("0x1f", 31), ("1e3", 1000.0), (".5", 0.5), ("-.inf", float("-inf")), ("+7", 7), ("-0", 0),
        ("TRUE", True), ("~", None), ("", None), ("'010'", "010"), ("{<<: {a: 1, b: 2}, b: 3}", {"a": 1, "b": 3}),
    ],
)  # fmt: skip
def test_yaml_scalars_are_those_of_version_1_2(text, value):
    found = parse_yaml(text)
    assert found == value and type(found) is type(value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 010", "line 1: got 010, allowed: 10, without the leading 0, or 0o10"),
        ("seed: -08", "allowed: -8, without the leading 0"),
        ("{a: 1, b: 2, a: 3}", "a is given a second time"),
        ("a:\n  b: 1\n  b: 1", "line 3: b is given a second time"),
        ("&a [*a]", "an alias of what it is in"),
        (BOMB, "more than 200,000 values"),
        (MERGES, "more than 200,000 values"),
        ("[" * 100 + "]" * 100, "inside each other"),
        ("[" * 100_000, "nesting"),
        ("!!python/object/apply:os.system [ls]", "allowed: plain values"),
        ("!!binary aGk=", "allowed: plain values"),
        ("1\n---\n2", "another document"),
        ("a: [1", "line "),
        ("a: \x07", "control characters"),
        ("9" * 5000, "a number of 5000 digits"),
        ("? [a]\n: 1", "a key must be a word"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused_at_once(text, says):
    began = time.perf_counter()
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: \xe4", "cannot read"),
        (b"x" * (1 << 21), "more than 1,048,576 bytes"),
        (b"just text", "got 'just text'"),
        (b"1: 2", "1: unknown field"),
        (b"requests:\nmethod: plain", "requests: got nothing, allowed: a mapping of the fields count, labels"),
        ("name: x".encode("utf-16-le"), "bytes that are no text, or UTF-16 without its mark; allowed: UTF-8 text"),
        (b"count: 10", "did you mean requests.count or workers.count?"),
        (
            b"request: {count: 10}",
            "request: unknown field, allowed: the fields that `spd spec` lists, did you mean reques",
        ),
        (b"requests: {cuont: 10}", "requests.cuont: unknown field, got 10"),
        (b"method: {name: plain, gamma: 4}", "method.gamma: unknown field, got 4"),
    ],
)
def test_a_wrong_spec_file_is_one_line(content, says, tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    assert says in refusal(capsys, "plan", str(path))


def test_a_spec_file_in_utf_16_with_its_mark_is_read(tmp_path):
    (tmp_path / "job.yaml").write_bytes("name: möwe\n".replace("ö", "o").encode("utf-16"))
    assert load_spec(str(tmp_path / "job.yaml"), []).name == "mowe"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "requests.labels=[]",
            "got an empty list, allowed: balanced, or a list of labels, each 0..9 or a name of",
        ),
        ("requests.labels=shoe", "got 'shoe', allowed: balanced, or"),
        ("requests.labels=balancd", "did you mean balanced?"),
        ("requests.labels=[bag]", "did you mean Bag?"),
        ("requests.labels=[true]", "got True, allowed: balanced"),
        ("requests.labels=[[1]]", "got [1], allowed: balanced"),
        ("requests.count=1e30", "allowed: a whole number from 1 to 10,000,000,000"),
        ("requests.count=0", "allowed: a whole number from 1 to 10,000,000,000"),
        ("requests.count=true", "requests.count: got true, allowed: a whole number"),
        ("requests.sha256=zz", "allowed: 64 hexadecimal digits"),
        ("workers.count=1000000000", "allowed: a whole number from 0 to 100,000"),
        ("workers.shard_timeout_s=.inf", "workers.shard_timeout_s: got inf, allowed: a number, above 0, at most"),
        ("shard_size=10000000000", "allowed: a whole number from 1 to 1,000,000"),
        ("seed=-1", "allowed: a whole number from 0 to 9,223,372,036,854,775,807"),
        ("law.cfg=.nan", "law.cfg: got nan, allowed: a number from 1 to 100"),
        ("law.dtype=fp16", "law.dtype: got 'fp16', allowed: float32"),
        ("method=specultive", "did you mean speculative?"),
        ("method=[1]", "allowed: auto, cspd, null, plain, speculative"),
        ("method.aligned=yes", "a field of method cspd"),
        ("image.format=jpg", "allowed: png, webp, jpeg"),
        ("name=a b", "allowed: a letter or digit, then"),
        ("pair=fashion-arr", "did you mean fashion-ar?"),
        ("pair=", "pair: got nothing"),
        ("output=s3:/bucket/run", "did you mean s3://bucket/run?"),
        ("output=s3//bucket/run", "did you mean s3://bucket/run?"),
        ("output=file:/a/b", "did you mean file:///a/b?"),
        ("output=S3://bucket/run", "did you mean s3?"),
        ("output=nosuch://bucket", "a protocol that fsspec knows"),
        ("output=~nobody-here/x", "allowed: a path from / or ~/ on"),
        ('output="a\\nb"', "printable"),
        ('output="a\\0b"', "printable"),
        ("requests.file=s3:/bucket/r.csv", "requests.file: got 's3:/bucket/r.csv'"),
        ("requests.file=~nobody-here/r.csv", "requests.file: got '~nobody-here/r.csv'"),
        ("requests.file=.", "allowed: a name that ends in"),
        ("storage_options=[1]", "storage_options: got a value that is not shown, allowed: a mapping"),
        ("=3", "--set: got '=3', allowed: field.path=value"),
        ("seed", "--set: got 'seed', allowed: field.path=value"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "generate"])
def test_a_wrong_setting_is_one_line(command, setting, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refusal(capsys, command, "--set", setting)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["genrate"], "did you mean generate?"),
        (["plan", "--outptu", "x"], "--outptu: unknown argument, did you mean --output?"),
        (["plan", "a.yaml", "b.yaml"], "b.yaml: unknown argument"),
        (["plan", "--count", "many"], "--count: got 'many', allowed: a whole number"),
        (["plan", "--count", "5", "--count", "6"], "--count: given twice, allowed: once"),
        (["bench", "--gamma", "2", "--gamma", "4"], "--gamma: given twice, allowed: once"),
        (["plan", "--set", "seed=1", "--set", "seed=2"], "seed: given twice on the command line, allowed: once"),
        (["plan", "--set", "requests.count=1", "--count", "2"], "requests.count: given twice"),
        (["plan", "--output", "FILE"], "it is a file; allowed: a folder or a URL"),
        (["plan", "--output", "FILE/x/y"], "it is below"),
        (["plan", "--count"], "--count: got nothing, allowed: a value"),
        (["plan", "--count", "-3"], "requests.count: got -3, allowed: a whole number from 1 to"),
        (["plan", "--pair", "nosuch"], "pair: got 'nosuch'"),
        (["status"], "OUTPUT: got nothing, allowed: a value"),
        (["train", "fashion-arr", "--out", "x"], "did you mean fashion-ar?"),
        (["--nonsense"], "--nonsense: unknown argument"),
    ],
)
def test_a_wrong_argument_is_one_line(given, says, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert says in refusal(capsys, *(word.replace("FILE", str(tmp_path / "file")) for word in given))


@pytest.mark.parametrize(
    ("labels", "count", "words"),
    [("balanced", 77, "77 of 10 classes"), ("[Bag, 3, 8]", 50, "50 of 2 classes"), ("Bag", 50, "50 of 1 class,"),
     ("balanced", 4, "4 of 4 classes"), ("[1, 2, 3]", 2, "2 of 2 classes")],
)  # fmt: skip
def test_a_plan_counts_the_classes_that_are_asked_for(labels, count, words, capsys):
    assert main(["plan", "--set", f"requests.labels={labels}", "--count", str(count)]) == 0
    assert words in capsys.readouterr().out


def test_a_plan_counts_the_classes_of_a_request_file(tmp_path, capsys):
    (tmp_path / "r.csv").write_text("label\n3\nDress\n3\nBag\n")
    assert main(["plan", "--set", f"requests.file={tmp_path / 'r.csv'}"]) == 0
    assert "4 of 2 classes" in capsys.readouterr().out


def test_pair_and_count_are_short_for_their_fields(capsys):
    assert main(["plan", "--pair", "fashion-vq", "--count", "77"]) == 0
    assert "77 of 10 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["Bag", "3"], pa.large_string()),
        pa.array(["Bag", "3"]).cast(pa.string_view()),
        pa.array(["Bag", "3"]).dictionary_encode(),
        pa.array([8, 3], pa.uint8()),
        pa.array([8, 3]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_labels_of_every_kind_of_column(column, tmp_path):
    pq.write_table(pa.table({"label": column, "id": pa.array(["a", "b"], pa.large_string())}), tmp_path / "r.parquet")
    (rows,) = RequestFile(str(tmp_path / "r.parquet"), {}, NAMES).rows()
    assert rows.labels.tolist() == [8, 3] and rows.ids == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.jsonl", b'\xef\xbb\xbf{"label": "Bag"}\n\n  \n{"label": 3}\n\n'),
        ("r.csv", b"\xef\xbb\xbflabel\r\nBag\r\n\r\n03\r\n"),
        ("r.csv", b",label\n0,Bag\n1,3\n"),
        ("r.csv", b"Unnamed: 0,label\n0,8\n1,3\n"),
    ],
)
def test_what_spreadsheets_and_pandas_write_is_read(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    (rows,) = RequestFile(str(tmp_path / name), {}, NAMES).rows()
    assert rows.labels.tolist() == [8, 3]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("r.csv", "label\nBäg\n".encode("latin-1"), "got text that is not UTF-8 in"),
        ("r.csv", "läbel\nBag\n".encode("latin-1"), "got text that is not UTF-8 in"),
        ("r.csv", "label\nBag\n".encode("utf-16-le"), "got bytes that are no text, or UTF-16 in"),
        ("r.csv", "label\nBag\n".encode("utf-32"), "got UTF-32 text in"),
        ("r.jsonl", '{"label": "Bäg"}\n'.encode("latin-1"), "got text that is not UTF-8 in row 1 in"),
        ("r.jsonl", '{"label": 1}\n'.encode("utf-16"), "got UTF-16 text in"),
        ("r.jsonl", b'{"label": 1' + b"0" * 5000 + b"}\n", "label: got '1000"),
        ("r.jsonl", b'{"label": 3, "label": 3}\n', "allowed: each name once"),
        ("r.jsonl", b'{"label": ' + b"[" * 5000 + b"\n", "allowed: one JSON object a line"),
        ("r.csv", b"label\nbag\n", "did you mean Bag?"),
        ("r.csv", b"label\n0x3\n", "label: got '0x3' in row 1"),
        ("r.csv", b"label\n+3\n", "label: got '+3' in row 1"),
        ("r.csv", b"label;seed\n3;4\n", "columns: got label;seed in"),
        ("r.csv", b"label,label\n3,4\n", "columns: got label, label in"),
        ("r.csv", b"label,id\n3,img\n3,IMG\n", "got 'img' and 'IMG' in rows 1 and 2 of"),
        ("r.csv", b"label, id\n3, a\n", "columns: got label, ' id' in"),
        ("r.csv", b"lable\n3\n", "allowed: label and, if wanted, id and seed, did you mean label?"),
        ("r.csv", b"", "without a row, allowed: one row or more"),
        ("r.csv", b"\n\n", "without a row, allowed: one row or more"),
        ("r.jsonl", b"\n", "without a row, allowed: one row or more"),
        ("r.csv", b"label,id\n3,a\n\n4,b,c\n", "row: got '4,b,c' in row 2 of"),
        ("r.csv", b"label\n\n3\n\nx\n", "label: got 'x' in row 2 of"),
        ("r.jsonl", b'\n{"label": 3}\n\n{"label": "x"}\n', "label: got 'x' in row 2 of"),
        ("r.jsonl", b'{"label": 3}\n\n{"label"\n', "in row 2 of"),
        ("r.jsonl", b'{"label": 3}\n\n{"label": "\xff"}\n', "in row 2 in"),
        ("r.parquet", b"PAR1" + b"\0" * 200 + b"PAR1", "cannot read"),
    ],
)
def test_a_wrong_request_file_is_one_line(name, content, says, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    line = refusal(capsys, "plan", "--set", "method=null", "--set", f"requests.file={tmp_path / name}")
    assert says in line and str(tmp_path / name) in line


def test_a_folder_is_no_request_file_and_no_spec_file(tmp_path, capsys):
    (tmp_path / "r.csv").mkdir()
    assert "cannot read" in refusal(capsys, "plan", "--set", f"requests.file={tmp_path / 'r.csv'}")
    assert "cannot read" in refusal(capsys, "plan", str(tmp_path))


def test_damaged_parquet_of_the_right_size_is_refused_or_read(tmp_path):
    """Whatever byte is flipped, an error is the one of a wrong file."""
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"label": list(range(10)) * 20, "id": [f"i{n}" for n in range(200)]}), path)
    good = path.read_bytes()
    for at in range(0, len(good), 37):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xA5]) + good[at + 1 :])
        try:
            load_spec(None, ["method=null", f"requests.file={path}"])
        except SpecError as error:
            assert "\n" not in str(error)


def test_ids_of_a_million_rows_need_one_open_file(tmp_path):
    pq.write_table(pa.table({"label": [1] * 50, "id": [f"i{n}" for n in range(50)]}), tmp_path / "r.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, hard))
        assert RequestFile(str(tmp_path / "r.parquet"), {}, NAMES).scan().count == 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_full_temporary_folder_is_one_line(tmp_path, capsys, monkeypatch):
    pq.write_table(pa.table({"label": [1], "id": ["a"]}), tmp_path / "r.parquet")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    line = refusal(capsys, "plan", "--set", f"requests.file={tmp_path / 'r.parquet'}")
    assert "No space left on device" in line and "TMPDIR" in line


@pytest.mark.parametrize("command", ["", *ADD, "spec"])
def test_help_imports_nothing_heavy(command):
    heavy = {"torch", "ray", "pyarrow", "pydantic", "numpy", "fsspec", "yaml", "PIL", "jobs.job.spec"}
    code = f"import sys; from jobs.cli import main\ntry: main({[*filter(None, [command]), '--help']})\n"
    code += f"except SystemExit: print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_the_choices_of_train_are_the_recipes():
    from jobs.commands.train import RECIPES, VARIANCES
    from spd_core.law import Speculative

    assert set(TRAINED) == {*(pair for pair, _ in RECIPES), "label-classifier", "reference"}
    assert set(PARTS) >= {part for _, part in RECIPES} | set(VARIANCES)
    assert Speculative().stride == 15


#: Families as the help of `spd bench` names them before a colon.
TITLES = {"MAR": "mar", "causal": "causal", "codes": "llamagen", "SphereAR": "sphere"}


def test_the_help_of_bench_names_the_families_that_take_an_argument():
    from spd_core.families.registry import FAMILIES

    parser = ArgumentParser()
    ADD["bench"](parser)
    named = {}
    for action in parser._actions:
        before, colon, _ = (action.help or "").partition(":")
        if colon and set(before.split(", ")) <= TITLES.keys():
            named[action.dest] = {TITLES[title] for title in before.split(", ")}
    assert named == {wish: {name for name, of in FAMILIES.items() if wish in of.wishes} for wish in named}
    # What every family with a head takes is named of none.
    wishes = {wish for of in FAMILIES.values() for wish in of.wishes}
    assert wishes - named.keys() == {"gamma", "head_window", "head_schedule", "head_steps"}


def card(**changed: dict[str, int]) -> bytes:
    """The card of a bundled pair with other sizes."""
    raw = load_card("fashion-mar").model_dump(mode="json")
    return json.dumps({**raw, **{part: {**raw[part], **sizes} for part, sizes in changed.items()}}).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a pair card: Expecting value"),
        (b"\xff\xfe\x00", "is not a pair card"),
        (b"[" * 100_000, "is not a pair card"),
        (b'{"name": ' * 2000, "is not a pair card"),
        (b"[]", "is not a pair card"),
        (b"{}", "is not a pair card: name"),
        (b'{"name": 1' + b"0" * 5000 + b"}", "is not a pair card"),
        (None, "pair: got"),
        (card(target={"encoder_embed_dim": 10**12}), "encoder_embed_dim: got 1000000000000, allowed: a whole number"),
        (card(target={"decoder_depth": 10**9}), "from 0 to 1,024"),
        (card(target={"img_size": 10**9}), "at most 4,096"),
        (card(codec={"channels": 10**6}), "at most 4"),
    ],
)
def test_a_damaged_card_is_one_line(content, says, tmp_path, capsys):
    if content is None:
        (tmp_path / "pair.json").mkdir()
    else:
        (tmp_path / "pair.json").write_bytes(content)
    assert says in refusal(capsys, "plan", "--pair", str(tmp_path))


def test_the_query_of_a_request_file_is_shown_nowhere(capsys):
    url = "http://127.0.0.1:9/r.csv?sig=hunter2hunter2&code=swordfish"
    line = refusal(capsys, "plan", "--set", "method=null", "--set", f"requests.file={url}")
    assert "http://127.0.0.1:9/r.csv?***" in line and "hunter2" not in line and "swordfish" not in line
    assert "ends in" in refusal(capsys, "plan", "--set", f"requests.file={url.replace('r.csv', 'r')}")


def test_a_plan_stores_no_query():
    spec = load_spec(None, ["method=null"]).model_copy()
    file = spec.requests.model_copy(update={"file": "https://user:pw@host/r.csv?sig=hunter2"})
    output = "s3://b/out?versionId=hunter2"
    plan = make_plan(spec.model_copy(update={"requests": file, "output": output}))
    assert plan.spec.requests.file == "https://host/r.csv?***" and b"hunter2" not in plan.to_bytes()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["status", ""], "output: got nothing"),
        (["status", "s3:/b/x"], "did you mean s3://b/x?"),
        (["status", "~nobody-here/x"], "allowed: a path from / or ~/ on"),
        (["validate", "s4://x"], "a protocol that fsspec knows"),
        (["report", "a\x00b"], "printable"),
        (["status", "FILE"], "output: cannot read"),
        (["sample", "--out", "FOLDER/x.png/y.png"], "allowed: a file in a folder that exists"),
        (["sample", "--out", "FOLDER.png"], "--out: got"),
        (["sample", "--out", "x.png", "--label", "zebra"], "got 'zebra', allowed: balanced, or"),
        (["bench", "--json", "FOLDER"], "--json: got"),
        (["bench", "--markdown", "FOLDER"], "--markdown: got"),
        (["bench", "--gamma", "99999999"], "--gamma: got 99999999, allowed: 1 to 4,096"),
        (["bench", "--processes", "100000"], "--processes: got 100000, allowed: 1 to 1,024"),
        (["bench", "--delta", "nan"], "--delta: got nan"),
        (["calibrate", "--set", "method=auto", "--json", "FOLDER"], "--json: got"),
        (["overhead", "--json", "FOLDER"], "--json: got"),
        (
            ["train", "fashion-ar", "--part", "target", "--out", "x", "--threads", "0"],
            "--threads: got 0, allowed: 1 to",
        ),
        (["train", "fashion-ar", "--part", "target", "--out", "x", "--steps", "-1"], "--steps: got -1, allowed: 1 to"),
        (["train", "fashion-ar", "--part", "figures", "--out", "x", "--bench", "FILE"], "--bench: got"),
        (["train", "fashion-ar", "--part", "figures", "--out", "x", "--bench", "FOLDER"], "--bench: got"),
        (["convert", "--target", "FOLDER", "--name", "x", "--out", "x"], "checkpoint: cannot read"),
        (["convert", "--target", "FILE", "--name", "x", "--out", "x"], "is no torch file"),
        (["plan", "a\x00.yaml"], "spec: cannot read"),
        (["plan", "--pair", "fashion-mar\n"], "printable"),
        (["plan", "--output", "out\udcff"], "output: got"),
        (["plan", "--set", "storage_options={1: 2}"], "storage_options: got a value that is not shown"),
    ],
)
def test_a_hostile_argument_is_one_line(given, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("{")
    words = {"FOLDER": str(tmp_path / "folder.png"), "FILE": str(tmp_path / "file"), "FOLDER.png": "folder.png"}
    assert says in refusal(capsys, *(words.get(word, word) for word in given))


def test_a_full_disk_is_one_line_and_no_traceback(capsys, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device", "/out/x.npz")

    monkeypatch.setattr("jobs.commands.sample.run", full)
    assert main(["sample", "--out", "x.npz"]) == 1
    assert capsys.readouterr().err == "spd: /out/x.npz: No space left on device\n"
