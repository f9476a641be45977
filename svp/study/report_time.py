"""Where a study's time and money went, and what its refreshes were for, from its receipts."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from svp.report.content import Stage
from svp.report.evidence import Cost, Judgement, Money, RefreshDone, RefreshHistory
from svp.report.quantity import duration, number, plural
from svp.study.prices import PricesSection
from svp.study.record import RoundResult
from svp.study.refreshes import Refresh

# Stages of a round in the order they run, as the page names them.
_STAGES: Final = {
    "scan": "scan images",
    "read": "read embeddings",
    "align": "judge the features",
    "refresh": "refresh in a round",
    "proxy": "train proxies",
    "select": "select",
    "evaluate": "evaluate proxies",
    "write": "write rounds",
}


def read_stages(
    embedded: Mapping[str, Any],
    done: Sequence[RoundResult],
    refreshes: Sequence[Refresh],
    metrics: Mapping[str, Any],
) -> tuple[Stage, ...]:
    """Return wall time by stage, in the order of the work; a refresh counts once."""
    stages = []
    if "seconds" in embedded:
        items = plural(int(embedded.get("embedded", embedded.get("items", 0))), "image")
        stages.append(Stage(name="embed", seconds=float(embedded["seconds"]), note=items))
    rounds: dict[str, float] = {}
    for one in done:
        for name, seconds in one.receipt.get("timings_s", {}).items():
            rounds[name] = rounds.get(name, 0.0) + float(seconds)
    note = plural(len(done), "round")
    order = [*(name for name in _STAGES if name in rounds), *sorted(rounds.keys() - _STAGES.keys())]
    stages += [Stage(name=_STAGES.get(n, n), seconds=rounds[n], note=note) for n in order]
    # A refresh that a round made itself is in that round's time.
    in_rounds = {(one.receipt.get("refresh") or {}).get("done") for one in done}
    apart = [one for one in refreshes if one.number not in in_rounds]
    for part, name in (("finetune", "refresh: fine-tune"), ("embed", "refresh: embed")):
        seconds = sum(float(one.record.get("seconds", {}).get(part, 0.0)) for one in apart)
        note = plural(len(apart), "refresh", "refreshes")
        stages.append(Stage(name=name, seconds=seconds, note=note))
    for name, seconds in metrics.get("seconds", {}).items():
        steps = plural(int(metrics["steps"]), "step") if name == "train" else ""
        stages.append(Stage(name=f"fine-tune: {name}", seconds=float(seconds), note=steps))
    return tuple(stage for stage in stages if stage.seconds > 0)


def read_money(
    prices: PricesSection | None, labels: int, stages: Sequence[Stage], stored_bytes: int | None
) -> Money | None:
    """Return what the study cost so far; None where it states no prices.

    Args:
        prices: Its own.
        labels: Paid for.
        stages: Computing.
        stored_bytes: Of the embeddings in force; None when unknown.
    """
    if prices is None:
        return None
    costs = [Cost(name="labels", quantity=plural(labels, "label"), amount=labels * prices.label)]
    costs += [
        Cost(
            name=stage.name,
            quantity=duration(stage.seconds),
            amount=stage.seconds / 3600 * prices.machine_hour,
        )
        for stage in stages
    ]
    if stored_bytes is not None:
        costs.append(
            Cost(
                name="embeddings stored, a month",
                quantity=f"{number(stored_bytes / 1e6, 1)} MB",
                amount=stored_bytes / 1e9 * prices.gb_month,
            )
        )
    return Money(currency=prices.currency, as_of=prices.as_of, costs=tuple(costs))


def read_history(
    mode: str, done: Sequence[RoundResult], refreshes: Sequence[Refresh]
) -> RefreshHistory | None:
    """Return what the refresh criterion said in each round; None where nobody asked it."""
    judged = []
    for one in done:
        entry = one.receipt.get("refresh")
        verdict = entry.get("verdict") if isinstance(entry, Mapping) else None
        if not isinstance(entry, Mapping) or not isinstance(verdict, Mapping):
            continue
        judged.append(
            Judgement(
                round=one.number,
                labels=int(verdict["labels"]),
                encoder=str(entry["encoder"]),
                stale=bool(verdict["stale"]),
                reason=str(verdict["reason"]),
                ped_steps=verdict.get("ped_steps"),
                score=verdict.get("score"),
                previous=verdict.get("previous"),
                change=verdict.get("change"),
                threshold=float(verdict["threshold"]),
                refresh=entry.get("done"),
            )
        )
    if not judged and not refreshes:
        return None
    return RefreshHistory(
        mode=mode, judgements=tuple(judged), done=tuple(_refresh(one) for one in refreshes)
    )


def _refresh(one: Refresh) -> RefreshDone:
    record = one.record
    seconds = record.get("seconds", {})
    return RefreshDone(
        number=one.number,
        created=str(record.get("created", ""))[:10],
        labels=int(record.get("labels", {}).get("count", 0)),
        forced=bool(record.get("forced")),
        accuracy=(record.get("evaluation") or {}).get("accuracy"),
        finetune_s=float(seconds.get("finetune", 0.0)),
        embed_s=float(seconds.get("embed", 0.0)),
        encoder=one.encoder_id,
    )


def verdict_phrase(refresh: Any) -> str:
    """Return what a receipt says about refreshing the encoder, as one phrase."""
    if not isinstance(refresh, Mapping) or not isinstance(refresh.get("verdict"), Mapping):
        return ""
    verdict = refresh["verdict"]
    said = "stale" if verdict["stale"] else "not stale"
    if refresh.get("done") is not None:
        said = f"refreshed ({said})"
    return f"{said}: {verdict['reason']}"
