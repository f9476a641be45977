"""Which strategy suits this pool, by the labels that a campaign has already.

The labelled items are the pool, a part of them is held out, and every strategy labels its way
through the rest, as often as there are seeds. Every seed holds out another part, so that the luck
of a test set is in the spread and not in the verdict.

Shapes: n = labelled items, M = those that may be bought, T = held out.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from feature_store.digest import canonical_json, sha256_hex
from svp.errors import InputError
from svp.metrics import mean_sd, paired_difference
from svp.progress import Progress, Silent
from svp.seed import derive_seed, numpy_generator
from svp.study.cells import SimulationConfig, Stage, run_cell
from svp.study.curves import Cell
from svp.study.features import Features, read_features, split_rows, standardiser_of
from svp.study.gain import random_picks
from svp.study.labels import read_labels
from svp.study.learner import codes
from svp.study.options import build_named_strategy, build_proxy_config
from svp.study.record import read_rounds
from svp.study.refreshes import encoder_in_force
from svp.study.study import Study

if TYPE_CHECKING:
    from svp.proxies import Standardiser

Int64Array = npt.NDArray[np.int64]

RANDOM: Final = "random"
_LEVEL: Final = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BacktestRow:
    """A strategy over seeds; accuracies are shares.

    Attributes:
        strategy: Its name.
        final: Mean accuracy after the last round.
        final_sd: Sample standard deviation of that over seeds.
        gain: Mean over rounds after the first batch, and over seeds, of accuracy minus random's.
        gain_sd: Sample standard deviation of a seed's mean gain.
        p: Two-sided p of the paired t test of that against 0; NaN for random.
        better: Whether it beats random at 5% after Holm's correction for all strategies tried.
        near_best: Whether it cannot be told apart from the best one, at 5%.
        select_s: Mean seconds of a selection.
        reads_labels: Whether it reads labels inside a batch, which people cannot be asked for.
    """

    strategy: str
    final: float
    final_sd: float
    gain: float
    gain_sd: float
    p: float
    better: bool
    near_best: bool
    select_s: float
    reads_labels: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSet:
    """How the labelled items came about.

    Attributes:
        labelled: Labelled items with an embedding.
        pool: Items that may be labelled.
        random: Drawn at random, of the labelled ones.
        chosen: Chosen by a strategy.
        elsewhere: Labelled outside of rounds; how they were chosen is not known.
    """

    labelled: int
    pool: int
    random: int
    chosen: int
    elsewhere: int

    @property
    def biased(self) -> bool:
        """Whether it may differ from the pool by how it was chosen."""
        return self.labelled < self.pool and self.random < self.labelled


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Backtest:
    """What was found.

    Attributes:
        rows: One per strategy, by mean gain; random among them.
        recommended: The strategy to use; None: no strategy is shown to be better than random, so
            random is as good by what is known.
        verdict: The same in one sentence.
        sizes: Labels at each recorded point.
        seeds: Runs of each.
        held_out: Items that evaluate, in each run.
        labelled: How the labelled items came about.
        skipped: Strategies that could not run, with the reason.
        notes: What limits this, for people.
    """

    rows: tuple[BacktestRow, ...]
    recommended: str | None
    verdict: str
    sizes: tuple[int, ...]
    seeds: int
    held_out: int
    labelled: LabelledSet
    skipped: Mapping[str, str]
    notes: tuple[str, ...]


def backtest(
    study: Study,
    *,
    strategies: Sequence[str] = (),
    batch: int | None = None,
    rounds: int = 5,
    seeds: int = 5,
    test_share: float = 0.3,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Backtest:
    """Replay strategies on the labels of a study.

    Args:
        study: The study.
        strategies: Names; none: every one of the catalogue. Random always takes part.
        batch: Labels per round; None: so that the last round holds half of what can be bought.
        rounds: Selections after the first, random batch.
        seeds: Runs of each, at least 2.
        test_share: Share of the labelled items to hold out, in (0, 1).
        device: Where tensors live.
        progress: Where to report.

    Raises:
        InputError: There are too few labels, or a named strategy is unknown.
    """
    from svp.strategies.catalog import names

    progress = progress if progress is not None else Silent()
    if seeds < 2:
        raise InputError(f"seeds must be at least 2, to see a spread. Got {seeds}. Raise it.")
    wanted = tuple(dict.fromkeys((RANDOM, *(strategies or names()))))
    built = {name: build_named_strategy(name, _params(study, name)) for name in wanted}
    labels = read_labels(study)
    pool = study.scan(progress=progress).pool
    everything = read_features(
        study, study.open_store(), pool, encoder_in_force(study), split_rows(pool)["train"]
    )
    rows_n = np.asarray([row for row, key in enumerate(everything.ids) if key in labels], np.int64)
    bought = len(rows_n) - round(test_share * len(rows_n))
    if batch is None:
        batch = bought // (2 * (rounds + 1))
    config = SimulationConfig(
        strategies=wanted, batch=max(batch, 1), rounds=rounds, test_share=test_share
    )
    if batch < 2 or config.sizes[-1] > bought or len({labels[k] for k in labels}) < 2:
        raise InputError(
            f"A backtest must have labels of two classes, and at least {2 * (rounds + 1)} beside "
            f"those held out, or as many as its rounds buy ({config.sizes[-1]}). Got {bought}. "
            "Label more, or lower the rounds or the batch."
        )
    features, standardiser = everything.take(rows_n), standardiser_of(everything.x_Md)
    proxy = build_proxy_config(study.config.proxy)
    cells: dict[str, list[Cell]] = {name: [] for name in wanted}
    skipped: dict[str, str] = {}
    held_out = len(rows_n) - bought
    with progress.task("Backtest", len(wanted) * seeds, "runs") as task:
        for seed in range(seeds):
            stage = _stage(study, features, labels, standardiser, held_out, seed, device)
            for name in wanted:
                if name not in skipped:
                    try:
                        cell = run_cell(
                            stage, config, name, built[name], study.config.proxy.kind, proxy, seed
                        )
                        cells[name].append(cell)
                    except InputError as error:
                        skipped[name] = " ".join(str(error).split())
                task.advance(1, note=f"{name}, seed {seed}")
    rows = compare({name: runs for name, runs in cells.items() if name not in skipped})
    known = _labelled_set(study, labels, features, len(everything.ids))
    recommended, verdict = recommend(rows)
    return Backtest(
        rows=rows,
        recommended=recommended,
        verdict=verdict,
        sizes=config.sizes,
        seeds=seeds,
        held_out=held_out,
        labelled=known,
        skipped=skipped,
        notes=tuple(_notes(known, rows)),
    )


def _params(study: Study, name: str) -> Mapping[str, object]:
    section = study.config.strategy
    return section.params if name == section.name else {}


def _stage(
    study: Study,
    features: Features,
    labels: Mapping[str, str],
    standardiser: "Standardiser",
    held_out: int,
    seed: int,
    device: str,
) -> Stage:
    """Return the labelled items as a pool of known labels, with a test set of this seed's own."""
    rng = numpy_generator(derive_seed(study.config.seed, "backtest", seed), "held-out")
    order_n = rng.permutation(len(features.ids))
    test, bought = features.take(np.sort(order_n[:held_out])), features.take(
        np.sort(order_n[held_out:])
    )  # fmt: skip
    names_M = [labels[key] for key in bought.ids]
    classes = tuple(sorted({labels[key] for key in features.ids}))
    return Stage(
        ids=bought.ids,
        classes=classes,
        x_Md=bought.x_Md,
        y_M=codes(names_M, classes),
        keys_M=bought.keys(),
        x_Td=test.x_Md,
        y_T=codes([labels[key] for key in test.ids], classes),
        standardiser=standardiser,
        evaluation={"split": "held-out", "items": held_out},
        identity={"labels": sha256_hex(canonical_json(sorted(labels.items())))},
        device=device,
        groups_M=bought.group_numbers(),
    )


