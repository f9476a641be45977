"""Metrics of classifiers, of label sets, and of what a strategy saves against random labels.

Everything takes plain arrays; sources are named at each function.
"""

from svp.metrics.balance import Imbalance, imbalance
from svp.metrics.classifier import (
    PoolAccuracy,
    accuracy,
    balanced_accuracy,
    macro_f1,
    pool_accuracy,
)
from svp.metrics.cost import (
    Bill,
    Price,
    StageSeconds,
    bill,
    overall_cost,
    proxy_seconds,
    standard_seconds,
)
from svp.metrics.efficiency import Efficiency, labelling_efficiency, labels_to_match
from svp.metrics.improvement import average_improvement, improvement_rounds
from svp.metrics.saving import (
    MeanSaving,
    RandomCurve,
    Saving,
    Smoothing,
    mean_saving,
    running_maximum,
)
from svp.metrics.spread import (
    Paired,
    Penalties,
    mean_sd,
    paired_difference,
    penalties,
    penalty_matrix,
    standard_error,
)

__all__ = [
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "PoolAccuracy",
    "pool_accuracy",
    "Imbalance",
    "imbalance",
    "MeanSaving",
    "RandomCurve",
    "Saving",
    "Smoothing",
    "mean_saving",
    "running_maximum",
    "Efficiency",
    "labelling_efficiency",
    "labels_to_match",
    "average_improvement",
    "improvement_rounds",
    "Paired",
    "Penalties",
    "mean_sd",
    "paired_difference",
    "penalties",
    "penalty_matrix",
    "standard_error",
    "Bill",
    "Price",
    "StageSeconds",
    "bill",
    "overall_cost",
    "proxy_seconds",
    "standard_seconds",
]
