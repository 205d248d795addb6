from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from workers.encode import decode_image, encode_image
from workers.null import texture
from workers.records import ImageFormat


def _picture(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("effort", ["fast", "small"])
@pytest.mark.parametrize("name", ["png", "webp"])
def test_lossless_formats_give_back_every_pixel(name, effort, channels):
    pixels, image = _picture(channels), ImageFormat(format=name, effort=effort)
    data = encode_image(pixels, image)
    assert data == encode_image(pixels.copy(), image)
    assert np.array_equal(decode_image(data, channels), pixels)


@pytest.mark.parametrize("name", ["png", "webp"])
def test_fast_images_are_hardly_larger_and_small_ones_are_what_pillow_makes_by_itself(name):
    pixels = texture((64, 64, 3)).numpy()
    fast, small = (encode_image(pixels, ImageFormat(format=name, effort=effort)) for effort in ("fast", "small"))
    assert len(fast) < 1.1 * len(small)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name.upper(), **({"lossless": True} if name == "webp" else {}))
    assert small == buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close_and_its_quality_counts(channels):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (64, 64, channels)).copy()
    good, bad = (encode_image(ramp, ImageFormat(format="jpeg", quality=q)) for q in (95, 10))
    assert len(bad) < len(good)
    assert np.abs(decode_image(good, channels).astype(int) - ramp).max() <= 4


@pytest.mark.parametrize("name", ["png", "webp", "jpeg"])
def test_a_cut_image_does_not_decode(name):
    data = encode_image(_picture(3), ImageFormat(format=name))
    for damaged in (data[: len(data) // 2], b"", b"no image at all"):
        with pytest.raises(ValueError, match="does not decode"):
            decode_image(damaged, 3)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_other_arrays_are_refused(wrong):
    with pytest.raises(ValueError, match=r"allowed: uint8 \[H, W, 1 or 3\]"):
        encode_image(wrong, ImageFormat())
