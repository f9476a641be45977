"""Refresh a study's features: fine-tune on the labels so far, embed the pool under the result.

```
refreshes/001/model/          the fine-tune, always from the study's pretrained encoder
refreshes/001/encoder/        its backbone as an encoder with a lineage of its own
refreshes/001/refresh.json    written last: from then on this is the encoder in force
```

Killed at any instant, the same command continues: the fine-tune from its checkpoint, the
embedding from its last chunk. A refresh interrupted before `refresh.json` never existed for the
other commands, and one that finds other labels starts its fine-tune over.

Source: Wen et al., "Feature Alignment: Rethinking Efficient Active Learning via Proxy in the
Context of Pre-trained Models", section 5.
Shapes: M = items that may be labelled and have an embedding, L = labelled.
"""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from feature_store.atomic import write_json
from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.provenance import hardware, now, versions
from svp.study.config import RefreshSection
from svp.study.features import read_features, split_rows, standardiser_of
from svp.study.labels import label_files, labels_digest, read_labels
from svp.study.lock import alone
from svp.study.options import build_criterion_config, build_refresh_config
from svp.study.record import RoundResult, read_rounds
from svp.study.refreshes import REFRESH_SCHEMA, Refresh, encoder_in_force, read_refreshes
from svp.study.study import Study

if TYPE_CHECKING:
    from feature_store.pool import Pool
    from svp.alignment import Verdict
    from svp.cluster.executor import Executor
    from svp.proxies import Standardiser
    from svp.study.features import Features


def scores_so_far(rounds: Sequence[RoundResult], encoder_id: str) -> tuple[float | None, ...]:
    """Return the alignment scores of the rounds judged under one encoder, oldest first."""
    judged = [done.receipt.get("refresh") for done in rounds]
    return tuple(
        None if entry["verdict"] is None else entry["verdict"]["score"]
        for entry in judged
        if entry is not None and entry["encoder"] == encoder_id
    )


def judge(
    study: Study,
    features: "Features",
    labels: Mapping[str, str],
    scores: Sequence[float | None],
    standardiser: "Standardiser | None" = None,
) -> "Verdict | None":
    """Ask the criterion about the labelled features of one encoder.

    Args:
        study: Whose `[refresh]` section says how.
        features: Embeddings of everything that may be labelled.
        labels: Label by id.
        scores: Of the rounds before under the same encoder.
        standardiser: Of the whole pool, where `features` are the labelled ones alone.

    Returns:
        The verdict; None before there are labels.
    """
    from svp.alignment import Criterion, class_statistics
    from svp.strategies.base import gather

    rows = [row for row, key in enumerate(features.ids) if key in labels]
    if not rows:
        return None
    names_L = [labels[features.ids[row]] for row in rows]
    number = {name: place for place, name in enumerate(sorted(set(names_L)))}
    pool_wide = standardiser_of(features.x_Md) if standardiser is None else standardiser
    criterion = Criterion(
        build_criterion_config(study.config.refresh),
        general_mean_D=pool_wide.mean_d.cpu().numpy(),
        general_std_D=pool_wide.std_d.cpu().numpy(),
        scores=scores,
    )
    x_Ld = gather(features.x_Md, np.asarray(rows)).float().cpu().numpy()
    return criterion.judge(class_statistics(x_Ld, [number[name] for name in names_L]))


def wants_refresh(
    section: RefreshSection, verdict: "Verdict | None", labelled: int, refreshed: int
) -> bool:
    """Return whether the features should be refreshed now, whoever decides.

    Args:
        section: The study's settings.
        verdict: What the criterion says.
        labelled: Labels so far.
        refreshed: Refreshes so far.
    """
    if verdict is None or verdict.classes < 2 or refreshed >= section.max_refreshes:
        return False
    if section.fixed_at is not None:
        return labelled >= section.fixed_at
    return section.mode in ("auto", "ask") and verdict.stale


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefreshCost:
    """What a refresh will take, estimated from what this study already did.

    Attributes:
        finetune_s: Seconds of fine-tuning; None where nothing has been timed yet.
        embed_s: Seconds of embedding the pool again; None likewise.
        images: Images of the pool.
        steps: Optimiser steps of the fine-tune.
        text: The same for people.
    """

    finetune_s: float | None
    embed_s: float | None
    images: int
    steps: int
    text: str


