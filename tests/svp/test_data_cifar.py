"""The real archives, where they are: 50,000 JPEG files read in place."""

import os
from pathlib import Path

import pytest

from svp.data import DigestCache, decode_image, open_source

pytestmark = [
    pytest.mark.cifar,
    pytest.mark.skipif(
        not os.environ.get("SVP_CIFAR10_DIR"), reason="SVP_CIFAR10_DIR names no CIFAR-10 archives"
    ),
]


def test_cifar10_is_scanned_once_and_decoded(tmp_path):
    archives = Path(os.environ["SVP_CIFAR10_DIR"])
    source = open_source([archives / "train.zip", archives / "test.zip"])
    scan = source.scan(cache=DigestCache(tmp_path))
    assert len(scan.pool) == scan.reread == 60_000
    assert scan.failures == ()
    assert scan.pool.labels is not None
    assert scan.pool.splits is not None
    assert {scan.pool.splits.count(name) for name in ("train", "test")} == {50_000, 10_000}
    assert len(set(scan.pool.labels)) == 10
    assert {decode_image(source.read(uri)).size for uri in scan.pool.uris[::300]} == {(32, 32)}
    again = open_source([archives / "train.zip", archives / "test.zip"]).scan(
        cache=DigestCache(tmp_path)
    )
    assert again.reread == 0
    assert again.pool.id == scan.pool.id
