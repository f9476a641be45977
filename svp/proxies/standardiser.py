"""The standardiser: z-scores by the mean and standard deviation of the whole pool.

Source: LabelBench (Zhang et al. 2024): per dimension, over labelled and unlabelled items alike,
population variance. Unlike there, a constant dimension keeps scale 1 instead of dividing by 0.

Shapes: N = rows, d = features, T = rows of one tile.
"""

import dataclasses
from collections.abc import Iterable
from typing import Final

import torch

from svp.errors import InputError

TILE_ROWS: Final = 4096
# A dimension whose spread is below float32 resolution of its own mean carries only rounding noise.
_CONSTANT = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Standardiser:
    """(x - mean) / std per dimension.

    Attributes:
        mean_d: Mean, float32.
        std_d: Standard deviation (ddof 0), float32, positive; 1 for constant dimensions.
    """

    mean_d: torch.Tensor
    std_d: torch.Tensor

    def __post_init__(self) -> None:
        if self.mean_d.shape != self.std_d.shape or self.mean_d.ndim != 1:
            raise InputError(
                "A standardiser must have one mean and one deviation per dimension. Got shapes "
                f"{tuple(self.mean_d.shape)} and {tuple(self.std_d.shape)}. Fit it on the pool."
            )

    @classmethod
    def fit(cls, x_Nd: torch.Tensor) -> "Standardiser":
        """Return the standardiser of a pool, read once.

        Sums run over deviations from the first row, in float32 within a tile and float64 across
        tiles, so neither a large mean nor a large N costs digits.

        Args:
            x_Nd: Embeddings, any floating dtype, any device.

        Raises:
            InputError: If there are no rows, or a value is NaN or infinite.
        """
        if x_Nd.ndim != 2 or len(x_Nd) == 0:
            raise InputError(
                f"A standardiser must be fitted on rows (N, d). Got shape {tuple(x_Nd.shape)}. "
                "Embed the pool first."
            )
        origin_d = x_Nd[0].to(torch.float32)
        sums = (
            tile_sums(x_Nd[start : start + TILE_ROWS], origin_d)
            for start in range(0, len(x_Nd), TILE_ROWS)
        )
        return cls.of_sums(origin_d, sums, len(x_Nd))

    @classmethod
    def of_sums(
        cls, origin_d: torch.Tensor, sums: Iterable[torch.Tensor], rows: int
    ) -> "Standardiser":
        """Return the standardiser of a pool whose tiles were summed, wherever that was done.

        Args:
            origin_d: The pool's first row, float32.
            sums: `tile_sums` of every `TILE_ROWS` rows, in pool order: the order decides bits.
            rows: N.

        Raises:
            InputError: If a value is NaN or infinite.
        """
        total_2d = torch.zeros((2, len(origin_d)), dtype=torch.float64, device=origin_d.device)
        for sums_2d in sums:
            total_2d += sums_2d
        shift_d = total_2d[0] / rows
        mean_d = origin_d.double() + shift_d
        variance_d = (total_2d[1] / rows - shift_d.square()).clamp_min_(0.0)
        if not bool(torch.isfinite(mean_d).all() & torch.isfinite(variance_d).all()):
            raise InputError(
                "Embeddings must be finite to be standardised. Got NaN or infinity. "
                "Verify the store, or embed the failed images again."
            )
        constant_d = variance_d.sqrt() <= _CONSTANT * mean_d.abs()
        std_d = torch.where(constant_d, torch.ones_like(mean_d), variance_d.sqrt())
        return cls(mean_d=mean_d.float(), std_d=std_d.float())

    @property
    def dim(self) -> int:
        """Number of dimensions d."""
        return len(self.mean_d)

    def __call__(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return standardised rows, float32, on the device of `x_Bd`."""
        mean_d, std_d = self.mean_d.to(x_Bd.device), self.std_d.to(x_Bd.device)
        # Subtracting first keeps the digits of dimensions whose mean is far from 0.
        return (x_Bd.to(torch.float32) - mean_d).div_(std_d)

    def to(self, device: torch.device) -> "Standardiser":
        """Return it on `device`."""
        return Standardiser(mean_d=self.mean_d.to(device), std_d=self.std_d.to(device))


def tile_sums(x_Td: torch.Tensor, origin_d: torch.Tensor) -> torch.Tensor:
    """Return the sums of x - origin and of its square over one tile, (2, d) float32."""
    shifted_Td = x_Td.to(torch.float32) - origin_d
    sum_d = shifted_Td.sum(dim=0)
    return torch.stack([sum_d, shifted_Td.square_().sum(dim=0)])
