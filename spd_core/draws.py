"""Counter-based random numbers: every draw is a pure function of (image seed, purpose, token, round, attempt).

No batch, worker, rank or clock enters, so an image keeps its draws whatever it is decoded with. Generator:
Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), on the device of the seeds.

Shape legend: B images of a batch, R rows (one token of one image each), N tokens of an image.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from enum import IntEnum
from functools import cache, lru_cache

import torch
from torch import Tensor

from spd_core.capture import Captured

_LOGGER = logging.getLogger(__name__)
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Purpose(IntEnum):
    """What a random number is for; a value, once published, never changes its meaning."""

    ORDER = 0  #: generation order of the tokens
    START = 1  #: start noise of a token's path, shared by draft and target when aligned
    STEP = 2  #: step noise of a token's path, shared by draft and target when aligned
    START_TARGET = 3  #: start noise of the target's own path when not aligned
    STEP_TARGET = 4  #: step noise of the target's own path when not aligned
    ACCEPT = 5  #: uniform of an acceptance test
    PROPOSAL = 6  #: proposal noise of a resampling
    PROPOSAL_KEEP = 7  #: uniform of the test of a proposal
    HEAD_ACCEPT = 8  #: uniforms of head self-speculation, one a step
    HEAD_PROPOSAL = 9  #: residual proposals of one step in head self-speculation
    PATH_PROPOSAL = 10  #: residual proposals of a whole path: start noise, step noise, and the uniforms of their tests
    CODE = 11  #: the code that the target draws itself
    CODE_DRAFT = 12  #: drafted codes, one a node of the draft tree


def image_seed(job_seed: int, request_id: str) -> int:
    """The image's seed, 0 <= seed < 2**63, from the job's seed and the request's id."""
    digest = hashlib.blake2b(f"{job_seed}:{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words of 32 random bits per counter; all tensors int64 holding 32-bit values, broadcast together."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    even, odd = torch.stack([c0, c2]), torch.stack([c1, c3])
    bumps, multipliers = _constants(c0.device)
    keys = (torch.stack(torch.broadcast_tensors(*key)) + bumps.view(_ROUNDS, 2, *[1] * key[0].dim())) & _MASK
    multipliers = multipliers.view(2, *[1] * c0.dim())
    for round_key in keys:
        # The 64-bit product wraps in int64; its bits are right, so shift and mask give both halves.
        product = even * multipliers
        high = product.flip(0)
        low = high & _MASK
        even, odd = (high >> 32).bitwise_and_(_MASK).bitwise_xor_(odd).bitwise_xor_(round_key), low
    return even[0], odd[0], even[1], odd[1]


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """What each round adds to the two keys [rounds, 2], and the two multipliers [2]."""
    with torch.inference_mode(False):
        bumps = torch.tensor([[n * weyl for weyl in _WEYL] for n in range(_ROUNDS)], device=device)
        return bumps, torch.tensor(_MULTIPLIERS, device=device)


def reference_words(seed_R: Tensor, token_R: Tensor, round_R: Tensor, tag_R: Tensor, blocks: int) -> Tensor:
    """int64 [R, 4 blocks] words of 32 random bits.

    Args:
        seed_R: image seeds, int64 [R].
        token_R: int64 [R].
        round_R, tag_R: int64 [R], or [] for all rows.
        blocks: counters of a row.
    """
    seed, block = seed_R[:, None], torch.arange(blocks, device=seed_R.device)[None]
    rounds, tag = (x[:, None] if x.dim() else x for x in (round_R, tag_R))
    words = philox((block, token_R[:, None], rounds, tag), (seed & _MASK, (seed >> 32) & _MASK))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)


def _words_of(seed_R: Tensor, token_R: Tensor, round_R: Tensor, tag_R: Tensor, blocks: int) -> Tensor:
    """`reference_words`, on a CUDA device by one kernel where Triton can make it."""
    kernel = _kernel(seed_R.device) if seed_R.device.type == "cuda" else None
    if kernel is None:
        return reference_words(seed_R, token_R, round_R, tag_R, blocks)
    rows = (x.expand_as(seed_R).contiguous() for x in (token_R, round_R, tag_R))
    return kernel(seed_R.contiguous(), *rows, blocks)


@cache
def _kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """The kernel, if it can be built on this machine and makes the reference's words."""
    if torch.version.cuda is None:
        return None
    try:
        from spd_core.philox_kernel import words

        known = torch.arange(8, device=device)
        arguments = (known * 0x1234567890AB, known, known + 1, known + 2, 3)
        if torch.equal(words(*arguments), reference_words(*arguments)):
            return words
        reason = "its words are wrong"
    except Exception as error:  # no Triton, no C compiler, a driver it does not know: the reference does the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    _LOGGER.warning("random numbers: by many kernels on %s, the one of Triton cannot be used: %s", device, reason)
    return None


def _open_uniform(words: Tensor) -> Tensor:
    return ((words >> 9).float() + 0.5) * 2.0**-23


def _box_muller(words: Tensor) -> Tensor:
    u = (words.float() + 0.5) * 2.0**-32
    u1, u2 = u.chunk(2, dim=1)
    radius, angle = torch.sqrt(-2.0 * torch.log(u1)), (2 * math.pi) * u2
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)


def _uniforms(seed_R: Tensor, token_R: Tensor, round_R: Tensor, tag_R: Tensor, count: int) -> tuple[Tensor, ...]:
    return (_open_uniform(_words_of(seed_R, token_R, round_R, tag_R, _blocks(count))[:, :count]),)


def _fine_uniforms(seed_R: Tensor, token_R: Tensor, round_R: Tensor, tag_R: Tensor, count: int) -> tuple[Tensor, ...]:
    words = _words_of(seed_R, token_R, round_R, tag_R, _blocks(2 * count))
    high, low = words[:, :count], words[:, count : 2 * count]
    return (((high << 21) | (low >> 11)).double() * 2.0**-53,)


