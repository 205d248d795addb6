"""The tables of docs/gpu.md: counted budgets, and what is predicted from counted work; nothing here was measured."""

from __future__ import annotations

from collections.abc import Iterator

from spd_core.decode.cards import CARDS
from spd_core.decode.ceilings import Ceilings, known_ceilings
from spd_core.decode.predict import images_per_s
from spd_core.families.llamagen.vq import VqCodec
from spd_core.families.mar.vae import KlCodec
from spd_core.law import Choice, Plain, SamplerLaw
from spd_core.pairs.pair import PairCard
from tests.gpu import models
from tests.gpu.budgets import Budget

#: What an eager launch costs a host, microseconds; seen on one machine with an H100, not measured by this project.
LAUNCH_US = (5.0, 8.0)
CARD = "H100"
BATCHES = (1, 32, 256)


def budget_table(budgets: dict[str, Budget]) -> str:
    """Markdown: launches and syncs, and the host's time that the launches are predicted to take."""
    low, high = LAUNCH_US
    predicted = f"predicted: host ms at {low:g} to {high:g} us a launch"
    head = f"| | one | launches | host syncs | {predicted} |\n|---|---|---|---|---|"
    rows = [
        f"| {name} | {b.unit} | {b.launches:,} | {b.syncs:g} | {_ms(b.launches * low)} to {_ms(b.launches * high)} |"
        for name, b in budgets.items()
    ]
    return "\n".join([head, *rows])


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1e3:.2f}"


def prediction_table() -> str:
    """Markdown: images/s of the public models that the project's cost model predicts for an H100 in bfloat16."""
    batches = " | ".join(f"batch {batch}" for batch in BATCHES)
    head = f"| predicted, images/s | {batches} |\n|---|{'---|' * len(BATCHES)}"
    rows = []
    for label, card, law in _public():
        rates = [images_per_s(card, law, Choice(method=Plain(), batch=batch), _ceilings(law)) for batch in BATCHES]
        rows.append(f"| {label} | " + " | ".join("-" if rate is None else f"{rate:.3g}" for rate in rates) + " |")
    return "\n".join([head, *rows])


def card_table() -> str:
    """Markdown: the cards that a plan can be made for, by the word that names them, and what they do at most."""
    head = (
        "| `workers.accelerator_type` | bfloat16, TFLOP/s | TF32 | float32 | memory, TB/s | GB | from |\n"
        "|---|---|---|---|---|---|---|"
    )
    rows = [
        f"| `{each.words[0]}` | {each.tflops['bfloat16']:g} | {each.tflops['tf32']:g} | {each.tflops['float32']:g} | "
        f"{each.tb_per_s:g} | {each.memory_gb} | {each.source} |"
        for each in CARDS
    ]
    return "\n".join([head, *rows])


def _ceilings(law: SamplerLaw) -> Ceilings:
    known = known_ceilings(CARD, law.dtype)
    assert known is not None
    return known


def _public() -> Iterator[tuple[str, PairCard, SamplerLaw]]:
    """Public models at their samplers' laws."""
    shared = {"name": "public", "class_names": ("0",), "licence": "MIT", "data": "none", "sha256": {}}
    for letter, name in (("B", "base"), ("L", "large"), ("H", "huge")):
        for iterations in (64, 256):
            law = SamplerLaw(num_iter=iterations, head_steps=100, cfg=3.0, dtype="bfloat16")
            card = PairCard(family="mar", target=models.mar_config(name), codec=KlCodec(), law=law, **shared)
            yield f"MAR-{letter}, {iterations} iterations", card, law
    for name in ("B", "XL", "3B"):
        law = SamplerLaw(cfg=1.75, cfg_schedule="constant", dtype="bfloat16")
        card = PairCard(family="llamagen", target=models.code_config(name), codec=VqCodec(), law=law, **shared)
        yield f"LlamaGen-{name}", card, law
