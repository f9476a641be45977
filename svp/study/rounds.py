"""Select a round: which items to label next, and the receipt that says why.

A round exists when its `round.json` does; it is written last, so a killed `select` leaves nothing
that counts and the next one starts over.
"""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_store.atomic import write_json
from svp.errors import InputError
from svp.metrics import imbalance
from svp.progress import Progress, Silent
from svp.provenance import hardware, now, versions
from svp.study.choice import Choice, Clock, Plan, choose, evaluate, plan_round
from svp.study.evidence import (
    LABELS_FILE,
    file_digest,
    seal,
    write_labels_known,
    write_vectors,
)
from svp.study.features import read_features, split_rows
from svp.study.labels import label_files, labels_digest, read_labels
from svp.study.lock import alone
from svp.study.options import check_options
from svp.study.record import (
    ROUND_SCHEMA,
    RoundResult,
    pending_ids,
    read_round,
    read_rounds,
    selection_digest,
    state_digest,
    write_selection,
    write_state,
)
from svp.study.refresh import judge, make_refresh, refresh_cost, scores_so_far, wants_refresh
from svp.study.refreshes import encoder_in_force, read_refreshes
from svp.study.scattered import ScatteredPool, choose_scattered, open_scattered
from svp.study.stored_views import read_views
from svp.study.study import Study
from svp.study.tables import to_table
from svp.study.tracking import open_tracking

if TYPE_CHECKING:
    from svp.cluster.executor import Executor
    from svp.data import Scan
    from svp.study.features import Features


def select(
    study: Study,
    budget: int,
    *,
    strategy: str | None = None,
    params: Mapping[str, Any] | None = None,
    proxy: str | None = None,
    seed: int | None = None,
    request: str | None = None,
    device: str = "cpu",
    memory_bytes: int | None = None,
    executor: "Executor | None" = None,
    progress: Progress | None = None,
) -> RoundResult:
    """Choose the next `budget` items to label and write the round.

    Without new labels since the last round, that round is returned unchanged: its items are
    still waiting.

    Args:
        study: The study.
        budget: How many items.
        strategy: Instead of the study's, also in a first round.
        params: Its parameters; the study's own when `strategy` is the study's too.
        proxy: `linear` or `mlp` instead of the study's.
        seed: Instead of the study's.
        request: A name for this call. The same name returns the same round, whatever was
            labelled since: so a scheduler may run it twice.
        device: Where tensors live.
        memory_bytes: Most that embeddings and strategy may hold together; None: no limit. It
            never changes what is chosen: a pool that does not fit is read from the store as the
            strategy goes.
        executor: Whose workers read and score the pool; None: it is read into this process.
            A score chooses the same items, other strategies choose in two rounds and are
            recorded as `approx:hierarchical`.
        progress: Where to report.

    Raises:
        InputError: The budget is larger than what is left, embeddings are missing, the strategy
            is unknown or cannot run, or the open round was asked for differently.
        TemporaryError: Another process selects in this study, or refreshes it.
    """
    if budget < 1:
        raise InputError(f"The budget must be at least 1. Got {budget}. Ask for more items.")
    if seed is not None and seed < 0:
        raise InputError(f"seed must be 0 or more. Got {seed}. Correct it.")
    check_options(study.config)
    asked = {"budget": budget, "strategy": strategy, "proxy": proxy, "seed": seed}
    with alone(study.path, "svp select"):
        return _select(
            study,
            asked,
            params=params,
            request=request,
            device=device,
            memory_bytes=memory_bytes,
            executor=executor,
            progress=progress if progress is not None else Silent(),
        )


