"""The training loop: steps that are functions of (seed, step), and the state between them.

Everything random in a step derives from the seed and the step's number, so the state is tensors
alone and a run continued from any checkpoint ends bit for bit where an undisturbed one ends.

Shapes: N = images, S = side in pixels.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from svp.errors import InputError
from svp.finetune.averaging import WeightAverage
from svp.finetune.batchnorm import batch_norms, freeze_batch_norm, synchronised
from svp.finetune.checkpointing import checkpoint_blocks
from svp.finetune.config import FinetuneConfig
from svp.finetune.losses import Losses
from svp.finetune.methods import build_method
from svp.finetune.model import Classifier, Normalisation
from svp.finetune.optimiser import build_optimiser, set_rate
from svp.finetune.parallel import Group
from svp.finetune.schedule import rate_factor
from svp.finetune.views import Views
from svp.seed import derive_seed


class Training:
    """One fine-tune in progress.

    Attributes:
        classifier: The network being trained.
        step_number: Steps taken so far.
        history: One entry per stretch of steps: mean losses, and with unlabelled images the mean
            weight of pseudo-labels and, where the truth is known, how many of those were right.
    """

    def __init__(
        self,
        classifier: Classifier,
        normalisation: Normalisation,
        images_N3SS: torch.Tensor,
        labelled: tuple[torch.Tensor, torch.Tensor],
        unlabelled: tuple[torch.Tensor, torch.Tensor],
        config: FinetuneConfig,
        *,
        seed: int,
        device: torch.device,
        group: Group | None = None,
    ) -> None:
        """Prepare the first step.

        Args:
            classifier: On `device`; trained in place.
            normalisation: From images in [0, 1] to what the classifier takes.
            images_N3SS: uint8, on `device` or on the CPU.
            labelled: Rows of `images_N3SS` and their classes, int64 on the CPU.
            unlabelled: Rows, and the true classes or -1 where unknown; the truth is only
                compared with pseudo-labels for the history.
            config: The settings.
            seed: Decides every random choice.
            device: Where the work is done.
            group: The processes that train together; default: this one alone.

        Raises:
            InputError: The network cannot be trained in this way.
        """
        self.classifier = classifier
        self.step_number = 0
        self.history: list[dict[str, float]] = []
        self._config, self._seed, self._device = config, seed, device
        self._group = Group() if group is None else group
        self.total = config.total_steps(len(labelled[0]))
        self._first_unlabelled = round(config.supervised_share * self.total)
        self._report_every = max(1, self.total // 50)
        self._prepare_network()
        self._optimiser = build_optimiser(classifier, config)
        self._average = (
            WeightAverage(classifier, config.ema, warmup=config.ema_warmup) if config.ema else None
        )
        self._views = Views(
            images_N3SS,
            labelled,
            unlabelled[0],
            config,
            first_unlabelled=None if config.method == "supervised" else self._first_unlabelled,
            seed=seed,
            device=device,
            group=self._group,
        )
        self._method = build_method(
            config,
            num_unlabelled=len(unlabelled[0]),
            num_classes=classifier.head.out_features,
            device=device,
        )
        self._losses = Losses(
            classifier,
            self._average,
            self._method,
            normalisation,
            unlabelled[1].to(device),
            config,
            group=self._group,
        )
        self._sums_5 = torch.zeros(5, dtype=torch.float64, device=device)
        self._stretch = 0

    def _prepare_network(self) -> None:
        config, processes = self._config, self._group.size
        if config.batch_size < processes * config.accumulate:
            raise InputError(
                f"batch_size must be at least {processes * config.accumulate}, one image per "
                f"process and part. Got {config.batch_size}. Raise it or lower accumulate."
            )
        mixes = config.bn_mode == "train" and bool(batch_norms(self.classifier))
        if processes > 1 and mixes:
            try:
                synchronised(self.classifier, self._device)
            except ValueError as error:
                raise InputError(
                    "bn_mode must be frozen for a network with batch-norm on several CPU "
                    "processes. Got train. Set bn_mode = frozen, or use one process or GPUs."
                ) from error
        if config.checkpoint_blocks:
            if mixes:
                raise InputError(
                    "checkpoint_blocks must be off while batch-norm layers train: they would see "
                    "every batch twice. Got both. Set bn_mode = frozen, or use accumulate."
                )
            checkpoint_blocks(self.classifier.backbone)
        self._to_training()

    def _to_training(self) -> None:
        self.classifier.train()
        if self._config.bn_mode == "frozen":
            freeze_batch_norm(self.classifier)

    def run_step(self) -> None:
        """Take one optimiser step."""
        step, config = self.step_number, self._config
        if not self.classifier.training:
            self._to_training()
        set_rate(self._optimiser, rate_factor(step, self.total, config))
        self._optimiser.zero_grad(set_to_none=True)
        views = self._views.at(step)
        rank, first = self._group.rank, self._first_unlabelled
        done = max(step - first, 0) / max(self.total - first, 1)
        layers = derive_seed(self._seed, "finetune-layers", step, rank)
        mixing = derive_seed(self._seed, "finetune-mixup", step, rank)
        with _layer_randomness(layers, self._device):
            sums_5 = self._losses.add_gradients(views, done=done, seed=mixing)
        self._group.sum_gradients(self.classifier.parameters())
        self._sums_5 += self._group.sum(sums_5)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.classifier.parameters(), config.clip_norm)
        self._optimiser.step()
        if self._average is not None:
            self._average.update(step)
        self.step_number += 1
        self._stretch += 1
        if self._stretch == self._report_every or self.step_number == self.total:
            self._report()

    def _report(self) -> None:
        loss, loss_unlabelled, mask, right, known = self._sums_5.tolist()
        if not math.isfinite(loss + loss_unlabelled):
            raise InputError(
                "The training loss must stay finite. Got a value that is not, before step "
                f"{self.step_number}. Lower head_lr and backbone_lr, or set clip_norm."
            )
        entry = {"step": float(self.step_number), "loss": loss / self._stretch}
        if self._method is not None:
            entry["loss_unlabelled"] = loss_unlabelled / self._stretch
            entry["mask_ratio"] = mask / self._stretch
            if known:
                entry["pseudo_label_accuracy"] = right / known
        self.history.append(entry)
        self._sums_5.zero_()
        self._stretch = 0

    def evaluation_state(self) -> dict[str, torch.Tensor]:
        """Return the weights to evaluate: averaged ones if there are."""
        if self._average is not None:
            return self._average.module.state_dict()
        return self.classifier.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which `load_state_dict` continues."""
        return {
            "step": self.step_number,
            "classifier": self.classifier.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "rule": None if self._method is None else self._method.state_dict(),
            "sums": self._sums_5,
            "stretch": self._stretch,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, made by a training of the same configuration and data."""
        self.step_number = state["step"]
        self.classifier.load_state_dict(state["classifier"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        if self._method is not None:
            self._method.load_state_dict(state["rule"])
        self._sums_5.copy_(state["sums"])
        self._stretch = state["stretch"]
        self.history = list(state["history"])


@contextlib.contextmanager
def _layer_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Make dropout and the like draw from `seed`; the global state is put back afterwards.

    Layers offer no way to pass a generator, so their global one is replaced for a moment.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for one in cuda:
            state = torch.Generator(one).manual_seed(seed).get_state()
            torch.cuda.set_rng_state(state, one)
        yield
