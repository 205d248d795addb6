from __future__ import annotations

import sys
import time
import types
from collections import Counter

import numpy as np
import pytest
import torch

from spd_core.draws import Draws, Purpose
from spd_core.law import Cspd, Null, Plain, Speculative
from spd_core.pairs.pair import PairError, load_card
from tests import tiny_causal
from tests.tiny_pair import CODEC, make_tiny_pair
from workers.encode import decode_image
from workers.engine import Engine
from workers.null import null_images, texture, textured_images
from workers.parquet import acceptance_bytes, data_bytes
from workers.records import ImageFormat, ShardTask


def test_null_images_follow_from_the_seed_alone():
    seeds = torch.tensor([3, 2**63 - 1, 3])
    images = null_images(seeds, (6, 5, 3))
    assert images.shape == (3, 6, 5, 3)
    assert images.dtype == torch.uint8
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1:2], null_images(seeds[1:2], (6, 5, 3)))
    assert not torch.equal(images[0], images[1])
    zero = torch.zeros(1, dtype=torch.int64)
    uniforms = Draws(seeds[:1]).uniforms(Purpose.START, zero, zero, 90)
    assert torch.equal(images[0].flatten(), (uniforms[0] * 256).to(torch.uint8))


def test_textured_images_are_one_texture_rotated_by_the_seed():
    seeds = torch.tensor([3, 9, 3])
    images = textured_images(seeds, (8, 8, 3))
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    assert torch.equal(images[0].flatten().sort().values, texture((8, 8, 3)).flatten().sort().values)


def test_a_decoder_of_a_stated_speed_is_waited_for(settings, task):
    waiting = Engine(settings.model_copy(update={"method": Null(images_per_s=60)}))
    began = time.perf_counter()
    result = waiting.make(task)
    assert 0.1 <= time.perf_counter() - began < 1
    assert result.seconds["null"] >= 0.1


def test_null_needs_no_weights(settings, task, tmp_path):
    folder = make_tiny_pair(tmp_path / "bare")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    result = Engine(settings.model_copy(update={"pair": str(folder)})).make(task)
    assert len(result.images) == 6
    assert decode_image(result.images[0], 1).shape == (6, 6, 1)
    assert result.rounds.tolist() == [0] * 6
    assert result.drafted.tolist() == [0] * 6
    assert np.isnan(result.certificates).all()


@pytest.mark.parametrize("method", [Plain(), Cspd(gamma=3), Cspd(gamma=3, variant="paper")], ids=str)
def test_a_shard_is_a_function_of_its_task(settings, task, method):
    settings = settings.model_copy(update={"method": method})
    engine = Engine(settings)
    result, again = engine.make(task), Engine(settings).make(task)
    engine.make(task.model_copy(update={"seeds": tuple(range(6))}))
    third = engine.make(task)
    assert data_bytes(task, result) == data_bytes(task, again) == data_bytes(task, third)
    assert acceptance_bytes(task, result) == acceptance_bytes(task, again) == acceptance_bytes(task, third)
    assert len(set(result.images)) == 6
    assert all(decode_image(image, 1).shape == (CODEC.size, CODEC.size, 1) for image in result.images)
    assert result.guarantee == method.guarantee
    assert (result.rounds > 0).all()
    assert result.counts["target_context_calls"] > 0
    assert {"context", "head", "encode", "codec"} <= set(result.seconds)


def test_an_image_does_not_depend_on_its_batch(settings, task):
    plain = settings.model_copy(update={"method": Plain()})
    pixels = [
        [decode_image(image, 1) for image in Engine(plain.model_copy(update={"batch": batch})).make(task).images]
        for batch in (1, 4, 6)
    ]
    for other in pixels[1:]:
        for one, two in zip(pixels[0], other, strict=True):
            # Another batch may round otherwise, which moves a pixel by one level at most.
            assert np.abs(one.astype(int) - two).max() <= 1


def test_drafts_are_rows_of_their_images(settings, task):
    engine = Engine(settings.model_copy(update={"method": Cspd(gamma=3)}))
    result = engine.make(task)
    drafts = result.drafts
    assert len(drafts.image) > 0
    assert (np.diff(drafts.image) >= 0).all()
    assert result.drafted.tolist() == [Counter(drafts.image.tolist())[i] for i in range(6)]
    assert ((drafts.token >= 0) & (drafts.token < 16)).all()
    assert np.isnan(drafts.excess).all()
    # The second batch alone (two images) gives the rows of images 4 and 5.
    cut = {name: getattr(task, name)[4:] for name in ("request_ids", "labels", "seeds")}
    alone = engine.make(task.model_copy(update=cut)).drafts
    late = drafts.image >= 4
    assert np.array_equal(alone.image + 4, drafts.image[late])
    assert np.array_equal(alone.token, drafts.token[late])
    assert np.array_equal(alone.log_ratio, drafts.log_ratio[late])


