"""PseudoLabel: a network learns its own confident predictions, without a strong view.

Source: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep
Neural Networks", equations 15 and 16; the threshold and the linear ramp are TorchSSL's.
"""

from typing import ClassVar

from svp.pseudolabels.fixmatch import FixMatch
from svp.pseudolabels.rule import ramp


class PseudoLabel(FixMatch):
    """FixMatch's threshold on the view that is learnt from, at a weight that grows from 0."""

    uses_strong: ClassVar[bool] = False

    def __init__(self, cutoff: float, ramp_share: float) -> None:
        """Keep tau, and the share of the steps over which the weight grows."""
        super().__init__(cutoff)
        self._ramp_share = ramp_share

    def weight(self, done: float) -> float:
        """Return min(1, done / ramp share)."""
        return ramp(done, self._ramp_share)
