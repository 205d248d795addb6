"""Counter-based random numbers: every draw is a pure function of (image seed, purpose, token, round, attempt).

No batch, worker, rank or clock enters, so an image keeps its draws whatever it is decoded with. Generator:
Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), on the device of the seeds.

Shape legend: B images of a batch, R rows (one token of one image each), N tokens of an image.
"""

from __future__ import annotations

import hashlib
import math
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

#: Version of the random numbers of a family: changes when equal seeds begin to give other images. Codes were drawn by
#: numbers of 23 bits in version 1, by numbers of 53 bits since.
VERSION_OF_PATHS, VERSION_OF_CODES = 1, 2


class Purpose(IntEnum):
    """What a random number is for; a value, once published, never changes its meaning."""

    ORDER = 0  #: generation order of the tokens
    START = 1  #: start noise of a token's path, shared by draft and target when aligned
    STEP = 2  #: step noise of a token's path, shared by draft and target when aligned
    START_TARGET = 3  #: start noise of the target's own path when not aligned
    STEP_TARGET = 4  #: step noise of the target's own path when not aligned
    ACCEPT = 5  #: uniform of an acceptance test
    PROPOSAL = 6  #: proposal noise of a resampling
    PROPOSAL_KEEP = 7  #: uniform that keeps or drops a proposal
    HEAD_ACCEPT = 8  #: uniforms of head self-speculation, one a step
    HEAD_PROPOSAL = 9  #: residual proposals of one step in head self-speculation
    PATH_PROPOSAL = 10  #: residual proposals of a whole path: start noise, step noise, and what keeps or drops them
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
    bumps = torch.tensor([[n * weyl for weyl in _WEYL] for n in range(_ROUNDS)], device=c0.device)
    keys = (torch.stack(torch.broadcast_tensors(*key)) + bumps.view(_ROUNDS, 2, *[1] * key[0].dim())) & _MASK
    multipliers = torch.tensor(_MULTIPLIERS, device=c0.device).view(2, *[1] * c0.dim())
    for round_key in keys:
        # The 64-bit product wraps in int64; its bits are right, so shift and mask give both halves.
        product = even * multipliers
        high = product.flip(0)
        low = high & _MASK
        even, odd = (high >> 32).bitwise_and_(_MASK).bitwise_xor_(odd).bitwise_xor_(round_key), low
    return even[0], odd[0], even[1], odd[1]


def _open_uniform(words: Tensor) -> Tensor:
    return ((words >> 9).float() + 0.5) * 2.0**-23


def _box_muller(words: Tensor) -> Tensor:
    u = (words.float() + 0.5) * 2.0**-32
    u1, u2 = u.chunk(2, dim=1)
    radius, angle = torch.sqrt(-2.0 * torch.log(u1)), (2 * math.pi) * u2
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)


class Draws:
    """Random numbers of a batch of images.

    Args:
        seeds_B: int64 image seeds, 0 <= seed < 2**63; their device is where the numbers are made.
    """

    def __init__(self, seeds_B: Tensor) -> None:
        self.seeds = seeds_B

    def _words(
        self, purpose: Purpose, image_R: Tensor, token_R: Tensor, count: int, round_R: Tensor | int, attempt: int
    ) -> Tensor:
        """int64 [R, 4 * ceil(count / 4)] words of 32 random bits."""
        seeds = self.seeds[image_R][:, None]
        blocks = torch.arange(-(-count // 4), device=seeds.device)[None]
        rounds = round_R[:, None] if isinstance(round_R, Tensor) else torch.tensor(round_R, device=seeds.device)
        tag = torch.tensor((int(purpose) << 24) | attempt, device=seeds.device)
        words = philox((blocks, token_R[:, None], rounds, tag), (seeds & _MASK, (seeds >> 32) & _MASK))
        return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)

    def uniforms(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int = 1,
        round_R: Tensor | int = 0,
        attempt: int = 0,
    ) -> Tensor:
        """float32 [R, count], each in the open interval (0, 1).

        Args:
            purpose: what the numbers are for.
            image_R, token_R: int64 image (index into the batch) and token of each row.
            count: numbers per row.
            round_R: round of a speculative decoder, a tensor [R] or one number.
            attempt: which try of a rejection loop.
        """
        words = self._words(purpose, image_R, token_R, count, round_R, attempt)[:, :count]
        return _open_uniform(words)

    def fine_uniforms(self, purpose: Purpose, image_R: Tensor, token_R: Tensor, count: int = 1) -> Tensor:
        """float64 [R, count], multiples of 2**-53 in [0, 1): for distributions over many outcomes.

        A `uniforms` number has 23 bits: it moves each outcome's probability by up to 2**-24, which over 16,384 codes
        sums to a total variation of about 3e-4, and codes rarer than that are never drawn. Arguments as for `uniforms`.
        """
        words = self._words(purpose, image_R, token_R, 2 * count, 0, 0)
        high, low = words[:, :count], words[:, count : 2 * count]
        return ((high << 21) | (low >> 11)).double() * 2.0**-53

    def normals(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int,
        round_R: Tensor | int = 0,
        attempt: int = 0,
    ) -> Tensor:
        """Standard normals, float32 [R, count] (Box-Muller); arguments as for `uniforms`."""
        return _box_muller(self._words(purpose, image_R, token_R, count, round_R, attempt))[:, :count]

    def proposals(
        self,
        purpose: Purpose,
        image_R: Tensor,
        token_R: Tensor,
        count: int,
        dims: int,
        round_R: Tensor | int = 0,
        attempt: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Of one stream, standard normals [R, count, dims] and uniforms [R, count]; arguments as for `uniforms`."""
        words = self._words(purpose, image_R, token_R, count + 2 * -(-count * dims // 2), round_R, attempt)
        uniforms, rest = words[:, :count], words[:, count : count + 2 * -(-count * dims // 2)]
        return _box_muller(rest)[:, : count * dims].view(-1, count, dims), _open_uniform(uniforms)

    def orders(self, tokens: int) -> Tensor:
        """A uniformly random generation order [B, N] (int64 permutation of the raster indices) per image."""
        images = torch.arange(len(self.seeds), device=self.seeds.device)
        words = self._words(Purpose.ORDER, images, torch.zeros_like(images), 2 * tokens, 0, 0)
        # A second word decides between equal first ones: of 1,024 tokens two share one in every 8,000th image.
        keys = (words[:, :tokens] << 31) | (words[:, tokens : 2 * tokens] >> 1)
        return torch.argsort(keys, dim=1, stable=True)
