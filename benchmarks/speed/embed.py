"""Embedding end to end against the bare forward pass, and against decoding alone.

    python -m benchmarks.speed.embed                    # about ten minutes on 2 CPU cores
    python -m benchmarks.speed.embed --device cuda --small 200000 --middle 50000 --large 20000

Each case is one encoder on one kind of images. In every round three things are timed next to each
other: the forward pass on ready, normalised tensors; decoding with resizing and no network; and
`embed()` from files into a fresh store, with everything that it does. Reported are medians of the
rounds' ratios. On a GPU nothing can be faster than the slower of the two, so `limit` is their
minimum. On a CPU both need the same cores, and the limit is 1 / (1 / forward + 1 / decode): 0.9 of
the forward pass can only be reached where decoding takes a tenth of its time (`forward_dominates`).

Images are made here: 64 pictures, each under many digests by a comment in the file. Weights are
random. Peak memory is that of two processes of their own, which embed N and 4 N images.
"""

import argparse
import dataclasses
import io
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks.speed.machine import context, synchronise
from feature_store import Pool, open_store
from svp.data.opening import open_source
from svp.embed import EmbedConfig, embed
from svp.embed.forward import automatic_batch
from svp.encoders.backbones import build_backbone
from svp.encoders.decoders import DecoderName
from svp.encoders.encoder import Encoder
from svp.encoders.identity import Precision
from svp.encoders.images import default_workers, read_batches
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.weights import Loaded

