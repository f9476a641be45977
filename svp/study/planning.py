"""What a study will take: a prediction from a timed sample, and how far off it turned out to be.

The prediction is `plan.json` in the study. What really happened is in the receipts that every
stage writes anyway (`encoder.json`, `round.json`, `refresh.json`, `metrics.json`), so nothing has
to be recorded twice, and the comparison is made whenever somebody asks.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from feature_store.atomic import write_json
from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.provenance import hardware, now, versions
from svp.study.finetune import final_config
from svp.study.options import build_refresh_config
from svp.study.prices import PricesSection
from svp.study.record import read_rounds
from svp.study.refreshes import read_refreshes
from svp.study.study import Study
from svp.study.timing import Timing, measure

PLAN_SCHEMA: Final = "svp.plan.file/1"
PLAN_FILE: Final = "plan.json"
_MONTHS: Final = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StagePrediction:
    """One stage.

    Attributes:
        name: `embed`, `select 0`, …, `refresh` (once), `finetune`.
        seconds: Wall time of its work, as its receipt will say.
    """

    name: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Money:
    """What it costs at the study's prices, in their currency."""

    labels: float
    machine: float
    storage_month: float
    requests: float
    total: float
    currency: str
    as_of: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """What a study will take on this machine.

    Attributes:
        items: Images of the pool.
        budget: Labels per round.
        rounds: Rounds.
        labels: Labels of all rounds.
        device: Where it was timed.
        images_per_s: Embedding.
        stages: Seconds by stage; the refresh counts in the sums only if one is expected.
        hours: All stages together.
        gpu_hours: The same on a GPU; 0 on a CPU.
        memory_bytes: Most memory of a stage.
        stored_bytes: Embeddings in the store.
        requests: Objects written once and read in every round.
        money: At the study's prices; None where it states none.
        timing: What was measured.
    """

    items: int
    budget: int
    rounds: int
    labels: int
    device: str
    images_per_s: float
    stages: tuple[StagePrediction, ...]
    hours: float
    gpu_hours: float
    memory_bytes: int
    stored_bytes: int
    requests: int
    money: Money | None
    timing: Timing


def plan_study(
    study: Study,
    *,
    budget: int,
    rounds: int,
    sample: int = 512,
    device: str = "cpu",
    progress: Progress | None = None,
) -> StudyPlan:
    """Time a sample, predict the whole, and write `plan.json`.

    Args:
        study: The study.
        budget: Labels per round.
        rounds: Rounds.
        sample: Images to time.
        device: Where to compute.
        progress: Where to report.

    Raises:
        InputError: A number is out of range, or the images hold fewer than two classes.
    """
    for name, value, least in (("budget", budget, 1), ("rounds", rounds, 1), ("sample", sample, 8)):
        if value < least:
            raise InputError(f"{name} must be {least} or more. Got {value}. Correct it.")
    progress = progress if progress is not None else Silent()
    timing = measure(
        study, budget=budget, rounds=rounds, sample=sample, device=device, progress=progress
    )
    plan = predict(study, timing, budget=budget, rounds=rounds, device=device)
    write_json(
        study.path / PLAN_FILE,
        {
            "schema": PLAN_SCHEMA,
            "created": now(),
            "plan": dataclasses.asdict(plan),
            "versions": versions(),
            "hardware": hardware(),
        },
    )
    return plan


def predict(study: Study, timing: Timing, *, budget: int, rounds: int, device: str) -> StudyPlan:
    """Extrapolate measurements to the whole study; nothing is run or written."""
    items = len(study.scan().pool)
    labels = budget * rounds
    views = len({"eval", *study.config.encoder.views})
    embed_s = views * (timing.embed.fixed_s + items * timing.embed.image_s)
    stages = [StagePrediction(name="embed", seconds=embed_s)]
    stages += [
        StagePrediction(
            name=f"select {number}",
            seconds=_round_seconds(timing, budget * number) + timing.start_s + timing.scan_s
            + items * timing.embed.read_s,
        )
        for number in range(rounds)
    ]  # fmt: skip
    section = study.config.refresh
    refresh_steps = build_refresh_config(study.config).total_steps(labels)
    refresh_s = refresh_steps * timing.refresh.step_s + items * (
        timing.refresh.predict_s + timing.embed.image_s
    )
    if section.mode != "never":
        stages.append(StagePrediction(name="refresh", seconds=refresh_s))
    config = final_config(study)
    finetune_s = (
        config.total_steps(labels) * timing.finetune.step_s
        + labels * timing.finetune.probe_s
        + items * timing.finetune.predict_s
    )
    stages.append(StagePrediction(name="finetune", seconds=finetune_s))
    # A study that only asks may never refresh.
    expected = section.mode == "auto" or section.fixed_at is not None
    seconds = sum(one.seconds for one in stages if one.name != "refresh" or expected)
    stored = round(items * views * timing.embed.row_bytes)
    pixels = items * timing.finetune.image_bytes
    memory = timing.peak_bytes + max(items * timing.embed.dim * 4 * 2, pixels)
    requests = views * timing.embed.requests + rounds * timing.embed.requests
    hours = seconds / 3600
    return StudyPlan(
        items=items,
        budget=budget,
        rounds=rounds,
        labels=labels,
        device=device,
        images_per_s=1 / max(timing.embed.image_s, 1e-9),
        stages=tuple(stages),
        hours=hours,
        gpu_hours=hours if device.startswith("cuda") else 0.0,
        memory_bytes=memory,
        stored_bytes=stored,
        requests=requests,
        money=_money(study.config.prices, labels, hours, stored, requests),
        timing=timing,
    )


