"""What an export does to an image: nothing, or resize it and encode it anew."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from pydantic import Field

from spd_core.law import Settings
from workers.encode import Pixels, decode_image, encode_image
from workers.records import ImageFormat

EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}


class ImageChange(Settings):
    """How images differ from those of the dataset."""

    size: int | None = Field(None, ge=1, le=65_535, description="pixels of both sides; None: as they are")
    encoding: ImageFormat | None = Field(None, description="None: the dataset's bytes")

    def encoded(self, data: bytes) -> bytes:
        """An image's bytes as they are exported.

        Args:
            data: its bytes in the dataset.

        Raises:
            ValueError: they are no image, or one that cannot be resized.
        """
        return data if self.encoding is None else encode_image(self._pixels(data, _channels(data)), self.encoding)

    def rgb(self, data: bytes) -> Pixels:
        """An image's pixels [H, W, 3] as they are exported; grey ones have three equal channels.

        Raises:
            ValueError: as `encoded`.
        """
        pixels_HWC = self._pixels(data, _channels(data))
        return pixels_HWC if pixels_HWC.shape[2] == 3 else np.repeat(pixels_HWC, 3, axis=2)

    def _pixels(self, data: bytes, channels: int) -> Pixels:
        pixels_HWC = decode_image(data, channels)
        height, width = pixels_HWC.shape[:2]
        if self.size is None or (height, width) == (self.size, self.size):
            return pixels_HWC
        if height != width:
            raise ValueError(f"is {width}x{height}, and only square images are resized")
        picture = Image.fromarray(pixels_HWC[..., 0] if channels == 1 else pixels_HWC)
        resized = np.asarray(picture.resize((self.size, self.size), Image.Resampling.LANCZOS))
        return resized.reshape(self.size, self.size, channels)

    def in_words(self) -> str:
        """What was done, for people: ``the dataset's own bytes`` or what differs."""
        done = [f"resized to {self.size}x{self.size} pixels (Lanczos)"] if self.size else []
        if self.encoding is not None:
            quality = f" of quality {self.encoding.quality}" if self.encoding.format == "jpeg" else ""
            done.append(f"encoded anew as {self.encoding.format}{quality}")
        return ", ".join(done) or "the dataset's own bytes"


def _channels(data: bytes) -> int:
    """1 for a grey image, 3 for any other."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return 1 if picture.mode == "L" else 3
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image does not decode: {' '.join(str(error).split())}") from error
