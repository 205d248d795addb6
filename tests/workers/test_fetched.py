"""Files that a user names by path or URL."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from spd_core.quality.files import QualityError
from workers import fetched
from workers.fetched import local_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_path_is_taken_as_it_is(tmp_path: Path, cache: Path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    assert local_file("quality.weights", str(tmp_path / "w.pth")) == tmp_path / "w.pth"
    assert not cache.exists()


def test_a_url_is_fetched_once_and_keeps_its_name(cache: Path, monkeypatch: pytest.MonkeyPatch):
    url = f"memory://{uuid.uuid4().hex}/pt-6726825d.pth"
    fsspec.filesystem("memory").pipe_file(url, b"weights")
    path = local_file("quality.weights", url)
    assert path.read_bytes() == b"weights" and path.name.endswith("-pt-6726825d.pth")
    monkeypatch.setattr(fetched.shutil, "copyfileobj", None)
    assert local_file("quality.weights", url) == path
    assert [each.name for each in (cache / "files").iterdir()] == [path.name]


@pytest.mark.parametrize("place", ["nowhere.pth", "memory://nowhere/w.pth", "nosuch://a/w.pth"])
def test_a_file_that_is_not_there_is_one_line(place: str):
    with pytest.raises(QualityError, match=r"^quality\.weights: .*allowed: a file or a URL") as caught:
        local_file("quality.weights", place)
    assert "\n" not in str(caught.value)
