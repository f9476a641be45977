"""The pool in two dimensions for a report: a sample, reduced by PCA and then t-SNE.

t-SNE (van der Maaten and Hinton 2008) keeps neighbours together and gives up distances between
groups. PCA alone keeps distances and crowds the middle; it is what `quick` asks for, and what a
few items get.
Shapes: S = items of the sample, d = features.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from feature_store.errors import FeatureStoreError
from svp.errors import InputError
from svp.progress import Progress
from svp.report.evidence import EmbeddingMap, MapPoint
from svp.seed import derive_seed, numpy_generator
from svp.study.record import Pick, RoundResult
from svp.study.study import Study

if TYPE_CHECKING:
    from feature_store.pool import Pool

# So many that t-SNE takes seconds on one core; the time grows with S log S and is bounded by S.
SAMPLE: Final = 1500
# Of the sample at most: the newest picks, then labels that no round asked for.
_PICKS: Final = 800
_ANSWERS: Final = 300
_PCA: Final = 50
_PERPLEXITY: Final = 30.0
_LEAST_FOR_TSNE: Final = 50

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


def read_map(
    study: Study,
    done: Sequence[RoundResult],
    labels: Mapping[str, str],
    *,
    quick: bool,
    progress: Progress,
) -> EmbeddingMap | None:
    """Project a sample of the study's pool under the encoder of its last round.

    Returns:
        The map; None where embeddings or the pool's record are not to be had.
    """
    from svp.study.features import read_features

    embedded = study.embedded() or {}
    receipt: Mapping[str, Any] = done[-1].receipt if done else {}
    encoder_id = receipt.get("encoder", {}).get("id") or embedded.get("encoder_id")
    pool_id = receipt.get("pool", {}).get("id") or embedded.get("pool_id")
    if encoder_id is None or pool_id is None:
        return None
    try:
        store = study.open_store()
        pool = store.pool(pool_id)
        rows_S = sample_rows(pool, done, labels, seed=study.config.seed)
        features = read_features(study, store, pool, encoder_id, rows_S)
    except (InputError, FeatureStoreError):
        # A store on another machine, or a pool not fully embedded: the rest can still be shown.
        return None
    x_Sd = features.x_Md.float().numpy()  # type: ignore[union-attr]  # read, so no StoredRows
    if len(x_Sd) < 3:
        return None
    with progress.task("map", 1, "drawings") as task:
        y_S2, method = project(x_Sd, seed=study.config.seed, quick=quick)
        task.advance(1)
    asked = {pick.id: (one.number, pick) for one in done for pick in one.picks}
    return EmbeddingMap(
        points=tuple(
            _point(name, x, y, labels.get(name, ""), asked.get(name))
            for name, (x, y) in zip(features.ids, y_S2.tolist(), strict=True)
        ),
        method=method,
        total=len(pool),
    )


def sample_rows(
    pool: "Pool",
    done: Sequence[RoundResult],
    labels: Mapping[str, str],
    *,
    seed: int,
    size: int = SAMPLE,
) -> Int64Array:
    """Return rows of a pool, ascending: picks, newest first, then labelled items, then any.

    Args:
        pool: The pool.
        done: Rounds, oldest first.
        labels: Label by id.
        seed: Decides which items stand for the rest.
        size: Rows at most.
    """
    row_of = {name: row for row, name in enumerate(pool.ids)}
    newest = (pick.id for one in reversed(done) for pick in one.picks)
    picked = list(dict.fromkeys(row_of[name] for name in newest if name in row_of))[:_PICKS]
    rng = numpy_generator(seed, "report-map")
    taken = np.zeros(len(pool), dtype=bool)
    taken[picked] = True
    asked = {pick.id for one in done for pick in one.picks}
    answered = sorted(row_of[name] for name in labels if name in row_of and name not in asked)
    for group, most in ((np.asarray(answered, dtype=np.int64), _ANSWERS), (None, size)):
        rest = np.flatnonzero(~taken) if group is None else group
        room = min(most, size - int(taken.sum()), len(rest))
        if room > 0:
            taken[rng.choice(rest, room, replace=False)] = True
    return np.flatnonzero(taken)[:size].astype(np.int64)


def project(x_Sd: Float32Array, *, seed: int, quick: bool) -> tuple[Float32Array, str]:
    """Return positions, (S, 2), and what was done, in words; the same seed, the same positions.

    Args:
        x_Sd: Embeddings.
        seed: Of t-SNE.
        quick: PCA alone.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    total, dim = x_Sd.shape
    components = min(_PCA, total, dim)
    centred = x_Sd.astype(np.float64) - x_Sd.mean(axis=0, dtype=np.float64)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    reduced = (left * scale)[:, :components]
    # The sign of a component is arbitrary: make its largest value positive.
    largest = reduced[np.abs(reduced).argmax(axis=0), np.arange(components)]
    reduced *= np.where(largest < 0, -1.0, 1.0)
    if quick or total < _LEAST_FOR_TSNE or components < 3 or not scale[0] > 0:
        flat = np.zeros((total, 2))
        flat[:, : min(2, components)] = reduced[:, :2]
        return flat.astype(np.float32), "PCA"
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (total - 1) / 3),
        init="pca",
        learning_rate="auto",
        random_state=derive_seed(seed, "report-map") % 2**32,
    )
    # Its threads wait busily for each other: on a busy machine they take ten times as long as one.
    with threadpool_limits(limits=1):
        y_S2: Float32Array = tsne.fit_transform(reduced.astype(np.float32))
    return y_S2, "t-SNE"


def _point(name: str, x: float, y: float, label: str, asked: tuple[int, Pick] | None) -> MapPoint:
    return MapPoint(
        id=name,
        x=x,
        y=y,
        label=label,
        round=None if asked is None else asked[0],
        rank=None if asked is None else asked[1].rank,
    )
