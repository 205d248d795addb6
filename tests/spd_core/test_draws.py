"""The counter-based generator: known answers, distribution, and independence from everything but its arguments."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from scipy import stats

from spd_core import draws as draws_module
from spd_core.draws import Draws, Purpose, image_seed, philox
from tests.cpu_graph import cpu_graphs


def _words(value):
    return torch.tensor([value])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """The published known-answer vectors of Philox4x32-10 (Random123)."""
    words = philox(tuple(map(_words, counter)), tuple(map(_words, key)))
    assert tuple(int(word) for word in words) == expected


def _draws(count=4, seed=0):
    return Draws(torch.tensor([image_seed(seed, str(i)) for i in range(count)]))


def test_normals_and_uniforms_have_their_law():
    draws, rows = _draws(1), torch.zeros(64, dtype=torch.int64)
    normals = draws.normals(Purpose.STEP, rows, torch.arange(64), 1000).flatten().numpy()
    uniforms = draws.uniforms(Purpose.ACCEPT, rows, torch.arange(64), 1000).flatten().numpy()
    assert stats.kstest(normals, "norm").pvalue > 1e-3
    assert stats.kstest(uniforms, "uniform").pvalue > 1e-3
    assert uniforms.min() > 0
    assert uniforms.max() < 1


def test_fine_uniforms_are_multiples_of_two_to_the_minus_53_and_have_their_law():
    draws, rows = _draws(1), torch.zeros(64, dtype=torch.int64)
    uniforms = draws.fine_uniforms(Purpose.CODE, rows, torch.arange(64), 1000).flatten()
    assert uniforms.dtype == torch.float64
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    whole = (uniforms * 2.0**53).long()
    assert torch.equal(whole.double() * 2.0**-53, uniforms)
    for bit in range(53):
        ones = int(((whole >> bit) & 1).sum())
        assert stats.binomtest(ones, len(whole)).pvalue > 1e-5, f"bit {bit}"
    assert stats.kstest(uniforms.numpy(), "uniform").pvalue > 1e-3
    # The fine digits, too, are uniform and have nothing to do with the coarse ones.
    fine = (uniforms * 2.0**23).frac().numpy()
    assert stats.kstest(fine, "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(fine, uniforms.numpy()).statistic) < 0.02


def test_a_draw_depends_on_its_arguments_only():
    """The same image in another batch, at another place, in another order, gets the same numbers."""
    draws, other = _draws(4), Draws(_draws(4).seeds.flip(0))
    one = draws.normals(Purpose.STEP, torch.tensor([1]), torch.tensor([7]), 10, round_R=3, attempt=2)
    many = other.normals(Purpose.STEP, torch.tensor([0, 2, 3]), torch.tensor([5, 7, 7]), 10, round_R=3, attempt=2)
    assert torch.equal(one[0], many[1])
    assert not torch.equal(one[0], many[0])


@pytest.mark.parametrize("changed", ["purpose", "token", "round", "attempt", "image"])
def test_every_argument_changes_the_numbers(changed):
    draws = _draws(2)
    base = {"purpose": Purpose.STEP, "image_R": torch.tensor([0]), "token_R": torch.tensor([1]), "count": 8}
    other = dict(base)
    match changed:
        case "purpose":
            other["purpose"] = Purpose.START
        case "token":
            other["token_R"] = torch.tensor([2])
        case "round":
            other["round_R"] = 1
        case "attempt":
            other["attempt"] = 1
        case "image":
            other["image_R"] = torch.tensor([1])
    assert not torch.equal(draws.uniforms(**base), draws.uniforms(**other))


BITS = {"seed": 63, "token": 32, "round": 32, "attempt": 24}


def _numbers(name, values):
    """Eight numbers of each value of one argument, the others fixed."""
    values = torch.tensor(values)
    seeds = values if name == "seed" else torch.full_like(values, 77)
    rows, fixed = torch.arange(len(values)), torch.full_like(values, 5)
    token, number, attempt = (values if name == part else fixed for part in ("token", "round", "attempt"))
    return Draws(seeds).uniforms(Purpose.STEP, rows, token, 8, number, attempt)


@pytest.mark.parametrize("name", BITS)
def test_every_bit_of_an_argument_counts(name):
    """Above all those past the eighth, the sixteenth and the thirty-second."""
    values = [0, *(1 << bit for bit in range(BITS[name]))]
    numbers = _numbers(name, values)
    assert len({tuple(row) for row in numbers.tolist()}) == len(values)


DRAWS_MUTANTS = {
    "the seed's high 32 bits dropped": (
        "seed",
        lambda seed, token, number, tag: (seed & 0xFFFFFFFF, token, number, tag),
    ),
    "tokens mod 256": ("token", lambda seed, token, number, tag: (seed, token & 0xFF, number, tag)),
    "rounds mod 65536": ("round", lambda seed, token, number, tag: (seed, token, number & 0xFFFF, tag)),
    "attempts mod 256": ("attempt", lambda seed, token, number, tag: (seed, token, number, tag & ~0xFFFF00)),
    "attempt left out": ("attempt", lambda seed, token, number, tag: (seed, token, number, tag & ~0xFFFFFF)),
    "token and round swapped": ("token", lambda seed, token, number, tag: (seed, number, number, tag)),
}


@pytest.mark.parametrize("name", DRAWS_MUTANTS)
def test_counters_that_lose_bits_are_caught(name):
    argument, wrong = DRAWS_MUTANTS[name]
    right = draws_module._words_of

    def words(seed, token, number, tag, blocks):
        return right(*wrong(seed, token, number, tag), blocks)

    with patch.object(draws_module, "_words_of", words), pytest.raises(AssertionError):
        test_every_bit_of_an_argument_counts(argument)


def test_round_may_differ_by_row():
    draws, image, token = _draws(1), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    rows = draws.uniforms(Purpose.ACCEPT, image, token, round_R=torch.tensor([0, 5]))
    assert torch.equal(rows[1:], draws.uniforms(Purpose.ACCEPT, image[:1], token[:1], round_R=5))


def test_orders_are_uniform_permutations():
    draws = _draws(3000)
    orders = draws.orders(8)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(8).expand(3000, -1))
    first = torch.bincount(orders[:, 0], minlength=8).numpy()
    assert stats.chisquare(first).pvalue > 1e-3


def test_orders_with_equal_first_words_are_uniform_too():
    """The second word decides; the raster order would make token 0 come first."""
    draws = _draws(3000)
    words = draws._words

    def equal_first_words(purpose, image_R, token_R, count, round_R, attempt):
        made = words(purpose, image_R, token_R, count, round_R, attempt).clone()
        made[:, : count // 2] = 7
        return made

    draws._words = equal_first_words
    orders = draws.orders(8)
    assert stats.chisquare(torch.bincount(orders[:, 0], minlength=8).numpy()).pvalue > 1e-3


def test_image_seeds_differ_and_fit_int64():
    seeds = {image_seed(job, f"{i:08d}") for job in range(3) for i in range(1000)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_attempt_may_differ_by_row_and_gives_the_words_of_one_draw_an_attempt():
    draws, image, token = _draws(1), torch.zeros(3, dtype=torch.int64), torch.arange(3)
    attempts = torch.arange(5)
    rows = torch.arange(3).repeat_interleave(5)
    many = draws.normals(Purpose.PROPOSAL, image[rows], token[rows], 6, 2, attempts.repeat(3)).view(3, 5, 6)
    for attempt in range(5):
        assert torch.equal(many[:, attempt], draws.normals(Purpose.PROPOSAL, image, token, 6, 2, attempt))


_KERNEL_AGAINST_REFERENCE = """
import torch
from spd_core.draws import reference_words
from spd_core.philox_kernel import words

