"""SphereAR: caches that can be rolled back, and mistakes that the reference numbers reject."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from spd_core.families.sphere import blocks, flow, head, model
from spd_core.families.sphere.blocks import on_sphere
from spd_core.families.sphere.flow import flow_path
from spd_core.families.sphere.head import FlowHead
from spd_core.families.sphere.model import Sphere, SphereConfig
from spd_core.families.sphere.vae import PowerSpherical, to_bytes
from spd_core.models.head import StepModulation
from tests.oracles import sphere as oracle_code
from tests.oracles.files import BUNDLED, failing
from tests.oracles.sphere import _begun

GENERATE = BUNDLED / "sphere_generate.json"


# Mistakes that pass unnoticed in pictures: each must move the whole generation out of its tolerance.


def _rows_first(prefix: int, grid: int, head_dim: int) -> Tensor:
    return blocks.rotary_table(prefix, grid, head_dim).roll(head_dim // 4, dims=1)


def _cells_from_the_corner(prefix: int, grid: int, head_dim: int) -> Tensor:
    table = blocks.rotary_table(prefix, grid, head_dim)
    return torch.cat([table[:prefix], table[prefix:] / table[prefix : prefix + 1]])


def _classes_not_rotated_but_zeroed(prefix: int, grid: int, head_dim: int) -> Tensor:
    return torch.cat([torch.zeros(prefix, head_dim // 2), blocks.rotary_table(prefix, grid, head_dim)[prefix:]])


_MODULATION, _CONTEXTS, _GUIDANCE = FlowHead.modulation, Sphere.contexts, flow.guidance


def _shift_before_scale(self: FlowHead, embedding: Tensor) -> StepModulation:
    made = _MODULATION(self, embedding)
    blocks = tuple((shift + 1, gain - 1, gate) for gain, shift, gate in made.blocks)
    return StepModulation(blocks, (made.final[1] + 1, made.final[0] - 1))


def _second_silu(self: FlowHead, embedding: Tensor) -> StepModulation:
    return _MODULATION(self, nn.functional.silu(embedding))


def _own_map_for_each_block(self: FlowHead, maps: list, final: tuple) -> StepModulation:
    return StepModulation(tuple(maps[i % len(maps)] for i in range(len(self.net.res_blocks))), final)


MISTAKES: dict[str, tuple[object, str, Callable[..., object]]] = {
    "rows before columns": (model, "rotary_table", _rows_first),
    "cells from the corner": (model, "rotary_table", _cells_from_the_corner),
    "class positions zeroed": (model, "rotary_table", _classes_not_rotated_but_zeroed),
    "shift before scale": (FlowHead, "modulation", _shift_before_scale),
    "a second SiLU": (FlowHead, "modulation", _second_silu),
    "maps not shared by consecutive blocks": (FlowHead, "_per_block", _own_map_for_each_block),
    "no table of positions": (Sphere, "placed", lambda self, context, first=None: context),
    "guidance of the next token": (oracle_code, "guidance", lambda c, s, i, n: _GUIDANCE(c, s, i + 1, n)),
    "guidance that reaches cfg": (oracle_code, "guidance", lambda c, s, i, n: _GUIDANCE(c, s, i, n - 1)),
    "tokens not normalised": (oracle_code, "on_sphere", lambda x: x),
    "sines first": (head, "time_features", lambda t: oracle_code.time_features(t).roll(128, dims=1)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_reference_rejects(mistake: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(*MISTAKES[mistake])
    assert failing(GENERATE, "lin4.5/tokens")


def test_the_reference_rejects_a_null_branch_that_reads_the_images_own_first_token(monkeypatch: pytest.MonkeyPatch):
    # A weight just above 1 pairs the branches at token 0 and changes nothing else.
    def paired(cfg: float, schedule: str, position: int, tokens: int) -> float:
        return max(_GUIDANCE(cfg, schedule, position, tokens), 1 + 1e-9) if cfg > 1 else 1.0

    monkeypatch.setattr(oracle_code, "guidance", paired)
    assert {key for key in failing(GENERATE) if key.endswith("tokens")} == {"lin4.5/tokens"}


@pytest.mark.parametrize(
    "change",
    [
        lambda p: {"mean_v": (*(v / (1 + t) for v, t in zip(p.mean_v[:-1], p.t, strict=False)), p.mean_v[-1])},
        lambda p: {"std": (*(s / math.sqrt(2) for s in p.std),)},
        lambda p: {"std": (*p.std[:-1], p.std[-2])},
        lambda p: {"mean_v": (*p.mean_v[:-1], 0.0)},
    ],
    ids=["drift of the flow alone", "half the noise", "noise in the last step", "no last step"],
)
def test_the_reference_rejects_a_path_with(change: Callable[..., dict], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        oracle_code, "flow_path", lambda s: flow.FlowPath(**{**flow_path(s).__dict__, **change(flow_path(s))})
    )
    assert failing(GENERATE, "lin4.5/tokens")


# The path.


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_a_path_predicts_data_and_ends_in_it(steps: int):
    path = flow_path(steps)
    assert len(path.t) == len(path.std) == len(path.c_x) == path.steps == steps + 1
    x, v = torch.randn(5, 16, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    for k in range(path.steps):
        by_velocity = flow.step(path, k, x, v, torch.zeros_like(x))
        by_data = path.c_x[k] * x + path.c_x1[k] * path.data(k, x, v)
        assert torch.allclose(by_velocity, by_data, atol=2e-5)
    assert path.c_x[-1] == pytest.approx(0, abs=1e-12) and path.std[-1] == 0


def test_a_perfect_head_makes_noise_of_the_last_step_only():
    # With v of one data point the state at 0.96 is about 0.96 y plus noise of std .0458 (100 steps).
    y = torch.ones(20_000, 1)
    path = flow_path(100)
    torch.manual_seed(0)
    states, _ = flow.sample(path, lambda k, x: (y - x) / (1 - path.t[k]), torch.randn(101, 20_000, 1))
    assert float(states[-2].std()) == pytest.approx(0.0458, rel=0.03)
    assert torch.allclose(states[-1], y, atol=1e-4)


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="got 0 stochastic steps, allowed: at least 1"):
        flow_path(0)


# Caches.

SMALL = SphereConfig(
    dim=32, n_layer=2, n_head=2, diff_dim=16, diff_layers=2, diff_adanln_layers=1, latent_dim=4, resolution=12,
    patch_size=4, cls_token_num=3, num_classes=5,
)  # fmt: skip


@pytest.fixture
def small() -> Sphere:
    torch.manual_seed(0)
    return Sphere(SMALL).eval().requires_grad_(False)


def test_passes_over_several_tokens_and_a_rollback_agree_with_the_whole_sequence(small: Sphere):
    labels, tokens = torch.tensor([2, -1]), on_sphere(torch.randn(2, 9, 4))
    previous = tokens.roll(1, dims=1)
    whole, cache = small(previous, labels), _begun(small, labels)
    small(torch.randn(2, 4, 4), labels, torch.tensor([0, 0]), cache)  # a rejected draft
    first = small(previous[:, :3], labels, torch.tensor([0, 0]), cache)
    rest = small(previous[:, 3:], labels, torch.tensor([3, 3]), cache)
    assert torch.allclose(torch.cat([first, rest], dim=1), whole, atol=1e-5)


def test_rows_at_different_tokens_and_new_images_in_their_places(small: Sphere):
    labels, tokens = torch.tensor([2, 4]), on_sphere(torch.randn(2, 9, 4))
    previous = tokens.roll(1, dims=1)
    cache = _begun(small, labels)
    small(previous[:, :5], labels, torch.tensor([0, 0]), cache)
    labels = torch.tensor([2, 1])
    small.begin(cache, torch.tensor([1]), labels[1:])
    mixed = torch.stack([previous[0, 5:7], previous[1, :2]])
    got, whole = small(mixed, labels, torch.tensor([5, 0]), cache), small(previous, labels)
    assert torch.allclose(got[0], whole[0, 5:7], atol=1e-5)
    assert torch.allclose(got[1], whole[1, :2], atol=1e-5)


def test_positions_past_the_image_are_padding(small: Sphere):
    labels, previous = torch.tensor([0]), torch.randn(1, 9, 4)
    cache = _begun(small, labels)
    whole = small(previous, labels)
    small(previous[:, :8], labels, torch.tensor([0]), cache)
    got = small(torch.cat([previous[:, 8:], torch.randn(1, 3, 4)], dim=1), labels, torch.tensor([8]), cache)
    assert torch.allclose(got[:, 0], whole[:, 8], atol=1e-5)


# The autoencoder.


def test_samples_of_the_power_spherical_law_follow_its_density():
    torch.manual_seed(1)
    mean = torch.nn.functional.normalize(torch.randn(16), dim=0)
    law = PowerSpherical(mean.expand(20_000, -1), torch.full((20_000,), 30.0))
    drawn = law.sample(torch.Generator().manual_seed(2))
    assert torch.allclose(drawn.norm(dim=-1), torch.ones(20_000), atol=1e-5)
    share = ((drawn @ mean + 1) / 2).double().numpy()
    assert kstest(share, "beta", (37.5, 7.5)).pvalue > 1e-3
    assert kstest(share, "beta", (36.5, 7.5)).pvalue < 1e-3
    assert float((drawn @ mean).mean()) == pytest.approx(30 / 45, abs=3e-3)


def test_the_power_spherical_density_integrates_to_one():
    torch.manual_seed(3)
    uniform = torch.nn.functional.normalize(torch.randn(200_000, 4, dtype=torch.float64), dim=-1)
    mean = torch.tensor([0.0, 0.6, 0.0, 0.8], dtype=torch.float64).expand(200_000, -1)
    law = PowerSpherical(mean, torch.full((200_000,), 5.0, dtype=torch.float64))
    area = 2 * math.pi**2
    assert float(law.log_prob(uniform).exp().mean()) * area == pytest.approx(1, abs=0.02)


def test_bytes_are_rounded_half_up():
    values = torch.linspace(-1.2, 1.2, 4001)
    wanted = torch.floor((values.double() + 1) / 2 * 255 + 0.5).clamp(0, 255).to(torch.uint8)
    assert (to_bytes(values) != wanted).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 30}, "dim a multiple of 4 n_head"),
        ({"resolution": 250}, "resolution a multiple of patch_size"),
        ({"diff_layers": 7}, "diff_layers a multiple"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SphereConfig(**fields)
