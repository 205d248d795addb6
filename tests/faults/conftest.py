from __future__ import annotations

import pytest

from tests.faults.in_process import images, in_process, job, run
from tests.seaweed import s3, s3_options
from tests.tiny_pair import make_tiny_pair

__all__ = ["s3", "s3_options"]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture(scope="session")
def undisturbed(pair: str) -> dict[str, bytes]:
    """What the job makes when nothing goes wrong."""
    with pytest.MonkeyPatch.context() as patch:
        in_process(patch)
        assert run(job(pair)) is None
        return images()
