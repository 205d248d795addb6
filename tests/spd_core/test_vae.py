"""The KL autoencoder and its codec, without reference data (that is in test_oracles)."""

from __future__ import annotations

import pytest
import torch

from spd_core.families.mar.model import Mar, MarConfig
from spd_core.families.mar.vae import KlCodec, KlVae, KlVaeConfig, Posterior
from spd_core.law import SamplerLaw
from spd_core.pairs.pair import Pair, PairCard, PairError

TINY = KlVaeConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, embed_dim=4, resolution=32)
MODEL = MarConfig(
    img_size=16, vae_stride=2, patch_size=2, vae_embed_dim=4, encoder_embed_dim=8, encoder_depth=1, encoder_num_heads=2,
    decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2, class_num=3, buffer_size=2, diffloss_d=1, diffloss_w=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def vae() -> KlVae:
    torch.manual_seed(0)
    return KlVae(TINY).eval().requires_grad_(False)


class Affine(torch.nn.Module):
    """Stands in for an autoencoder whose decoder gives known pixel values."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3]


def test_stride_and_shapes(vae: KlVae):
    posterior = vae.encode(torch.randn(2, 3, 10, 14))
    assert posterior.mean.shape == posterior.std.shape == (2, 4, 5, 7)
    assert vae.decode(posterior.mean).shape == (2, 3, 10, 14)
    assert (TINY.stride, KlVaeConfig().stride) == (2, 16)


def test_attention_sits_where_the_nominal_resolution_says():
    for resolution, levels in ((32, [False, True]), (16, [True, False]), (64, [False, False])):
        encoder = KlVae(TINY.model_copy(update={"resolution": resolution})).encoder
        assert [len(level.attn) > 0 for level in encoder.down] == levels
    assert not any(len(level.attn) for level in KlVae(TINY).decoder.up)


def test_posterior_clamps_and_samples():
    moments = torch.tensor([1.0, -2.0, 40.0, -50.0]).view(1, 4, 1, 1)
    posterior = Posterior.from_moments(moments)
    assert posterior.logvar.flatten().tolist() == [20.0, -30.0]
    noise = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1)
    expected = torch.tensor([1 + 0.5 * torch.e**10, -2 - torch.e**-15])
    torch.testing.assert_close(posterior.sample(noise).flatten(), expected)


def test_pixels_are_clipped_and_rounded():
    codec = KlCodec(vae=TINY, latent_scale=0.5, patch_size=1)
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 2 * 10.6 / 255 - 1])
    tokens = values.view(-1, 1, 1).expand(-1, 4, 4) * codec.latent_scale
    images = codec.decode(tokens, Affine())
    assert images.shape == (6, 2, 2, 3) and images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255, 11]


def test_codec_patches_latents_and_scales_both_ways(vae: KlVae):
    codec = KlCodec(vae=TINY, patch_size=2)
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    noise = torch.zeros(2, 4, 8, 8)
    tokens = codec.encode(images, vae, noise)
    assert tokens.shape == (2, 16, 16)
    latents = vae.encode(images.permute(0, 3, 1, 2).float() / 127.5 - 1).mean
    # Token 0 covers the four cells of the upper left corner, channel by channel.
    torch.testing.assert_close(tokens[:, 0], latents[:, :, :2, :2].flatten(1) * 0.2325)
    again = (vae.decode(latents).permute(0, 2, 3, 1) + 1) / 2 * 255
    assert (codec.decode(tokens, vae).float() - again.clamp(0, 255)).abs().max() <= 0.51


def test_images_do_not_depend_on_how_many_are_decoded(vae: KlVae):
    codec, tokens = KlCodec(vae=TINY, patch_size=2), torch.randn(11, 16, 16)
    whole = codec.decode(tokens, vae).int()
    single = torch.cat([codec.decode(token[None], vae) for token in tokens]).int()
    assert (whole - single).abs().max() <= 1


def test_pair_makes_images_with_its_autoencoder_only(vae: KlVae):
    card = PairCard(
        name="tiny", family="mar", target=MODEL, codec=KlCodec(vae=TINY, patch_size=2), class_names=("a", "b", "c"),
        law=SamplerLaw(), licence="MIT", data="none", sha256={},
    )  # fmt: skip
    assert card.image_shape == (16, 16, 3)
    tokens, device = torch.randn(2, 16, 16), torch.device("cpu")
    assert Pair(card, Mar(MODEL), None, device, {"vae": vae}).to_images(tokens).shape == (2, 16, 16, 3)
    with pytest.raises(PairError, match="no autoencoder"):
        Pair(card, Mar(MODEL), None, device).to_images(tokens)
