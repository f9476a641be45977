"""Every test: one torch thread, an own cache folder, no network."""

import os

# Before torch is imported anywhere: workers of pytest-xdist must not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
