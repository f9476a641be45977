"""The training loop: steps that are functions of (seed, step), and the state between them.

Everything random in a step derives from the seed and the step's number, so the state is tensors
alone and a run continued from any checkpoint ends bit for bit where an undisturbed one ends.

Shapes: B = labelled images of a step, M = unlabelled ones, S = side in pixels, C = classes.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from svp.augment.fixmatch import StrongView, WeakView
from svp.errors import InputError
from svp.finetune.averaging import WeightAverage
from svp.finetune.config import FinetuneConfig
from svp.finetune.flexmatch import FlexMatchState, consistency_loss, pseudo_labels
from svp.finetune.model import Classifier, Normalisation, autocast
from svp.finetune.optimiser import build_optimiser, set_rate
from svp.finetune.sampling import Passes
from svp.finetune.schedule import rate_factor
from svp.seed import derive_seed

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Training:
    """One fine-tune in progress.

    Attributes:
        classifier: The network being trained.
        step_number: Steps taken so far.
        history: One entry per stretch of steps: mean losses, and for FlexMatch the share of
            pseudo-labels that counted and, where the truth is known, how many of those were right.
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
        """
        self.classifier = classifier
        self.step_number = 0
        self.history: list[dict[str, float]] = []
        self._config, self._seed, self._device = config, seed, device
        self._normalisation = normalisation
        self._images = images_N3SS
        self._rows_L, self._y_L = labelled
        self._rows_U, self._truth_U = unlabelled[0], unlabelled[1].to(device)
        self.total = config.total_steps(len(self._rows_L))
        self._first_unlabelled = round(config.supervised_share * self.total)
        self._report_every = max(1, self.total // 50)
        self._optimiser = build_optimiser(classifier, config)
        self._average = (
            WeightAverage(classifier, config.ema, warmup=config.ema_warmup) if config.ema else None
        )
        self._weak = WeakView(crop=config.crop, padding=config.crop_padding, flip=config.flip)
        self._strong = StrongView(
            weak=self._weak, operations=config.strong_ops, cutout=config.cutout
        )
        self._labelled_passes = Passes(len(self._rows_L), seed, "finetune-labelled")
        self._flexmatch: FlexMatchState | None = None
        if config.method == "flexmatch":
            self._unlabelled_passes = Passes(len(self._rows_U), seed, "finetune-unlabelled")
            self._flexmatch = FlexMatchState(
                len(self._rows_U),
                classifier.head.out_features,
                cutoff=config.cutoff,
                warmup=config.threshold_warmup,
                floor=config.threshold_floor,
                device=device,
            )
        self._sums_5 = torch.zeros(5, dtype=torch.float64, device=device)
        self._stretch = 0
        # Only layers that mix the images of a batch make it matter who shares a forward pass.
        self._mixes = config.bn_mode == "train" and any(
            isinstance(module, _BATCH_NORMS) for module in classifier.modules()
        )

    def run_step(self) -> None:
        """Take one optimiser step."""
        step, config = self.step_number, self._config
        self.classifier.train()
        if config.bn_mode == "frozen":
            freeze_batch_norm(self.classifier)
        set_rate(self._optimiser, rate_factor(step, self.total, config))
        self._optimiser.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "finetune-views", step))
        with _layer_randomness(derive_seed(self._seed, "finetune-layers", step), self._device):
            loss = self._loss(step, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.classifier.parameters(), config.clip_norm)
        self._optimiser.step()
        if self._average is not None:
            self._average.update(self.classifier, step)
        self.step_number += 1
        self._stretch += 1
        if self._stretch == self._report_every or self.step_number == self.total:
            self._report()

    def _loss(self, step: int, generator: torch.Generator) -> torch.Tensor:
        config = self._config
        pick_B = torch.from_numpy(self._labelled_passes.batch(step, config.batch_size))
        x_B3SS = self._weak(self._gather(self._rows_L[pick_B]), generator=generator)
        y_B = self._y_L[pick_B].to(self._device, non_blocking=True)
        if self._flexmatch is None or step < self._first_unlabelled:
            with autocast(self._device, config.precision):
                logits_BC = self.classifier(self._normalisation(x_B3SS))
            loss = self._labelled_loss(logits_BC, y_B)
            self._sums_5[0] += loss.detach()
            return loss

        count = config.uratio * config.batch_size
        pick_M = torch.from_numpy(
            self._unlabelled_passes.batch(step - self._first_unlabelled, count)
        )
        x_M3SS = self._gather(self._rows_U[pick_M])
        weak_M3SS = self._weak(x_M3SS, generator=generator)
        strong_M3SS = self._strong(x_M3SS, generator=generator)
        logits_BC, weak_MC, strong_MC = self._forward(x_B3SS, weak_M3SS, strong_M3SS)
        rows_M = pick_M.to(self._device, non_blocking=True)
        label_M, mask_M = pseudo_labels(self._flexmatch, weak_MC, rows_M)
        loss_labelled = self._labelled_loss(logits_BC, y_B)
        loss_unlabelled = consistency_loss(strong_MC, label_M, mask_M)
        truth_M = self._truth_U[rows_M]
        known_M = mask_M * (truth_M >= 0)
        self._sums_5 += torch.stack(
            [
                loss_labelled.detach(),
                loss_unlabelled.detach(),
                mask_M.mean(),
                (known_M * (truth_M == label_M)).sum(),
                known_M.sum(),
            ]
        )
        return loss_labelled + config.lambda_u * loss_unlabelled

    def _forward(
        self, x_B3SS: torch.Tensor, weak_M3SS: torch.Tensor, strong_M3SS: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self._config
        sizes = [len(x_B3SS), len(weak_M3SS), len(strong_M3SS)]
        with autocast(self._device, config.precision):
            if config.teacher == "average":
                assert self._average is not None
                with torch.no_grad():
                    weak_MC = self._average.module(self._normalisation(weak_M3SS))
            elif self._mixes:
                x_all = self._normalisation(torch.cat([x_B3SS, weak_M3SS, strong_M3SS]))
                labelled_BC, weak_MC, strong_MC = self.classifier(x_all).split(sizes)
                return labelled_BC, weak_MC, strong_MC
            else:
                # Images do not meet inside this network, so the weak views, which carry no
                # gradient, can go alone and cost a third.
                with torch.no_grad():
                    weak_MC = self.classifier(self._normalisation(weak_M3SS))
            x_rest = self._normalisation(torch.cat([x_B3SS, strong_M3SS]))
            labelled_BC, strong_MC = self.classifier(x_rest).split([sizes[0], sizes[2]])
        return labelled_BC, weak_MC, strong_MC

    def _labelled_loss(self, logits_BC: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(
            logits_BC.float(), y_B, label_smoothing=self._config.label_smoothing
        )

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        return self._images[rows.to(self._images.device)].to(self._device, non_blocking=True)

    def _report(self) -> None:
        loss, loss_unlabelled, mask, right, known = self._sums_5.tolist()
        if not math.isfinite(loss + loss_unlabelled):
            raise InputError(
                "The training loss must stay finite. Got a value that is not, before step "
                f"{self.step_number}. Lower head_lr and backbone_lr, or set clip_norm."
            )
        entry = {"step": float(self.step_number), "loss": loss / self._stretch}
        if self._flexmatch is not None:
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
            "flexmatch": None if self._flexmatch is None else self._flexmatch.state_dict(),
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
        if self._flexmatch is not None:
            self._flexmatch.load_state_dict(state["flexmatch"])
        self._sums_5.copy_(state["sums"])
        self._stretch = state["stretch"]
        self.history = list(state["history"])


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every batch-norm layer into eval mode: statistics are used, not updated."""
    for layer in module.modules():
        if isinstance(layer, _BATCH_NORMS):
            layer.eval()


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
