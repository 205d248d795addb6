"""The oracle of the published metrics: the Inception network of 2015, and the metrics on given feature sets."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spd_core.quality.frechet import Moments, frechet_distance
from spd_core.quality.inception import BLOCKS, Inception, resize
from spd_core.quality.published import (
    KID_SEED,
    chunks_in,
    chunks_of,
    inception_score,
    precision_recall,
    published_kid,
)
from tests.oracles.base import Oracle, OracleError


def recipe_weights(salt: str = "") -> dict[str, Tensor]:
    """Weights by the oracle's recipe: every tensor is a function of its name."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Inception().state_dict().items() if "tracked" not in name}
    return {name: _weight(name, tuple(shape), salt) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...], salt: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256((name + salt).encode("ascii")).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    z = (2 * ((raw >> np.uint64(11)) * 2.0**-53) - 1) * np.sqrt(3)
    if name.endswith("conv.weight"):
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("bn.weight"):
        z = 1 + 0.15 * z
    elif name.endswith("bn.bias"):
        z = 0.1 + 0.15 * z
    elif name.endswith("running_mean"):
        z = 0.1 * z
    elif name.endswith("running_var"):
        z = np.exp(0.3 * z)
    elif name == "fc.weight":
        z = z * 3 / np.sqrt(2048)
    else:
        z = 0.5 * z
    return torch.from_numpy(z.astype(np.float32).reshape(shape))


def recipe_network(salt: str = "") -> Inception:
    """The network with the recipe's weights, in eval mode."""
    network = Inception()
    network.load_state_dict(recipe_weights(salt), strict=False)
    return network.eval().requires_grad_(False)


def inception_fid(oracle: Oracle) -> dict[str, Tensor]:
    """Resized images, stages, features and logits of every image; the metrics of every feature set."""
    weights = oracle.config["weights"]
    network = recipe_network(weights["salt"])
    outputs: dict[str, Tensor] = {}
    for case, image in oracle.inputs.under("image").items():
        outputs |= {f"{name}/{case}": value for name, value in network_outputs(network, image).items()}
    return outputs | metrics(oracle.inputs.under("set"), oracle.config["sets"])


def network_outputs(network: Inception, image: Tensor) -> dict[str, Tensor]:
    resized, stages, features = resize(image.float()), network.stages(image), network(image)
    sums = torch.stack([resized.double().sum(), resized.double().square().sum()])[None]
    logits = network.logits(features.pool)
    made = {
        "resized_slice": resized[..., ::23, ::23],
        "resized_sums": sums,
        "stem": torch.cat([stages[name].mean(dim=(2, 3)) for name in ("64", "192")], dim=1),
        "spatial": features.spatial,
        "features": features.pool,
        "logits_unbiased": logits,
        "logits": network.fc(features.pool)[:, :64],
        "softmax": logits.double().softmax(dim=1)[:, :64],
    }
    return made | {f"block_mean/{name}": stages[name].mean(dim=(2, 3))[:, ::8] for name, _, _ in BLOCKS}


def metrics(sets: Any, config: dict[str, str]) -> dict[str, Tensor]:
    one, two, small1, small2, logits = (sets[name] for name in ("1", "2", "small1", "small2", "logits"))
    found = re.search(r"(\d+) subsets of (\d+)", config["kid"])
    chunk = re.search(r"chunks of (\d+)", config["isc/adm"])
    if found is None or chunk is None:
        raise OracleError("config sets: kid or isc/adm is of another form, allowed: 'N subsets of M', 'chunks of N'")
    # One subset of all: the order of the draw does not matter.
    count = min(len(one), len(two))
    kid, in_all = published_kid(one, two, *map(int, found.groups())), published_kid(one[:count], two[:count], 1, count)
    shuffled = logits[torch.from_numpy(np.random.RandomState(KID_SEED).permutation(len(logits)))]
    in_order, mixed = (inception_score(x, chunks_in(len(x))) for x in (logits, shuffled))
    support = precision_recall(one, two)
    values = {
        "frechet/full_rank": frechet_distance(*(Moments.from_features(x) for x in (one, two))),
        "frechet/rank_deficient": frechet_distance(*(Moments.from_features(x) for x in (small1, small2))),
        "kid/subsets_mean": kid.mean,
        "kid/subsets_std": kid.std,
        "kid/all": in_all.mean,
        "isc/in_order_mean": in_order.mean,
        "isc/in_order_std": in_order.std,
        "isc/shuffled_2020_mean": mixed.mean,
        "isc/shuffled_2020_std": mixed.std,
        "isc/adm_split200": inception_score(logits, chunks_of(len(logits), int(chunk.group(1)))).mean,
        "prc/precision": support.precision,
        "prc/recall": support.recall,
    }
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}
