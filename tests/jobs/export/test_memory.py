from __future__ import annotations

import pytest

from tests.jobs.export.memory import make_large, measure


@pytest.mark.slow
@pytest.mark.parametrize("form", ["webdataset", "folder", "npz", "hub-folder"])
def test_ten_times_the_images_take_no_more_memory(tmp_path, form):
    """But for the order of an npz, 8 bytes an image, and the commit records that are remembered."""
    peaks = []
    for images in (10_000, 100_000):
        source = make_large(tmp_path / str(images), images)
        peaks.append(measure(source, tmp_path / f"{images}-{form}", form, file_mb=8)["peak_mb"])
    assert peaks[1] - peaks[0] < 16
