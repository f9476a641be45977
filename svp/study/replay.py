"""Compute a round again from its receipt: prove it identical, or say what is not as it was.

The labels, images, embeddings, settings and files of the round are compared with what its receipt
and its folder say of them, one by one, and the selection is computed anew and compared id by id
and utility by utility, bit for bit.
"""

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from feature_store.errors import FeatureStoreError
from svp.errors import SvpError
from svp.progress import Progress
from svp.provenance import hardware, versions
from svp.study.choice import Choice
from svp.study.evidence import (
    LABELS_FILE,
    broken_seals,
    file_digest,
    items_digest,
    read_labels_known,
    read_vectors,
    sums_digest,
    vector_sums,
)
from svp.study.features import Features
from svp.study.labels import labels_digest, read_labels
from svp.study.moment import Moment, find_round, recall
from svp.study.record import Pick, RoundResult, selection_digest
from svp.study.study import Study
from svp.study.tables import to_table

if TYPE_CHECKING:
    from feature_store.pool import Pool

What = Literal[
    "label",
    "labels",
    "item",
    "items",
    "embedding",
    "embeddings",
    "receipt",
    "proxy",
    "selection",
    "pick",
    "setting",
    "version",
    "hardware",
    "replay",
]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One thing that is not as the round had it.

    Attributes:
        what: Its kind.
        name: Which one: an id, a file, an entry of the receipt, a package.
        before: What the round had; None: nothing, or not known.
        after: What is there now; None likewise.
    """

    what: What
    name: str
    before: str | None
    after: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplayResult:
    """A round computed again.

    Attributes:
        number: The round.
        identical: Whether nothing it rests on has changed, and the same items came out in the
            same order with the same utilities, bit for bit.
        recomputed: Whether the selection could be computed again.
        differing: Ranks at which id or utility differ.
        changes: What is not as it was, or why the selection differs.
        notes: What is different now and did not matter: later settings, other versions.
    """

    number: int
    identical: bool
    recomputed: bool
    differing: tuple[int, ...]
    changes: tuple[Change, ...]
    notes: tuple[Change, ...]


def replay(
    study: Study, number: int, *, device: str = "cpu", progress: Progress | None = None
) -> ReplayResult:
    """Recompute a round from its receipt: the labels, settings and embeddings of its time.

    Raises:
        InputError: There is no such round, or imports it used are gone.
    """
    found, rounds = find_round(study, number)
    receipt = found.receipt
    changes = [*_files(found), *_rounds_before(found, rounds)]
    labels = read_labels(study, receipt["labels"]["files"])
    changes += _labels(found, labels)
    pool = study.scan(progress=progress).pool
    moved = list(_items(study, receipt, pool))
    changes += moved
    differing: tuple[int, ...] = ()
    recomputed = False
    if not moved:
        try:
            moment = recall(study, found, rounds, pool, labels, device=device, progress=progress)
            changes += _embeddings(study, moment)
            choice = moment.choose()
        except (SvpError, FeatureStoreError) as error:
            reason = " ".join(str(error).split())
            changes.append(Change(what="replay", name=f"{number}", before=None, after=reason))
        else:
            recomputed = True
            differing = tuple(_differing(found.picks, choice.picks))
            changes += _picks(found, choice, differing)
            changes += _refit(found, choice)
    around = list(_surroundings(study, receipt))
    same = recomputed and not differing
    if not same:
        # They may be why; with the same result they were not.
        changes += [change for change in around if change.what in ("version", "hardware")]
        around = [change for change in around if change.what not in ("version", "hardware")]
    return ReplayResult(
        number=number,
        identical=same and not changes,
        recomputed=recomputed,
        differing=differing,
        changes=tuple(changes),
        notes=tuple(around),
    )


def _files(found: RoundResult) -> Iterator[Change]:
    """Compare a round's own files with its receipt."""
    receipt, folder = found.receipt, found.folder
    for name in broken_seals(receipt):
        now = receipt.get(name)
        plain = now is None or isinstance(now, str | int | float)
        yield Change(
            what="receipt", name=name, before=None, after=str(now) if plain else "other content"
        )
    if receipt["selection"]["digest"] != selection_digest(found.picks):
        yield _file("selection", "ids in selection.csv", receipt["selection"]["digest"],
                    selection_digest(found.picks))  # fmt: skip
    evidence: Mapping[str, Any] = receipt.get("evidence", {})
    own: tuple[tuple[What, str], ...] = (
        ("selection", "selection.csv"),
        ("proxy", "proxy.safetensors"),
        ("labels", LABELS_FILE),
    )
    for what, name in own:
        if what in evidence and evidence[what] != (now := file_digest(folder / name)):
            yield _file(what, name, evidence[what], now)


def _file(what: What, name: str, before: str | None, after: str | None) -> Change:
    return Change(
        what=what,
        name=name,
        before=None if before is None else before[:12],
        after=None if after is None else after[:12],
    )


