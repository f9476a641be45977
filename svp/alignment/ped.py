"""PED: potential energy descent, classes that overlap push each other apart.

Every class is a ball: its mean, and a radius that is the norm of its vector of standard
deviations. Two balls that overlap by o = max(n_sigma (R_a + R_b) - |mu_a - mu_b|, 0) repel each
other; a step moves both by dt^2 kappa o / 2 along the line of their means, and all items of a
class move with it. Steps go on while they move enough, compared with the first: many steps say
that the features separate the classes badly.

Only means move, so a step costs O(K^2 D) and no pass over the items: radii stay, and distances
come from the Gram matrix of the means.

Source: Li, Hu, Ge, Shan and Duan 2023, "Exploring model transferability through the lens of
potential energy", section 3; conventions of their code, where it differs, are the defaults and
are parameters here. Two defects of it are not: classes without labels are left out (it indexes
variances by label and means by rank), and classes that do not overlap at all take 0 steps
without dividing by zero.
Shapes: N = items, D = features, K = classes with labels.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from svp.alignment.statistics import ClassStatistics, Float64Array, class_statistics
from svp.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PEDConfig:
    """How classes repel each other.

    Attributes:
        time_step: dt of a step.
        stiffness: kappa, force per overlap.
        n_sigma: Radii of a ball in standard-deviation norms; the authors name 0.6 and 0.3.
        exit_ratio: A step that moves less than this share of the first is discarded and ends it.
        max_steps: Most steps.
        least_std: Standard deviations of the general set below this count as this.
    """

    time_step: float = 0.1
    stiffness: float = 1.0
    n_sigma: float = 0.6
    exit_ratio: float = 0.5
    max_steps: int = 6
    least_std: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("time_step", "stiffness", "n_sigma", "least_std"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise InputError(f"{name} must be above 0. Got {value}. Choose a positive number.")
        if not 0 <= self.exit_ratio < 1:
            raise InputError(
                f"exit_ratio must be in [0, 1). Got {self.exit_ratio}. The default is 0.5."
            )
        if self.max_steps < 1:
            raise InputError(f"max_steps must be at least 1. Got {self.max_steps}. Raise it.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PEDResult:
    """What the descent did.

    Attributes:
        steps: Steps accepted; at most 1 means that the classes hardly push each other.
        ratio: Movement of every step tried, relative to the first, the discarded one included.
        shift_KD: Where each class went in all, in the units of the features.
        statistics: Of the moved features.
        overlapping: Pairs of classes that overlapped at the start.
    """

    steps: int
    ratio: tuple[float, ...]
    shift_KD: Float64Array
    statistics: ClassStatistics
    overlapping: int


def ped(
    statistics: ClassStatistics,
    *,
    general_mean_D: npt.ArrayLike,
    general_std_D: npt.ArrayLike,
    config: PEDConfig | None = None,
) -> PEDResult:
    """Let the classes repel each other.

    Args:
        statistics: Of the labelled features.
        general_mean_D: Mean of a general set of features of the same encoder. The authors take
            the ImageNet validation set; the whole unlabelled pool serves as well.
        general_std_D: Its standard deviations; features are scaled by both before anything.
        config: See `PEDConfig`.

    Raises:
        InputError: The general set has another number of dimensions or is not finite.
    """
    config = config if config is not None else PEDConfig()
    mean_D = np.asarray(general_mean_D, dtype=np.float64)
    std_D = np.maximum(np.asarray(general_std_D, dtype=np.float64), config.least_std)
    if mean_D.shape != (statistics.dim,) or std_D.shape != (statistics.dim,):
        raise InputError(
            f"The general set must have {statistics.dim} dimensions. Got means {mean_D.shape} and "
            f"deviations {std_D.shape}. Take it from the same encoder."
        )
    if not (np.isfinite(mean_D).all() and np.isfinite(std_D).all()):
        raise InputError("The general set must be finite. Got NaN or infinity. Embed it again.")
    start_KD = (statistics.mean_KD - mean_D) / std_D
    radius_K = np.sqrt((statistics.variance_KD / std_D**2).sum(axis=1))
    reach_KK = config.n_sigma * (radius_K[:, None] + radius_K)
    moved_KD, ratios, steps = start_KD.copy(), [], 0
    first, overlapping = 0.0, 0
    while steps < config.max_steps:
        shift_KD, pairs = _step(moved_KD, reach_KK, config)
        movement = float(np.abs(shift_KD).sum())
        if steps == 0:
            first, overlapping = movement, pairs
            if first == 0.0:
                break
        ratios.append(movement / first)
        if not ratios[-1] > config.exit_ratio:
            break
        moved_KD += shift_KD
        steps += 1
    shift_KD = (moved_KD - start_KD) * std_D
    return PEDResult(
        steps=steps,
        ratio=tuple(ratios),
        shift_KD=shift_KD,
        statistics=statistics.moved(shift_KD),
        overlapping=overlapping,
    )


def _step(
    mean_KD: Float64Array, reach_KK: Float64Array, config: PEDConfig
) -> tuple[Float64Array, int]:
    """Return how far each class moves and how many pairs overlap."""
    centred_KD = mean_KD - mean_KD.mean(axis=0)
    inner_KK = centred_KD @ centred_KD.T
    norm_K = np.diagonal(inner_KK)
    square_KK = norm_K[:, None] + norm_K - 2.0 * inner_KK
    # Means that coincide have no line to move along; rounding must not invent one.
    apart_KK = square_KK > 1e-12 * (norm_K[:, None] + norm_K)
    distance_KK = np.sqrt(np.where(apart_KK, square_KK, 0.0))
    np.fill_diagonal(apart_KK, False)
    overlap_KK = np.where(apart_KK, np.maximum(reach_KK - distance_KK, 0.0), 0.0)
    push = min(0.5 * config.time_step**2 * config.stiffness, 1.0)
    weight_KK = np.divide(
        push * overlap_KK, distance_KK, out=np.zeros_like(overlap_KK), where=apart_KK
    )
    shift_KD = weight_KK.sum(axis=1)[:, None] * mean_KD - weight_KK @ mean_KD
    return shift_KD, int((overlap_KK > 0).sum()) // 2


class PED:
    """PED with scikit-learn's manners: move labelled features, class by class.

    Args:
        config: See `PEDConfig`.

    Attributes:
        result_: Everything `ped` returns, after `fit`.
        steps_: Steps accepted.
    """

    def __init__(self, config: PEDConfig | None = None) -> None:
        self.config = config

    def fit(
        self,
        x_ND: npt.ArrayLike,
        y_N: npt.ArrayLike,
        *,
        general_MD: npt.ArrayLike | None = None,
    ) -> "PED":
        """Let the classes of `y_N` repel each other.

        Args:
            x_ND: Labelled features.
            y_N: Their classes.
            general_MD: The general set; None: the labelled features themselves.
        """
        general = np.asarray(x_ND if general_MD is None else general_MD, dtype=np.float64)
        self.result_ = ped(
            class_statistics(x_ND, y_N),
            general_mean_D=general.mean(axis=0),
            general_std_D=general.std(axis=0),
            config=self.config,
        )
        self.steps_ = self.result_.steps
        return self

    def transform(self, x_ND: npt.ArrayLike, y_N: npt.ArrayLike) -> Float64Array:
        """Return features moved with their classes; classes unseen in `fit` stay."""
        moved_ND = np.array(x_ND, dtype=np.float64)
        labels_N = np.asarray(y_N)
        classes_K = self.result_.statistics.classes_K
        place_N = np.clip(np.searchsorted(classes_K, labels_N), 0, len(classes_K) - 1)
        known_N = classes_K[place_N] == labels_N
        moved_ND[known_N] += self.result_.shift_KD[place_N[known_N]]
        return moved_ND

    def fit_transform(
        self,
        x_ND: npt.ArrayLike,
        y_N: npt.ArrayLike,
        *,
        general_MD: npt.ArrayLike | None = None,
    ) -> Float64Array:
        """Return the labelled features moved."""
        return self.fit(x_ND, y_N, general_MD=general_MD).transform(x_ND, y_N)