_PICTURES = 64
TARGET = 0.9
Kind = Literal["png", "jpeg"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """A folder of images of one kind."""

    name: str
    kind: Kind
    width: int
    height: int

    def write(self, folder: Path, count: int) -> None:
        """Write `count` images of `_PICTURES` contents, all with bytes of their own."""
        folder.mkdir(parents=True)
        encoded = [_encode(self, seed) for seed in range(min(count, _PICTURES))]
        for number in range(count):
            data = _commented(encoded[number % len(encoded)], self.kind, number)
            (folder / f"{number:07d}.{self.kind}").write_bytes(data)


def _encode(images: Images, seed: int) -> bytes:
    # Structure at every scale, so that files are as large as those of a camera.
    rng = np.random.default_rng(seed)
    size = images.width, images.height
    sum_HW3 = np.zeros((images.height, images.width, 3))
    for cells in (4, 16, 64, 256):
        grid = rng.integers(0, 256, (max(2, cells * size[1] // size[0]), cells, 3), dtype=np.uint8)
        layer = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
        sum_HW3 += np.asarray(layer) / cells**0.5
    low, high = sum_HW3.min(), sum_HW3.max()
    picture = Image.fromarray(((sum_HW3 - low) / (high - low) * 255).astype(np.uint8))
    out = io.BytesIO()
    picture.save(out, images.kind, **({"quality": 90} if images.kind == "jpeg" else {}))
    return out.getvalue()


def _commented(data: bytes, kind: Kind, number: int) -> bytes:
    text = f"{number:012d}".encode()
    if kind == "jpeg":  # a comment segment behind the first marker
        return data[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + data[2:]
    body = b"tEXtComment\0" + text
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]  # behind the header, which ends there


def encoder_of(
    name: str, device: str, precision: Precision, decoder: DecoderName = "pillow"
) -> Encoder:
    """Return an encoder with random weights from a fixed seed."""
    torch.manual_seed(0)
    if name.startswith("resnet"):
        module = build_backbone(name, image_size=32)
        preprocessing = Preprocessing(size=32, resize_to=32, interpolation="bilinear")
    else:
        module = timm.create_model(name, pretrained=False, num_classes=0)
        preprocessing = Preprocessing(size=224, resize_to=224)
    loaded = Loaded(
        module=module.eval(),
        architecture={"family": "benchmark", "model": name},
        pooling="the model's own",
        preprocessing=preprocessing,
        provenance={},
    )
    return Encoder(loaded, device=device, precision=precision, decoder=decoder)


class Case:
    """One encoder on one folder of images."""

    def __init__(
        self, encoder: Encoder, folder: Path, root: Path, batch_size: int | None, workers: int
    ) -> None:
        self.encoder, self.root, self.workers = encoder, root, workers
        self.source = open_source(folder)
        self.pool: Pool = self.source.scan().pool
        self.batch_size = min(batch_size or automatic_batch(encoder), len(self.pool))
        self._stores = 0
        self._ready = encoder.normalise(next(self._batches()).images)
        self.last: Any = None

    def _batches(self) -> Any:
        starts = range(0, len(self.pool), self.batch_size)
        asked = (
            (
                self.pool.uris[start : start + self.batch_size],
                self.pool.digests[start : start + self.batch_size],
            )
            for start in starts
        )
        return read_batches(
            self.source,
            asked,
            self.encoder.preprocessing,
            workers=self.workers,
            pin=self.encoder.device.type == "cuda",
            decoder=self.encoder.image_decoder(),
        )

    def forward(self) -> int:
        """Run the network on a ready batch as often as the pool needs it."""
        for _ in range(0, len(self.pool), self.batch_size):
            self.encoder.features_of(self._ready)
        return -(-len(self.pool) // self.batch_size) * self.batch_size

    def decode(self) -> int:
        """Read, decode and resize the pool."""
        for _ in self._batches():
            pass
        return len(self.pool)

    def end_to_end(self, chunk_rows: int | None = None) -> int:
        """Embed the pool into a fresh store."""
        self._stores += 1
        store = open_store(self.root / f"store-{self._stores}", create=True)
        config = EmbedConfig(
            batch_size=self.batch_size,
            workers=self.workers,
            chunk_rows=chunk_rows,
            compile="off",
        )
        self.last = embed(self.pool, self.source, self.encoder, store, config=config)
        return int(self.last.embedded)

    def rate(self, work: Callable[[], int]) -> float:
        """Return images per second."""
        synchronise(self.encoder.device)
        began = time.perf_counter()
        count = work()
        synchronise(self.encoder.device)
        return count / (time.perf_counter() - began)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Return rates and medians of ratios; the first round only warms up."""
    found: list[tuple[float, float, float]] = []
    for number in range(rounds + 1):
        rates = case.rate(case.forward), case.rate(case.decode), case.rate(case.end_to_end)
        if number:
            found.append(rates)
    shared = case.encoder.device.type == "cpu"

    def limit(forward: float, decode: float) -> float:
        return 1 / (1 / forward + 1 / decode) if shared else min(forward, decode)

    forward, decode, whole = (statistics.median(column) for column in zip(*found, strict=True))
    of_forward = statistics.median(e / f for f, _, e in found)
    return {
        "images": len(case.pool),
        "batch_size": case.batch_size,
        "workers": case.workers,
        "forward_per_s": round(forward, 1),
        "decode_per_s": round(decode, 1),
        "embed_per_s": round(whole, 1),
        "limit_per_s": round(limit(forward, decode), 1),
        "limit": "1/(1/forward + 1/decode)" if shared else "min(forward, decode)",
        "of_forward": round(of_forward, 3),
        "of_decode": round(statistics.median(e / d for _, d, e in found), 3),
        "of_slower": round(statistics.median(e / min(f, d) for f, d, e in found), 3),
        "of_limit": round(statistics.median(e / limit(f, d) for f, d, e in found), 3),
        "forward_dominates": decode > 10 * forward,
        "target": TARGET,
        "bottleneck": case.last.bottleneck,
        "shares": {k: round(v, 3) for k, v in dataclasses.asdict(case.last.shares).items()},
    }


def compare_decoders(root: Path, device: str, rounds: int) -> list[dict[str, Any]]:
    """Return speed of each decoder, and how far its vectors are from those of whole images."""
    rows = []
    names: list[DecoderName] = ["pillow", "pillow-reduced"]
    if torch.device(device).type == "cuda":
        names.append("nvjpeg")
    photographs = {
        "500 x 375": Images(name="", kind="jpeg", width=500, height=375),
        "1600 x 1200": Images(name="", kind="jpeg", width=1600, height=1200),
    }
    for size, images in photographs.items():
        folder = root / f"decoders-{images.width}"
        images.write(folder, _PICTURES)
        for model in ("resnet8", "vit_base_patch32_224"):
            plain: torch.Tensor | None = None
            base = 0.0
            for name in names:
                encoder = encoder_of(model, device, "fp32", name)
                case = Case(encoder, folder, root, None, default_workers())
                rate = statistics.median([case.rate(case.decode) for _ in range(rounds + 1)][1:])
                (batch,) = case._batches()
                x_Bd = encoder.encode(batch.images)
                plain, base = (x_Bd, rate) if plain is None else (plain, base)
                cosine = torch.cosine_similarity(x_Bd, plain)
                rows.append(
                    {
                        "photographs": size,
                        "encoder": model,
                        "side": encoder.preprocessing.size,
                        "decoder": name,
                        "decode_per_s": round(rate, 1),
                        "times_faster": round(rate / base, 2),
                        "least_cosine": round(float(cosine.min()), 6),
                        "relative_change": round(
                            float(((x_Bd - plain).norm(dim=1) / plain.norm(dim=1)).max()), 5
                        ),
                    }
                )
    return rows


def memory(root: Path, count: int, device: str) -> dict[str, Any]:
    """Return the peak resident memory of embedding N and 4 N images, in processes of their own."""
    found: dict[str, Any] = {}
    for label, images in (("n", count), ("4n", 4 * count)):
        folder = root / f"memory-{label}"
        Images(name="", kind="png", width=32, height=32).write(folder, images)
        command = [sys.executable, "-m", "benchmarks.speed.embed", "--device", device]
        done = subprocess.run(
            [*command, "--peak-of", str(folder)], check=True, text=True, capture_output=True
        )
        found[label] = {"images": images, "peak_mb": float(done.stdout)}
    grown = found["4n"]["peak_mb"] - found["n"]["peak_mb"]
    found["bytes_per_image"] = round(grown * 1e6 / (3 * count), 1)
    return found


def peak_of(folder: Path, device: str) -> float:
    """Embed a folder with the small encoder; return this process's peak memory in MB."""
    with tempfile.TemporaryDirectory() as root:
        encoder = encoder_of("resnet8", device, "fp32")
        case = Case(encoder, folder, Path(root), None, default_workers())
        # The store's own choice of a chunk grows with a small pool, up to 16 MiB.
        case.end_to_end(chunk_rows=1024)
    try:
        # Not getrusage: a child of a large process begins with its parent's peak there.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return round(int(peak.split()[1]) * 1024 / 1e6, 1)
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--small", type=int, default=4000, help="images for resnet8")
    parser.add_argument("--middle", type=int, default=512, help="images for other residual nets")
    parser.add_argument("--large", type=int, default=192, help="images for the large encoder")
    parser.add_argument("--batch-size", type=int, help="default: automatic, at most 32 large")
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--encoders", nargs="+", default=["resnet8", "resnet18", "vit_base_patch32_224"]
    )
    parser.add_argument("--memory", type=int, default=5000, help="N of the memory test; 0 skips it")
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary one")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(default_workers())
    if options.peak_of is not None:
        print(peak_of(options.peak_of, options.device))
        return
    kinds = [
        Images(name="32 px PNG", kind="png", width=32, height=32),
        Images(name="32 px JPEG", kind="jpeg", width=32, height=32),
        Images(name="500 x 375 JPEG", kind="jpeg", width=500, height=375),
    ]
    result: dict[str, Any] = {
        "schema": "svp.benchmarks.embed/1",
        "settings": {
            k: v for k, v in vars(options).items() if k not in ("json", "directory", "peak_of")
        },
        "context": context(torch.device(options.device)),
        "load": [round(load, 2) for load in os.getloadavg()],
        "rows": [],
    }
    print(
        f"{'encoder':<22}{'images':<16}{'forward/s':>10}{'decode/s':>10}{'embed/s':>10}"
        f"{'of fwd':>8}{'of dec':>8}{'of limit':>9}  bottleneck"
    )
    with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
        root = Path(temporary)
        for name in options.encoders:
            large = not name.startswith("resnet")
            encoder = encoder_of(name, options.device, options.precision)
            thumbnails = options.small if name == "resnet8" else options.middle
            count = options.large if large else thumbnails
            batch_size = options.batch_size
            if batch_size is None and large and encoder.device.type == "cpu":
                batch_size = 32
            for images in kinds:
                place = root / name / images.name.replace(" ", "-")
                images.write(place / "images", count)
                case = Case(encoder, place / "images", place, batch_size, options.workers)
                row = {"encoder": name, "images_of": images.name, **measure(case, options.rounds)}
                result["rows"].append(row)
                print(
                    f"{name:<22}{images.name:<16}{row['forward_per_s']:>10,.0f}"
                    f"{row['decode_per_s']:>10,.0f}{row['embed_per_s']:>10,.0f}"
                    f"{row['of_forward']:>8.2f}{row['of_decode']:>8.2f}{row['of_limit']:>9.2f}"
                    f"  {row['bottleneck']}",
                    flush=True,
                )
        result["decoders"] = compare_decoders(root, options.device, options.rounds)
        for row in result["decoders"]:
            print(
                f"{row['photographs']} to {row['side']} px, {row['decoder']}: "
                f"{row['decode_per_s']:,.0f} images/s ({row['times_faster']}x), "
                f"least cosine {row['least_cosine']}"
            )
        if options.memory:
            result["memory"] = memory(root, options.memory, options.device)
            print(f"peak memory: {result['memory']}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
