"""Reading an oracle, loading its weights strictly, and comparing outputs by its tolerance rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class OracleError(ValueError):
    """A file that is not an oracle of this kind or does not fit it; the message is one line without the file's name."""


class Named(dict[str, Any]):
    """A mapping whose missing keys are an `OracleError` that says what is missing from where."""

    def __init__(self, where: str, items: Mapping[str, Any]) -> None:
        super().__init__(items)
        self.where = where

    def __missing__(self, key: str) -> Any:
        held = ", ".join(sorted(self)) or "nothing"
        raise OracleError(f"{self.where}: {key!r} is missing, got {held[:120]}, allowed: a file that holds it")

    def under(self, prefix: str) -> Named:
        """The entries below ``prefix/``, with the prefix cut off."""
        return Named(f"{self.where} {prefix}/", {k[len(prefix) + 1 :]: v for k, v in self.items() if _below(k, prefix)})

    def runs(self) -> list[Named]:
        """The list of runs of a configuration."""
        return [Named(f"config run {i}", run) for i, run in enumerate(self["runs"])]


def _below(key: str, prefix: str) -> bool:
    return key.startswith(prefix + "/")


@dataclass(frozen=True)
class Rule:
    """Tolerance of one output: ``|got - reference| <= atol + rtol |reference|``; exact when both are zero."""

    atol: float | Tensor
    rtol: float = 0.0

    def allowed(self, reference: Tensor) -> Tensor:
        atol = self.atol
        if isinstance(atol, Tensor):
            atol = atol.double().view(-1, *[1] * (reference.dim() - 1))
        return atol + self.rtol * reference.abs()


@dataclass(frozen=True)
class Oracle:
    """One reference: configuration, weights under the official keys, inputs, expected outputs and their tolerances."""

    name: str
    config: Named
    weights: Named
    inputs: Named
    expected: Named
    rules: dict[str, Rule]

    def of_run(self, key: str) -> Oracle:
        """With the run alone that makes the output ``key``; the same oracle if no run of its configuration does."""
        runs = [run for run in self.config.get("runs", ()) if key.startswith(f"{run['name']}/")]
        if not runs:
            return self
        names = tuple(f"{run['name']}/" for run in runs)
        return replace(
            self,
            config=Named(self.config.where, {**self.config, "runs": runs}),
            expected=Named(self.expected.where, {k: v for k, v in self.expected.items() if k.startswith(names)}),
        )

    def to(self, device: torch.device | str) -> Oracle:
        """With weights and inputs on a device; what is expected stays on the CPU, where it is compared."""
        weights, inputs = (
            Named(part.where, {key: value.to(device) for key, value in part.items()})
            for part in (self.weights, self.inputs)
        )
        return replace(self, weights=weights, inputs=inputs)


@dataclass(frozen=True)
class Finding:
    """How far one output is from its reference."""

    key: str
    error: float  #: largest absolute difference; inf where ours is not a number
    share: float  #: largest difference over what is allowed there; inf for a difference where none is allowed

    @property
    def passed(self) -> bool:
        return self.share <= 1.0


def load_oracle(path: Path) -> Oracle:
    """Reads FILE.json and FILE.safetensors beside it.

    Raises:
        OracleError: a file that is missing, unreadable, or not of this form.
    """
    try:
        card = json.loads(path.read_text())
    except OSError as error:
        raise OracleError(f"cannot be read: {error.strerror}; allowed: an oracle's FILE.json") from error
    except ValueError as error:
        raise OracleError(f"is not JSON ({error}); allowed: an oracle's FILE.json") from error
    if not (isinstance(card, dict) and isinstance(card.get("oracle"), str) and isinstance(card.get("config"), dict)):
        raise OracleError("is not an oracle's card, allowed: a JSON object with 'oracle', 'config' and 'tolerance'")
    tensors_path = path.with_suffix(".safetensors")
    try:
        tensors = load_file(tensors_path)
    except (OSError, SafetensorError) as error:
        raise OracleError(f"cannot read {tensors_path.name} beside it: {one_line(error)}") from error
    _check_declared(card.get("tensors"), tensors)
    parts = {p: {k[len(p) + 1 :]: v for k, v in tensors.items() if _below(k, p)} for p in ("w", "in", "out", "tol")}
    return Oracle(
        name=card["oracle"],
        config=Named("config", card["config"]),
        weights=Named("weights", parts["w"]),
        inputs=Named("inputs", parts["in"]),
        expected=Named("outputs", parts["out"]),
        rules=_rules(card.get("tolerance"), parts["out"], parts["tol"]),
    )


