"""Fine-tune the target model of a study: its images decoded once, its labels, its splits.

Shapes: N = readable images, L = labelled, E = held out, S = side in pixels.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from svp.errors import InputError
from svp.finetune.launch import writes
from svp.progress import Progress, Silent
from svp.seed import derive_seed
from svp.study.features import split_rows
from svp.study.labels import read_labels
from svp.study.lock import alone
from svp.study.options import build_finetune_config
from svp.study.refreshes import read_refreshes
from svp.study.study import Study
from svp.study.tracking import open_tracking

if TYPE_CHECKING:
    import torch

    from feature_store.pool import Pool
    from svp.finetune.config import FinetuneConfig
    from svp.finetune.data import FinetuneData
    from svp.finetune.model import Head
    from svp.finetune.run import FinetuneResult

Int64Array = npt.NDArray[np.int64]

#: Decoded images, in the study's folder; may be deleted at any time.
IMAGE_CACHE: Final = "cache/images"


def finetune_study(
    study: Study,
    *,
    labels: Mapping[str, str] | None = None,
    config: "FinetuneConfig | None" = None,
    output: Path | None = None,
    seed: int | None = None,
    device: str = "cpu",
    restart: bool = False,
    progress: Progress | None = None,
) -> "FinetuneResult":
    """Train the target model from the study's encoder and predict the whole pool.

    Where the study refreshes its features by itself and does not say how the final training
    starts, it starts as ASVP does: from a probe (`lp-ft`) while the labels were chosen by the
    pretrained features, and from a fresh head (`ft`) after a refresh.

    Evaluated on the labelled items of the source's test split, or of its val split if it has no
    test split, or not at all.

    Args:
        study: The study.
        labels: Label by id instead of the study's, such as `simulation_labels` returns.
        config: Settings instead of the study's.
        output: Folder of the model; default: `model` in the study.
        seed: Instead of the study's.
        device: Where to train.
        restart: Discard what another run left in `output` instead of refusing it.
        progress: Where to report.

    Raises:
        InputError: There are no labels of two classes, or images cannot be read.
        TemporaryError: Another process writes the same model.
    """
    progress = progress if progress is not None else Silent()
    config = final_config(study) if config is None else config
    labels = read_labels(study) if labels is None else labels
    if len(set(labels.values())) < 2:
        raise InputError(
            f"A fine-tune must have labels of at least two classes. Got {len(labels)} labels of "
            f"{len(set(labels.values()))}. Import labels first: svp labels import {study.path} FILE"
        )
    output = study.model_dir if output is None else output
    # A launcher starts one process per GPU; the first of them writes for all. Processes beside it
    # would write every number of a training again.
    first = writes()
    trackers = study.config.tracking.to if first else ()
    with alone(output, "svp finetune") if first else contextlib.nullcontext():
        return _finetune(study, labels, config, output, seed, device, restart, trackers, progress)


def _finetune(
    study: Study,
    labels: Mapping[str, str],
    config: "FinetuneConfig",
    output: Path,
    seed: int | None,
    device: str,
    restart: bool,
    trackers: Sequence[str],
    progress: Progress,
) -> "FinetuneResult":
    from svp.encoders.encoder import open_encoder
    from svp.encoders.image_cache import cached_images
    from svp.finetune.run import finetune

    section = study.config.encoder
    source = study.source()
    pool = study.scan(source, progress).pool
    encoder = open_encoder(
        study.encoder_spec, device=device, precision=section.precision, progress=progress
    )
    cached = cached_images(
        study.path / IMAGE_CACHE,
        source,
        pool.uris,
        encoder.preprocessing,
        digests=pool.digests,
        workers=section.workers or None,
        progress=progress,
    )
    if cached.failures:
        progress.say(f"{len(cached.failures):,} images could not be read and take no part.")
    data = gather_data(pool.subset(cached.kept_M), cached.images_M3SS, labels)
    data = dataclasses.replace(data, images_sha256=cached.sha256)
    head = None
    if config.head == "zero-shot":
        head = _zero_shot(study, data.class_names, config.templates, progress)
    with open_tracking(study.path, trackers) as tracking:
        return finetune(
            encoder,
            data,
            config,
            output=output,
            seed=derive_seed(study.config.seed if seed is None else seed, "finetune"),
            head=head,
            device=device,
            restart=restart,
            progress=progress,
            watch=functools.partial(tracking.log, _run_name(study, output)),
        )


def _run_name(study: Study, output: Path) -> str:
    """Return what a training is called in logs: its folder in the study, such as `model`."""
    inside = output.resolve().is_relative_to(study.path.resolve())
    return str(output.resolve().relative_to(study.path.resolve())) if inside else output.name


def _zero_shot(
    study: Study, class_names: Sequence[str], templates: Sequence[str], progress: Progress
) -> "Head":
    from svp.encoders.texttower import open_text_tower, prompt_templates
    from svp.finetune.zeroshot import zero_shot_head

    chosen = prompt_templates(templates)
    tower = open_text_tower(study.encoder_spec, progress=progress)
    return zero_shot_head(tower, class_names, chosen)


def final_config(study: Study) -> "FinetuneConfig":
    """Return the settings of the final training, its mode decided; see `finetune_study`."""
    options, section = study.config.finetune.options, study.config.refresh
    if "mode" not in options and (section.mode == "auto" or section.fixed_at is not None):
        ready = bool(read_refreshes(study)) or options.get("head") == "zero-shot"
        options = {**options, "mode": "ft" if ready else "lp-ft"}
    return build_finetune_config(options)


def gather_data(
    pool: "Pool", images_N3SS: "torch.Tensor", labels: Mapping[str, str]
) -> "FinetuneData":
    """Say which images are labelled, unlabelled and held out.

    Args:
        pool: The readable items, in the order of `images_N3SS`.
        images_N3SS: Their pixels.
        labels: Label by id; those of evaluation splits are only evaluated on.

    Raises:
        InputError: Fewer than two classes are left among the items to learn from.
    """
    from svp.finetune.data import FinetuneData

    own = pool.labels or (None,) * len(pool)
    sides = split_rows(pool)
    train = sides["train"].tolist()
    labelled = [row for row in train if pool.ids[row] in labels]
    learned = {labels[pool.ids[row]] for row in labelled}
    if len(learned) < 2:
        raise InputError(
            "Items to learn from must have labels of at least two classes. Got "
            f"{len(labelled)} readable labelled items of {len(learned)}. Label more."
        )
    truth: dict[int, str] = {}
    held_out: list[int] = []
    for side in ("test", "val"):
        for row in sides[side].tolist():
            name = labels.get(pool.ids[row], own[row])
            if name is not None:
                truth[row] = name
        held_out = [row for row in sides[side].tolist() if row in truth]
        if held_out:
            break
    # A class that is only evaluated has an output too, so that missing it is an error like others.
    classes = tuple(sorted(learned | {truth[row] for row in held_out}))
    number = {name: place for place, name in enumerate(classes)}
    known_N = np.asarray(
        [number.get(name, -1) if name is not None else -1 for name in own], dtype=np.int64
    )
    return FinetuneData(
        images_N3SS=images_N3SS,
        ids=pool.ids,
        class_names=classes,
        labelled_rows=_rows(labelled),
        labels_L=_rows([number[labels[pool.ids[row]]] for row in labelled]),
        unlabelled_rows=_rows([row for row in train if pool.ids[row] not in labels]),
        held_out_rows=_rows(held_out),
        held_out_labels_E=_rows([number[truth[row]] for row in held_out]),
        known_labels_N=known_N if (known_N >= 0).any() else None,
    )


def _rows(values: list[int]) -> Int64Array:
    return np.asarray(values, dtype=np.int64)
