import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from svp.data import open_source
from svp.encoders.image_cache import cached_images
from svp.encoders.images import decode_pool
from svp.encoders.preprocessing import Preprocessing

HOW = Preprocessing(size=16, resize_to=16)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(150):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    (folder / "070.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    source = open_source(folder)
    return source, source.scan().pool


def cached(folder, photos, **changes):
    source, pool = photos
    given = {"digests": pool.digests, "workers": 2} | changes
    return cached_images(folder, source, pool.uris, HOW, **given)


def test_cached_images_are_the_decoded_ones_and_are_decoded_once(photos, tmp_path):
    source, pool = photos
    images, kept, failures = decode_pool(source, pool.uris, HOW, digests=pool.digests)
    first = cached(tmp_path / "cache", photos)
    again = cached(tmp_path / "cache", photos)
    for one in (first, again):
        assert torch.equal(one.images_M3SS, images)
        assert one.kept_M.tolist() == kept.tolist()
        assert one.failures == failures
    assert (first.decoded, again.decoded) == (150, 0)
    assert first.sha256 == again.sha256
    again.images_M3SS[0] = 0  # stays in this process
    assert torch.equal(cached(tmp_path / "cache", photos).images_M3SS, images)


def test_other_images_or_another_rendering_are_another_entry(photos, tmp_path):
    source, pool = photos
    one = cached(tmp_path, photos)
    other = Preprocessing(size=16, resize_to=18)
    two = cached_images(tmp_path, source, pool.uris, other, digests=pool.digests)
    part = pool.subset(np.arange(10))
    three = cached_images(tmp_path, source, part.uris, HOW, digests=part.digests)
    assert len({one.sha256, two.sha256, three.sha256}) == 3
    assert len(three.images_M3SS) == 10


def test_a_killed_decode_continues_with_the_same_bytes(photos, tmp_path, monkeypatch):
    from svp.encoders import image_cache

    monkeypatch.setattr(image_cache, "_FLUSH_BYTES", 1)
    monkeypatch.setattr(image_cache, "_BATCH", 8)
    source, pool = photos

    class Slow:
        def read(self, uri):
            time.sleep(0.005)
            return source.read(uri)

    child = os.fork()
    if child == 0:
        cached_images(tmp_path / "cache", Slow(), pool.uris, HOW, digests=pool.digests, workers=1)
        os._exit(0)
    end = time.monotonic() + 30
    while time.monotonic() < end and not list((tmp_path / "cache").glob("*/state.json")):
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    continued = cached(tmp_path / "cache", photos)
    assert 0 < continued.decoded < 150
    assert torch.equal(continued.images_M3SS, cached(tmp_path / "whole", photos).images_M3SS)
    assert 70 in continued.failures


def test_bytes_that_were_never_told_of_are_not_believed(photos, tmp_path):
    whole = cached(tmp_path, photos)
    (place,) = [path for path in tmp_path.iterdir() if (path / "state.json").exists()]
    state = json.loads((place / "state.json").read_text())
    state["done"], state["bytes"], state["failures"] = 64, 64 * 3 * 256, {}
    (place / "state.json").write_text(json.dumps(state))
    content = bytearray((place / "images.u8").read_bytes())
    content[64 * 3 * 256 :] = bytes(len(content) - 64 * 3 * 256)
    (place / "images.u8").write_bytes(content)
    again = cached(tmp_path, photos)
    assert again.decoded == 86
    assert torch.equal(again.images_M3SS, whole.images_M3SS)
    (place / "images.u8").write_bytes(b"short")
    assert cached(tmp_path, photos).decoded == 150


def test_passing_failures_are_tried_again(photos, tmp_path):
    source, pool = photos
    fails = [True]

    class Flaky:
        def read(self, uri):
            if fails and uri == pool.uris[3]:
                raise TimeoutError("later")
            return source.read(uri)

    def ask():
        return cached_images(tmp_path, Flaky(), pool.uris, HOW, digests=pool.digests)

    assert set(ask().failures) == {3, 70}
    fails.clear()
    assert set(ask().failures) == {70}
