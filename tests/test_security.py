"""What the job promises about secrets, untrusted files and texts, and about who can reach it."""

from __future__ import annotations

import ast
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from jobs.dataset.card import render_card
from jobs.dataset.finish import rewrite_report
from jobs.job.plan import Plan, parse_plan, read_plan
from jobs.job.spec import fingerprint_of, load_spec
from jobs.words.errors import SpecError
from tests.jobs.tree import make_tree
from workers import layout
from workers.sealed import canonical_json, seal

ROOT = Path(__file__).parents[1]
SOURCES = [path for package in ("spd_core", "workers", "jobs") for path in (ROOT / package).rglob("*.py")]


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Calls of attributes, as ``module.name`` as far as the text tells."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_file_is_unpickled():
    """Pickles run what they hold: tensors are read with torch's restricted unpickler, arrays without objects."""
    found = []
    for path in SOURCES:
        for name, call in calls(ast.parse(path.read_text())):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "torch.load":
                found.append(name)
                assert given.get("weights_only") == "True", path
            if name == "np.load":
                found.append(name)
                assert given.get("allow_pickle") == "False", path
            assert name not in ("pickle.load", "pickle.loads", "cloudpickle.loads", "torch.jit.load", "joblib.load"), (
                path
            )
            assert name not in ("yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system"), path
            if name == "subprocess.run":  # git is asked for the commit, by fixed words and without a shell
                assert path.name == "record.py" and "shell" not in given, path
    assert set(found) == {"torch.load", "np.load"}


@pytest.mark.parametrize(
    ("yaml_text", "told"),
    [
        ("storage_options: hunter2", "storage_options: got a value that is not shown, allowed:"),
        ("storage_options: [hunter2]", "storage_options: got a value that is not shown, allowed:"),
        ("storage_option: {secret: hunter2}", "storage_option: unknown field, allowed: "),
        ("aws_secret_key: hunter2", "aws_secret_key: unknown field, allowed: "),
        ("workers: {token: hunter2}", "workers.token: unknown field, allowed: "),
    ],
)
def test_a_wrong_spec_does_not_show_what_may_be_a_secret(yaml_text, told, tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text(yaml_text)
    with pytest.raises(SpecError) as error:
        load_spec(str(path), [])
    assert told in str(error.value) and "hunter2" not in str(error.value)
    assert main(["plan", str(path)]) == 2
    assert "hunter2" not in capsys.readouterr().err


def test_no_secret_reaches_the_output(tmp_path):
    secret = "hunter2-of-storage"
    store = make_tree(tmp_path, storage_options={"auto_mkdir": True, "secret": secret})
    rewrite_report(store.url)
    files = [path for path in Path(store.url).rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if secret.encode() in path.read_bytes()]


HOSTILE = "</script><script>alert('x')</script>\n```\n# [x](javascript:y)\" onload=\"z' <b>"


def hostile(value: object) -> object:
    """The same JSON with every text in it made hostile, names of fields apart."""
    if isinstance(value, dict):
        return {key: hostile(child) for key, child in value.items()}
    if isinstance(value, list):
        return [hostile(child) for child in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> tuple[Plan, str, str]:
    """The plan of an output from who knows where, and what report and card make of it."""
    store = make_tree(tmp_path_factory.mktemp("hostile"))
    raw = json.loads(store.read(layout.PLAN))
    kept = {key: raw["spec"][key] for key in ("name", "method", "law", "image", "workers", "requests", "output")}
    raw["spec"] = {**hostile(raw["spec"]), **kept}
    raw["class_names"] = hostile(raw["class_names"])
    raw["pair"] = {**hostile(raw["pair"]), "reference": "", "family": raw["pair"]["family"]}
    raw["machine"] = hostile(raw["machine"])
    raw["versions"] = {HOSTILE: HOSTILE}
    raw["pair_sha256"] = {HOSTILE: HOSTILE}
    raw["fingerprint"] = fingerprint_of(raw["spec"], raw["pair_sha256"], raw["results"])
    store.replace(layout.PLAN, canonical_json(seal({key: value for key, value in raw.items() if key != "sha256"})))
    for shard in range(3):
        commit = {**json.loads(store.read(layout.commit(shard))), "fingerprint": raw["fingerprint"]}
        store.replace(layout.commit(shard), canonical_json(seal({k: v for k, v in commit.items() if k != "sha256"})))
    assert parse_plan(store.read(layout.PLAN)) is not None
    raw["pair"]["family"] = hostile("mar")
    assert parse_plan(canonical_json(seal(raw))) is None, "a family is one that there is"
    raw["pair"]["family"], raw["spec"]["name"] = "", hostile("name")
    assert parse_plan(canonical_json(seal(raw))) is None, "a name is of letters and digits"
    report = rewrite_report(store.url)
    plan = read_plan(store)
    return plan, store.read(layout.REPORT_HTML).decode(), render_card(plan, report)


def test_hostile_texts_are_escaped_in_the_report(documents):
    _, page, _ = documents
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page, "the texts are there, as texts"
    tags: list[tuple[str, str, str | None]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, given: tags.extend((tag, *pair) for pair in [*given, ("", None)])
    parser.feed(page)
    assert not [each for each in tags if each[0] in ("script", "iframe") or each[1].startswith("on")]
    words = [to for tag, name, to in tags if (tag, name) == ("a", "href")]
    assert words and all(to is not None and re.fullmatch(r"#[a-z0-9-]+", to) for to in words), "links stay on the page"
    assert ("img", "src") in {each[:2] for each in tags}


def test_hostile_texts_are_escaped_in_the_card(documents):
    plan, _, card = documents
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["pretty_name"] == plan.spec.name
    fence = re.search(r"^(`{3,})yaml$", body, re.MULTILINE)[1]
    before, inside = re.split(rf"^{fence}yaml\n", body, flags=re.MULTILINE)
    spec, after = re.split(rf"^{fence}$", inside, flags=re.MULTILINE)
    assert yaml.safe_load(spec)["pair"] == plan.spec.pair and HOSTILE in plan.spec.pair and not after.strip()
    outside = re.sub(r"^```python$.*?^```$", "", before, flags=re.MULTILINE | re.DOTALL)
    plain = re.sub(r"\\.", "", outside)
    assert "<" not in plain and "](" not in plain and "```" not in plain