def _select(
    study: Study,
    asked: Mapping[str, Any],
    *,
    params: Mapping[str, Any] | None,
    request: str | None,
    device: str,
    memory_bytes: int | None,
    executor: "Executor | None",
    progress: Progress,
) -> RoundResult:
    budget = asked["budget"]
    # Named before they are read: an answer that arrives meanwhile must not enter the receipt alone.
    files = label_files(study)
    labels = read_labels(study, files)
    done = read_rounds(study)
    for earlier in done:
        if request is not None and earlier.receipt.get("request") == request:
            return earlier
    if done and _is_open(done[-1], labels):
        _check_same(done[-1], asked)
        return done[-1]
    plan = plan_round(
        study.config,
        number=done[-1].number + 1 if done else 0,
        strategy=asked["strategy"],
        params=params,
        proxy=asked["proxy"],
        seed=asked["seed"],
    )
    clock = Clock()
    scan = study.scan(progress=progress)
    clock.lap("scan")
    aligned = _align(
        study,
        scan,
        labels,
        done,
        device=device,
        executor=executor,
        clock=clock,
        progress=progress,
        unread=memory_bytes is not None,
    )
    encoder_id = aligned.encoder_id
    asking: dict[str, Any] = {
        "labels": labels,
        "pending": pending_ids(done, labels),
        "budget": budget,
        "device": device,
        "clock": clock,
        "rounds": done,
        "memory_bytes": memory_bytes,
    }
    if isinstance(aligned.features, ScatteredPool):
        choice = choose_scattered(aligned.features, plan, **asking)
    else:
        asking["views"] = read_views(
            study,
            study.open_store(),
            scan.pool,
            encoder_id,
            aligned.features.ids,
            plan.proxy_config,
            [plan.strategy],
        )
        choice = choose(aligned.features, plan, **asking)
    metrics = evaluate(study, scan.pool, encoder_id, choice.learner, labels=labels, device=device)
    clock.lap("evaluate")
    receipt = {
        **_receipt(study, plan, choice, scan, encoder_id, labels, files),
        "refresh": aligned.entry,
        "budget": budget,
        "request": request,
        "metrics": metrics,
        "device": device,
        "memory_bytes": memory_bytes,
        "executor": None if executor is None else executor.name,
    }
    folder = study.rounds_dir / f"{plan.number:03d}"
    if folder.exists():
        shutil.rmtree(folder)  # a killed run's: without its round.json it never existed
    folder.mkdir(parents=True)
    write_selection(folder, plan.number, choice.name, choice.picks)
    write_labels_known(folder, labels)
    write_state(folder, choice.name, choice.selection.state)
    if choice.learner.proxy is not None:
        choice.learner.proxy.save(folder / "proxy.safetensors")
    receipt["evidence"] = _evidence(folder, aligned.features, done)
    receipt["seal"] = seal(receipt)
    clock.lap("write")
    write_json(folder / "round.json", {**receipt, "timings_s": clock.seconds})
    with open_tracking(study.path, study.config.tracking.to) as tracking:
        tracking.log("rounds", len(labels), _numbers(receipt, clock))
    progress.say(f"Round {plan.number}: {budget} items by {choice.name}, in {folder}")
    return read_round(folder, reopened=False)


