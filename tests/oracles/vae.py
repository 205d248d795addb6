"""Oracles of the KL autoencoder; a file holds one half of the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spd_core.families.mar.vae import KlVae, KlVaeConfig, Posterior
from tests.oracles.base import Oracle, load_strict


def _half(config: dict[str, Any], weights: dict[str, Tensor], left_out: tuple[str, str]) -> KlVae:
    vae = KlVae(KlVaeConfig.model_validate(dict(config)))
    for name in left_out:
        delattr(vae, name)
    return load_strict(vae, weights, "autoencoder")


def mar_vae_encoder(oracle: Oracle) -> dict[str, Tensor]:
    """Features, moments and posterior of images; the posterior of given moments and noise."""
    vae, inputs = _half(oracle.config, oracle.weights, ("decoder", "post_quant_conv")), oracle.inputs
    outputs = {}
    given = Posterior.from_moments(inputs["posterior_params"])
    for name in ("mean", "logvar", "std"):
        outputs[f"posterior/{name}"] = getattr(given, name)
    outputs["posterior/sample"] = given.sample(inputs["posterior_noise"])
    for case, image in inputs.under("image").items():
        features = vae.encoder(image)
        posterior = vae.encode(image)
        outputs |= {f"encoder_h/{case}": features, f"moments/{case}": vae.quant_conv(features)}
        outputs |= {f"{name}/{case}": getattr(posterior, name) for name in ("mean", "logvar", "std")}
    return outputs


def mar_vae_decoder(oracle: Oracle) -> dict[str, Tensor]:
    """Images of latents."""
    vae = _half(oracle.config, oracle.weights, ("encoder", "quant_conv"))
    return {f"image/{case}": vae.decode(latent) for case, latent in oracle.inputs.under("latent").items()}
