"""Pretrain an encoder on the images of a source."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.study.tracking import check_trackers, open_tracking

if TYPE_CHECKING:
    from svp.pretrain.config import Method, PretrainConfig
    from svp.pretrain.train import PretrainResult

Preset = Literal["small_32", "imagenet_224"]
Views = Literal["recipe", "thumbnails", "photographs", "glyphs"]


def pretrain_source(
    source: str | Path | Sequence[str | Path],
    output: Path,
    *,
    preset: Preset = "small_32",
    method: "Method" = "eman",
    views: Views = "recipe",
    flip: bool = True,
    overrides: Mapping[str, Any] | None = None,
    exclude_split: str | None = "test",
    seed: int = 0,
    workers: int = 0,
    device: str = "cpu",
    trackers: Sequence[str] = (),
    progress: Progress | None = None,
) -> "PretrainResult":
    """Decode the images of `source` once and pretrain on them.

    Labels of the source never touch the weights; where there are some, they feed the
    nearest-neighbour monitor.

    Args:
        source: Image folder, manifest or archive, or several.
        output: The encoder folder to write.
        preset: Recipe to start from.
        method: BYOL, its EMAN form, or SimCLR.
        views: Augmentations instead of the recipe's.
        flip: Mirror images, where the views do.
        overrides: Fields of `PretrainConfig` instead of the recipe's.
        exclude_split: Leave out the items of this split, so that a test set stays unseen.
        seed: Decides weights, order and views.
        workers: Decoding threads; 0 = one per core.
        device: Where to train.
        trackers: Beside `metrics.jsonl` in `output`; see `svp.study.tracking`.
        progress: Where to report.

    Raises:
        InputError: The source or a value is wrong, or no image could be read.
    """
    from svp.data import DigestCache, open_source
    from svp.encoders.images import decode_pool
    from svp.pretrain.train import preprocessing_of, pretrain

    progress = progress if progress is not None else Silent()
    check_trackers(trackers)
    config = pretraining_config(preset, method, views=views, flip=flip, overrides=overrides or {})
    opened = open_source(source)
    pool = opened.scan(cache=DigestCache.default(), progress=progress).pool
    splits = pool.splits or (None,) * len(pool)
    rows = np.array(
        [
            row
            for row, split in enumerate(splits)
            if exclude_split is None or split != exclude_split
        ],
        dtype=np.int64,
    )
    if not len(rows):
        raise InputError(
            f"The source must have images outside the split {exclude_split!r}. Got none. "
            "Choose another --exclude-split."
        )
    pool = pool.subset(rows)
    images_N3SS, kept, failures = decode_pool(
        opened, pool.uris, preprocessing_of(config), workers=workers or None, progress=progress
    )
    if failures:
        progress.say(f"{len(failures):,} images could not be read and take no part.")
    labels = pool.labels or (None,) * len(pool)
    classes = {name: y for y, name in enumerate(sorted({x for x in labels if x is not None}))}
    labels_N = np.array([classes.get(labels[row] or "", -1) for row in kept], dtype=np.int64)
    with open_tracking(output, trackers) as tracking:
        return pretrain(
            images_N3SS,
            config,
            seed=seed,
            output=output,
            labels_N=labels_N if len(classes) > 1 else None,
            device=device,
            progress=progress,
            watch=functools.partial(tracking.log, "pretrain"),
        )


def pretraining_config(
    preset: Preset,
    method: "Method",
    *,
    views: Views = "recipe",
    flip: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> "PretrainConfig":
    """Return a preset's configuration with other values for some of its fields."""
    from svp.augment import byol
    from svp.pretrain import config as recipes

    overrides = overrides or {}
    base = recipes.small_32(method) if preset == "small_32" else recipes.imagenet_224(method)
    chosen = {
        "recipe": base.views,
        "thumbnails": byol.views_32(),
        "photographs": byol.views_224(),
        "glyphs": byol.views_digits(),
    }[views]
    if not flip:
        chosen = dataclasses.replace(chosen, flip_p=0.0)
    # A short run cannot warm up for longer than it lasts.
    warmup = min(base.warmup_epochs, float(overrides.get("epochs", base.epochs)))
    return dataclasses.replace(base, views=chosen, warmup_epochs=warmup, **overrides)
