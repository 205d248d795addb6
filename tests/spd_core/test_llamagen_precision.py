"""Models of codes in bfloat16 on a CPU, and in and out of inference mode; and how much goes through the tokenizer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spd_core.draws import Draws
from spd_core.families.llamagen import codes as decoding
from spd_core.families.llamagen.codes import LawReader, decode_codes_plain
from spd_core.families.llamagen.model import EagleConfig, EagleDraft, LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.speculation import decode_codes_speculative
from spd_core.families.llamagen.vq import Vq, VqCodec, VqConfig
from spd_core.law import Acceptance, SamplerLaw, Speculative
from spd_core.precision import rounded

SIZES = LlamaGenConfig(dim=32, n_layer=2, n_head=4, vocab_size=12, block_size=9, num_classes=3, multiple_of=8)
LABELS = torch.tensor([0, 1, 2, -1])


def grown(model: nn.Module) -> nn.Module:
    """With weights of a size that makes the codes depend on the context."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture
def target() -> LlamaGen:
    torch.manual_seed(0)
    return grown(LlamaGen(SIZES))


@pytest.fixture(params=["draft", "eagle"])
def draft(request: pytest.FixtureRequest) -> LlamaGen | EagleDraft:
    torch.manual_seed(1)
    if request.param == "eagle":
        return grown(EagleDraft(EagleConfig(n_head=4, multiple_of=8), SIZES))
    return grown(LlamaGen(SIZES.model_copy(update={"dim": 16, "n_layer": 1})))


def law(cfg: float, dtype: str = "bfloat16") -> SamplerLaw:
    return SamplerLaw(cfg=cfg, cfg_schedule="constant", dtype=dtype)


def draws() -> Draws:
    return Draws(torch.arange(len(LABELS)))


def laws_of_codes(model: LlamaGen, dtype: str, cfg: float) -> Tensor:
    """Distributions [B, N, V] of teacher-forced codes, read in one pass."""
    reader = LawReader(model, model, law(cfg, dtype), LABELS, SIZES.block_size)
    previous = torch.arange(SIZES.block_size).expand(len(LABELS), -1)
    features = reader.read(previous, torch.zeros_like(LABELS))
    return reader.distribution(features, torch.arange(SIZES.block_size).expand_as(previous))


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_bfloat16_is_near_float32_and_not_the_same(cfg: float, target: LlamaGen):
    far = (laws_of_codes(target, "bfloat16", cfg) - laws_of_codes(target, "float32", cfg)).abs().sum(-1) / 2
    assert 1e-4 < float(far.max()) < 0.1


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("tree", [(), (2, 2)])
def test_bfloat16_decodes(cfg: float, tree: tuple[int, ...], target: LlamaGen, draft: LlamaGen | EagleDraft):
    plain = decode_codes_plain(target, law(cfg), LABELS, draws()).tokens
    vectors = nn.functional.normalize(torch.randn(SIZES.vocab_size, 4), dim=-1)
    # A factor that keeps every draft: long runs of kept drafts, every slot of the caches in use.
    generous = Acceptance(rule="annealed", delta=1e6, nu=0.0)
    for acceptance in (Acceptance(), generous):
        method = Speculative(gamma=3, tree=tree, acceptance=acceptance)
        made = decode_codes_speculative(target, draft, vectors, law(cfg), method, LABELS, draws(), slots=3)
        assert made.tokens.shape == plain.shape == (len(LABELS), SIZES.block_size)
        assert int(made.tokens.min()) >= 0 and int(made.tokens.max()) < SIZES.vocab_size
    alone = Speculative(gamma=0)
    made = decode_codes_speculative(target, draft, vectors, law(cfg), alone, LABELS, draws(), slots=3)
    assert torch.equal(made.tokens, plain)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_rounding_the_weights_once_changes_nothing(
    cfg: float, target: LlamaGen, draft: LlamaGen | EagleDraft, monkeypatch: pytest.MonkeyPatch
):
    method = Speculative(gamma=3)
    vectors = torch.eye(SIZES.vocab_size)

    def decoded() -> tuple[Tensor, Tensor]:
        done = decode_codes_speculative(target, draft, vectors, law(cfg), method, LABELS, draws())
        return done.tokens, done.drafts.log_ratio

    once = decoded()
    monkeypatch.setattr(decoding, "at_precision", lambda model, precision: model)
    assert all(torch.equal(a, b) for a, b in zip(once, decoded(), strict=True))


def test_rounded_twin_shares_the_rest_and_leaves_the_model(target: LlamaGen):
    before = {key: value.clone() for key, value in target.state_dict().items()}
    twin = rounded(target)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    assert twin.output.weight.dtype == torch.bfloat16 and twin.layers[0].attention.wqkv.weight.dtype == torch.bfloat16
    assert twin.tok_embeddings.weight is target.tok_embeddings.weight
    assert twin.norm.weight is target.norm.weight
    again = rounded(twin)
    assert again.output.weight.data_ptr() == twin.output.weight.data_ptr()


def test_bfloat16_cache(target: LlamaGen):
    assert LawReader(target, target, law(1.0), LABELS, 1).cache.dtype == torch.bfloat16
    assert LawReader(target, target, law(1.0, "float32"), LABELS, 1).cache.dtype == torch.float32


def test_a_model_can_be_trained_after_sampling(target: LlamaGen):
    with torch.inference_mode():
        decode_codes_plain(target, law(1.0, "float32"), LABELS, draws())
    target.requires_grad_(True)
    previous = torch.zeros(len(LABELS), SIZES.block_size, dtype=torch.int64)
    target.logits(target(previous, LABELS)).square().sum().backward()
    assert target.layers[0].attention.wqkv.weight.grad is not None


@pytest.mark.parametrize(("padded", "images"), [(32, 32), (256, 8), (384, 3), (2048, 1)])
def test_images_that_go_through_the_tokenizer_together(padded: int, images: int):
    assert VqCodec(size=padded, padded=padded).at_once == images


def test_tokenizer_works_in_parts(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(2)
    config = VqConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=32, codebook_size=12, codebook_embed_dim=4)
    vq, codec = Vq(config).eval(), VqCodec(vq=config, size=6, padded=8)
    pictures = torch.randint(256, (5, 6, 6, 3), dtype=torch.uint8)
    whole = codec.encode(pictures, vq)
    images = codec.decode(whole, vq)
    assert whole.shape == (5, 16) and images.shape == pictures.shape
    monkeypatch.setattr("spd_core.families.llamagen.vq.MOST_PIXELS", 2 * 8 * 8)
    assert codec.at_once == 2
    assert torch.equal(codec.encode(pictures, vq), whole)
    assert (codec.decode(whole, vq).int() - images.int()).abs().max() <= 1
