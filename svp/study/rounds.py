"""Select a round: which items to label next, and the receipt that says why.

A round exists when its `round.json` does; it is written last, so a killed `select` leaves nothing
that counts and the next one starts over.
"""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from feature_store.atomic import write_json
from svp.cluster.executor import InProcess
from svp.errors import IdentityError, InputError
from svp.metrics import imbalance
from svp.progress import Progress, Silent
from svp.provenance import hardware, now, versions
from svp.study.choice import Choice, Clock, Plan, choose, evaluate, plan_of_receipt, plan_round
from svp.study.features import read_features, split_rows
from svp.study.hierarchy import EXACTNESS as HIERARCHICAL
from svp.study.labels import label_files, labels_digest, read_labels
from svp.study.options import check_options
from svp.study.record import (
    ROUND_SCHEMA,
    RoundResult,
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
    """
    if budget < 1:
        raise InputError(f"The budget must be at least 1. Got {budget}. Ask for more items.")
    if seed is not None and seed < 0:
        raise InputError(f"seed must be 0 or more. Got {seed}. Correct it.")
    check_options(study.config)
    progress = progress if progress is not None else Silent()
    labels = read_labels(study)
    done = read_rounds(study)
    for earlier in done:
        if request is not None and earlier.receipt.get("request") == request:
            return earlier
    asked = {"budget": budget, "strategy": strategy, "proxy": proxy, "seed": seed}
    if done and _is_open(done[-1], labels):
        _check_same(done[-1], asked)
        return done[-1]
    plan = plan_round(
        study.config,
        number=done[-1].number + 1 if done else 0,
        strategy=strategy,
        params=params,
        proxy=proxy,
        seed=seed,
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
        "pending": _pending(done, labels),
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
        )
        choice = choose(aligned.features, plan, **asking)
    metrics = evaluate(study, scan.pool, encoder_id, choice.learner, labels=labels, device=device)
    clock.lap("evaluate")
    receipt = {
        **_receipt(study, plan, choice, scan, encoder_id, labels),
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
    write_state(folder, choice.name, choice.selection.state)
    if choice.learner.proxy is not None:
        choice.learner.proxy.save(folder / "proxy.safetensors")
    clock.lap("write")
    write_json(folder / "round.json", {**receipt, "timings_s": clock.seconds})
    progress.say(f"Round {plan.number}: {budget} items by {choice.name}, in {folder}")
    return read_round(folder, reopened=False)


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplayResult:
    """A round computed again.

    Attributes:
        number: The round.
        identical: Whether the same items came out in the same order.
        differing: Ranks at which they differ.
    """

    number: int
    identical: bool
    differing: tuple[int, ...]


def replay(
    study: Study, number: int, *, device: str = "cpu", progress: Progress | None = None
) -> ReplayResult:
    """Recompute a round from its receipt: the labels, settings and embeddings of its time.

    Raises:
        InputError: There is no such round, or imports it used are gone.
        IdentityError: The study's images are not those of the round any more.
    """
    done = read_rounds(study)
    found = next((earlier for earlier in done if earlier.number == number), None)
    if found is None:
        known = ", ".join(str(earlier.number) for earlier in done) or "none"
        raise InputError(f"A round must be one of: {known}. Got {number}. Name one of them.")
    receipt = found.receipt
    labels = read_labels(study, receipt["labels"]["files"])
    pool = study.scan(progress=progress).pool
    if pool.id != receipt["pool"]["id"]:
        raise IdentityError(
            f"The images must be those of round {number}, pool {receipt['pool']['id']}. "
            f"Got pool {pool.id}: images were added, changed or removed since."
        )
    asking: dict[str, Any] = {
        "labels": labels,
        "pending": _pending([earlier for earlier in done if earlier.number < number], labels),
        "budget": receipt["budget"],
        "device": device,
        "clock": Clock(),
        "rounds": done,
    }
    plan, encoder_id = plan_of_receipt(receipt), receipt["encoder"]["id"]
    if receipt["strategy"]["exactness"] == HIERARCHICAL:
        # Its parts belong to what was chosen, whoever worked them off.
        scattered = open_scattered(InProcess(), study, pool, encoder_id, device=device)
        part_rows = receipt["strategy"]["counters"]["part_rows"]
        choice = choose_scattered(scattered, plan, part_rows=part_rows, **asking)
    else:
        features = read_features(
            study, study.open_store(), pool, encoder_id, split_rows(pool)["train"]
        )
        asking["views"] = read_views(
            study, study.open_store(), pool, encoder_id, features.ids, plan.proxy_config
        )
        choice = choose(features, plan, **asking)
    differing = tuple(
        before.rank
        for before, after in zip(found.picks, choice.picks, strict=True)
        if before.id != after.id
    )
    return ReplayResult(number=number, identical=not differing, differing=differing)


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


def _pending(done: Collection[RoundResult], labels: Mapping[str, str]) -> set[str]:
    return {pick.id for earlier in done for pick in earlier.picks} - labels.keys()


def _receipt(
    study: Study,
    plan: Plan,
    choice: Choice,
    scan: "Scan",
    encoder_id: str,
    labels: Mapping[str, str],
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
            "files": label_files(study),
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
