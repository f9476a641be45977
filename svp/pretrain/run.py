"""The state of a pretraining run between two steps, and the step.

Shapes: N = images, B = batch, S = image side.
"""

import contextlib
import dataclasses
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from svp.augment.byol import BYOLViews
from svp.errors import InputError
from svp.pretrain.config import PretrainConfig
from svp.pretrain.monitor import feature_spread, features, knn_accuracy
from svp.pretrain.network import BYOLNetwork, target_momentum
from svp.pretrain.optimiser import build_optimiser, learning_rate
from svp.pretrain.simclr import SimCLRNetwork
from svp.seed import derive_seed, numpy_generator

Int64Array = npt.NDArray[np.int64]

_BANK: Final = 5_000
_QUERIES: Final = 1_000
_SPREAD_ROWS: Final = 512


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What was seen in one epoch.

    Attributes:
        epoch: Counted from 1.
        loss: Mean over its steps; BYOL: of both directions, in [0, 8].
        spread: `feature_spread` of the chosen branch at its end; 0 is collapse.
        knn: Accuracy of the nearest-neighbour monitor, where it ran.
    """

    epoch: int
    loss: float
    spread: float
    knn: float | None = None


class Run:
    """Networks, optimiser and counters; everything random derives from (seed, epoch or step).

    Attributes:
        config: The recipe.
        network: BYOL: online, target and predictor; SimCLR: online alone.
        batch: Images per step.
        steps_per_epoch: Steps; what is left of a batch is skipped, others each epoch.
        total: Steps of the whole run.
        step: Steps done.
        seconds: Training time so far.
        history: Finished epochs.
    """

    def __init__(
        self,
        images_u8_N3SS: torch.Tensor,
        config: PretrainConfig,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.batch = min(config.batch_size, len(images_u8_N3SS))
        self.steps_per_epoch = len(images_u8_N3SS) // self.batch
        self.total = self.steps_per_epoch * config.epochs
        self.step = 0
        self.seconds = 0.0
        self.history: list[Epoch] = []
        self._images = images_u8_N3SS
        self._seed = seed
        self._device = device
        weights = torch.Generator().manual_seed(derive_seed(seed, "pretrain", "weights"))
        of_method = SimCLRNetwork if config.method == "simclr" else BYOLNetwork
        network = of_method(config, generator=weights)
        self.network = network.to(  # type: ignore[call-overload]  # torch's stubs lack the pair
            device=device, memory_format=torch.channels_last
        )
        self._optimiser = build_optimiser(self.network, config)
        self._views = BYOLViews(config.views, config.view_size)
        self._mean = torch.tensor(config.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(config.std, device=device).view(3, 1, 1)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._order: tuple[int, torch.Tensor] | None = None

    @property
    def loss(self) -> float:
        """Mean loss of the current epoch so far; waits for the device."""
        done = self.step % self.steps_per_epoch or self.steps_per_epoch
        loss = float(self._loss_sum) / done
        if not np.isfinite(loss):
            raise InputError(
                f"The loss must stay finite. Got {loss} near step {self.step}. Delete the output "
                "folder and start again with a lower lr."
            )
        return loss

    def train_step(self) -> None:
        """Take the next step."""
        config, step = self.config, self.step
        epoch, place = divmod(step, self.steps_per_epoch)
        if place == 0:
            self._loss_sum.zero_()
        rows_B = self._epoch_order(epoch)[place * self.batch :][: self.batch]
        images_u8 = self._images[rows_B.to(self._images.device)]
        x_B3SS = images_u8.to(self._device, non_blocking=True).float().div_(255)
        # Drawn on the CPU: the same views on every device, and no waiting for random masks.
        draws = torch.Generator().manual_seed(derive_seed(self._seed, "pretrain", "views", step))
        view1_B3SS, view2_B3SS = (
            view.sub(self._mean).div_(self._std).contiguous(memory_format=torch.channels_last)
            for view in self._views(x_B3SS, generator=draws)
        )
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(step, self.steps_per_epoch, config)
        precision = (
            torch.autocast(self._device.type, torch.bfloat16)
            if config.precision == "bf16"
            else contextlib.nullcontext()
        )
        with precision:
            loss = self.network(view1_B3SS, view2_B3SS)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        self.network.follow(target_momentum(step, self.total, config.momentum0))
        self._loss_sum += loss.detach()
        self.step += 1

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        if self._order is None or self._order[0] != epoch:
            order = torch.Generator().manual_seed(
                derive_seed(self._seed, "pretrain", "order", epoch)
            )
            self._order = (epoch, torch.randperm(len(self._images), generator=order))
        return self._order[1]

    def encoder(self) -> torch.nn.Module:
        """Return the backbone of the configured branch."""
        return getattr(self.network, self.config.branch).backbone  # type: ignore[no-any-return]

    def end_epoch(self, labels_N: Int64Array | None) -> Epoch:
        """Record the epoch that just ended; the watched images are the same in every epoch."""
        epoch = self.step // self.steps_per_epoch
        seen = Epoch(epoch=epoch, loss=self.loss, spread=self._spread(), knn=None)
        every = self.config.knn_every_epochs
        if labels_N is not None and every and (epoch % every == 0 or self.step == self.total):
            seen = dataclasses.replace(seen, knn=self._knn(labels_N))
        self.history.append(seen)
        return seen

    def _features(self, rows: Int64Array) -> torch.Tensor:
        index = torch.from_numpy(rows).to(self._images.device)
        return features(
            self.encoder(),
            self._images[index],
            mean=self.config.mean,
            std=self.config.std,
            device=self._device,
        )

    def _spread(self) -> float:
        random = numpy_generator(self._seed, "pretrain", "spread")
        return feature_spread(self._features(random.permutation(len(self._images))[:_SPREAD_ROWS]))

    def _knn(self, labels_N: Int64Array) -> float | None:
        known = np.flatnonzero(labels_N >= 0)
        random = numpy_generator(self._seed, "pretrain", "knn")
        rows = random.permutation(known)[: _BANK + _QUERIES]
        n_queries = min(_QUERIES, len(rows) // 4)
        if n_queries == 0:
            return None
        x_Md = self._features(rows)
        y_M = torch.from_numpy(labels_N[rows]).to(x_Md.device)
        return knn_accuracy(
            x_Md[n_queries:],
            y_M[n_queries:],
            x_Md[:n_queries],
            y_M[:n_queries],
            k=self.config.knn_k,
        )

    def state(self) -> dict[str, Any]:
        """Return everything `restore` needs, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "loss_sum": self._loss_sum,
            "step": self.step,
            "seconds": self.seconds,
            "history": [dataclasses.asdict(seen) for seen in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._loss_sum.copy_(state["loss_sum"])
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.history = [Epoch(**seen) for seen in state["history"]]
