"""Oracles of whole decoding loops: plain MAR sampling and the released CSpD runner."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from spd_core.accept import cspd as acceptance
from spd_core.accept.paths import Gaussian
from spd_core.codec import unpatchify
from spd_core.draws import Purpose
from spd_core.families.mar import cspd, plain
from spd_core.families.mar import iterations as decoding
from spd_core.families.mar.model import Mar
from spd_core.law import Cspd, SamplerLaw
from tests.oracles.base import Named, Oracle, OracleError
from tests.oracles.mar import load_mar
from tests.oracles.table_draws import RoundTable, TableDraws


def _law(run: Named, model: Mar) -> SamplerLaw:
    return SamplerLaw(
        num_iter=run["num_iter"],
        head_steps=model.config.num_sampling_steps,
        cfg=run["cfg"],
        cfg_schedule=run["schedule"],
        temperature=run["temperature"],
    )


def _lengths(tokens: int, num_iter: int) -> tuple[Tensor, Tensor]:
    """Mask-length table [num_iter] and tokens made by each iteration [num_iter]."""
    table = decoding.mask_lengths(tokens, num_iter)
    left = [tokens, *decoding.left_after(table)]
    made = [before - after for before, after in itertools.pairwise(left)]
    return torch.tensor(table), torch.tensor(made)


def _sampled(model: Mar, law: SamplerLaw, labels: Tensor, draws: TableDraws) -> dict[str, Tensor]:
    """One run of the plain decoder; ``gen_step`` comes from the rows that its iterations made."""
    length = model.config.seq_len
    table, made = _lengths(length, law.num_iter)
    with recorded((plain, "mar_step")) as iterations:
        tokens = plain.decode_plain(model, law, labels, draws).tokens
    generated = torch.full_like(draws.order, -1)
    for step, iteration in zip(made.nonzero()[:, 0].tolist(), iterations, strict=True):
        rows, _ = iteration.result
        generated[rows.image, rows.token] = step
    return {
        "latent": unpatchify(tokens, model.config.patch_size),
        "tokens": tokens,
        "mask_len": table,
        "n_pred": made,
        "cfg_scale": torch.tensor([decoding.guidance_scale(law, length, masked) for masked in table.tolist()]),
        "gen_step": generated,
    }


def mar_sample_tokens(oracle: Oracle) -> dict[str, Tensor]:
    """The plain decoder with given orders and noise, and the mask schedule's tables."""
    config, inputs = oracle.config, oracle.inputs
    model = load_mar(config["mar"], oracle.weights)
    outputs: dict[str, Tensor] = {}
    for run in config.runs():
        labels = inputs["labels"] if run["labels"] else torch.full_like(inputs["labels"], -1)
        draws = TableDraws(inputs["orders"], inputs["init_noise"], inputs["step_noise"])
        values = _sampled(model, _law(run, model), labels, draws)
        outputs |= {f"{run['name']}/{name}": value for name, value in values.items()}
    for tokens, num_iter in config["mask_len_tables"]:
        table, made = _lengths(tokens, num_iter)
        outputs |= {f"mask_len/S{tokens}/T{num_iter}": table, f"n_pred/S{tokens}/T{num_iter}": made}
    return outputs


@dataclass(frozen=True)
class Call:
    """A call of one of our functions, as it was on return."""

    name: str
    args: tuple[Any, ...]
    result: Any


@contextmanager
def recorded(*functions: tuple[ModuleType, str]) -> Iterator[list[Call]]:
    """Lists, in order of return, the calls made inside through the modules' own names for the functions."""
    calls: list[Call] = []

    def spy(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **named: Any) -> Any:
            result = function(*args, **named)
            calls.append(Call(name, args, result))
            return result

        return called

    with ExitStack() as stack:
        for module, name in functions:
            stack.enter_context(patch.object(module, name, spy(name, getattr(module, name))))
        yield calls


def _stacked_alphas(calls: list[Call], rows: int) -> Tensor:
    """[tries, R]: of every attempt that was made, whether or not its row was still open."""
    alphas = [call.result for call in calls if call.name == "thinning"]
    return torch.cat(alphas, dim=1).T if alphas else torch.zeros(0, rows)


def _same_rounds(alphas: Tensor, rounds: int) -> Tensor:
    """Cut or filled with NaN to a number of rounds: how many there are is `n_tries`' business, and a wrong value."""
    missing = alphas.new_full((max(0, rounds - len(alphas)), alphas.shape[1]), torch.nan)
    return torch.cat([alphas[:rounds], missing])


def _verification(calls: list[Call], index: Tensor) -> dict[str, Tensor]:
    """Outputs of one verification from its calls of the acceptance functions."""
    by_name = {call.name: call for call in calls}
    draft_sum, target_sum = by_name["log_path_factor"].args
    target, draft, x = by_name["tempered_log_ratio"].args[:3]
    log_ratio, accepted = by_name["accept"].args[0], by_name["accept"].result
    resampled = by_name.get("resample_released")
    fresh, tries = resampled.result if resampled else (x, torch.zeros(1))
    return {
        "index": index,
        "accept": accepted.to(torch.uint8),
        "prob": log_ratio.exp(),
        "log_factor": log_ratio - by_name["tempered_log_ratio"].result,
        "draft": x,
        "draft_mean": draft.mean,
        "draft_std": draft.std,
        "draft_logstd_sum": draft_sum,
        "target_mean": target.mean,
        "target_std": target.std,
        "target_logstd_sum": target_sum,
        "result": torch.where(accepted[:, None], x, fresh),
        "n_tries": tries.max(),
        "proposal_alpha": _stacked_alphas(calls, len(x)),
    }


