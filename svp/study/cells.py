"""One run of a simulation: a strategy, a proxy and a seed against known labels.

The classes are known from the start, as in published benchmarks.
Shapes: M = pool, L = labelled, b = batch, d = features, T = test items, C = classes.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from feature_store.digest import canonical_json, sha256_hex
from svp.errors import InputError
from svp.metrics import accuracy, balanced_accuracy, imbalance, macro_f1, pool_accuracy
from svp.progress import Progress
from svp.seed import derive_seed, numpy_generator
from svp.study.curves import Cell
from svp.study.features import (
    StoredRows,
    place,
    read_features,
    split_rows,
    standardiser_of,
)
from svp.study.first_batch import labelbench_batch
from svp.study.learner import Learner, codes, fit_learner, predict
from svp.study.options import build_named_strategy, build_proxy_config, proxy_section
from svp.study.stored_views import ItemViews, read_views, wants_views
from svp.study.study import Study

if TYPE_CHECKING:
    import torch

    from feature_store.pool import Pool
    from svp.proxies import ProxyConfig, Standardiser
    from svp.strategies.base import Selection, Strategy

Int64Array = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SimulationConfig:
    """What to simulate.

    Attributes:
        strategies: Names; random is always added.
        proxies: `linear`, `mlp`, or names of published recipes in `svp.proxies.PRESETS`.
        seeds: One run of everything each.
        batch: Labels per round.
        rounds: Selections after the initial batch.
        initial: Labels of the initial batch; None = `batch`.
        schedule: Instead of `batch` and `rounds`: pairs (labels to reach, labels per round), such
            as ((2000, 200), (6000, 500)); needs `initial`.
        first: How the initial batch is chosen, shared by all strategies of a seed; `labelbench`
            draws it as that code does, see `svp.study.first_batch`.
        first_seed: Seed of the initial batch of all runs; None = each run's own.
        test_share: Share held out for evaluation if the source has no test split, in (0, 1).
        params: Parameters by strategy name; the study's own strategy keeps the study's.
    """

    strategies: tuple[str, ...] = ("margin",)
    proxies: tuple[str, ...] = ("linear",)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch: int | None = None
    rounds: int | None = None
    initial: int | None = None
    schedule: tuple[tuple[int, int], ...] | None = None
    first: Literal["random", "kmeans", "labelbench"] = "random"
    first_seed: int | None = None
    test_share: float = 0.2
    params: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("strategies", "proxies", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise InputError(f"{name} must be given, each once. Got {values}. Correct them.")
        for name, least in (("batch", 1), ("rounds", 0), ("initial", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}. Got {value}. Correct it.")
        fixed = (self.batch is None, self.rounds is None)
        planned = self.schedule is not None
        if fixed != (planned, planned) or (planned and (not self.schedule or not self.initial)):
            raise InputError(
                "Sizes must be given by batch and rounds, or by initial and schedule. Got batch "
                f"{self.batch}, rounds {self.rounds}, initial {self.initial}, schedule "
                f"{self.schedule}. Give one of the two."
            )
        ends = (self.initial or 0, *(until for until, _ in self.schedule or ()))
        if any(step < 1 for _, step in self.schedule or ()) or (
            planned and any(high <= low for low, high in itertools.pairwise(ends))
        ):
            raise InputError(
                "schedule must go up from initial, by at least one label a round. Got "
                f"{self.initial}, {self.schedule}. Correct it."
            )
        if not 0 < self.test_share < 1:
            raise InputError(
                f"test_share must be between 0 and 1. Got {self.test_share}. Correct it."
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Labels at each recorded point."""
        if self.schedule is not None:
            reached = [self.initial or 0]
            for until, step in self.schedule:
                reached += [*range(reached[-1] + step, until, step), until]
            return tuple(reached)
        batch, rounds = self.batch or 0, self.rounds or 0
        initial = batch if self.initial is None else self.initial
        return tuple(initial + place * batch for place in range(rounds + 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything that all cells share, loaded once."""

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    x_Md: "torch.Tensor | StoredRows"
    y_M: Int64Array
    keys_M: npt.NDArray[np.uint64]
    x_Td: "torch.Tensor | StoredRows"
    y_T: Int64Array
    standardiser: "Standardiser"
    evaluation: Mapping[str, Any]
    identity: Mapping[str, str]
    device: str
    groups_M: Int64Array | None = None
    memory_bytes: int | None = None
    views: ItemViews | None = None


def prepare(
    study: Study,
    config: SimulationConfig,
    device: str,
    progress: Progress,
    memory_bytes: int | None = None,
) -> Stage:
    """Load embeddings and known labels, once for all runs.

    Under a memory cap, embeddings that take more than half of it stay in the store.

    Raises:
        InputError: There are no known labels of two classes, nothing to evaluate on, embeddings
            are missing, or the pool is smaller than the last round needs.
    """
    encoder_id, store = study.encoder_id(), study.open_store()
    pool = study.scan(progress=progress).pool
    labels = pool.labels or (None,) * len(pool)
    sides = {
        side: [row for row in rows.tolist() if labels[row] is not None]
        for side, rows in split_rows(pool).items()
    }
    if not sides["train"]:
        raise InputError(
            "A simulation must have known labels: class folders, or a label column in the "
            "manifest. Got a source without labels outside its evaluation splits. "
            "Use `svp select` with people instead."
        )
    unread = memory_bytes is not None
    features = read_features(study, store, pool, encoder_id, sides["train"], unread=unread)
    held_out = not sides["test"]
    kept_rows = np.arange(len(features.ids))
    if held_out:
        # One held-out set for all runs, or differences between runs would be partly its luck.
        shuffled = numpy_generator(study.config.seed, "held-out").permutation(len(features.ids))
        count = round(config.test_share * len(features.ids))
        test_rows, kept_rows = np.sort(shuffled[:count]), np.sort(shuffled[count:])
        test = features.take(test_rows)
        features = features.take(kept_rows)
    else:
        test = read_features(study, store, pool, encoder_id, sides["test"])
    if not test.ids:
        raise InputError("A simulation must have items to evaluate on. Got none. Add a test split.")
    if config.sizes[-1] > len(features.ids):
        raise InputError(
            f"The last round must need at most {len(features.ids)} labels, all there are. Got "
            f"{config.sizes[-1]}. Lower batch, rounds or initial."
        )
    names_M = [name or "" for name in features.labels]
    names_T = [name or "" for name in test.labels]
    classes = tuple(sorted(set(names_M)))
    if len(classes) < 2:
        raise InputError(
            f"A simulation must have labels of at least two classes. Got only {classes[0]}. "
            "Check the source's labels."
        )
    x_Md = features.x_Md
    if (
        isinstance(x_Md, StoredRows)
        and memory_bytes is not None
        and x_Md.nbytes <= memory_bytes / 2
    ):
        memory_bytes -= x_Md.nbytes
        x_Md = x_Md.load()
    x_Md = place(x_Md, device)
    truth = [[pool.ids[row], labels[row]] for side in ("train", "test") for row in sides[side]]
    return Stage(
        ids=features.ids,
        classes=classes,
        x_Md=x_Md,
        y_M=codes(names_M, classes),
        keys_M=features.keys(),
        x_Td=place(test.x_Md, device),
        y_T=codes(names_T, classes),
        standardiser=standardiser_of(x_Md),
        evaluation={
            "split": "held-out" if held_out else "test",
            "items": len(test.ids),
            "share": config.test_share if held_out else None,
            "pool": len(features.ids),
            "classes": len(classes),
        },
        identity={
            "pool": pool.id,
            "encoder": encoder_id,
            "labels": sha256_hex(canonical_json(truth)),
            "held_out_seed": str(study.config.seed) if held_out else "",
        },
        device=device,
        groups_M=features.group_numbers(),
        memory_bytes=memory_bytes,
        views=_views(study, config, pool, encoder_id, features.ids),
    )


def _views(
    study: Study,
    config: SimulationConfig,
    pool: "Pool",
    encoder_id: str,
    ids: tuple[str, ...],
) -> ItemViews | None:
    """Return the views that any of the simulated proxies or strategies reads."""
    strategies = [build_named_strategy(name, {}) for name in config.strategies]
    proxies = [build_proxy_config(proxy_section(study.config, kind)) for kind in config.proxies]
    # One that trains on views asks for more of them than a strategy does.
    proxy = next((one for one in proxies if wants_views(one)), proxies[0])
    return read_views(study, study.open_store(), pool, encoder_id, ids, proxy, strategies)


def run_cell(
    stage: Stage,
    config: SimulationConfig,
    name: str,
    strategy: "Strategy",
    kind: str,
    proxy_config: "ProxyConfig",
    seed: int,
) -> Cell:
    """Run one strategy with one proxy and seed through all rounds.

    The initial batch depends on the seed alone, and so does every fit on it: all strategies start
    from the same point.
    """
    from svp.strategies.catalog import reads_labels

    batches = [_first_batch(stage, config, seed)]
    state: Mapping[str, Any] = {}
    select_s = 0.0
    rounds: list[dict[str, float]] = []
    learner: Learner | None = None
    for number, size in enumerate(config.sizes):
        labelled_L = np.sort(np.concatenate(batches))
        learner = fit_learner(
            stage.x_Md,
            labelled_L,
            [stage.classes[code] for code in stage.y_M[labelled_L]],
            proxy_config,
            standardiser=stage.standardiser,
            seed=derive_seed(seed, "proxy", number),
            device=stage.device,
            classes=stage.classes,
            start=learner,
            views=stage.views if wants_views(proxy_config) else None,
        )
        measured = _measure(stage, learner, labelled_L)
        times = {"select_s": select_s, "train_s": round(learner.train_s, 6)}
        rounds.append({"num_labeled": size, **measured, **times})
        if number == len(config.sizes) - 1:
            break
        start = time.monotonic()
        asked = config.sizes[number + 1] - size
        chosen = _select(stage, strategy, learner, batches, asked, seed, state)
        batches.append(chosen.rows_b)
        state = chosen.state
        select_s = round(time.monotonic() - start, 6)
    return Cell(
        strategy=name,
        proxy=kind,
        seed=seed,
        uses_oracle=reads_labels(strategy),
        rounds=tuple(rounds),
        selected=tuple(tuple(stage.ids[row] for row in batch) for batch in batches),
    )


def _first_batch(stage: Stage, config: SimulationConfig, seed: int) -> Int64Array:
    """Return the rows of the initial batch, which depends on the seed alone."""
    count, seed = config.sizes[0], seed if config.first_seed is None else config.first_seed
    if config.first == "labelbench":
        return labelbench_batch(seed, len(stage.ids), count)
    first = build_named_strategy(config.first, {})
    return _select(stage, first, None, [], count, seed, {}).rows_b


def _select(
    stage: Stage,
    strategy: "Strategy",
    learner: Learner | None,
    batches: list[Int64Array],
    b: int,
    seed: int,
    state: Mapping[str, Any],
) -> "Selection":
    """Choose one batch; `state` is what the strategy kept in the round before."""
    import torch

    from svp.strategies.base import Budget, PoolView
    from svp.strategies.catalog import reads_labels, run_strategy

    labelled_L = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *batches]))
    free_M = np.ones(len(stage.ids), dtype=bool)
    free_M[labelled_L] = False
    view = PoolView(
        embeddings_Nd=stage.x_Md,
        keys_N=stage.keys_M,
        unlabelled_U=np.flatnonzero(free_M),
        labelled_L=labelled_L,
        y_L=stage.y_M[labelled_L],
        n_classes=len(stage.classes),
        proxy=learner.proxy if learner is not None else None,
        views=() if stage.views is None else stage.views.shown(strategy),
        groups_N=stage.groups_M,
        state=state,
        finite=True,  # or it had no standardiser
    )
    return run_strategy(
        strategy,
        view,
        b,
        derive_seed(seed, "select", len(batches)),
        budget=Budget(device=torch.device(stage.device), memory_bytes=stage.memory_bytes),
        oracle=(lambda rows: stage.y_M[rows]) if reads_labels(strategy) else None,
    )


def _measure(stage: Stage, learner: Learner, labelled_L: Int64Array) -> dict[str, float]:
    predicted_T = predict(learner, stage.x_Td, stage.device).class_M
    predicted_M = predict(learner, stage.x_Md, stage.device).class_M
    whole = pool_accuracy(stage.y_M, predicted_M, labelled_L)
    spread = imbalance(np.bincount(stage.y_M[labelled_L], minlength=len(stage.classes)))
    return {
        "test_acc": accuracy(stage.y_T, predicted_T),
        "balanced_acc": balanced_accuracy(stage.y_T, predicted_T),
        "macro_f1": macro_f1(stage.y_T, predicted_T),
        "pool_acc": whole.hybrid,
        "imbalance": spread.ratio,
        "pool_acc_model": whole.model,
        "entropy_share": spread.entropy_share,
        "unseen_classes": spread.unseen,
    }


def cell_path(folder: Path, strategy: str, proxy: str, seed: int) -> Path:
    """Return where a run is written."""
    return folder / "cells" / f"{strategy}-{proxy}-{seed}.json"


def read_cell(path: Path) -> Cell | None:
    """Read a finished run; None if it is not there."""
    if not path.is_file():
        return None
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    del stored["schema"]
    stored["rounds"] = tuple(stored["rounds"])
    stored["selected"] = tuple(tuple(batch) for batch in stored["selected"])
    return Cell(**stored)
