"""Labels by name: names of one class, names that two share, names that are almost right."""

from __future__ import annotations

import pytest

from jobs.export.run import _labels as exported_labels
from jobs.job.labels import label_of
from jobs.job.request_file import RequestFile, RequestFileError
from jobs.job.spec import make_spec
from jobs.words.errors import SpecError
from spd_core.pairs.checkpoint import class_names
from tests.tiny_pair import make_tiny_pair

SHARED = ("crane", "hen", "crane", "3")


@pytest.fixture
def pair(tmp_path) -> str:
    return str(make_tiny_pair(tmp_path / "pair", class_names=SHARED))


def test_every_name_of_imagenet_is_a_label():
    names = class_names(None, 1000)
    assert [label_of(name, names) for name in names] == list(range(1000))


def test_labels_by_name_in_a_spec(tmp_path):
    pair = str(make_tiny_pair(tmp_path / "imagenet", class_names=class_names(None, 1000)))
    labels = make_spec({"pair": pair, "requests": {"labels": "golden retriever"}}).requests.labels
    assert labels == (207,)
    assert make_spec({"pair": pair, "requests": {"labels": ["volcano", 1]}}).requests.labels == (980, 1)
    with pytest.raises(SpecError, match=r"'golden retreiver', allowed: .*, did you mean golden retriever\?$"):
        make_spec({"pair": pair, "requests": {"labels": "golden retreiver"}})


def test_a_name_that_two_classes_share_is_refused_with_their_numbers(pair, tmp_path):
    said = r"got 'crane'.*, allowed: .*; 'crane' names the classes 0 and 2, give the number of one$"
    with pytest.raises(SpecError, match=f"^requests.labels: {said}"):
        make_spec({"pair": pair, "requests": {"labels": "crane"}})
    with pytest.raises(SpecError, match=f"^--label: {said}"):
        exported_labels(("crane",), SHARED)
    (tmp_path / "requests.csv").write_text("label\nhen\ncrane\n")
    with pytest.raises(RequestFileError, match=said):
        RequestFile(str(tmp_path / "requests.csv"), {}, SHARED).scan()
    assert make_spec({"pair": pair, "requests": {"labels": ["hen", 2]}}).requests.labels == (1, 2)


def test_a_name_of_digits_is_a_number(pair):
    assert make_spec({"pair": pair, "requests": {"labels": "3"}}).requests.labels == (3,)
