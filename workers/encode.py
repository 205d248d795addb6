"""Images as bytes: PNG, WebP or JPEG, the same bytes for the same pixels."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from workers.records import ImageFormat

Pixels = NDArray[np.uint8]


def encode_image(pixels_HWC: Pixels, image: ImageFormat) -> bytes:
    """Encoded bytes of a uint8 image [H, W, C] with one (grey) or three (RGB) channels.

    Raises:
        ValueError: for another shape or dtype.
    """
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] not in (1, 3):
        raise ValueError(f"image: got {pixels_HWC.dtype} {pixels_HWC.shape}, allowed: uint8 [H, W, 1 or 3]")
    picture = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
    buffer = io.BytesIO()
    match image.format:
        case "png":
            picture.save(buffer, "PNG")
        case "webp":
            picture.save(buffer, "WEBP", lossless=True)
        case _:
            picture.save(buffer, "JPEG", quality=image.quality)
    return buffer.getvalue()


def decode_image(data: bytes, channels: int) -> Pixels:
    """Pixels uint8 [H, W, channels]; WebP has no grey, so its equal channels become one again.

    Raises:
        ValueError: the bytes are not a whole image.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"image does not decode: {' '.join(str(error).split())}") from error
    return pixels.reshape(*pixels.shape[:2], channels)
