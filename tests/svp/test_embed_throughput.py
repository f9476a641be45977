"""Replicas, memory that runs out, threads that fail, and what the run says of its bottleneck."""

import dataclasses
import errno
import io
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_fixtures import photograph, small_folder
from torch import nn

from feature_store import FeatureStore, Pool, open_store
from feature_store.storage import LocalStorage
from svp.data.opening import open_source
from svp.embed import EmbedConfig, EmbedResult, embed, load_features
from svp.embed.forward import lacks_memory, pays_to_compile
from svp.embed.meter import Meter, Shares, Spent
from svp.encoders.encoder import Encoder, open_encoder
from svp.errors import InputError, TemporaryError
from svp.progress import Bars, Lines

CONFIG = EmbedConfig(batch_size=8, workers=2, chunk_rows=20, segment_rows=60)


@dataclasses.dataclass
class Bench:
    root: Path
    encoder: Encoder
    pool: Pool

    def embed(self, name: str, **changes: Any) -> tuple[EmbedResult, np.ndarray]:
        store = changes.pop("store", None) or open_store(self.root / name, create=True)
        source = changes.pop("source", None) or open_source(self.root / "images")
        progress = changes.pop("progress", None)
        config = dataclasses.replace(CONFIG, **changes)
        result = embed(self.pool, source, self.encoder, store, config=config, progress=progress)
        return result, load_features(store, self.pool, self.encoder.id)[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("throughput")
    (root / "images").mkdir()
    for number in range(150):
        photograph(20, 18, seed=number).save(root / "images" / f"{number:04d}.png")
    small_folder(root / "encoder")
    return root


@pytest.fixture
def bench(images: Path, tmp_path: Path) -> Bench:
    (tmp_path / "images").symlink_to(images / "images")
    pool = open_source(tmp_path / "images").scan().pool
    return Bench(tmp_path, open_encoder(str(images / "encoder")), pool)


def no_threads_left() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("svp-")]


class Scarce(nn.Module):
    """A network in a memory that holds `most` images."""

    def __init__(self, inner: nn.Module, most: int, error: Exception) -> None:
        super().__init__()
        self.inner, self.most, self.error = inner, most, error
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise self.error
        return self.inner(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 80 bytes"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_halves_the_batch(
    bench: Bench, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    _, reference = bench.embed("plenty")
    scarce = Scarce(bench.encoder.module, 3, error)
    bench.encoder.module = scarce
    result, x = bench.embed("scarce", progress=Lines())
    # Two images never were too many again, and no image was lost, repeated or moved.
    assert scarce.seen[:3] == [8, 4, 2]
    assert max(scarce.seen[2:]) == 2
    assert sum(scarce.seen[2:]) == 150 == result.embedded
    np.testing.assert_allclose(x, reference, rtol=1e-4, atol=1e-5)
    assert result.batch_size == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "ran out" in line]
    assert [line.rsplit(" ", 1)[1] for line in said] == ["4", "2"]


def test_memory_for_no_image_at_all(bench: Bench) -> None:
    bench.encoder.module = Scarce(bench.encoder.module, 0, MemoryError())
    with pytest.raises(TemporaryError, match="one image"):
        bench.embed("none")
    assert no_threads_left()