def _decoded(target: Mar, draft: Mar, run: Named, labels: Tensor, draws: TableDraws) -> dict[str, Tensor]:
    """One run of the released variant with everything it decided on the way."""
    # The public runner makes one target step even at a share of 0, which our decoder reads as none.
    method = Cspd(
        variant="released",
        gamma=run["num_draft"],
        prefill=max(run["ratio"], 1e-9),
        inner_temperature=run["inner_temperature"],
        unresolved="zeros",
    )
    of_decoder = ("mar_step", "log_path_factor", "resample_released")
    of_test = ("tempered_log_ratio", "accept", "thinning")
    watched = [*((cspd, name) for name in of_decoder), *((acceptance, name) for name in of_test)]
    with recorded(*watched) as calls:
        tokens = cspd.decode_cspd(target, draft, _law(run, target), method, labels, draws).tokens
    judged = [r for r in draws.requests if r.purpose is Purpose.ACCEPT]
    outputs = {"tokens": tokens, "latent": unpatchify(tokens, target.config.patch_size)}
    sequence: list[tuple[int, int, int]] = []
    block: list[Call] = []
    drafted = number = 0
    for at, call in enumerate(calls):
        if call.name == "mar_step":
            who, masked, left = call.args[0].who, call.args[1].masked, call.args[1].left
            sequence.append((0 if who == "target" else 1, max(left, 1), masked - left))
            drafted += 0 if who == "target" else masked - left
            continue
        block.append(call)
        if at + 1 == len(calls) or calls[at + 1].name == "mar_step":
            index = torch.stack([judged[number].image, judged[number].token], dim=1)
            outputs |= {f"v{number}/{name}": value for name, value in _verification(block, index).items()}
            sequence.append((2, sequence[-1][1], drafted))
            block, drafted, number = [], 0, number + 1
    return outputs | {"calls": torch.tensor(sequence)}


def _rounds(oracle: Oracle, run: str) -> tuple[RoundTable, ...]:
    """Acceptance and proposal numbers of a run; their rows are those of the stated index."""
    tables: list[RoundTable] = []
    while f"{run}/v{len(tables)}/uniform_accept" in oracle.inputs:
        given = oracle.inputs.under(f"{run}/v{len(tables)}")
        index = oracle.expected[f"{run}/v{len(tables)}/index"]
        accept = given["uniform_accept"]
        none = torch.zeros(0, len(accept), 1)
        noise, keep = given.get("proposal_noise", none), given.get("proposal_uniform", none[..., 0])
        if not len(index) == len(accept) == noise.shape[1] == keep.shape[1]:
            raise OracleError(f"inputs {given.where}: tables of different length, allowed: one row per index row")
        tables.append(RoundTable(index, accept, noise, keep))
    return tuple(tables)


def _unit(inputs: Named, inner_temperature: float) -> dict[str, Tensor]:
    """Acceptance test and residual sampler alone."""
    target = Gaussian(inputs["target_mean"], inputs["target_std"])
    draft = Gaussian(inputs["draft_mean"], inputs["draft_std"])
    x, noise, keep = inputs["x"], inputs["proposal_noise"], inputs["proposal_uniform"]
    log_factor = -acceptance.log_path_factor(inputs["draft_logstd_sum"], inputs["target_logstd_sum"])
    log_ratio = acceptance.tempered_log_ratio(target, draft, x, inner_temperature) + log_factor
    accepted = acceptance.accept(log_ratio, inputs["uniform_accept"])
    fresh, tries = x, torch.zeros(1)
    row = torch.arange(len(x))

    def propose(attempt_RT: Tensor) -> tuple[Tensor, Tensor]:
        held = attempt_RT.clamp(max=len(noise) - 1), row[:, None]
        beyond = attempt_RT >= len(noise)
        return noise[held].masked_fill(beyond[..., None], torch.nan), keep[held].masked_fill(beyond, torch.nan)

    with recorded((acceptance, "thinning")) as calls:
        if not bool(accepted.all()):
            fresh, tries = acceptance.resample_released(target, draft, log_factor, row * 0, propose)
    return {
        "prob": log_ratio.exp(),
        "log_factor": log_factor,
        "accept": accepted.to(torch.uint8),
        "result": torch.where(accepted[:, None], x, fresh),
        "n_tries": tries.max(),
        "proposal_alpha": _stacked_alphas(calls, len(x)),
    }


def cspd_released(oracle: Oracle) -> dict[str, Tensor]:
    """The released variant end to end, and the unit case of its acceptance functions."""
    config, inputs = oracle.config, oracle.inputs
    target, draft = (load_mar(config[n], oracle.weights.under(n), n) for n in ("target", "draft"))
    outputs: dict[str, Tensor] = {}
    for run in config.runs():
        rounds = _rounds(oracle, run["name"])
        draws = TableDraws(inputs["orders"], inputs["noise"], inputs["inter_noise"], rounds)
        values = _decoded(target, draft, run, inputs["labels"], draws)
        outputs |= {f"{run['name']}/{name}": value for name, value in values.items()}
    if "unit_inner_temperature" in config:
        values = _unit(inputs.under("unit"), config["unit_inner_temperature"])
        outputs |= {f"unit/{name}": value for name, value in values.items()}
    for key in (key for key in outputs if key.endswith("/proposal_alpha") and key in oracle.expected):
        outputs[key] = _same_rounds(outputs[key], len(oracle.expected[key]))
    return outputs
