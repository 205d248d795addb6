"""Predicted speeds: counted by hand on a pretend device, and the windows that follow from its ridge."""

from __future__ import annotations

import pytest
import torch

from spd_core.candidates import PROMISING, all_choices, choices
from spd_core.decode.ceilings import Ceilings, Pass, known_ceilings, measured_ceilings
from spd_core.decode.predict import images_per_s, windows_for
from spd_core.decode.work import effort_of
from spd_core.families.llamagen.model import PRESETS, LlamaGenConfig
from spd_core.families.llamagen.predict import kv_bytes, plain_s, speculative_s, work_of
from spd_core.families.mar.model import Mar, MarConfig, preset
from spd_core.law import Auto, Choice, Cspd, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import PairCard, TunedWindows, load_card
from tests.tiny_causal import make_tiny_causal_pair
from tests.tiny_pair import make_tiny_pair

H100 = known_ceilings("NVIDIA H100 80GB HBM3", "bfloat16")
#: Windows as a tuner finds them: fewer calls for more rows.
LADDER = tuple(
    TunedWindows(price=price, windows=(length,), calls=calls, rows=rows, steps=100)
    for price, length, calls, rows in ((0.0, 40, 7.0, 260.0), (0.05, 20, 9.0, 190.0), (0.4, 4, 28.0, 112.0))
)


def card_of(tmp_path, config: MarConfig, **changed: object) -> PairCard:
    tiny = load_card(str(make_tiny_pair(tmp_path / "mar")))
    return tiny.model_copy(update={"target": config, "draft": preset("base"), "tuned_windows": LADDER, **changed})


@pytest.fixture
def mar_h(tmp_path) -> PairCard:
    return card_of(tmp_path, preset("huge"))


def law(**fields: object) -> SamplerLaw:
    return SamplerLaw(**{"num_iter": 64, "cfg": 3.2, "dtype": "bfloat16", **fields})


def ridge(at: Ceilings) -> float:
    """Rows at which the products of a pass take as long as reading its weights of two bytes."""
    return at.flops * 2 / (2 * at.bytes_per_s)


def test_rows_are_free_below_the_ridge_and_cost_above_it():
    at = Ceilings("pretend", flops=1e12, bytes_per_s=1e10, kernel_s=0.0)
    one = Pass(weights=1e6, weight_bytes=2, kernels=0.0)
    assert ridge(at) == 100
    assert one.seconds(1, at) == one.seconds(100, at) == pytest.approx(2e6 / 1e10)
    assert one.seconds(400, at) == pytest.approx(4 * one.seconds(100, at))
    assert one.seconds(1, at, extra_bytes=2e6) == pytest.approx(2 * one.seconds(1, at))
    assert Pass(1e6, 2, kernels=3.0).seconds(1, Ceilings("k", 1e12, 1e10, 1e-5)) == pytest.approx(2e-4)
    assert Pass(1e6, 2, kernels=30.0).seconds(1, Ceilings("k", 1e12, 1e10, 1e-5)) == pytest.approx(3e-4)


def test_the_ridge_of_an_h100_is_about_260_rows():
    assert 250 < ridge(H100) < 270
    assert known_ceilings("Tesla T4", "bfloat16") is None


def test_a_slower_card_is_predicted_to_be_slower(mar_h):
    cards = (known_ceilings(name, "bfloat16") for name in ("L4", "A100", "H200"))
    rates = [images_per_s(mar_h, law(), Choice(method=Plain(), batch=64), at) for at in cards]
    assert rates[0] < rates[1] < rates[2]


def test_large_batches_of_mar_h_are_bound_by_products(mar_h):
    """7 images/s are what the counted work of 64 iterations leaves possible at batch 256."""
    rate = images_per_s(mar_h, law(), Choice(method=Plain(), batch=256), H100)
    assert 7 < rate < 14
    twice = images_per_s(mar_h, law(), Choice(method=Plain(), batch=512), H100)
    assert twice == pytest.approx(rate, rel=0.1), "above the ridge a larger batch brings nothing"


def test_small_batches_are_bound_by_weights(mar_h):
    one, four = (images_per_s(mar_h, law(num_iter=256), Choice(method=Plain(), batch=b), H100) for b in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.15)


