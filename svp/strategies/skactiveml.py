"""Any query strategy of scikit-activeml, behind the interface of this package.

`skactiveml:NAME` runs `skactiveml.pool.NAME` with the given parameters. It is handed the
standardised input of the proxy's last layer as X, the labels so far as y with NaN for the rest,
and, where its `query` asks for a classifier, the trained proxy itself, which is not fitted again.

It runs in float64 on one process's memory, and most of them compute a score per candidate and
pick: meant for pools of thousands. Rows are handed over in the order of the seeded hash and its
random state follows from the seed, so the order of the pool changes nothing.

Source: Kottke et al. 2021, "scikit-activeml: a library and toolbox for active learning
algorithms". Extra: `skactiveml`.
Shapes: L = labelled, U = candidates, h = width of the representation, C = classes, b = budget.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from svp.errors import InputError
from svp.seed import derive_seed
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import near

PREFIX: Final = "skactiveml:"
_CLASSIFIER: Final = ("clf", "estimator", "ensemble", "discriminator", "reg")


def query_class(query: str) -> Any:
    """Return the query strategy `skactiveml.pool.<query>`.

    Raises:
        InputError: If scikit-activeml is not installed, or has no such query strategy.
    """
    try:
        import skactiveml.pool as found
    except ImportError as error:
        raise InputError(
            f"{PREFIX}{query} must have scikit-activeml installed. Got {error}. "
            "Install it with: pip install 'svp[skactiveml]'"
        ) from error
    known = [name for name in found.__all__ if hasattr(getattr(found, name), "query")]
    if query not in known:
        raise InputError(
            f"{PREFIX}NAME must name a query strategy of scikit-activeml's pool. Got {query!r}. "
            f"{near(query, known)}"
        )
    return getattr(found, query)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SkActiveML:
    """A query strategy of scikit-activeml.

    Attributes:
        query: Its class in `skactiveml.pool`.
        params: Arguments of that class.
    """

    query: str
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = inspect.signature(query_class(self.query).query).parameters
        foreign = [name for name in _CLASSIFIER if name in asked and name not in ("clf",)]
        if foreign:
            raise InputError(
                f"{self.name} must work with a classifier or without any. It asks for "
                f"{foreign[0]}, which a proxy is not. Choose another one."
            )
        self._build(0)

    @property
    def name(self) -> str:
        """`skactiveml:` and the class."""
        return f"{PREFIX}{self.query}"

    @property
    def family(self) -> str:
        """Where it comes from."""
        return "scikit-activeml"

    @property
    def summary(self) -> str:
        """One line for a list of strategies."""
        return f"scikit-activeml's {self.query}"

    @property
    def needs(self) -> frozenset[Need]:
        """Embeddings; a proxy and labels too if it asks for a classifier."""
        if self._asks_classifier():
            return frozenset({"embeddings", "logits", "labelled"})
        return frozenset({"embeddings"})

    @property
    def stochastic(self) -> bool:
        """It breaks ties at random, and may do more."""
        return True

    @property
    def uses_oracle(self) -> bool:
        """It reads no labels inside a batch."""
        return False

    @property
    def exactness(self) -> str:
        """As scikit-activeml defines it."""
        return "exact-law"

    @property
    def source(self) -> str:
        """Where it comes from."""
        return "Kottke et al. 2021, scikit-activeml"

    @property
    def scaling(self) -> str:
        """At least this."""
        return "U b h or more"

    @property
    def instead(self) -> str:
        """What to use when it does not fit a memory cap."""
        return "one of svp's own strategies"

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic, as far as they can be known; see `Strategy.cost`."""
        rows = shape.candidates + shape.labelled
        return Cost(
            bytes=8 * rows * (3 * shape.hidden + 4 * shape.classes)
            + 24 * shape.candidates * shape.budget
            + shape.tile_bytes,
            flops=2.0 * shape.candidates * shape.budget * shape.hidden,
            passes=1.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose `b` candidates; see `Strategy.select`."""
        del oracle
        rows_U, rows_L = view.candidates(seed), view.centres(seed)
        x_h = np.concatenate([_points(view, rows, budget) for rows in (rows_L, rows_U)])
        y = np.full(len(x_h), np.nan)
        y[: len(rows_L)] = view.y_L[np.searchsorted(view.labelled_L, rows_L)]
        asked: dict[str, Any] = {}
        if self._asks_classifier():
            logits = np.concatenate([_logits(view, rows, budget) for rows in (rows_L, rows_U)])
            asked["clf"] = _classifier(x_h, logits, view.n_classes)
            if "fit_clf" in inspect.signature(query_class(self.query).query).parameters:
                asked["fit_clf"] = False
        places_b, utility_bN = self._build(seed).query(
            x_h,
            y,
            candidates=np.arange(len(rows_L), len(x_h)),
            batch_size=b,
            return_utilities=True,
            **asked,
        )
        utility_b = utility_bN[np.arange(b), places_b].astype(np.float32)
        return Selection(
            rows_b=rows_U[np.asarray(places_b, dtype=np.int64) - len(rows_L)],
            utility_b=np.nan_to_num(utility_b, nan=0.0),
            reason=f"Chosen by scikit-activeml's {self.query} (utility {{utility}}).",
            exactness=self.exactness,
        )

    def _asks_classifier(self) -> bool:
        return "clf" in inspect.signature(query_class(self.query).query).parameters

    def _build(self, seed: int) -> Any:
        cls = query_class(self.query)
        known = inspect.signature(cls.__init__).parameters.keys() - {"self", "random_state"}
        for name in self.params:
            if name not in known:
                raise InputError(
                    f"{self.name}.{name} must be a parameter of {self.query}. Got an unknown "
                    f"name. {near(name, known)}"
                )
        state = derive_seed(seed, "skactiveml") % 2**31
        return cls(**self.params, random_state=state)


def _points(view: PoolView, rows: npt.NDArray[np.int64], budget: Budget) -> npt.NDArray[Any]:
    width = view.shape(1, budget).hidden
    parts = [x_Th.cpu() for _, x_Th in view.space_tiles(rows, budget, "hidden")]
    return np.asarray(torch.cat(parts) if parts else torch.empty(0, width), dtype=np.float64)


def _logits(view: PoolView, rows: npt.NDArray[np.int64], budget: Budget) -> npt.NDArray[Any]:
    parts = [z_TC.cpu() for _, z_TC in view.logit_tiles(rows, budget)]
    found = torch.cat(parts) if parts else torch.empty(0, view.n_classes)
    return np.asarray(found, dtype=np.float64)


def _classifier(x_h: npt.NDArray[Any], logits: npt.NDArray[Any], n_classes: int) -> Any:
    """Return a scikit-activeml classifier that knows the proxy's answer for each row of `x_h`."""
    from skactiveml.base import SkactivemlClassifier

    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances = shifted / shifted.sum(axis=1, keepdims=True)
    place = {row.tobytes(): number for number, row in enumerate(x_h)}

    class Trained(SkactivemlClassifier):  # type: ignore[misc, unused-ignore]
        """The proxy; equal rows have equal answers, so rows are looked up by their bytes."""

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Trained":
            del sample_weight
            self._validate_data(X=X, y=y)
            return self

        def predict_proba(self, X: Any) -> npt.NDArray[Any]:
            rows = np.ascontiguousarray(X, dtype=np.float64)
            numbers = np.asarray([place[row.tobytes()] for row in rows], dtype=np.int64)
            found: npt.NDArray[Any] = chances[numbers]
            return found

    classifier = Trained(classes=list(range(n_classes)), missing_label=np.nan)
    return classifier.fit(x_h[:n_classes], np.arange(n_classes, dtype=float))