@pytest.fixture
def refilled(settings, tmp_path):
    """A causal pair and a shard of 13 images, decoded three at a time."""
    folder = tiny_causal.make_tiny_causal_pair(tmp_path / "causal")
    task = ShardTask(
        shard=0,
        attempt=0,
        request_ids=tuple(f"{i:08d}" for i in range(13)),
        labels=tuple(i % 3 for i in range(13)),
        seeds=tuple(range(50, 63)),
    )
    update = {
        "pair": str(folder),
        "pair_sha256": load_card(str(folder)).sha256,
        "law": tiny_causal.LAW,
        "method": Speculative(gamma=2, stride=1),
        "batch": 3,
    }
    return settings.model_copy(update=update), task


def test_a_speculative_shard_refills_its_slots(refilled):
    settings, task = refilled
    engine = Engine(settings)
    result, again = engine.make(task), Engine(settings).make(task)
    engine.make(task.model_copy(update={"seeds": tuple(range(13))}))
    third = engine.make(task)
    assert data_bytes(task, result) == data_bytes(task, again) == data_bytes(task, third)
    assert acceptance_bytes(task, result) == acceptance_bytes(task, again) == acceptance_bytes(task, third)
    assert result.guarantee == "exact"
    assert {"context", "head", "draft", "residual", "finish", "encode", "codec"} <= set(result.seconds)
    assert 0 < result.accepted.sum() < result.drafted.sum()
    # Batch by batch, the slowest image of each batch decides.
    assert result.counts["target_context_calls"] < sum(result.rounds[i : i + 3].max() for i in range(0, 13, 3))


def test_an_image_of_a_speculative_shard_is_what_it_is_alone(refilled):
    settings, task = refilled
    engine = Engine(settings)
    result = engine.make(task)
    names = ("request_ids", "labels", "seeds")
    for image in range(13):
        alone = engine.make(task.model_copy(update={name: getattr(task, name)[image : image + 1] for name in names}))
        assert np.abs(decode_image(alone.images[0], 1) - decode_image(result.images[image], 1).astype(int)).max() <= 1
        assert alone.rounds.tolist() == [result.rounds[image]]
        mine = result.drafts.image == image
        for name in ("token", "draft_index", "accepted"):
            assert np.array_equal(getattr(alone.drafts, name), getattr(result.drafts, name)[mine]), name
        assert alone.drafts.log_ratio == pytest.approx(result.drafts.log_ratio[mine], abs=1e-3)


def test_other_weights_than_the_plans_are_refused(settings):
    other = settings.model_copy(update={"pair_sha256": {"target": "0" * 64, "draft": "1" * 64}})
    with pytest.raises(PairError, match=r"allowed: draft 111111111111, target 000000000000 \(the plan's\)"):
        Engine(other)


def test_corrupt_weights_are_refused(settings, tmp_path):
    folder = make_tiny_pair(tmp_path / "bad")
    path = folder / "target.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(PairError, match=r"target\.safetensors has sha256"):
        Engine(settings.model_copy(update={"pair": str(folder), "method": Plain()}))


@pytest.mark.parametrize("name", ["webp", "jpeg"])
def test_the_image_format_is_used(settings, task, name):
    result = Engine(settings.model_copy(update={"image": ImageFormat(format=name)})).make(task)
    magic = {"webp": b"RIFF", "jpeg": b"\xff\xd8\xff"}[name]
    assert all(image.startswith(magic) for image in result.images)


@pytest.mark.parametrize("reference", ["", "some-reference"])
def test_features_and_agreement(settings, task, tmp_path, monkeypatch, reference):
    class Extractor:
        def __init__(self, device):
            assert device == torch.device("cpu")

        def __call__(self, images):
            return images.float().mean(dim=(1, 2, 3))[:, None].expand(-1, 1280)

    def agreement(images, labels, named):
        assert named == "some-reference"
        assert len(images) == len(labels)
        return labels == 1

    for module, members in (("features", {"FeatureExtractor": Extractor}), ("labels", {"label_agreement": agreement})):
        fake = types.ModuleType(f"spd_core.quality.{module}")
        vars(fake).update(members)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    folder = make_tiny_pair(tmp_path / "tiny", reference=reference)
    result = Engine(settings.model_copy(update={"pair": str(folder), "features": True})).make(task)
    assert result.features.shape == (6, 1280)
    assert result.features.dtype == np.float16
    means = [decode_image(image, 1).mean() for image in result.images]
    assert result.features[:, 0].astype(float) == pytest.approx(means, rel=1e-3)
    assert result.seconds["features"] > 0
    if reference:
        assert result.label_agrees.tolist() == [False, True, False] * 2
    else:
        assert result.label_agrees is None