def _numbers(receipt: Mapping[str, Any], clock: Clock) -> dict[str, float]:
    """Return what a log says of a round."""
    verdict = receipt["refresh"]["verdict"] or {}
    return {
        "round": receipt["round"],
        "selected": receipt["budget"],
        **{f"{split}_acc": one["accuracy"] for split, one in receipt["metrics"].items()},
        **({"refresh_score": verdict["score"]} if verdict.get("score") is not None else {}),
        **{f"{stage}_s": seconds for stage, seconds in clock.seconds.items()},
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Aligned:
    encoder_id: str
    features: "Features | ScatteredPool"
    entry: dict[str, Any]


def _align(
    study: Study,
    scan: "Scan",
    labels: Mapping[str, str],
    done: list[RoundResult],
    *,
    device: str,
    executor: "Executor | None",
    clock: Clock,
    progress: Progress,
    unread: bool,
) -> _Aligned:
    """Judge the features in force and refresh them if the study is set to do so by itself."""
    rows = split_rows(scan.pool)["train"]
    encoder_id, refreshes = encoder_in_force(study), read_refreshes(study)
    store, section = study.open_store(), study.config.refresh

    def read(encoder_id: str) -> "Features | ScatteredPool":
        if executor is None:
            return read_features(study, store, scan.pool, encoder_id, rows, unread=unread)
        return open_scattered(
            executor, study, scan.pool, encoder_id, device=device, progress=progress
        )

    features = read(encoder_id)
    clock.lap("read")
    scores = scores_so_far(done, encoder_id)
    if isinstance(features, ScatteredPool):
        verdict = judge(study, features.labelled(labels), labels, scores, features.standardiser)
    else:
        verdict = judge(study, features, labels, scores)
    clock.lap("align")
    wanted = wants_refresh(section, verdict, len(labels), len(refreshes))
    entry: dict[str, Any] = {
        "mode": section.mode,
        "encoder": encoder_id,
        "verdict": None if verdict is None else dataclasses.asdict(verdict),
        "wanted": wanted,
        "done": None,
    }
    if wanted and section.mode == "ask":
        cost = refresh_cost(study, len(labels))
        progress.say(
            f"The features look stale ({verdict.reason if verdict else ''}). A refresh takes "
            f"{cost.text}. To do it before selecting: svp refresh {study.path}"
        )
    elif wanted:
        made = make_refresh(
            study,
            scan.pool,
            labels,
            verdict=verdict,
            forced=section.fixed_at is not None,
            device=device,
            progress=progress,
        )
        entry["done"] = made.number
        encoder_id = made.encoder_id
        features = read(encoder_id)
        clock.lap("refresh")
    return _Aligned(encoder_id=encoder_id, features=features, entry=entry)


def _evidence(
    folder: Path, features: "Features | ScatteredPool", done: list[RoundResult]
) -> dict[str, Any]:
    """Return digests of what is in a round's folder, and of the embeddings it used."""
    # Embeddings that workers hold would have to travel to be digested here.
    x_Md = None if isinstance(features, ScatteredPool) else features.x_Md
    return {
        "vectors": dataclasses.asdict(write_vectors(folder, features.ids, x_Md, done)),
        "proxy": file_digest(folder / "proxy.safetensors"),
        "selection": file_digest(folder / "selection.csv"),
        "labels": file_digest(folder / LABELS_FILE),
    }


def _is_open(last: RoundResult, labels: Mapping[str, str]) -> bool:
    unchanged: bool = last.receipt["labels"]["digest"] == labels_digest(labels)
    return unchanged and any(pick.id not in labels for pick in last.picks)


def _check_same(last: RoundResult, asked: Mapping[str, Any]) -> None:
    receipt = last.receipt
    used = {
        "budget": (receipt["budget"],),
        "strategy": (receipt["strategy"]["name"], receipt["strategy"]["asked"]),
        "proxy": (receipt["proxy"]["kind"],),
        "seed": (receipt["seed"],),
    }
    for name, value in asked.items():
        if value is not None and value not in used[name]:
            raise InputError(
                f"Round {last.number} must be labelled before another is selected: it was asked "
                f"with {name} {used[name][0]} and its items wait. Got {name} {value}. "
                f"Import labels, or delete {last.folder} to select it anew."
            )


def _receipt(
    study: Study,
    plan: Plan,
    choice: Choice,
    scan: "Scan",
    encoder_id: str,
    labels: Mapping[str, str],
    files: Sequence[str],
) -> dict[str, Any]:
    from svp.strategies.catalog import reads_labels

    counts = Counter(choice.names_L)
    encoder = study.config.encoder
    return {
        "schema": ROUND_SCHEMA,
        "round": plan.number,
        "created": now(),
        "seed": plan.seed,
        "pool": {
            "id": scan.pool.id,
            "items": len(scan.pool),
            "unreadable": len(scan.failures) + choice.dropped,
            "candidates": choice.candidates,
        },
        "encoder": {
            "id": encoder_id,
            "spec": encoder.spec,
            "precision": encoder.precision,
            "view": "eval",
        },
        "labels": {
            "digest": labels_digest(labels),
            "files": list(files),
            "count": len(labels),
            "used": len(choice.names_L),
            "classes": dict(sorted(counts.items())),
            "imbalance": dataclasses.asdict(imbalance(list(counts.values()))) if counts else None,
        },
        "strategy": {
            "name": choice.name,
            "params": dict(choice.params),
            "first_round": choice.first_round,
            "asked": plan.name,
            "asked_params": dict(plan.params),
            "first": plan.first,
            "exactness": choice.selection.exactness,
            "counters": dict(choice.selection.counters),
            "uses_oracle": reads_labels(choice.strategy),
            "wrapping": plan.wrapping.table(),
            "state": state_digest(choice.selection.state),
        },
        "proxy": {
            "kind": plan.proxy_kind,
            "config": dataclasses.asdict(plan.proxy_config),
            "fitted": choice.learner.proxy is not None,
            "classes": list(choice.learner.classes),
        },
        "selection": {"digest": selection_digest(choice.picks)},
        "config": to_table(study.config),
        "versions": versions(),
        "hardware": hardware(),
    }
