"""What every decoder, codec and engine asks of a device stays within its budget; converted pairs run there as here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from spd_core.law import Cspd, Plain, Speculative
from tests.gpu import works
from tests.gpu.budgets import COUNTED, Budget, read_budgets, write_budgets
from tests.gpu.ledger import Ledger
from tests.gpu.pretend import CUDA, Missing, pretend_cuda
from tests.gpu.subjects import Counts


@pytest.fixture
def _device() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pretend_cuda(), torch.inference_mode():
            yield
    except Missing as missing:
        pytest.skip(f"needs {missing}")
    finally:
        torch.set_num_threads(threads)


def test_everything_that_is_counted_has_a_budget():
    assert read_budgets().keys() == COUNTED.keys() >= NEAR


#: Those whose loops are nearly another's.
NEAR = {
    "MAR-H plain",
    "MAR-B windows, batch 4",
    "causal annealed",
    "causal coupled",
    "SphereAR-B plain",
    "SphereAR-B windows",
    "SphereAR-B speculative",
    "LlamaGen-XL tree, XL<-B",
}


@pytest.mark.usefixtures("_device")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in NEAR)) for name in COUNTED])
def test_budget(name: str):
    over = read_budgets()[name].exceeded_by(COUNTED[name].count())
    assert not over, "\n".join([name, *over])


def test_a_budget_that_is_exceeded_names_the_lines():
    ledger = Ledger()
    ledger.launches["spd_core.families.mar.plain:decode_plain:40"] = 33
    ledger.syncs["item", "spd_core.families.mar.plain:decode_plain:41"] = 9
    counts = Counts("token", ledger, units=3)
    assert Budget("token", launches=11, syncs=3).exceeded_by(counts) == []
    assert Budget("token", launches=10, syncs=2).exceeded_by(counts) == [
        "3 syncs a token, allowed: 2",
        "        9 syncs     spd_core.families.mar.plain:decode_plain:41 (item)",
    ]
    assert Budget("token", launches=9, syncs=3).exceeded_by(counts) == [
        "11 launches a token, allowed: 10",
        "       33 launches  spd_core.families.mar.plain:decode_plain:40",
    ]


def test_budgets_are_written_as_they_are_read(tmp_path: Path):
    path, name = tmp_path / "budgets.yaml", "MAR-B plain"
    ledger = Ledger()
    ledger.launches["a"], ledger.syncs["item", "b"] = 7, 2
    write_budgets({name: Counts("iteration", ledger, units=3)}, path)
    assert read_budgets(path) == {name: Budget("iteration", launches=2, syncs=0.67)}


@pytest.mark.usefixtures("_device")
@pytest.mark.parametrize(
    ("make", "method"),
    [
        (works.converted_mar, Plain()),
        (works.converted_mar, Plain(head_window=(2,))),
        (works.converted_mar, Cspd(gamma=2)),
        (works.converted_codes, Plain()),
        (works.converted_codes, Speculative(gamma=3)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_converted_pair_makes_the_images_it_makes_on_a_cpu(make: Callable, method, tmp_path: Path):
    folder = make(tmp_path)
    (there, on_device), (here, on_cpu) = (works.decoded(folder, device, method) for device in (CUDA, works.CPU))
    tokens = on_device.tokens.cpu()
    assert torch.allclose(tokens.float(), on_cpu.tokens.float(), atol=1e-3)
    assert (there.to_images(on_device.tokens).int() - here.to_images(on_cpu.tokens).int()).abs().max() <= 1


@pytest.mark.usefixtures("_device")
def test_the_engine_makes_the_shard_it_makes_on_a_cpu(tmp_path: Path):
    pair = works.make_tiny_pair(tmp_path / "pair")
    there, here = (works.engine(tmp_path, pair, Plain(), device).make(works.SHARD) for device in ("cuda:0", "cpu"))
    assert there.images == here.images
    assert (there.features == here.features).all()
