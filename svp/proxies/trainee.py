"""Members in training: their parameters and gradients as two flat vectors, and both passes.

Gradients are written out: a step of a linear member is two products, and recording a graph would
cost more than they do. Only batch normalisation is left to autograd.

Shapes: M = members, R = rows of a step, l = those of them that are learnt from, which come first,
d = features, h = inputs of the last layer, C = classes, P = all parameters of all members.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from svp.proxies.network import Members, NetworkConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Activations:
    """What a forward pass leaves for the backward one.

    Attributes:
        x_MRd: Its input.
        active_MhR: Inputs of the last layer before dropout.
        hidden_MhR: The same after it.
        keep_MhR: What dropout multiplied by; None without it.
    """

    x_MRd: torch.Tensor
    active_MhR: torch.Tensor
    hidden_MhR: torch.Tensor
    keep_MhR: torch.Tensor | None


class Trainee:
    """Members whose parameters move together.

    Attributes:
        members: The members; their parameters are views of `parameter_P`.
        parameter_P: All parameters.
        gradient_P: Where `backward` writes, in the same order.
    """

    def __init__(
        self, members: Members, config: NetworkConfig, dropping: Sequence[torch.Generator]
    ) -> None:
        learnt = members.learnt()
        self.parameter_P = torch.cat([value.flatten() for value in learnt.values()])
        self.gradient_P = torch.zeros_like(self.parameter_P)
        moved = _views(self.parameter_P, learnt)
        self._gradients = _views(self.gradient_P, learnt)
        self.members = Members.of_tensors({**members.tensors(), **moved})
        self._dropout, self._dropping = config.dropout, dropping
        self._recorded = {
            name: value.requires_grad_(True)
            for name, value in moved.items()
            if config.batch_norm and name.startswith("hidden.")
        }

    def forward(self, x_MRd: torch.Tensor) -> tuple[torch.Tensor, Activations]:
        """Return logits in training mode, (M, C, R), and what `backward` needs."""
        with torch.set_grad_enabled(bool(self._recorded)):
            active_MhR = self.members.hidden(x_MRd, training=True)
        hidden_MhR, keep_MhR = active_MhR.detach(), None
        if self._dropout:
            shape = hidden_MhR.shape[1:]
            drawn = [torch.rand(shape, generator=one, device=one.device) for one in self._dropping]
            keep_MhR = (torch.stack(drawn) >= self._dropout) / (1.0 - self._dropout)
            hidden_MhR = hidden_MhR * keep_MhR
        done = Activations(
            x_MRd=x_MRd, active_MhR=active_MhR, hidden_MhR=hidden_MhR, keep_MhR=keep_MhR
        )
        return self.members.last(hidden_MhR), done

    def backward(self, done: Activations, slope_MCl: torch.Tensor) -> None:
        """Write the gradient of every parameter to `gradient_P`.

        Args:
            done: Of the forward pass.
            slope_MCl: Gradient by the logits of its first l rows; the others have none.
        """
        rows, into = slope_MCl.shape[2], self._gradients
        hidden_Mlh = done.hidden_MhR[:, :, :rows].transpose(1, 2)
        torch.bmm(slope_MCl, hidden_Mlh, out=into["head.weight"])
        torch.sum(slope_MCl, dim=2, out=into["head.bias"])
        if self.members.layers is None:
            return
        slope_Mhl = torch.bmm(self.members.weight_MCh.transpose(1, 2), slope_MCl)
        if done.keep_MhR is not None:
            slope_Mhl.mul_(done.keep_MhR[:, :, :rows])
        if self._recorded:
            with torch.enable_grad():
                active_Mhl = done.active_MhR[:, :, :rows]
            found = torch.autograd.grad(active_Mhl, list(self._recorded.values()), slope_Mhl)
            for name, gradient in zip(self._recorded, found, strict=True):
                into[name].copy_(gradient)
            return
        slope_Mhl.mul_(done.active_MhR[:, :, :rows] > 0)
        torch.bmm(slope_Mhl, done.x_MRd[:, :rows], out=into["hidden.weight"])
        torch.sum(slope_Mhl, dim=2, out=into["hidden.bias"])

    def stop(self) -> Members:
        """Return the members as they are, with nothing recorded any more."""
        return Members.of_tensors(
            {name: value.detach() for name, value in self.members.tensors().items()}
        )


def _views(flat_P: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return consecutive parts of a vector in the shapes of named tensors."""
    parts = torch.split(flat_P, [value.numel() for value in like.values()])
    return {
        name: part.view(value.shape)
        for (name, value), part in zip(like.items(), parts, strict=True)
    }