def _normals(seed_R: Tensor, token_R: Tensor, round_R: Tensor, tag_R: Tensor, count: int) -> tuple[Tensor, ...]:
    return (_box_muller(_words_of(seed_R, token_R, round_R, tag_R, _blocks(count)))[:, :count],)


def _proposals(
    seed_R: Tensor, token_R: Tensor, round_R: Tensor, tag_R: Tensor, count: int, dims: int
) -> tuple[Tensor, ...]:
    normals = 2 * -(-count * dims // 2)
    words = _words_of(seed_R, token_R, round_R, tag_R, _blocks(count + normals))
    uniforms, rest = words[:, :count], words[:, count : count + normals]
    return _box_muller(rest)[:, : count * dims].view(-1, count, dims), _open_uniform(uniforms)


def _blocks(count: int) -> int:
    """Counters that make ``count`` words."""
    return -(-count // 4)


def _only_words(seed_R: Tensor, token_R: Tensor, round_R: Tensor, tag_R: Tensor, blocks: int) -> tuple[Tensor, ...]:
    return (_words_of(seed_R, token_R, round_R, tag_R, blocks),)


#: Of rows and numbers; each graph is a dozen kernels.
MOST_SIZES = 256
_WORDS = Captured(_only_words, "words")
_UNIFORMS, _FINE_UNIFORMS = (
    Captured(_uniforms, "uniforms", MOST_SIZES),
    Captured(_fine_uniforms, "fine uniforms", MOST_SIZES),
)
_NORMALS, _PROPOSALS = Captured(_normals, "normals", MOST_SIZES), Captured(_proposals, "proposals", MOST_SIZES)


@lru_cache(maxsize=4096)
def _number(value: int, device: torch.device) -> Tensor:
    """int64 []: kept, for on a GPU every new one is a copy that is waited for."""
    with torch.inference_mode(False):
        return torch.tensor(value, device=device)


class Draws:
    """Random numbers of a batch of images.

    Args:
        seeds_B: int64 image seeds, 0 <= seed < 2**63; their device is where the numbers are made.
    """

    def __init__(self, seeds_B: Tensor) -> None:
        self.seeds = seeds_B

    def _draw(
        self,
        made: Captured,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        round_R: Tensor | int,
        attempt_R: Tensor | int,
        **sizes: int,
    ) -> tuple[Tensor, ...]:
        device = self.seeds.device
        number = round_R if isinstance(round_R, Tensor) else _number(round_R, device)
        kind = int(purpose) << 24
        tag = attempt_R | kind if isinstance(attempt_R, Tensor) else _number(kind | attempt_R, device)
        return made.fresh(self.seeds[image_R], token_R, number, tag, **sizes)

    def _words(
        self, purpose: Purpose, image_R: Tensor, token_R: Tensor, count: int, round_R: Tensor | int, attempt: int
    ) -> Tensor:
        """int64 [R, 4 * ceil(count / 4)] words of 32 random bits."""
        sizes = {"blocks": _blocks(count)}
        return self._draw(_WORDS, purpose, image_R, token_R, round_R, attempt, **sizes)[0]

    def uniforms(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int = 1,
        round_R: Tensor | int = 0,
        attempt: Tensor | int = 0,
    ) -> Tensor:
        """float32 [R, count], each in the open interval (0, 1).

        Args:
            purpose: what the numbers are for.
            image_R, token_R: int64 image (index into the batch) and token of each row.
            count: numbers per row.
            round_R: round of a speculative decoder, a tensor [R] or one number.
            attempt: which try of a rejection loop, a tensor [R] or one number.
        """
        return self._draw(_UNIFORMS, purpose, image_R, token_R, round_R, attempt, count=count)[0]

    def fine_uniforms(self, purpose: Purpose, image_R: Tensor, token_R: Tensor, count: int = 1) -> Tensor:
        """float64 [R, count], multiples of 2**-53 in [0, 1): for distributions over many outcomes.

        A `uniforms` number has 23 bits: it moves each outcome's probability by up to 2**-24, which over 16,384 codes
        sums to a total variation of about 3e-4, and codes rarer than that are never drawn. Arguments as for `uniforms`.
        """
        return self._draw(_FINE_UNIFORMS, purpose, image_R, token_R, 0, 0, count=count)[0]

    def normals(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int,
        round_R: Tensor | int = 0,
        attempt: Tensor | int = 0,
    ) -> Tensor:
        """Standard normals, float32 [R, count] (Box-Muller); arguments as for `uniforms`."""
        return self._draw(_NORMALS, purpose, image_R, token_R, round_R, attempt, count=count)[0]

    def proposals(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int,
        dims: int,
        round_R: Tensor | int = 0,
        attempt: Tensor | int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Of one stream, standard normals [R, count, dims] and uniforms [R, count]; arguments as for `uniforms`."""
        normals, uniforms = self._draw(_PROPOSALS, purpose, image_R, token_R, round_R, attempt, count=count, dims=dims)
        return normals, uniforms

    def orders(self, tokens: int) -> Tensor:
        """A uniformly random generation order [B, N] (int64 permutation of the raster indices) per image."""
        images = torch.arange(len(self.seeds), device=self.seeds.device)
        words = self._words(Purpose.ORDER, images, torch.zeros_like(images), 2 * tokens, 0, 0)
        # A second word decides between equal first ones: of 1,024 tokens two share one in every 8,000th image.
        keys = (words[:, :tokens] << 31) | (words[:, tokens : 2 * tokens] >> 1)
        return torch.argsort(keys, dim=1, stable=True)