def compare(cells: Mapping[str, Sequence[Cell]]) -> tuple[BacktestRow, ...]:
    """Compare strategies with random on the same seeds, best mean gain first."""
    from scipy.stats import t

    curve_SR = {
        name: np.asarray([[point["test_acc"] for point in cell.rounds] for cell in runs])
        for name, runs in cells.items()
    }
    gain_S = {
        name: (curve - curve_SR[RANDOM])[:, 1:].mean(axis=1) if curve.shape[1] > 1
        else (curve - curve_SR[RANDOM]).mean(axis=1)
        for name, curve in curve_SR.items()
    }  # fmt: skip
    p_of: dict[str, float] = {}
    for name, gains in gain_S.items():
        mean, sd = mean_sd(gains.tolist())
        if name == RANDOM:
            p_of[name] = math.nan
        elif sd == 0:
            p_of[name] = 1.0 if mean == 0 else 0.0
        else:
            p_of[name] = float(2 * t.sf(abs(mean) / (sd / math.sqrt(len(gains))), len(gains) - 1))
    better = _holm({name: p for name, p in p_of.items() if name != RANDOM})
    best = max(gain_S, key=lambda name: (float(gain_S[name].mean()), name == RANDOM))
    rows = []
    for name, runs in cells.items():
        against = paired_difference(gain_S[best].tolist(), gain_S[name].tolist())
        mean, sd = mean_sd(gain_S[name].tolist())
        final, final_sd = mean_sd(curve_SR[name][:, -1].tolist())
        seconds = [point["select_s"] for cell in runs for point in cell.rounds[1:]]
        rows.append(
            BacktestRow(
                strategy=name,
                final=final,
                final_sd=final_sd,
                gain=mean,
                gain_sd=sd,
                p=p_of[name],
                better=name in better and mean > 0,
                near_best=not against.significant,
                select_s=mean_sd(seconds)[0] if seconds else math.nan,
                reads_labels=runs[0].uses_oracle,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.gain, row.strategy != RANDOM, row.strategy)))


