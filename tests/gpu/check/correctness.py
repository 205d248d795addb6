"""Is the code right on this device: public oracles, random numbers, tokens of every method, laws of the exact ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from spd_core import capture
from spd_core.decode import Decoded, decode
from spd_core.draws import Draws, Purpose
from spd_core.law import Acceptance, Cspd, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import Pair, load_pair
from tests.gpu.check.run import Check, Row
from tests.gpu.check.two_laws import codes_p_value, energy_p_value
from tests.oracles import OracleError
from tests.oracles import check as reproduced

ORACLES = Path(__file__).parents[2] / "data" / "oracles"
#: Of quality, which is measured on a CPU.
NOT_OF_A_DECODER = {"inception_fid"}
Method = Plain | Cspd | Speculative
#: Largest share of tokens by which plain decoding may differ from the CPU's: rounding alone moves a code now and then.
MOST_UNLIKE = 0.02
#: Differences of a continuous token's dims that are more than rounding.
FAR = 1e-2


@dataclass(frozen=True)
class Case:
    """A bundled pair and a way to decode it."""

    pair: str
    method: Method
    name: str

    @property
    def plain(self) -> bool:
        return self.method == Plain()


def cases() -> list[Case]:
    """Every decoder of every bundled pair."""
    windows = dict.fromkeys(("fashion-mar", "fashion-ar"), (8, 4))
    coupled = Acceptance(rule="coupled", radius=0.5)
    annealed = Acceptance(rule="annealed", delta=4.0)
    return [
        *(Case(pair, Plain(), "plain") for pair in ("fashion-mar", "fashion-ar", "fashion-vq")),
        *(Case(pair, Plain(head_window=window), "windows") for pair, window in windows.items()),
        Case("fashion-ar", Speculative(gamma=4), "speculative"),
        Case("fashion-vq", Speculative(gamma=4), "chain"),
        Case("fashion-vq", Speculative(drafter="eagle", tree=(3, 2, 1)), "EAGLE tree"),
        Case("fashion-mar", Cspd(variant="released"), "CSpD released"),
        Case("fashion-mar", Cspd(variant="paper"), "CSpD paper"),
        Case("fashion-ar", Speculative(gamma=4, acceptance=annealed), "annealed"),
        Case("fashion-ar", Speculative(gamma=4, acceptance=coupled), "coupled"),
        Case("fashion-vq", Speculative(tree=(3, 2, 1)), "tree"),
        Case("fashion-vq", Speculative(gamma=4, acceptance=annealed), "annealed chain"),
    ]


def oracles(check: Check) -> None:
    """Outputs of the public code, with our models on the device.

    Oracles listen to the functions inside a decoder, which a captured one calls only while it is recorded; so nothing
    is captured here. That captured functions compute the same is seen in the tokens.
    """
    for path in sorted(ORACLES.glob("*.json")):
        if path.stem in NOT_OF_A_DECODER:
            continue
        try:
            with patch.object(capture, "RECORDED", frozenset()):
                findings = reproduced(path, check.device)
        except OracleError as error:  # what cannot run here must not cost the others
            check.row(oracle=path.stem, said=str(error), ok=False)
            continue
        worst = max(findings, key=lambda finding: finding.share)
        check.row(
            oracle=path.stem, outputs=len(findings), closest=worst.key, share_of_tolerance=round(worst.share, 3),
            ok=all(finding.passed for finding in findings),
        )  # fmt: skip
    check.row(what="random numbers are the CPU's, to the bit", ok=_same_random_words(check.device))


def _same_random_words(device: torch.device) -> bool:
    seeds, index = torch.arange(64) * 7_919_777_777_777 + 5, torch.arange(64)
    drawn = []
    for where in ("cpu", device):
        draws, at = Draws(seeds.to(where)), index.to(where)
        uniforms = draws.uniforms(Purpose.ACCEPT, at, at, 33, at % 3, 1)
        orders = draws.orders(256)
        drawn.append((uniforms.cpu(), orders.cpu()))
    return all(bool(torch.equal(a, b)) for a, b in zip(*drawn, strict=True))


def tokens(check: Check) -> None:
    """Tokens of every method: against the CPU's, twice, and of an image alone."""
    pairs: dict[tuple[str, str], Pair] = {}
    for case in cases():
        for where in ("cpu", str(check.device)):
            if (case.pair, where) not in pairs:
                pairs[case.pair, where] = load_pair(case.pair, where)
        here, there = pairs[case.pair, "cpu"], pairs[case.pair, str(check.device)]
        check.tried({"pair": case.pair, "method": case.name}, partial(_compared, check, case, here, there))