def refresh_cost(study: Study, labelled: int) -> RefreshCost:
    """Estimate a refresh before it starts.

    Embedding is as fast as it was; of a training step, an image costs about three forward
    passes, and one more for every unlabelled image that a teacher looks at.
    """
    config = build_refresh_config(study.config)
    steps = config.total_steps(max(labelled, 1))
    recorded = study.embedded() or {}
    images = int(recorded.get("items", 0))
    earlier = read_refreshes(study)
    timed = earlier[-1].record["seconds"] if earlier else None
    embed_s: float | None = None
    finetune_s: float | None = None
    if timed is not None:
        embed_s, finetune_s = float(timed["embed"]), float(timed["finetune"])
    elif recorded.get("embedded") and recorded.get("seconds"):
        per_image = float(recorded["seconds"]) / float(recorded["embedded"])
        seen = config.batch_size
        if config.method != "supervised":
            seen += 2 * config.uratio * config.batch_size
        embed_s, finetune_s = images * per_image, 3.0 * steps * seen * per_image
    text = (
        f"about {(finetune_s + embed_s) / 60:.1f} minutes: {steps:,} training steps, then "
        f"{images:,} images embedded again"
        if finetune_s is not None and embed_s is not None
        else f"{steps:,} training steps, then the pool embedded again; not timed yet"
    )
    return RefreshCost(
        finetune_s=finetune_s, embed_s=embed_s, images=images, steps=steps, text=text
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefreshResult:
    """What `svp refresh` did.

    Attributes:
        refreshed: Whether a new encoder is in force.
        verdict: What the criterion said; None before there are labels.
        cost: The estimate made before.
        refresh: The refresh, if one was made.
    """

    refreshed: bool
    verdict: "Verdict | None"
    cost: RefreshCost
    refresh: Refresh | None


def refresh(
    study: Study,
    *,
    force: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    executor: "Executor | None" = None,
    worker_device: str = "auto",
    progress: Progress | None = None,
) -> RefreshResult:
    """Do what the criterion asks for: refresh the features, or nothing.

    Args:
        study: The study.
        force: Refresh whatever the criterion says.
        dry_run: Judge and estimate only.
        device: Where to train, and to embed without an executor.
        executor: Whose workers embed; None = this process. Training stays here.
        worker_device: Where the encoder runs on them; `auto` takes a GPU if there is one.
        progress: Where to report.

    Raises:
        InputError: Fewer than two classes have labels, or images are not embedded.
        TemporaryError: Another process refreshes this study, or selects in it.
    """
    progress = progress if progress is not None else Silent()
    with contextlib.nullcontext() if dry_run else alone(study.path, "svp refresh"):
        return _refresh(
            study,
            force=force,
            dry_run=dry_run,
            device=device,
            executor=executor,
            worker_device=worker_device,
            progress=progress,
        )


def _refresh(
    study: Study,
    *,
    force: bool,
    dry_run: bool,
    device: str,
    executor: "Executor | None",
    worker_device: str,
    progress: Progress,
) -> RefreshResult:
    labels = read_labels(study)
    rounds, done = read_rounds(study), read_refreshes(study)
    encoder_id = encoder_in_force(study)
    pool = study.scan(progress=progress).pool
    features = read_features(study, study.open_store(), pool, encoder_id, split_rows(pool)["train"])
    verdict = judge(study, features, labels, scores_so_far(rounds, encoder_id))
    cost = refresh_cost(study, len(labels))
    asked = wants_refresh(study.config.refresh, verdict, len(labels), len(done))
    if force and (verdict is None or verdict.classes < 2):
        raise InputError(
            "A refresh must have labels of at least two classes. Got "
            f"{0 if verdict is None else verdict.classes}. Import labels first."
        )
    if dry_run or not (asked or force):
        return RefreshResult(refreshed=False, verdict=verdict, cost=cost, refresh=None)
    made = make_refresh(
        study,
        pool,
        labels,
        verdict=verdict,
        forced=not asked,
        device=device,
        executor=executor,
        worker_device=worker_device,
        progress=progress,
    )
    return RefreshResult(refreshed=True, verdict=verdict, cost=cost, refresh=made)


def make_refresh(
    study: Study,
    pool: "Pool",
    labels: Mapping[str, str],
    *,
    verdict: "Verdict | None",
    forced: bool,
    device: str,
    executor: "Executor | None" = None,
    worker_device: str = "auto",
    progress: Progress,
) -> Refresh:
    """Fine-tune from the pretrained encoder, embed the pool under the result, publish both."""
    from svp.encoders.encoder import open_encoder
    from svp.finetune.refresh import save_refreshed_encoder
    from svp.study.embedding import embed_by
    from svp.study.finetune import finetune_study

    number = len(read_refreshes(study)) + 1
    folder = study.refreshes_dir / f"{number:03d}"
    progress.say(f"Refresh {number}: {refresh_cost(study, len(labels)).text}.")
    began = time.monotonic()
    tuned = finetune_study(
        study,
        labels=labels,
        config=build_refresh_config(study.config),
        output=folder / "model",
        device=device,
        restart=True,  # another run's state there is a refresh that was never finished
        progress=progress,
    )
    finetune_s = sum(float(value) for value in tuned.metrics.get("seconds", {}).values())
    section = study.config.encoder
    pretrained = open_encoder(study.encoder_spec, device="cpu", precision=section.precision)
    save_refreshed_encoder(folder / "encoder", tuned.model, pretrained)
    embedding = time.monotonic()
    result = embed_by(
        study,
        str(folder / "encoder"),
        device="cpu" if executor is not None else device,
        executor=executor,
        worker_device=worker_device,
        progress=progress,
    )
    record = {
        "schema": REFRESH_SCHEMA,
        "refresh": number,
        "created": now(),
        "encoder_id": result.encoder_id,
        "parent": study.encoder_id(),
        "pool_id": pool.id,
        "labels": {
            "digest": labels_digest(labels),
            "files": label_files(study),
            "count": len(labels),
        },
        "forced": forced,
        "verdict": None if verdict is None else dataclasses.asdict(verdict),
        "workers": [dataclasses.asdict(test) for test in result.workers],
        "evaluation": tuned.metrics.get("evaluation"),
        "seconds": {
            "finetune": round(finetune_s, 2),
            "embed": round(time.monotonic() - embedding, 2),
            "total": round(time.monotonic() - began, 2),
        },
        "versions": versions(),
        "hardware": hardware(),
    }
    write_json(folder / "refresh.json", record)
    return Refresh(number=number, folder=folder, encoder_id=result.encoder_id, record=record)
