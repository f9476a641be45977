"""Seconds of a study's stages on this machine, measured on a sample of its own images.

Every measurement runs the code of the stage itself, in a temporary folder: nothing of the study
or its store is touched. What comes before the first unit of work (imports, opening the encoder,
the golden images) is measured apart from the seconds per unit, because it does not grow.

Shapes: M = items that may be labelled, d = features.
"""

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from svp.progress import Progress
from svp.seed import derive_seed, numpy_generator
from svp.study.choice import Clock, choose, plan_round
from svp.study.features import Features, split_rows
from svp.study.options import build_finetune_config
from svp.study.study import Study

if TYPE_CHECKING:
    from feature_store.pool import Pool
    from svp.data.source import Source
    from svp.encoders.encoder import Encoder

Int64Array = npt.NDArray[np.int64]

_EMBED_S: Final = 5.0  # of embedding to time, at least: the clocks of shared machines vary
_FIRST: Final = 256  # images of the first run, which is timed apart
_BLOCKS: Final = 16
_WARM_STEPS: Final = 2
_TRAIN_S: Final = 3.0  # of training to time, in at least and at most so many steps
_STEPS: Final = (4, 40)
# What a selection imports once it has begun, so that its receipt counts it.
_IMPORTS: Final = (
    "svp.data", "svp.embed", "svp.proxies", "svp.strategies.catalog", "svp.alignment",
)  # fmt: skip
_CLASSES: Final = 10  # where the source knows no labels


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedTiming:
    """Embedding, measured.

    Attributes:
        images: Images timed.
        open_s: Seconds to open the encoder and compare its golden images.
        fixed_s: Seconds of a run whatever its size, behind `open_s`: looking up what is stored,
            and what the first batch pays for (kernels, caches, pages).
        image_s: Seconds per image, decoding and writing included.
        read_s: Seconds to read one image's embedding back.
        row_bytes: Bytes stored per image.
        requests: Objects written for the whole pool.
        dim: Features of an embedding.
    """

    images: int
    open_s: float
    fixed_s: float
    image_s: float
    read_s: float
    row_bytes: float
    requests: int
    dim: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneTiming:
    """Training the target model, measured.

    Attributes:
        steps: Steps timed.
        step_s: Seconds per optimiser step.
        decode_s: Seconds to decode one image for training.
        predict_s: Seconds to predict one image.
        probe_s: Seconds of a probe per labelled image.
        image_bytes: Bytes of one decoded image.
    """

    steps: int
    step_s: float
    decode_s: float
    predict_s: float
    probe_s: float
    image_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Everything that was measured.

    Attributes:
        start_s: Seconds in which a new process imports what a selection needs.
        scan_s: Seconds to list and digest the images once they are in the cache.
        embed: Embedding.
        rounds_s: Seconds of proxy and selection, by number of labels, ascending.
        finetune: Training the target model.
        refresh: The training of a refresh.
        peak_bytes: Most memory of this process so far.
    """

    start_s: float
    scan_s: float
    embed: EmbedTiming
    rounds_s: Mapping[int, float]
    finetune: FinetuneTiming
    refresh: FinetuneTiming
    peak_bytes: int


def measure(
    study: Study, *, budget: int, rounds: int, sample: int, device: str, progress: Progress
) -> Timing:
    """Time a sample of every stage.

    Args:
        study: The study.
        budget: Labels per round.
        rounds: Rounds.
        sample: Images to embed, or more if they take a moment only, and to train on.
        device: Where to compute.
        progress: Where to report.
    """
    from svp.encoders.encoder import open_encoder

    source = study.source()
    study.scan(source, progress)
    began = time.monotonic()
    pool = study.scan(source, progress).pool
    scan_s = time.monotonic() - began
    rows = np.linspace(0, len(pool) - 1, min(sample, len(pool))).astype(np.int64)
    part = pool.subset(np.unique(rows))
    with tempfile.TemporaryDirectory(prefix="svp-plan-") as folder:
        began = time.monotonic()
        encoder = open_encoder(
            study.encoder_spec, device=device, precision=study.config.encoder.precision
        )
        progress.say(f"Embedding {len(part):,} of {len(pool):,} images, or more if that is quick")
        embed = _time_embedding(
            study, source, pool, sample, encoder, Path(folder) / "store", began=began
        )
        progress.say("Fitting a proxy and selecting among as many random vectors as the pool has")
        counts = sorted({0, budget, budget * max(1, rounds - 1)})
        rounds_s = {
            count: _time_round(study, pool, embed.dim, count, budget, device) for count in counts
        }
        progress.say("Training a few steps of the fine-tune")
        options = study.config.finetune.options
        finetune = _time_finetune(
            source, part, encoder, options, Path(folder) / "model", device=device
        )
        own = {"mode": "ft", "method": "supervised", **study.config.refresh.finetune}
        same = all(options.get(key) == value for key, value in own.items())
        refresh = finetune
        if study.config.refresh.mode != "never" and not same:
            refresh = _time_finetune(
                source, part, encoder, {**options, **own}, Path(folder) / "refresh", device=device
            )
    return Timing(
        start_s=_time_imports(),
        scan_s=scan_s,
        embed=embed,
        rounds_s=rounds_s,
        finetune=finetune,
        refresh=refresh,
        peak_bytes=_peak_bytes(),
    )


def _time_embedding(
    study: Study,
    source: "Source",
    pool: "Pool",
    sample: int,
    encoder: "Encoder",
    folder: Path,
    *,
    began: float,
) -> EmbedTiming:
    from feature_store.store import open_store
    from svp.embed import EmbedConfig, check_golden, embed, load_features

    section = study.config.encoder
    config = EmbedConfig(batch_size=section.batch_size or None, workers=section.workers or None)
    store = open_store(str(folder), create=True)
    check_golden(store, encoder)
    open_s = time.monotonic() - began
    rows = Blocks(len(pool))
    # The first batch pays for what later ones find ready: kernels, caches, pages. That is no part
    # of the rate, but of every run.
    cold = embed(
        pool.subset(rows.take(min(_FIRST, sample // 2, len(pool) // 2))),
        source,
        encoder,
        store,
        config=config,
    )
    timed = pool.subset(rows.take(min(sample, rows.left)))
    done = embed(timed, source, encoder, store, config=config)
    more = min(round(len(timed) * _EMBED_S / max(done.seconds, 1e-3)), rows.left)
    if more > len(timed):
        # A moment does not stand for hours: as many more as fill some seconds.
        timed = pool.subset(rows.take(more))
        done = embed(timed, source, encoder, store, config=config)
    # Once more with nothing to do: what a run costs whatever its size.
    empty_s = embed(timed, source, encoder, store, config=config).seconds
    count = max(1, done.embedded)
    image_s = max(done.seconds - empty_s, 1e-9) / count
    began = time.monotonic()
    load_features(store, timed, encoder.id)
    read_s = time.monotonic() - began
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    table = store.table(encoder.id, "eval")
    plans = table.plan(pool.digests, dim=encoder.dim, dtype=encoder.storage_dtype)
    # A segment: two arrays of chunks, their two descriptions, the group's, the manifest.
    requests = sum(2 * -(-plan.rows // plan.chunk_rows) + 4 for plan in plans)
    return EmbedTiming(
        images=count,
        open_s=open_s,
        fixed_s=max(empty_s, cold.seconds - cold.embedded * image_s),
        image_s=image_s,
        read_s=read_s / count,
        row_bytes=min(stored / rows.taken, _row_bytes(encoder)),
        requests=requests,
        dim=encoder.dim,
    )


class Blocks:
    """Rows of a pool in a few runs of neighbours spread over it, each row once.

    Neighbours, because archives and tables give them faster than images picked singly, and a run
    reads neighbours; spread, because folders differ in the size of their images.

    Args:
        rows: Of the pool.

    Attributes:
        left: Rows that were not given yet.
        taken: Rows that were.
    """

    def __init__(self, rows: int) -> None:
        self._blocks = np.array_split(np.arange(rows), min(_BLOCKS, rows))
        self.left, self.taken = rows, 0

    def take(self, count: int) -> Int64Array:
        """Return `count` more rows (M,), ascending; there must be so many left."""
        taken: list[Int64Array] = []
        for place, block in enumerate(self._blocks):
            # What a short block lacks the later ones give.
            share = -(-(count - sum(len(rows) for rows in taken)) // (len(self._blocks) - place))
            taken.append(block[:share])
            self._blocks[place] = block[share:]
        rows = np.concatenate(taken).astype(np.int64)
        self.left -= len(rows)
        self.taken += len(rows)
        return rows


def _row_bytes(encoder: "Encoder") -> int:
    digest = 32
    return int(encoder.dim * np.dtype(encoder.storage_dtype).itemsize + digest)


def _time_round(
    study: Study, pool: "Pool", dim: int, labelled: int, budget: int, device: str
) -> float:
    """Return the seconds of one round on random vectors with as many classes as the source has."""
    import torch

    rows = split_rows(pool)["train"]
    own = pool.labels or (None,) * len(pool)
    ids = tuple(pool.ids[row] for row in rows)
    known = sorted({own[row] for row in rows.tolist()} - {None}) or list(map(str, range(_CLASSES)))
    rng = numpy_generator(derive_seed(study.config.seed, "plan"))
    truth = rng.integers(len(known), size=len(ids))
    centres = rng.normal(size=(len(known), dim)).astype(np.float32)
    x_Md = rng.normal(size=(len(ids), dim)).astype(np.float32) + 0.5 * centres[truth]
    chosen = rng.permutation(len(ids))[: min(labelled, len(ids) - 1)].tolist()
    features = Features(
        ids=ids,
        uris=ids,
        labels=(None,) * len(ids),
        x_Md=torch.from_numpy(x_Md),
        dropped=0,
    )
    clock = Clock()
    choose(
        features,
        plan_round(
            study.config, number=1 if chosen else 0, strategy=None, params=None, proxy=None,
            seed=None,
        ),
        labels={ids[row]: str(known[truth[row]]) for row in chosen},
        pending=(),
        budget=min(budget, len(ids) - len(chosen)),
        device=device,
        clock=clock,
    )  # fmt: skip
    return float(sum(clock.seconds.values()))


def _time_finetune(
    source: "Source",
    part: "Pool",
    encoder: "Encoder",
    options: Mapping[str, Any],
    folder: Path,
    *,
    device: str,
) -> FinetuneTiming:
    from svp.encoders.images import decode_pool
    from svp.finetune.run import finetune
    from svp.study.finetune import gather_data

    began = time.monotonic()
    images_N3SS, kept, _ = decode_pool(source, part.uris, encoder.preprocessing)
    decode_s = (time.monotonic() - began) / max(1, len(part))
    pool = part.subset(kept)
    rows = split_rows(pool)["train"].tolist()
    own = pool.labels or (None,) * len(pool)
    # Half is labelled, so that methods that learn from unlabelled images find some.
    labels = {
        pool.ids[row]: own[row] or str(place % _CLASSES)
        for place, row in enumerate(rows)
        if place % 2 == 0
    }
    data = gather_data(pool, images_N3SS, labels)

    def train(steps: int) -> dict[str, float]:
        config = build_finetune_config({**options, "steps": steps, "epochs": None})
        done = finetune(encoder, data, config, output=folder / str(steps), seed=0, device=device)
        return dict(done.metrics["seconds"])

    # The first steps pay for what later ones find ready, so they only say how many to time.
    warm_s = train(_WARM_STEPS)["train"] / _WARM_STEPS
    steps = min(max(round(_TRAIN_S / max(warm_s, 1e-9)), _STEPS[0]), _STEPS[1])
    spent = train(steps)
    return FinetuneTiming(
        steps=steps,
        step_s=spent["train"] / steps,
        decode_s=decode_s,
        predict_s=spent["predict"] / max(1, len(pool)),
        probe_s=spent["probe"] / max(1, len(labels)),
        image_bytes=int(images_N3SS[0].nbytes) if len(images_N3SS) else 0,
    )


def _time_imports() -> float:
    lines = [
        # torch is there before a selection starts its clock: it says which device there is.
        "import time, importlib, torch, svp.study.rounds",
        "began = time.monotonic()",
        f"for name in {_IMPORTS!r}: importlib.import_module(name)",
        "print(time.monotonic() - began)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
