"""How evenly labels fall on classes (Emam et al. 2021, BASE, section 5.1.2 and appendix B).

The paper names neither the formula nor the base of its entropy; here it is in nats, and also given
as a share of its largest value. Shapes: C = classes.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from svp.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Imbalance:
    """How evenly labels fall on classes.

    Attributes:
        ratio: Largest count over the smallest, an unseen class counted as 1; 1 = even.
        unseen: Classes without a label.
        entropy: -sum p ln p of the label distribution, in nats.
        entropy_share: The same over ln C; 1 = even. 1 when there is one class.
    """

    ratio: float
    unseen: int
    entropy: float
    entropy_share: float


def imbalance(counts_C: npt.ArrayLike) -> Imbalance:
    """Measure the labels per class, `counts_C`, with a zero for each unseen class."""
    count_C = np.asarray(counts_C, dtype=np.float64)
    if not count_C.size or count_C.sum() <= 0 or count_C.min() < 0:
        raise InputError("Class counts must hold at least one label. Got none. Import labels.")
    p_C = count_C[count_C > 0] / count_C.sum()
    entropy = float(-(p_C * np.log(p_C)).sum()) + 0.0
    return Imbalance(
        ratio=float(count_C.max() / max(count_C.min(), 1.0)),
        unseen=int((count_C == 0).sum()),
        entropy=entropy,
        entropy_share=entropy / math.log(len(count_C)) if len(count_C) > 1 else 1.0,
    )