def test_fewer_head_steps_are_faster(mar_h):
    full = images_per_s(mar_h, law(), Choice(method=Plain(), batch=64), H100)
    falls = law(head_schedule="linear", head_steps=50, head_steps_end=5)
    assert images_per_s(mar_h, falls, Choice(method=Plain(), batch=64), H100) > 1.2 * full, "the transformer stays"


def test_windows_are_sized_to_the_batch(mar_h):
    own = law(num_iter=256)
    best = {batch: windows_for(mar_h, own, batch, H100)[0] for batch in (1, 32, 256)}
    assert best == {1: (40,), 32: (20,), 256: (4,)}

    def over_plain(batch):
        window, plain = (
            images_per_s(mar_h, own, Choice(method=Plain(head_window=w), batch=batch), H100) for w in (best[batch], ())
        )
        return window / plain

    assert over_plain(1) > 3
    assert over_plain(32) > 1.4, "64 rows a step: a window of four fills the ridge, and kernels are saved"
    assert over_plain(256) < 1, "every row costs"


def test_what_is_not_known_is_not_predicted(mar_h):
    for method in (Plain(head_window=(13,)), Cspd(variant="paper"), Speculative()):
        assert images_per_s(mar_h, law(), Choice(method=method, batch=1), H100) is None
    assert effort_of(mar_h, (20,)).calls == pytest.approx(0.09)


def test_cspd_gains_with_longer_blocks(mar_h):
    rates = [images_per_s(mar_h, law(num_iter=256), Choice(method=Cspd(gamma=g), batch=256), H100) for g in (4, 16, 64)]
    plain = images_per_s(mar_h, law(num_iter=256), Choice(method=Plain(), batch=256), H100)
    assert plain < rates[0] < rates[1] < rates[2]


def test_a_causal_pair_is_predicted_too(tmp_path):
    card = load_card(str(make_tiny_causal_pair(tmp_path / "causal")))
    at = Ceilings("pretend", flops=1e9, bytes_per_s=1e9, kernel_s=1e-5)
    one, many = (images_per_s(card, card.law, Choice(method=Plain(), batch=b), at) for b in (1, 64))
    assert 0 < one < many < 64 * one


def test_candidates_on_a_known_device(mar_h):
    found = choices(mar_h, Auto(), "auto", 256, law(num_iter=256), H100)
    rates = {choice: images_per_s(mar_h, law(num_iter=256), choice, H100) for choice in found}
    best = max(rates, key=rates.get)
    hopeless = {choice for choice, rate in rates.items() if rate < PROMISING * rates[best]}
    assert hopeless <= {Choice(method=Plain(), batch=best.batch)}, "plain decoding is held against the prediction"
    assert Choice(method=Plain(), batch=1) not in found, "it cannot be fastest"
    assert set(found) <= set(all_choices(mar_h, Auto(), "auto", 256)), "a commit record can name each of them"
    assert choices(mar_h, Auto(), "auto", 256) == choices(mar_h, Auto(), "auto", 256, law(num_iter=256), None)


def test_the_windows_of_a_known_device_are_measured_at_its_batch(mar_h):
    windows = [c.method.head_window for c in choices(mar_h, Auto(), 1, 64, law(num_iter=256), H100)]
    assert windows == [(), (40,), (20,)]
    alike = (*LADDER[:1], LADDER[0].model_copy(update={"windows": (39,), "calls": 7.1}), *LADDER[1:])
    card = mar_h.model_copy(update={"tuned_windows": alike})
    assert windows_for(card, law(num_iter=256), 1, H100) == ((40,), (20,)), "two that hardly differ are one"


def test_on_an_unknown_device_the_windows_for_dear_rows_are_measured_too(mar_h):
    card = mar_h.model_copy(update={"head_windows": ((40,), (20,))})
    windows = [choice.method.head_window for choice in choices(card, Auto(), 4, 64)]
    assert windows == [(), (40,), (20,), (4,)]


def test_ceilings_of_this_machine_are_measured():
    found = measured_ceilings(torch.device("cpu"), "float32", size=256, repeats=3)
    assert found.name == "cpu"
    assert 1e8 < found.flops < 1e14
    assert 1e8 < found.bytes_per_s < 1e13
    assert 0 < found.kernel_s <= 2e-6


