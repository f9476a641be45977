"""Every test: one torch thread, an own cache folder, no network, the same drawn examples."""

import os

# Before torch is imported anywhere: workers of pytest-xdist must not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest

# The same examples everywhere: a run that passes here passes there.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
