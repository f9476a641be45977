"""How good an encoder is: `svp.study.linear_probe` on labelled images of a source or a study.

Embeddings come from the store, and only what it lacks is computed.

Shapes: N = labelled images with an embedding, T = training part, V = validation part, E = held-out
part, d = features.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.seed import numpy_generator
from svp.study.features import split_rows
from svp.study.linear_probe import Int64Array, Probe, Recipe, measure

if TYPE_CHECKING:
    from feature_store.pool import Pool
    from feature_store.store import FeatureStore
    from svp.data.source import Source
    from svp.study.study import Study

_PARTS: Final = 5
_ID: Final = re.compile(r"[0-9a-f]{16}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Sides:
    """Rows of the labelled images per side."""

    train_T: Int64Array
    validation_V: Int64Array
    held_out_E: Int64Array
    by: Literal["test", "part"]


def probe_source(
    encoder: str,
    source: str | Path | Sequence[str | Path],
    store_url: str,
    *,
    recipe: Recipe = "optimum",
    seed: int = 0,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    batch_size: int = 0,
    workers: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Probe:
    """Measure an encoder on the labelled images of a source.

    Held out are the images of the source's split `test`, else a fifth of them; its split `val`
    chooses the regularisation, else a fifth of the training labels does.

    Args:
        encoder: Encoder spec, or the id of one whose embeddings the store has.
        source: Image folder, manifest or archive, or several.
        store_url: Where embeddings are kept; made if it is not there.
        recipe: How the probe is fitted.
        seed: Decides parts that the source does not, and the order of SGD.
        precision: Numeric mode of the encoder; part of its identity.
        batch_size: Images per forward pass; 0 = automatic.
        workers: Decoding threads; 0 = one per core.
        device: Where encoder and probe run.
        progress: Where to report.

    Raises:
        InputError: Labels are missing, or an encoder named by its id lacks embeddings.
    """
    from svp.data import DigestCache, open_source

    progress = progress if progress is not None else Silent()
    opened = open_source(source)
    pool = opened.scan(cache=DigestCache.default(), progress=progress).pool
    options = {"precision": precision, "batch_size": batch_size, "workers": workers}
    return _probe(
        encoder, opened, pool, {}, store_url, options,
        recipe=recipe, seed=seed, device=device, progress=progress,
    )  # fmt: skip


def probe_study(
    study: "Study",
    encoder: str | None = None,
    *,
    recipe: Recipe = "optimum",
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Probe:
    """Measure an encoder on a study's images; labels of people win over the source's.

    Args:
        study: The study.
        encoder: Encoder spec or id; None = the one in force.
        recipe: How the probe is fitted.
        seed: As for `probe_source`.
        device: Where encoder and probe run.
        progress: Where to report.

    Raises:
        InputError: As for `probe_source`.
    """
    from svp.study.labels import read_labels
    from svp.study.refreshes import encoder_in_force

    progress = progress if progress is not None else Silent()
    source = study.source()
    section = study.config.encoder
    options = {
        "precision": section.precision,
        "batch_size": section.batch_size,
        "workers": section.workers,
    }
    return _probe(
        encoder_in_force(study) if encoder is None else encoder,
        source, study.scan(source, progress).pool, read_labels(study), study.store_url, options,
        recipe=recipe, seed=seed, device=device, progress=progress,
    )  # fmt: skip


def _probe(
    encoder: str,
    source: "Source",
    pool: "Pool",
    answers: Mapping[str, str],
    store_url: str,
    options: Mapping[str, Any],
    *,
    recipe: Recipe,
    seed: int,
    device: str,
    progress: Progress,
) -> Probe:
    import torch

    from feature_store.errors import MissingRowsError
    from feature_store.store import open_store
    from svp.embed import load_features

    own = pool.labels or (None,) * len(pool)
    names = [answers.get(key, label) for key, label in zip(pool.ids, own, strict=True)]
    labelled = np.asarray([row for row, name in enumerate(names) if name is not None], np.int64)
    if not len(labelled):
        raise InputError(
            "A probe must have labelled images. Got none. Give a source with labels, such as "
            "class folders, or a study with imported labels."
        )
    part = pool.subset(labelled)
    store = open_store(store_url, create=True)
    if _ID.fullmatch(encoder) and not Path(encoder).exists():
        encoder_id, embedded, reused = encoder, 0, len(part)
    else:
        encoder_id, embedded, reused = _embed(
            encoder, source, part, store, options, device=device, progress=progress
        )
    try:
        kept_N, x_Nd = load_features(store, part, encoder_id)
    except MissingRowsError as error:
        raise InputError(
            f"Every labelled image must have an embedding by {encoder_id}. Got {error.missing} of "
            f"{error.total} without one. Name the encoder by its spec, which embeds them."
        ) from error
    names_N = [names[row] or "" for row in labelled[kept_N]]
    sides = _sides(part.subset(kept_N), names_N, seed)
    done = measure(
        torch.from_numpy(np.ascontiguousarray(x_Nd)),
        names_N,
        train=sides.train_T,
        validation=sides.validation_V,
        held_out=sides.held_out_E,
        recipe=recipe,
        seed=seed,
        device=device,
    )
    return dataclasses.replace(
        done,
        encoder_id=encoder_id,
        held_out_by=sides.by,
        dropped=len(part) - len(kept_N),
        embedded=embedded,
        reused=reused,
    )


def _embed(
    spec: str,
    source: "Source",
    part: "Pool",
    store: "FeatureStore",
    options: Mapping[str, Any],
    *,
    device: str,
    progress: Progress,
) -> tuple[str, int, int]:
    """Embed what the store lacks; return the encoder's id, images embedded and found there."""
    from svp.embed import EmbedConfig, check_golden, embed
    from svp.encoders.encoder import open_encoder

    encoder = open_encoder(spec, device=device, precision=options["precision"], progress=progress)
    check_golden(store, encoder, accept_drift=False, progress=progress)
    config = EmbedConfig(
        batch_size=options["batch_size"] or None, workers=options["workers"] or None
    )
    done = embed(part, source, encoder, store, config=config, progress=progress)
    return done.encoder_id, done.embedded, done.reused


def _sides(pool: "Pool", names_N: Sequence[str], seed: int) -> _Sides:
    """Return the rows to train on, to choose by and to measure on, each ascending."""
    rows = split_rows(pool)
    train, held_out, by = rows["train"], rows["test"], "test"
    if not len(held_out):
        held_out, by = _fifth(train, names_N, numpy_generator(seed, "probe", "held-out")), "part"
        train = np.setdiff1d(train, held_out)
    validation = rows["val"]
    if len(validation):
        train = np.union1d(train, validation)
    else:
        validation = _fifth(train, names_N, numpy_generator(seed, "probe", "validation"))
    return _Sides(
        train_T=train,
        validation_V=validation,
        held_out_E=held_out,
        by="test" if by == "test" else "part",
    )


def _fifth(rows: Int64Array, names_N: Sequence[str], random: np.random.Generator) -> Int64Array:
    """Return every fifth row of each class in a random order, ascending."""
    mixed = random.permutation(rows)
    by_class = np.argsort(np.asarray([names_N[row] for row in mixed], dtype=str), kind="stable")
    return np.sort(mixed[by_class][_PARTS - 1 :: _PARTS])