def _rounds_before(found: RoundResult, rounds: list[RoundResult]) -> Iterator[Change]:
    """Compare what a round takes from earlier ones: what waited, and where its proxy starts."""
    warm = found.receipt["proxy"]["config"].get("warm_start")
    for earlier in rounds:
        if earlier.number >= found.number:
            continue
        where = earlier.folder.name
        before, now = earlier.receipt["selection"]["digest"], selection_digest(earlier.picks)
        if before != now:
            yield _file("selection", f"{where}/selection.csv", before, now)
        known = earlier.receipt.get("evidence", {})
        if warm and earlier.number == found.number - 1 and "proxy" in known:
            held = file_digest(earlier.folder / "proxy.safetensors")
            if held != known["proxy"]:
                yield _file("proxy", f"{where}/proxy.safetensors", known["proxy"], held)


def _labels(found: RoundResult, labels: Mapping[str, str]) -> Iterator[Change]:
    """Name the labels that are not those of the round's time."""
    before, now = found.receipt["labels"]["digest"], labels_digest(labels)
    if before == now:
        return
    known = read_labels_known(found.folder)
    if known is None or labels_digest(known) != before:
        yield _file("labels", "labels/", before, now)
        return
    for key in sorted({*known, *labels}):
        if known.get(key) != labels.get(key):
            yield Change(what="label", name=key, before=known.get(key), after=labels.get(key))


def _items(study: Study, receipt: Mapping[str, Any], pool: "Pool") -> Iterator[Change]:
    """Name the images that are not those of the round's time."""
    before = str(receipt["pool"]["id"])
    if before == pool.id:
        return
    try:
        known = study.open_store().pool(before)
    except FeatureStoreError:
        yield _file("items", "pool", before, pool.id)
        return
    old = {key: raw.tobytes().hex() for key, raw in zip(known.ids, known.digests, strict=True)}
    new = {key: raw.tobytes().hex() for key, raw in zip(pool.ids, pool.digests, strict=True)}
    named = False
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            named = True
            yield _file("item", key, old.get(key), new.get(key))
    if not named:  # what a source reads them by is part of a pool's identity, too
        yield _file("items", "pool", before, pool.id)


def _embeddings(study: Study, moment: Moment) -> Iterator[Change]:
    """Name the embeddings that are not those of the round's time."""
    known = moment.found.receipt.get("evidence", {}).get("vectors")
    if known is None:
        return
    ids = moment.features.ids
    if known["items"] != (now := items_digest(ids)):
        yield _file("items", "images that may be labelled", known["items"], now)
        return
    if known["digest"] is None or not isinstance(moment.features, Features):
        return
    sums_M = vector_sums(moment.features.x_Md)
    if sums_digest(sums_M) == known["digest"]:
        return
    old_M = read_vectors(study.rounds_dir, known)
    if old_M is None or len(old_M) != len(sums_M):
        yield _file("embeddings", "all or some", known["digest"], sums_digest(sums_M))
        return
    for row in np.flatnonzero(old_M != sums_M).tolist():
        yield Change(
            what="embedding",
            name=ids[row],
            before=f"{int(old_M[row]):016x}",
            after=f"{int(sums_M[row]):016x}",
        )


def _differing(before: tuple[Pick, ...], after: tuple[Pick, ...]) -> Iterator[int]:
    for place in range(max(len(before), len(after))):
        if place >= min(len(before), len(after)):
            yield place + 1
            continue
        one, two = before[place], after[place]
        equal = one.utility == two.utility or (math.isnan(one.utility) and math.isnan(two.utility))
        if one.id != two.id or not equal:
            yield place + 1


def _picks(found: RoundResult, choice: Choice, differing: tuple[int, ...]) -> Iterator[Change]:
    for rank in differing:
        sides = [picks[rank - 1 : rank] for picks in (found.picks, choice.picks)]
        before, after = (f"{side[0].id} ({side[0].utility:.9g})" if side else None
                         for side in sides)  # fmt: skip
        yield Change(what="pick", name=f"rank {rank}", before=before, after=after)


def _refit(found: RoundResult, choice: Choice) -> Iterator[Change]:
    """Compare the proxy that was fitted again with the one that the receipt names."""
    evidence = found.receipt.get("evidence", {})
    if "proxy" not in evidence:
        return
    after = None
    if choice.learner.proxy is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "proxy.safetensors"
            choice.learner.proxy.save(path)
            after = file_digest(path)
    if after != evidence["proxy"]:
        yield _file("proxy", "fitted again", evidence["proxy"], after)


def _surroundings(study: Study, receipt: Mapping[str, Any]) -> Iterator[Change]:
    """Name what is different now and need not matter."""
    yield from _leaves("setting", "", receipt["config"], to_table(study.config))
    yield from _leaves("version", "", receipt["versions"], versions())
    # A GPU is known only once torch is loaded, so its absence says nothing.
    yield from _leaves("hardware", "", receipt["hardware"], hardware())


def _leaves(what: What, name: str, before: Any, after: Any) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            inner = f"{name}.{key}" if name else str(key)
            yield from _leaves(what, inner, before.get(key), after.get(key))
        return
    old, new = (list(v) if isinstance(v, tuple) else v for v in (before, after))
    if old != new:
        yield Change(
            what=what,
            name=name,
            before=None if old is None else str(old),
            after=None if new is None else str(new),
        )
