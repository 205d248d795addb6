"""The pretend device itself: what it refuses, what it counts, and that what runs on it is right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from spd_core.capture import Captured
from spd_core.decode import Decoded
from spd_core.draws import Draws
from spd_core.families.mar import plain
from spd_core.law import SamplerLaw
from tests.gpu import models
from tests.gpu.budgets import Budget
from tests.gpu.pretend import CUDA, RECORDER, Missing, MixedDevices, PretendTensor, SyncInCapture, pretend_cuda
from tests.gpu.subjects import Subject


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pretend_cuda():
            yield
    except Missing as missing:
        pytest.skip(f"needs {missing}")
    finally:
        torch.set_num_threads(threads)


def on_device(*values: float) -> torch.Tensor:
    return torch.tensor(values).to(CUDA)


def counted(run) -> tuple[int, int]:
    """Launches and syncs of a function."""
    with RECORDER.recording() as ledger:
        run()
    return ledger.launched, ledger.synced


def test_a_tensor_says_where_it_is_and_computes():
    x = on_device(1.0, 2.0)
    assert x.device == CUDA and x.is_cuda and isinstance(x, PretendTensor)
    assert (x * 3 + 1).cpu().tolist() == [4.0, 7.0]
    assert torch.arange(3, device="cuda").device == CUDA
    assert (x.to("cpu").device, x.cpu().is_cuda) == (torch.device("cpu"), False)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(2),
        lambda x: torch.cat([x, torch.ones(2)]),
        lambda x: F.linear(x[None], torch.ones(3, 2)),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: torch.ones(2)[x.long()],
        lambda x: x.index_put_((torch.tensor([0]),), x[:1]),
        lambda x: F.scaled_dot_product_attention(*3 * [x[None, None, None]], attn_mask=torch.ones(1, 1) > 0),
    ],
)  # fmt: skip
def test_two_devices_in_one_operation_are_refused(mix):
    with pytest.raises(MixedDevices, match=r"on the CPU|two devices"), torch.inference_mode():
        mix(on_device(0.0, 1.0))


def test_a_number_on_the_cpu_may_enter_an_elementwise_operation():
    assert (on_device(2.0) * torch.tensor(3.0)).tolist() == [6.0]


@pytest.mark.parametrize(
    ("run", "launches", "syncs"),
    [
        (lambda x: x.view(2, 1).transpose(0, 1)[0], 0, 0),
        (lambda x: x + x, 1, 0),
        (lambda x: x.add_(1), 1, 0),
        (lambda x: F.layer_norm(x, (2,)), 1, 0),
        (lambda x: x[0].item(), 0, 1),
        (lambda x: bool(x[0]), 0, 1),
        (lambda x: x.tolist(), 0, 1),
        (lambda x: x.cpu(), 0, 1),
        (lambda x: x.to("cpu", non_blocking=True), 0, 0),
        (lambda x: torch.tensor([1], device=x.device), 0, 1),
        (lambda x: x.nonzero(), 4, 1),
        (lambda x: torch.where(x > 0, x, 0), 3, 0),
        (lambda x: x[x > 0], 6, 1),
        (lambda x: torch.cuda.synchronize(), 0, 1),
    ],
)
def test_launches_and_syncs_are_counted(run, launches, syncs):
    x = on_device(1.0, 2.0)
    with torch.inference_mode():
        assert counted(lambda: run(x)) == (launches, syncs)


def test_filling_by_a_mask_needs_no_sync():
    def fill() -> None:
        x = torch.zeros(3, device=CUDA)
        x[torch.ones(3, device=CUDA) > 0] = 1.0
        assert x.held.tolist() == [1.0, 1.0, 1.0]

    assert counted(fill)[1] == 0


def test_products_run_in_bfloat16_under_autocast():
    x, weight = torch.ones(1, 2, device=CUDA), torch.ones(2, 2, device=CUDA)
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        assert F.linear(x, weight).dtype is torch.bfloat16
        assert F.layer_norm(x, (2,)).dtype is torch.float32
        heads = x[None, None]
        assert F.scaled_dot_product_attention(heads, heads, heads).dtype is torch.bfloat16


def _squared(x: torch.Tensor, times: int = 1) -> tuple[torch.Tensor]:
    for _ in range(times):
        x = x * x
    return (x,)


def test_a_captured_region_is_one_launch_and_its_inputs_copy():
    square = Captured(_squared, "square")
    assert square(on_device(3.0), times=2)[0].tolist() == [81.0]
    with RECORDER.recording() as ledger:
        assert square(on_device(2.0), times=2)[0].tolist() == [16.0]
    assert ledger.replays["square"] == 1
    assert ledger.kernels["graph square"] == 2
    region = RECORDER.regions["square"]
    assert region.graphs == 1 and region.launches >= 2


def test_a_wait_in_a_captured_region_is_an_error_that_names_it():
    waits = Captured(lambda x: (x * x.sum().item(),), "waits")
    with pytest.raises(SyncInCapture, match="item inside the captured region waits"):
        waits(on_device(1.0))


# A deliberate fault in a decoder's loop.


def decode(decoder, grid: int = 2, device: torch.device = CUDA) -> Decoded:
    model = models.mar(models.mar_config("base", narrow=True, grid=grid), device)
    labels = torch.zeros(1, dtype=torch.int64, device=device)
    law = SamplerLaw(num_iter=grid, head_steps=3, cfg=2.0)
    with torch.inference_mode():
        return decoder(model, law, labels, Draws(torch.zeros_like(labels)))


def over_a_budget_without_syncs(decoder) -> list[str]:
    subject = Subject("iteration", (2, 4), lambda grid: lambda: decode(decoder, grid))
    return Budget("iteration", launches=10**6, syncs=0).exceeded_by(subject.count())


def in_the_loop(use):
    """Every iteration of plain decoding also uses the tokens that it has made."""
    right = plain.mar_step

    def step(*given, **named):
        rows, paths = right(*given, **named)
        use(paths.x0)
        return rows, paths

    return patch.object(plain, "mar_step", step)


def test_an_item_in_a_decoders_loop_exceeds_its_budget_and_is_named():
    assert over_a_budget_without_syncs(plain.decode_plain) == []
    with in_the_loop(lambda made: made.sum().item()):
        said, line = over_a_budget_without_syncs(plain.decode_plain)
    assert said == "1 syncs a iteration, allowed: 0"
    assert re.search(r"2 syncs +spd_core\.families\.mar\.plain:decode_plain:\d+ \(item\)$", line)


def test_a_cpu_tensor_in_a_device_index_is_named():
    said = r"an index \(1,\) on the CPU, at spd_core.families.mar.plain:decode_plain:\d+"
    with in_the_loop(lambda made: made[torch.tensor([0])]), pytest.raises(MixedDevices, match=said):
        decode(plain.decode_plain)


def test_tokens_are_those_of_the_cpu():
    on_pretend = decode(plain.decode_plain).tokens.cpu()
    on_cpu = decode(plain.decode_plain, device=torch.device("cpu")).tokens
    assert torch.allclose(on_pretend, on_cpu, atol=1e-4)