def _decoded(pair: Pair, law: SamplerLaw, method: Method, seeds: Tensor, at_once: int | None = None) -> Decoded:
    seeds = seeds.to(pair.device)
    return decode(pair, law, method, seeds % len(pair.card.class_names), Draws(seeds), at_once)


def toy(check: Check, law: SamplerLaw) -> SamplerLaw:
    """The law, with few head steps and iterations if this is the smoke run."""
    return law.model_copy(update={"num_iter": 4, "head_steps": 8}) if check.smoke else law


def _compared(check: Check, case: Case, cpu: Pair, device: Pair) -> Row:
    law, seeds = toy(check, cpu.card.law), torch.arange(1 if check.smoke else 4) + 7
    began = check.now()
    first = _decoded(device, law, case.method, seeds).tokens.cpu()
    seconds = check.now() - began
    again = _decoded(device, law, case.method, seeds).tokens.cpu()
    alone = _decoded(device, law, case.method, seeds[:1]).tokens.cpu() if len(seeds) > 1 else again
    reference = _decoded(cpu, law, case.method, seeds).tokens if device is not cpu else first
    unlike, unlike_alone = _unlike(first, reference), _unlike(first[:1], alone)
    same_bytes = bool(torch.equal(first, again))
    return {
        "unlike_cpu": unlike, "same_bytes_twice": same_bytes, "alone_unlike_in_batch": unlike_alone,
        "seconds": round(seconds, 2), "ok": same_bytes and (not case.plain or unlike <= MOST_UNLIKE),
    }  # fmt: skip


def _unlike(x: Tensor, y: Tensor) -> float:
    """The share of tokens that differ by more than rounding."""
    differs = x != y if x.dim() == 2 else (x - y).abs().amax(dim=-1) > FAR
    return round(float(differs.float().mean()), 4)


#: Exact methods by pair and name; each has to follow the law of plain decoding.
EXACT: dict[str, dict[str, Method]] = {
    "fashion-vq": {"chain": Speculative(gamma=4), "EAGLE tree": Speculative(drafter="eagle", tree=(3, 2, 1))},
    "fashion-ar": {"speculative": Speculative(gamma=4), "windows": Plain(head_window=(16, 8))},
    "fashion-mar": {"windows": Plain(head_window=(16, 8))},
}


def laws(check: Check) -> None:
    """Exact methods against plain decoding, by a two-sample test that must notice another temperature."""
    images = 4 if check.smoke else 1024
    for name, methods in EXACT.items():
        pair = load_pair(name, check.device)
        law = toy(check, pair.card.law)
        seeds = torch.arange(images)
        plain = _decoded(pair, law, Plain(), seeds, 512).tokens
        cooler = law.model_copy(update={"temperature": 0.85 * law.temperature})
        against = partial(_law_row, pair, plain)
        label = {"pair": name, "images": images}
        noticed = partial(against, cooler, Plain(), seeds + 2 * images, alike=False, decides=not check.smoke)
        check.tried({**label, "method": "plain at 0.85 of the temperature"}, noticed)
        for method_name, method in methods.items():
            row = partial(against, law, method, seeds + images, alike=True, decides=True)
            check.tried({**label, "method": method_name}, row)


def _law_row(
    pair: Pair, plain: Tensor, law: SamplerLaw, method: Method, seeds: Tensor, *, alike: bool, decides: bool
) -> Row:
    """The p-value against plain decoding; sound if it is as large or as small as it should be, where that decides."""
    p = _p_value(plain, _decoded(pair, law, method, seeds, 512).tokens)
    return {"p_value": p, "ok": not decides or (p > 0.005 if alike else p <= 0.01)}


def _p_value(x: Tensor, y: Tensor) -> float:
    if x.dim() == 2:
        return codes_p_value(x, y, 1 + int(max(x.max(), y.max())))
    return energy_p_value(x.flatten(1), y.flatten(1))
