"""Do the cached features still fit the task: LogME, PED, and the refresh criterion."""

from svp.alignment.criterion import Criterion, CriterionConfig, Verdict
from svp.alignment.logme import LogME, LogMEScore, logme
from svp.alignment.ped import PED, PEDConfig, PEDResult, ped
from svp.alignment.statistics import ClassStatistics, class_statistics

__all__ = [
    "PED",
    "ClassStatistics",
    "Criterion",
    "CriterionConfig",
    "LogME",
    "LogMEScore",
    "PEDConfig",
    "PEDResult",
    "Verdict",
    "class_statistics",
    "logme",
    "ped",
]