def test_the_counted_weights_are_the_models(tmp_path):
    config = preset("base")
    with torch.device("meta"):
        model = Mar(config)
    weights = sum(p.numel() for p in model.head.parameters())
    at = Ceilings("bytes only", flops=1e30, bytes_per_s=1.0, kernel_s=0.0)
    card = card_of(tmp_path, config)
    one = SamplerLaw(num_iter=1, head_steps=2)
    transformer = sum(p.numel() for blocks in (model.encoder_blocks, model.decoder_blocks) for p in blocks.parameters())
    assert 1 / images_per_s(card, one, Choice(method=Plain(), batch=1), at) == pytest.approx(
        4 * (transformer + 2 * weights)
    )


def xl_card() -> PairCard:
    """LlamaGen-XL with B as its draft, and figures that say 0.8 of its drafts stand."""
    card = load_card("fashion-vq")
    target, draft = (LlamaGenConfig(**PRESETS[name]) for name in ("XL", "B"))
    own = SamplerLaw(cfg=2.0, cfg_schedule="constant")
    settings = Speculative(gamma=4).model_dump(mode="json", exclude={"name"})
    row = {"method": "speculative", "settings": settings, "law": own.model_dump(), "acceptance_by_place": [0.8] * 4}
    changed = {"target": target, "draft": draft, "eagle": None, "law": own, "figures": {"bench": {"rows": [row]}}}
    return card.model_copy(update=changed)


def test_plain_decoding_of_xl_ends_where_its_keys_and_values_are_read():
    """12 GB an image at 3 TB/s and the weights: about 220 images/s at batch 256."""
    card = xl_card()
    own = card.law.model_copy(update={"dtype": "bfloat16"})
    total = sum(2 * kv_bytes(card.target, "bfloat16") * position for position in range(256))
    assert total == pytest.approx(12e9, rel=0.01)
    assert 200 < images_per_s(card, own, Choice(method=Plain(), batch=256), H100) < 250


@pytest.mark.parametrize("batch", [1, 64, 256])
def test_speculation_of_codes_reads_them_once_a_round(batch):
    card = xl_card()
    own = card.law.model_copy(update={"dtype": "bfloat16"})
    plain, chain = (
        images_per_s(card, own, Choice(method=method, batch=batch), H100) for method in (Plain(), Speculative(gamma=4))
    )
    assert 1.2 < chain / plain < 3.4, "3.36 codes a round at most"


def test_what_xl_reads_by_hand():
    """36 layers, keys and values of 1,280 numbers of two bytes; position p reads p of them in each of two rows."""
    xl, own = xl_card().target, xl_card().law.model_copy(update={"dtype": "bfloat16"})
    assert kv_bytes(xl, "bfloat16") == 36 * 2 * 1280 * 2 == 184_320
    reading = Ceilings("memory", flops=1e30, bytes_per_s=1.0, kernel_s=0.0)
    weights = work_of(xl, "bfloat16").weights
    assert weights == 36 * (4 * 1280**2 + 3 * 1280 * 3584 + 2 * 1280) + 1280 + 1280 * 16384 + 1001 * 1280
    expected = 256 * 2 * weights + 2 * 7 * 184_320 * 255 * 256 / 2
    assert plain_s(xl, own, 7, reading) == pytest.approx(expected)


@pytest.mark.parametrize(("batch", "gain", "even"), [(1, 1.38, 0.62), (64, 1.67, 0.52), (256, 1.83, 0.47)])
def test_where_lossless_speculation_of_xl_gains(batch, gain, even):
    """By chains of four of B's codes: the figures of docs/codes.md."""
    xl, b, own = xl_card().target, xl_card().draft, xl_card().law.model_copy(update={"dtype": "bfloat16"})

    def ratio(acceptance):
        chain = speculative_s(xl, b, own, Speculative(gamma=4), [acceptance] * 4, batch, H100)
        return plain_s(xl, own, batch, H100) / chain

    assert ratio(0.8) == pytest.approx(gain, abs=0.01)
    assert ratio(even - 0.02) < 1 < ratio(even + 0.02)


def test_without_a_measured_acceptance_speculation_is_not_predicted():
    card, chain = xl_card(), Choice(method=Speculative(gamma=4), batch=1)
    assert images_per_s(card, card.law, chain, H100) is not None
    assert images_per_s(card, card.law.model_copy(update={"cfg": 3.0}), chain, H100) is None
    for method in (Speculative(gamma=2), Speculative(tree=(2, 1)), Speculative(gamma=4, drafter="eagle")):
        assert images_per_s(card, card.law, Choice(method=method, batch=1), H100) is None
