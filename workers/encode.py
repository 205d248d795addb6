"""Images as bytes: PNG, WebP or JPEG, the same bytes for the same pixels from one version of Pillow.

The settings of ``effort: fast`` are those of `jobs.run.encoding`'s table that lie on its edge: none is both faster and
smaller. Run lengths alone, after PNG's filters, make photographs as small as a search for matches does.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from workers.records import ImageFormat

Pixels = NDArray[np.uint8]
_RUN_LENGTHS = 3  #: zlib's Z_RLE


def encode_image(pixels_HWC: Pixels, image: ImageFormat) -> bytes:
    """Encoded bytes of a uint8 image [H, W, C] with one (grey) or three (RGB) channels.

    Raises:
        ValueError: for another shape or dtype.
    """
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] not in (1, 3):
        raise ValueError(f"image: got {pixels_HWC.dtype} {pixels_HWC.shape}, allowed: uint8 [H, W, 1 or 3]")
    picture = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
    buffer = io.BytesIO()
    picture.save(buffer, image.format.upper(), **_options(image))
    return buffer.getvalue()


def _options(image: ImageFormat) -> dict[str, Any]:
    """What Pillow is told; ``small`` is what it does when told nothing."""
    fast = image.effort == "fast"
    match image.format:
        case "png":
            return {"compress_level": 1, "compress_type": _RUN_LENGTHS} if fast else {}
        case "webp":
            return {"lossless": True, "method": 0, "quality": 0} if fast else {"lossless": True}
        case _:
            return {"quality": image.quality}


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