def test_other_errors_are_no_lack_of_memory(bench: Bench) -> None:
    bench.encoder.module = Scarce(bench.encoder.module, 0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        bench.embed("broken")
    assert not lacks_memory(ValueError("out of memory"))
    assert no_threads_left()


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_write_the_same_bits(bench: Bench, replicas: int) -> None:
    (bench.root / "images").unlink()
    (bench.root / "images").mkdir()
    for number in range(150):
        path = bench.root / "images" / f"{number:04d}.png"
        photograph(20, 18, seed=number).save(path)
        if number % 30 == 0:
            path.write_bytes(path.read_bytes()[:200])
    bench.pool = open_source(bench.root / "images").scan().pool
    one, x_one = bench.embed("one", max_failure_rate=1)
    many, x_many = bench.embed("many", max_failure_rate=1, devices=("cpu",) * replicas)
    assert many.devices == ("cpu",) * replicas
    assert (many.embedded, many.failed) == (one.embedded, one.failed) == (145, 5)
    assert sorted(many.segments) == sorted(one.segments)
    assert x_many.tobytes() == x_one.tobytes()
    tables = [open_store(bench.root / name).table(bench.encoder.id) for name in ("one", "many")]
    assert tables[0].failures() == tables[1].failures()
    assert tables[1].verify() == []


def test_replicas_share_the_work(bench: Bench) -> None:
    seen: set[str] = set()
    inner = bench.encoder.module

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.add(threading.current_thread().name)
            time.sleep(0.002)
            return self.inner(x)

    bench.encoder.module = Watched()
    bench.embed("shared", devices=("cpu", "cpu"))
    assert len(seen) == 2


class Failing:
    """A source that works for a while."""

    def __init__(self, folder: Path, after: int, error: BaseException) -> None:
        self._source, self._left, self._lock = open_source(folder), after, threading.Lock()
        self._error = error

    def read(self, uri: str) -> bytes:
        with self._lock:
            self._left -= 1
            if self._left < 0:
                raise self._error
        return self._source.read(uri)


def test_an_error_in_one_replica_ends_all_and_the_rest_goes_on_later(bench: Bench) -> None:
    _, reference = bench.embed("whole")
    source = Failing(bench.root / "images", 110, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        bench.embed("cut", source=source, devices=("cpu", "cpu"))
    assert no_threads_left()
    assert len(list((bench.root / "cut").rglob("embeddings/c.*"))) >= 2
    result, x = bench.embed("cut", devices=("cpu", "cpu"))
    assert x.tobytes() == reference.tobytes()
    assert result.failed == 0


class FullDisk(LocalStorage):
    """A disk with room for four chunks; real otherwise."""

    chunks = 0

    def create(self, key: str, *data: Any) -> bool:
        self.chunks += "/embeddings/c." in key
        if self.chunks > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(key, *data)


def test_an_error_of_the_writing_thread_is_raised(bench: Bench) -> None:
    open_store(bench.root / "full", create=True)
    with pytest.raises(OSError, match="No space left"):
        bench.embed("full", store=FeatureStore(FullDisk(bench.root / "full")))
    assert no_threads_left()
    assert len(list((bench.root / "full").rglob("embeddings/c.*"))) == 4
    result, _ = bench.embed("full")
    assert result.embedded == 150 - 60


class SlowDisk(LocalStorage):
    """A disk on which every object takes a while; real otherwise."""

    def create(self, key: str, *data: Any) -> bool:
        time.sleep(0.02)
        return super().create(key, *data)


def test_the_bottleneck_is_named(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    class Slow(Failing):
        def read(self, uri: str) -> bytes:
            time.sleep(0.004)
            return self._source.read(uri)

    source = Slow(bench.root / "images", 0, RuntimeError())
    result, _ = bench.embed("decode", source=source, progress=Lines(interval_s=0), chunk_rows=150)
    assert result.bottleneck == "decode"
    assert result.shares.decode > 0.3
    assert result.waiting_share == result.shares.decode
    assert "images/s" in (err := capsys.readouterr().err)
    assert "bound by decode (decode " in err

    open_store(bench.root / "write", create=True)
    slow = FeatureStore(SlowDisk(bench.root / "write"))
    result, _ = bench.embed("write", store=slow, chunk_rows=4)
    assert result.bottleneck == "write"

    class Thoughtful(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.03)
            return self.inner(x)

    bench.encoder.module = Thoughtful(bench.encoder.module)
    result, _ = bench.embed("forward")
    assert result.bottleneck == "forward"
    total = sum(dataclasses.astuple(result.shares))
    assert 0.5 < total <= 1
    again, _ = bench.embed("forward")
    assert (again.bottleneck, again.shares, again.batch_size) == (None, Shares(), 0)


def test_a_terminal_shows_the_rate_and_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    stream = io.StringIO()
    with Bars(stream).task("embedding", 100, "images", done=20) as task:
        task.advance(40, note="bound by forward")
        task.advance(40)
    assert "100/100 images" in (shown := stream.getvalue())
    assert "images/s" in shown
    assert "bound by forward" in shown


def test_recent_shares_forget() -> None:
    meter = Meter(1)
    meter.add(Spent(decode=1e-4))
    shares = meter.add(Spent(write=1.0))
    assert shares.bottleneck == "write"
    assert sum(dataclasses.astuple(shares)) == pytest.approx(1)


def test_compiling_is_for_large_pools_on_gpus() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert pays_to_compile("auto", cuda, 1_000_000)
    assert not pays_to_compile("auto", cuda, 1000)
    assert not pays_to_compile("auto", cpu, 10**9)
    assert not pays_to_compile("off", cuda, 10**9)
    assert pays_to_compile("on", cpu, 1)
    with pytest.raises(InputError, match="compile"):
        EmbedConfig(compile="sometimes")  # type: ignore[arg-type]


def test_compilation_that_fails_is_no_reason_to_stop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, reference = bench.embed("plain")

    def no_compiler(*args: object, **kwargs: object) -> object:
        del args, kwargs
        raise RuntimeError("no C++ compiler found")

    # torch itself, not ours: what a machine without a compiler does.
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", no_compiler)
    result, x = bench.embed("fallen", compile="on", progress=Lines())
    assert not result.compiled
    assert x.tobytes() == reference.tobytes()
    assert "continuing without it" in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_vectors_are_the_same_up_to_noise(bench: Bench) -> None:
    _, reference = bench.embed("plain")
    result, x = bench.embed("compiled", compile="on")
    assert result.compiled
    np.testing.assert_allclose(x, reference, rtol=1e-4, atol=1e-4)


def test_replica_has_weights_of_its_own(bench: Bench) -> None:
    twin = bench.encoder.replica("cpu")
    assert twin.id == bench.encoder.id
    batch = torch.zeros((2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(twin.encode(batch), bench.encoder.encode(batch))
    with torch.no_grad():
        next(twin.module.parameters()).zero_()
    assert not torch.equal(twin.encode(batch), bench.encoder.encode(batch))
