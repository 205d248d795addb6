"""Pairs that are URLs: fetched once per node, verified, kept; held against a server that counts what it is asked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.job.plan import check_weights
from jobs.job.spec import load_spec
from jobs.words.errors import SpecError
from spd_core.pairs.pair import PairError, load_card, load_pair, pair_folder
from tests.tiny_pair import make_tiny_pair
from workers import pair_cache


@dataclass
class Server:
    url: str
    folder: Path
    asked: Counter[str] = field(default_factory=Counter)  #: bodies sent, by file
    fail: Counter[str] = field(default_factory=Counter)  #: answers of 503 to come, by file


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *given: object, server_state: Server, **more: object) -> None:
        self.state = server_state
        super().__init__(*given, **more)

    def do_GET(self) -> None:
        name = Path(self.path.partition("?")[0]).name
        if self.state.fail[name] > 0:
            self.state.fail[name] -= 1
            self.send_error(503)
            return
        self.state.asked[name] += 1
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "remote"
    make_tiny_pair(folder / "tiny")
    state = Server("", folder / "tiny")
    handler = partial(_Handler, server_state=state, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{running.server_port}/tiny"
        monkeypatch.setenv("SPD_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(pair_cache, "_cards", {})
        monkeypatch.setattr(pair_cache, "LONGEST_WAIT_S", 0.01)
        yield state
        running.shutdown()


def test_a_fetched_pair_is_the_pair(server: Server):
    here, there = load_pair(server.url), load_pair(str(server.folder))
    assert here.card == there.card
    for name, value in there.target.state_dict().items():
        assert value.equal(here.target.state_dict()[name])
    assert load_spec(None, [f"pair={server.url}/"]).pair == f"{server.url}/"


def test_the_card_alone_fetches_no_weights(server: Server):
    load_card(server.url)
    check_weights(server.url, load_card(server.url).sha256)
    assert set(server.asked) == {"pair.json"}


def test_a_pair_is_fetched_once_for_all_jobs(server: Server):
    first = pair_folder(server.url)
    pair_cache._cards.clear()  # as in another process
    assert pair_folder(server.url) == first
    assert server.asked["target.safetensors"] == server.asked["draft.safetensors"] == 1
    assert first.stat().st_mode & 0o077 == 0


def test_processes_that_start_together_fetch_once(server: Server):
    code = f"from workers import pair_cache\nprint(pair_cache.fetch({server.url!r}, True))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    crowd = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    folders = {each.communicate(timeout=120)[0] for each in crowd}
    assert len(folders) == 1 and not any(each.returncode for each in crowd)
    assert server.asked["target.safetensors"] == server.asked["draft.safetensors"] == 1


def test_where_nothing_can_be_locked_both_fetch_and_the_file_is_whole(server: Server, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refused)
    threads = [threading.Thread(target=pair_folder, args=(server.url,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load_pair(server.url)
    assert not list(pair_folder(server.url).glob("*.part"))


def test_bytes_that_are_not_the_cards_are_refused_and_not_kept(server: Server, tmp_path: Path):
    weights = server.folder / "target.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(PairError, match=r"tiny/target\.safetensors has sha256 .*allowed: .*its card"):
        pair_folder(server.url)
    assert not list((tmp_path / "cache").rglob("target*")) and not list((tmp_path / "cache").rglob("*.part"))


def test_a_file_that_was_changed_or_left_unfinished_is_fetched_again(server: Server):
    folder = pair_folder(server.url)
    (folder / "target.safetensors").write_bytes(b"changed")
    (folder / ".killed.part").write_bytes(b"half")
    load_pair(server.url)
    assert server.asked["target.safetensors"] == 2 and server.asked["draft.safetensors"] == 1
    assert not (folder / ".killed.part").exists()


def test_a_pair_that_changed_is_another_one(server: Server):
    first = pair_folder(server.url)
    card = json.loads((server.folder / "pair.json").read_text())
    (server.folder / "pair.json").write_text(json.dumps({**card, "licence": "other"}))
    assert pair_folder(server.url) == first  # one process sees one pair
    pair_cache._cards.clear()
    assert pair_folder(server.url) != first and load_card(server.url).licence == "other"


def test_a_server_that_is_busy_is_asked_again(server: Server):
    server.fail.update({"pair.json": 2, "target.safetensors": 2})
    load_pair(server.url)
    pair_cache._cards.clear()
    server.fail["pair.json"] = 1000
    with pytest.raises(PairError, match="pair: cannot read http"):
        load_card(server.url)


@pytest.mark.parametrize("part", ["../../evil", "/etc/x", ".hidden", "a b"])
def test_a_card_cannot_name_a_file_outside_its_folder(server: Server, part: str, tmp_path: Path):
    card = json.loads((server.folder / "pair.json").read_text())
    card["sha256"][part] = hashlib.sha256(b"evil").hexdigest()
    (server.folder / "pair.json").write_text(json.dumps(card))
    with pytest.raises(PairError, match="has a part"):
        pair_folder(server.url)
    assert not (tmp_path / "cache" / "evil.safetensors").exists()


def test_wrong_urls_are_one_line_and_show_no_secret(server: Server):
    for url in (f"{server.url}/none?sig=hunter2", "memory://nothing/here", "http://127.0.0.1:9/x?sig=hunter2"):
        with pytest.raises(SpecError, match="pair: cannot read") as caught:
            load_spec(None, [f"pair={url}"])
        assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="did you mean s3://bucket/pair"):
        load_spec(None, ["pair=s3:/bucket/pair"])
    with pytest.raises(SpecError, match="is not a pair card"):
        (server.folder / "pair.json").write_text("no")
        load_spec(None, [f"pair={server.url}"])


def test_a_query_goes_with_every_file(server: Server):
    assert pair_folder(f"{server.url}?token=abc") == pair_folder(server.url)


def test_a_cache_that_others_can_write_to_is_not_used(server: Server, tmp_path: Path, monkeypatch):
    shared = tmp_path / "shared"
    (shared / "pairs").mkdir(parents=True)
    (shared / "pairs").chmod(0o777)
    monkeypatch.setenv("SPD_CACHE", str(shared))
    with pytest.raises(PairError, match=r"SPD_CACHE: no place for pairs .*others can write to it"):
        pair_folder(server.url)


def test_a_user_without_a_home_has_a_cache(monkeypatch, tmp_path: Path):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SPD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert pair_cache.cache_folder() == tmp_path / f"spd-{os.getuid()}" / "pairs"


def test_a_full_disk_is_one_line(server: Server, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    load_card(server.url)
    monkeypatch.setattr(pair_cache, "_put", full)
    with pytest.raises(PairError, match=r"cannot keep .*No space left on device, allowed: an SPD_CACHE with room"):
        pair_folder(server.url)