def _check_declared(declared: Any, tensors: Mapping[str, Tensor]) -> None:
    """The card's list of tensors, where there is one, must be what the file holds."""
    if not isinstance(declared, dict):
        return
    held = {k: f"{str(v.dtype).removeprefix('torch.')}[{','.join(map(str, v.shape))}]" for k, v in tensors.items()}
    for key in sorted(declared.keys() | held.keys()):
        if declared.get(key) != held.get(key):
            raise OracleError(f"tensor {key}: got {held.get(key, 'none')}, allowed: {declared.get(key, 'none')} (card)")


def _rules(tolerance: Any, expected: Mapping[str, Tensor], per_row: Mapping[str, Tensor]) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    try:
        for group in tolerance:
            for key in group["keys"]:
                rules[key] = _rule(group["rule"], per_row.get(key))
    except (TypeError, KeyError, ValueError) as error:
        raise OracleError(f"tolerance: {one_line(error)}; allowed: a list of {{rule, keys}}") from error
    for key in sorted(expected.keys() ^ rules.keys()):
        missing = "a tolerance" if key in expected else "an output tensor"
        raise OracleError(f"{key}: {missing} is missing, allowed: one tolerance for every output")
    if not rules:
        raise OracleError("holds no outputs, allowed: at least one output with a tolerance")
    return rules


def _rule(raw: Any, per_row: Tensor | None) -> Rule:
    if raw == "exact":
        return Rule(0.0)
    if "per_row_atol" in raw:
        if per_row is None:
            raise ValueError("a per-row tolerance without its tol/ tensor")
        return Rule(per_row)
    if unknown := set(raw) - {"atol", "rtol"}:
        raise ValueError(f"unknown rule {sorted(unknown)}")
    return Rule(float(raw.get("atol", 0.0)), float(raw.get("rtol", 0.0)))


def load_strict(module: Module, weights: Mapping[str, Tensor], what: str) -> Module:
    """Loads float32 weights with strict keys and shapes; the module is returned in eval mode.

    Raises:
        OracleError: names the first key that is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        got = list(weights[key].shape) if key in weights else "none"
        allowed = list(own[key].shape) if key in own else "none"
        if got != allowed:
            raise OracleError(f"{what} weight {key}: got {got}, allowed: {allowed}")
    module.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    return module.eval().requires_grad_(False)


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items()}


def compare(oracle: Oracle, got: Mapping[str, Tensor]) -> list[Finding]:
    """One finding per expected output.

    Raises:
        OracleError: an output our code does not make, or one of another shape.
    """
    findings = []
    for key, reference in oracle.expected.items():
        if key not in got:
            raise OracleError(f"output {key}: unknown here, allowed: {', '.join(sorted(got))[:120]}")
        ours = got[key].detach()
        if ours.shape != reference.shape:
            raise OracleError(f"output {key}: got {list(reference.shape)}, allowed: {list(ours.shape)} by its inputs")
        findings.append(_finding(key, ours.double(), reference.double(), oracle.rules[key]))
    return findings


def _finding(key: str, ours: Tensor, reference: Tensor, rule: Rule) -> Finding:
    if not ours.numel():
        return Finding(key, 0.0, 0.0)
    # Equal infinities have a difference that is not a number, and are equal.
    error = torch.where(ours == reference, 0.0, (ours - reference).abs()).nan_to_num(nan=torch.inf)
    share = torch.where(error == 0, 0.0, error / rule.allowed(reference)).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return Finding(key, float(error.max()), float(share.max()))


def one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error))[:200] or type(error).__name__


def select(kinds: Iterable[str], name: str) -> str:
    """The kind an oracle's name stands for: the kind itself, or a name that holds it as whole words.

    Raises:
        OracleError: if there is none.
    """
    for kind in sorted(kinds, key=len, reverse=True):
        if re.search(rf"(^|[^a-z0-9]){re.escape(kind)}([^a-z0-9]|$)", name):
            return kind
    raise OracleError(f"oracle: got {name!r}, allowed: {', '.join(sorted(kinds))}")