def _round_seconds(timing: Timing, labelled: int) -> float:
    counts = sorted(timing.rounds_s)
    if labelled == 0 or len(counts) < 3:
        return float(timing.rounds_s[min(counts, key=lambda count: abs(count - labelled))])
    # Without labels another strategy chooses, so zero is no point of the line.
    return float(np.interp(labelled, counts[1:], [timing.rounds_s[count] for count in counts[1:]]))


def _money(
    prices: PricesSection | None, labels: int, hours: float, stored: int, requests: int
) -> Money | None:
    if prices is None:
        return None
    parts = {
        "labels": labels * prices.label,
        "machine": hours * prices.machine_hour,
        "storage_month": _MONTHS * stored / 1e9 * prices.gb_month,
        "requests": requests / 1000 * prices.thousand_requests,
    }
    return Money(**parts, total=sum(parts.values()), currency=prices.currency, as_of=prices.as_of)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """One finished stage beside its prediction.

    Attributes:
        name: The stage.
        predicted_s: Seconds predicted for the work that it really did.
        actual_s: Seconds its receipt says.
        error: predicted / actual - 1; above 0 = the prediction was too long.
    """

    name: str
    predicted_s: float
    actual_s: float
    error: float

    @property
    def text(self) -> str:
        """The same for people."""
        return (
            f"{self.name}: planned {self.predicted_s:,.1f} s, took {self.actual_s:,.1f} s: the "
            f"plan was off by {self.error:+.0%}"
        )


def read_plan(study: Study) -> dict[str, Any] | None:
    """Return what `plan.json` says, or None without one.

    Raises:
        InputError: It is not as `svp plan` wrote it.
    """
    path = study.path / PLAN_FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != PLAN_SCHEMA:
            raise ValueError(f"schema {document['schema']!r}, not {PLAN_SCHEMA!r}")
        return dict(document["plan"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} must be as `svp plan` wrote it. Got {type(error).__name__}: {error}. "
            f"Delete it, then: svp plan {study.path} --budget N"
        ) from error


def deviations(study: Study, stage: str | None = None) -> tuple[Deviation, ...]:
    """Compare the plan with what the receipts of finished stages say.

    Args:
        study: The study.
        stage: Only `embed`, `select`, `refresh` or `finetune`.

    Returns:
        One entry per finished stage that was planned; none without a plan.
    """
    plan = read_plan(study)
    if plan is None:
        return ()
    found = []
    timing, planned = plan["timing"], {one["name"]: one["seconds"] for one in plan["stages"]}
    embedded = study.embedded()
    if embedded is not None and embedded["embedded"]:
        # Of what this run embedded: the rest was there, perhaps by another study.
        one = timing["embed"]
        predicted = one["fixed_s"] + embedded["embedded"] * one["image_s"]
        found.append(("embed", predicted, embedded["seconds"]))
    for done in read_rounds(study):
        name = f"select {done.number}"
        spent = {**done.receipt["timings_s"]}
        spent.pop("refresh", None)  # told apart
        if name in planned:
            found.append((name, planned[name], sum(spent.values())))
    for made in read_refreshes(study):
        if "refresh" in planned:
            spent_s = made.record["seconds"]
            found.append(("refresh", planned["refresh"], spent_s["finetune"] + spent_s["embed"]))
    found += _finetuned(study, plan)
    return tuple(
        Deviation(name=name, predicted_s=p, actual_s=a, error=p / max(a, 1e-9) - 1)
        for name, p, a in found
        if stage is None or name.split()[0] == stage
    )


def total_error(found: Sequence[Deviation]) -> float:
    """Return predicted / actual - 1 of several stages together; 0 without any."""
    actual = sum(one.actual_s for one in found)
    return sum(one.predicted_s for one in found) / actual - 1 if actual else 0.0


def _finetuned(study: Study, plan: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    path = study.model_dir / "metrics.json"
    if not path.is_file():
        return []
    metrics = json.loads(path.read_text(encoding="utf-8"))
    one = plan["timing"]["finetune"]
    predicted = (
        metrics["steps"] * one["step_s"]
        + plan["labels"] * one["probe_s"]
        + plan["items"] * one["predict_s"]
    )
    return [("finetune", predicted, sum(metrics["seconds"].values()))]