for rows, blocks in ((0, 1), (1, 1), (7, 5), (300, 130)):
    generator = torch.Generator().manual_seed(rows)
    row = [torch.randint(high, (rows,), generator=generator) for high in (2**63 - 1, 2**12, 2**32, 2**32)]
    assert torch.equal(words(*row, blocks), reference_words(*row, blocks)), (rows, blocks)
"""


def test_the_kernel_makes_the_words_of_the_reference():
    """In a process of its own: Triton decides when it is imported whether it interprets kernels on the CPU."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed; on a GPU the kernel is checked at its first use")
    command = [sys.executable, "-c", _KERNEL_AGAINST_REFERENCE]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_KERNEL_FOR_A_DEVICE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from spd_core import philox_kernel

pointers = dict.fromkeys(("seed_ptr", "token_ptr", "round_ptr", "tag_ptr", "out_ptr"), "*i64")
signature = {**pointers, "blocks": "i32", "total": "i32", "COUNTERS": "constexpr"}
source = ASTSource(fn=philox_kernel._words, signature=signature, constexprs={"COUNTERS": 256})
assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_the_kernel_compiles_for_an_h100():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    done = subprocess.run([sys.executable, "-c", _KERNEL_FOR_A_DEVICE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_draws_are_the_same_from_graphs():
    draws, image, token = _draws(2), torch.tensor([0, 1, 1]), torch.tensor([3, 4, 5])

    def drawn():
        made = [draws.normals(Purpose.STEP, image, token, 10, round_R=r) for r in range(3)]
        made += [draws.uniforms(Purpose.ACCEPT, image, token, 3, round_R=token), draws.fine_uniforms(1, image, token)]
        return [*made, *draws.proposals(Purpose.HEAD_PROPOSAL, image, token, 4, 3), draws.orders(9)]

    directly = drawn()
    with cpu_graphs() as recorded:
        replayed = drawn()
    assert all(torch.equal(a, b) for a, b in zip(directly, replayed, strict=True))
    assert sorted(set(recorded)) == ["fine uniforms", "normals", "proposals", "uniforms", "words"]
    assert len(recorded) == 5
