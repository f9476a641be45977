"""Fisher information of a linear head, and how a trace moves when items join or leave.

See `svp.strategies.bait` for the quantities. Everything goes by low-rank terms, in float64.

Shapes: n = rows, C = classes, m = C - 1, r = width of x, D = m r, B = items at once.
"""

import dataclasses
from typing import Final

import torch

from svp.errors import InputError
from svp.strategies.base import Int64Array

_ENTRIES: Final = 4_194_304


def contrasts(classes: int) -> torch.Tensor:
    """Return an orthonormal basis of the vectors that sum to 0, (C, m) float64 (Helmert)."""
    if classes == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    basis_Cm = torch.zeros(classes, classes - 1, dtype=torch.float64)
    for column in range(classes - 1):
        size = column + 1
        scale = (size * (size + 1)) ** -0.5
        basis_Cm[:size, column] = scale
        basis_Cm[size, column] = -size * scale
    return basis_Cm


class Items:
    """Rows with the factors of their information.

    Args:
        x_nr: Representations, float64.
        p_nC: Probabilities, float64.
        weight: Scales every item's information.
    """

    def __init__(self, x_nr: torch.Tensor, p_nC: torch.Tensor, weight: float = 1.0) -> None:
        self._x_nr, self._p_nC, self._weight = x_nr, p_nC, weight
        self._basis_Cm = contrasts(p_nC.shape[1]).to(p_nC.device)

    def __len__(self) -> int:
        return len(self._x_nr)

    def take(self, places: Int64Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x (B, r) and the factor A of P, (B, m, C), with A A' = P on the contrasts."""
        index = torch.from_numpy(places).to(self._x_nr.device)
        root_BC = self._p_nC[index].sqrt()
        # P = B B' with B = diag(s) (I - s s'), because s = sqrt(p) is a unit vector.
        spread_BCC = torch.diag_embed(root_BC) - (
            self._p_nC[index][:, :, None] * root_BC[:, None, :]
        )
        return self._x_nr[index], self._basis_Cm.T @ spread_BCC * self._weight**0.5

    def information(self) -> torch.Tensor:
        """Return the sum of all informations, (D, D) float64."""
        m, r = self._basis_Cm.shape[1], self._x_nr.shape[1]
        classes = self._p_nC.shape[1]
        total_DD = self._x_nr.new_zeros(m * r, m * r)
        spread_CR = self._x_nr.new_zeros(classes, r * r)
        # Of P = diag p - p p' the second part is one product of tall matrices, and of the first
        # every class needs but one moment: never a C x C matrix per item.
        step = max(256, _ENTRIES // max(m * r, r * r, classes))
        for start in range(0, len(self), step):
            x_Br, p_BC = self._x_nr[start : start + step], self._p_nC[start : start + step]
            pairs_BR = (x_Br[:, :, None] * x_Br[:, None, :]).flatten(1)
            spread_CR += p_BC.T @ pairs_BR
            both_BD = ((p_BC @ self._basis_Cm)[:, :, None] * x_Br[:, None, :]).flatten(1)
            total_DD -= both_BD.T @ both_BD
        total_mrmr = total_DD.view(m, r, m, r)
        for row in range(m):
            of_row_mC = (self._basis_Cm[:, row, None] * self._basis_Cm).T
            total_mrmr[row] += (of_row_mC @ spread_CR).view(m, r, r).permute(1, 0, 2)
        return (total_DD + total_DD.T) * (self._weight / 2.0)


class Design:
    """The inverse information W and H = W F W of a set that items join and leave.

    Args:
        information_DD: M, with its ridge.
        target_DD: F.

    Raises:
        InputError: If M cannot be inverted.
    """

    def __init__(self, information_DD: torch.Tensor, target_DD: torch.Tensor) -> None:
        self._target_DD = target_DD
        factor_DD, failed = torch.linalg.cholesky_ex(information_DD)
        if int(failed):
            raise InputError(
                "bait.ridge must be large enough to invert the information of the labelled images "
                "and the batch. Got a singular matrix. Raise bait.ridge, or lower bait.dims."
            )
        self._inverse_DD = torch.cholesky_inverse(factor_DD).contiguous()
        self._product_DD = (self._inverse_DD @ target_DD @ self._inverse_DD).contiguous()
        self.trace = float((self._inverse_DD * target_DD).sum())

    def gains(self, x_Br: torch.Tensor, a_BmC: torch.Tensor, sign: float) -> torch.Tensor:
        """Return how much the trace falls if each item joins (+1) or grows if it leaves (-1)."""
        inner, outer = self.quadratic(x_Br, a_BmC)
        one = torch.eye(a_BmC.shape[2], dtype=torch.float64, device=x_Br.device)
        return trace(torch.linalg.solve(one + sign * inner, outer))

    def quadratic(
        self, x_Br: torch.Tensor, a_BmC: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return U'WU and U'HU of items, (B, C, C) each."""
        m, r = a_BmC.shape[1], x_Br.shape[1]
        found = []
        for matrix_DD in (self._inverse_DD, self._product_DD):
            right = (matrix_DD.reshape(m * r * m, r) @ x_Br.T).reshape(m, r, m, len(x_Br))
            between_Bmm = torch.einsum("aibB,Bi->Bab", right, x_Br)
            found.append(a_BmC.transpose(1, 2) @ between_Bmm @ a_BmC)
        return found[0], found[1]

    def move(self, x_r: torch.Tensor, a_mC: torch.Tensor, sign: float) -> "Move":
        """Let an item join (+1) or leave (-1); return the low-rank terms."""
        m, r = a_mC.shape[0], x_r.shape[0]
        u_DC = (a_mC[:, None, :] * x_r[None, :, None]).reshape(-1, a_mC.shape[1])
        # U is a (x) x: with x first, little is left to multiply by a.
        y_DC = (self._inverse_DD.view(m * r * m, r) @ x_r).view(m * r, m) @ a_mC
        v_DC = (self._product_DD.view(m * r * m, r) @ x_r).view(m * r, m) @ a_mC
        one = torch.eye(u_DC.shape[1], dtype=torch.float64, device=u_DC.device)
        z_CC = torch.linalg.inv(one + sign * (u_DC.T @ y_DC))
        z_CC = (z_CC + z_CC.T) / 2.0
        q_CC = u_DC.T @ v_DC
        yz_DC = y_DC @ z_CC
        # Half of the square term on either side of the cross terms: one product, not two.
        cross_DD = yz_DC @ (v_DC - 0.5 * sign * (yz_DC @ q_CC)).T
        self._inverse_DD -= sign * (yz_DC @ y_DC.T)
        self._product_DD -= sign * (cross_DD + cross_DD.T)
        self.trace -= sign * float((z_CC * q_CC).sum())
        return Move(y_DC=y_DC, v_DC=v_DC, z_CC=z_CC, q_CC=q_CC, sign=sign)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Move:
    """Low-rank terms of one item's joining or leaving: Y, V, (I +- U'Y)^-1, U'V and the sign."""

    y_DC: torch.Tensor
    v_DC: torch.Tensor
    z_CC: torch.Tensor
    q_CC: torch.Tensor
    sign: float


def trace(square_BCC: torch.Tensor) -> torch.Tensor:
    """Return the trace of every matrix, (B,)."""
    return square_BCC.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