def _holm(p_of: Mapping[str, float]) -> set[str]:
    """Return the names whose p is significant after Holm's correction (1979)."""
    found: set[str] = set()
    for place, name in enumerate(sorted(p_of, key=lambda name: p_of[name])):
        if p_of[name] > _LEVEL / (len(p_of) - place):
            break
        found.add(name)
    return found


def recommend(rows: Sequence[BacktestRow]) -> tuple[str | None, str]:
    """Return the strategy to use and a sentence; None where none is shown to beat random."""
    able = [row for row in rows if row.better and not row.reads_labels]
    if not able:
        return None, (
            "No strategy is shown to be better than random here. Random is as good by what is "
            "known, and its labels can be judged without bias."
        )
    best = able[0]
    others = [row.strategy for row in rows
              if row.near_best and row is not best and not row.reads_labels]  # fmt: skip
    tied = f" Not told apart from it: {', '.join(others)}." if others else ""
    return best.strategy, (
        f"{best.strategy}: {100 * best.gain:+.2f} points over random on average "
        f"(SD over seeds {100 * best.gain_sd:.2f}).{tied}"
    )


def _labelled_set(
    study: Study, labels: Mapping[str, str], features: Features, pool: int
) -> LabelledSet:
    ids = {*features.ids}
    rounds = read_rounds(study)
    random = {pick.id for done in rounds for pick in random_picks(done)} & ids
    picked = {pick.id for done in rounds for pick in done.picks} & ids
    return LabelledSet(
        labelled=len(ids),
        pool=pool,
        random=len(random),
        chosen=len(picked - random),
        elsewhere=len(ids - picked),
    )


def _notes(known: LabelledSet, rows: Sequence[BacktestRow]) -> list[str]:
    notes = []
    if known.biased:
        notes.append(
            f"Of {known.labelled:,} labelled items {known.random:,} were drawn at random, "
            f"{known.chosen:,} chosen by a strategy, {known.elsewhere:,} labelled elsewhere; the "
            f"pool has {known.pool:,}. Chosen items are not like the pool, often harder, so gains "
            "here need not be gains there. A random_share makes the next backtest more honest."
        )
    if any(row.reads_labels for row in rows):
        notes.append("Strategies that read labels inside a batch are not recommended to people.")
    return notes
