"""A change of structure makes the same images, logs, plans and figures as the commit before."""

from __future__ import annotations

import pytest
import torch

from tests.faults.in_process import in_process
from tests.same_bytes import CASES, machine, made, remembered


@pytest.mark.parametrize("case", CASES)
def test_every_bundled_pair_and_method_makes_the_same_as_before(case: str, monkeypatch: pytest.MonkeyPatch):
    known = remembered().get(machine())
    if known is None:
        pytest.skip(f"nothing is remembered for {machine()}; python -m tests.same_bytes")
    torch.set_num_threads(1)
    in_process(monkeypatch)
    assert made(case) == known[case]
