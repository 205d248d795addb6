"""Drivers as real processes: two at once, stopped and killed ones, and one whose credentials nobody may see."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.dataset.status import status
from jobs.dataset.validate import validate
from tests.chaos.dataset import Difference, Rows, compare, read_rows
from tests.seaweed import BUCKET, SECRET, SeaweedFS
from workers import layout
from workers.store import Store

_LIMIT_S = 300.0


class Driver:
    """`spd generate` with the null method, one worker and small shards."""

    def __init__(
        self, pair: str, output: str, log: Path, variables: dict[str, str], *sets: str, images: int = 40
    ) -> None:
        fields = {"output": output, "pair": pair, "method": "null", "features": False, "shard_size": 4}
        fields |= {"requests.count": images, "workers.count": 1, "workers.num_cpus": 0.5}
        given = [f"{name}={json.dumps(value)}" for name, value in fields.items()] + list(sets)
        command = [sys.executable, "-m", "jobs.cli", "generate", *(part for each in given for part in ("--set", each))]
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                env={**environment, "RAY_worker_niceness": "0", **variables},
                start_new_session=True,
            )

    def wait(self) -> int:
        return self.process.wait(_LIMIT_S)

    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, store: Store, commits: int) -> None:
        """Returns when so many shards are committed."""
        deadline = time.monotonic() + _LIMIT_S
        while len(store.list(layout.COMMITS)) < commits:
            assert time.monotonic() < deadline and self.process.poll() is None, self.said()
            time.sleep(0.05)


#: Images of a job that lasts long enough to be disturbed.
LONG = 240


def _made(pair: str, s3: SeaweedFS, folder: Path, images: int = 40) -> str:
    """Output of the job when nothing goes wrong, made with the credentials of the environment alone."""
    output = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    driver = Driver(pair, output, folder / "log", s3.variables, images=images)
    assert driver.wait() == 0, driver.said()
    assert "was at work" not in driver.said()
    assert validate(output, s3.options).problems == ()
    return output


@pytest.fixture(scope="module")
def finished(pair: str, s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> str:
    return _made(pair, s3, tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def undisturbed(pair: str, s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return read_rows(Store(_made(pair, s3, tmp_path_factory.mktemp("undisturbed"), LONG), s3.options))


@pytest.mark.parametrize("how", ["environment", "options"])
def test_every_command_works_on_s3(how, finished, s3, monkeypatch, capsys):
    given = []
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value) if how == "environment" else monkeypatch.delenv(name, raising=False)
    if how == "options":
        given = [part for name, value in s3.options.items() for part in ("--storage-option", f"{name}={value}")]
    before = read_rows(Store(finished, s3.options)), Store(finished, s3.options).read(layout.SUCCESS)
    assert main(["status", finished, *given]) == 0
    assert "finished; `spd validate" in capsys.readouterr().out
    assert main(["validate", finished, *given]) == 0
    assert "ok: 40 images, 10 shards" in capsys.readouterr().out
    assert main(["report", finished, *given]) == 0
    # The same shards give the same report, so that it may be written at any time.
    assert (read_rows(Store(finished, s3.options)), Store(finished, s3.options).read(layout.SUCCESS)) == before
    assert main(["validate", finished, *given]) == 0


@pytest.mark.slow
def test_two_drivers_make_one_dataset(pair, s3, undisturbed, tmp_path):
    output = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    store = Store(output, s3.options)
    first = Driver(pair, output, tmp_path / "first.log", s3.variables, images=LONG)
    first.wait_for(store, 1)
    # It may do next to nothing until the second one is up, so that both have something left to make.
    first.process.send_signal(signal.SIGSTOP)
    second = Driver(pair, output, tmp_path / "second.log", s3.variables, images=LONG)
    told = f"driver {socket.gethostname()}-{first.process.pid} was at work on this output"
    deadline = time.monotonic() + _LIMIT_S
    while told not in second.said():
        assert time.monotonic() < deadline and second.process.poll() is None, second.said()
        time.sleep(4.0)
        first.process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
        first.process.send_signal(signal.SIGSTOP)
    first.process.send_signal(signal.SIGCONT)
    assert (first.wait(), second.wait()) == (0, 0), first.said() + second.said()
    assert "both make the one dataset: each shard is committed once" in second.said()
    assert validate(output, s3.options).problems == ()
    assert compare(read_rows(store), undisturbed) == Difference()
    assert not store.exists(layout.DRIVER)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_is_stopped_or_killed_is_explained_and_resumed(how, pair, s3, undisturbed, tmp_path):
    output = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    store = Store(output, s3.options)
    driver = Driver(pair, output, tmp_path / "first.log", s3.variables, images=LONG)
    driver.wait_for(store, 5)
    driver.process.send_signal(how)
    assert driver.wait() == (128 + how if how == signal.SIGTERM else -how)
    found = status(output, s3.options)
    assert 5 <= found.committed < found.shards and not found.finished and not found.damaged
    if how == signal.SIGTERM:
        assert (
            driver.said().splitlines()[-1]
            == "spd: stopped by SIGTERM; committed shards remain, and the same command resumes"
        )
        assert found.state == "stopped" and "resumes" in found.next_step
    else:
        assert (
            found.state in ("running", "perhaps running", "killed") and f"-{driver.process.pid} was" in found.next_step
        )
    again = Driver(pair, output, tmp_path / "second.log", s3.variables, images=LONG)
    assert again.wait() == 0, again.said()
    assert compare(read_rows(store), undisturbed) == Difference()
    assert status(output, s3.options).finished


def test_credentials_are_nowhere_to_be_read(pair, s3, tmp_path, request):
    """Given in the spec, used for a whole job and for one that fails; then every byte that was left is searched."""
    output = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    given = f"storage_options={json.dumps(s3.options)}"
    # Ray puts sockets below it, whose paths may have 107 characters.
    ray = Path(tempfile.mkdtemp(prefix="spd-", dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(ray, ignore_errors=True))
    good = Driver(pair, output, tmp_path / "good.log", {"RAY_TMPDIR": str(ray)}, given)
    assert good.wait() == 0, good.said()
    wrong = {**s3.options, "secret": SECRET[::-1]}
    bad = Driver(pair, output, tmp_path / "bad.log", {}, f"storage_options={json.dumps(wrong)}")
    assert bad.wait() == 2
    assert bad.said().splitlines()[-1].startswith("spd: output: cannot ")
    store = Store(output, s3.options)
    left = {path: store.read(path) for path in store.list()}
    logs = [path for folder in (tmp_path, ray) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("worker-") for path in logs), "the workers' logs are among them"
    left |= {str(path): path.read_bytes() for path in logs}
    assert layout.PLAN in left and layout.REPORT_HTML in left and layout.CARD in left
    for path, raw in left.items():
        for secret in (SECRET, SECRET[::-1]):
            assert secret.encode() not in raw, path
