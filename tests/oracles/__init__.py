"""Reference outputs of the public code ("oracles") reproduced with our own model code.

``python -m tests.oracles FILE.json ...`` loads an oracle's weights under strict keys, runs our code on its inputs and
compares every output by its stated tolerance. A new kind is one function and one line of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from tests.oracles import decoding, llamagen, mar, sphere, vae
from tests.oracles.base import Finding, Oracle, OracleError, compare, load_oracle, one_line, select


def _inception_fid(oracle: Oracle) -> dict[str, Tensor]:
    # The one kind that needs scipy, which a bare machine lacks.
    from tests.oracles.inception import inception_fid

    return inception_fid(oracle)


#: What makes the outputs of an oracle, by kind.
KINDS: dict[str, Callable[[Oracle], dict[str, Tensor]]] = {
    "mar_forward": mar.mar_forward,
    "mar_head": mar.mar_head,
    "mar_diffusion": mar.mar_diffusion,
    "mar_train_loss": mar.mar_train_loss,
    "mar_sample_tokens": decoding.mar_sample_tokens,
    "cspd_released": decoding.cspd_released,
    "mar_vae_encoder": vae.mar_vae_encoder,
    "mar_vae_decoder": vae.mar_vae_decoder,
    "llamagen_gpt": llamagen.llamagen_gpt,
    "llamagen_vq_encoder": llamagen.llamagen_vq_encoder,
    "llamagen_vq_decoder": llamagen.llamagen_vq_decoder,
    "inception_fid": _inception_fid,
    "sphere_forward": sphere.sphere_forward,
    "sphere_head": sphere.sphere_head,
    "sphere_sampler": sphere.sphere_sampler,
    "sphere_generate": sphere.sphere_generate,
    "sphere_vae_encoder": sphere.sphere_vae_encoder,
    "sphere_vae_decoder": sphere.sphere_vae_decoder,
}


def check(path: Path, device: torch.device | str = "cpu", key: str = "") -> list[Finding]:
    """One finding per output of the oracle at ``path``, made on a device; with a key, of that output's run alone.

    Raises:
        OracleError: not an oracle of a known kind, or one that does not fit together; one line.
    """
    oracle = load_oracle(path).of_run(key).to(device)
    kind = select(KINDS, oracle.name)
    try:
        with torch.no_grad(), torch.device(device):
            made = KINDS[kind](oracle)
        return compare(oracle, {key: value.cpu() for key, value in made.items()})
    except OracleError:
        raise
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "config"
        raise OracleError(f"config {field}: got {problem['input']!r}, allowed: {problem['msg']}") from error
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # Whatever torch says of tensors that do not fit the configuration; the shapes were declared by the file.
        raise OracleError(f"its tensors do not fit its config: {one_line(error)}; allowed: a {kind} oracle") from error


__all__ = ["KINDS", "Finding", "OracleError", "check"]
