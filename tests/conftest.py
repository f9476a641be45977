"""Every test: one torch thread, an own cache folder, no network, the same drawn examples."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

# Before torch is imported anywhere: workers of pytest-xdist must not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.buckets.s3 import S3Service

# The same examples everywhere: a run that passes here passes there.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def _running_s3() -> Iterator["S3Service"]:
    pytest.importorskip("obstore", reason="needs the extra objectstore")
    pytest.importorskip("moto", reason="needs the extra dev")
    from tests.buckets.s3 import running_s3

    with running_s3() as service:
        yield service


@pytest.fixture
def s3(_running_s3: "S3Service", monkeypatch: pytest.MonkeyPatch) -> Iterator["S3Service"]:
    """Return a real S3 server process that the environment names; one a session."""
    with _running_s3.in_use(monkeypatch) as service:
        yield service
