"""What each step sees: which images, and in which views.

Everything is a function of the seed and the step alone. Of several processes each makes the views
of its own share, with the numbers it would get if one process made them all.

Shapes: B = labelled images of a step, M = unlabelled ones, S = side in pixels; of a process' share.
"""

import dataclasses

import torch

from svp.augment.draws import ShareDraws
from svp.augment.fixmatch import StrongView, WeakView
from svp.finetune.config import FinetuneConfig
from svp.finetune.parallel import Group
from svp.finetune.sampling import Passes
from svp.seed import derive_seed


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepViews:
    """The images of one step, as floats in [0, 1] on the device.

    Attributes:
        x_B3SS: Weak views of labelled images.
        y_B: Their classes.
        weak_M3SS: Weak views of unlabelled images; None in a supervised step.
        other_M3SS: Their strong views, for MixMatch second weak views; None for PseudoLabel.
        rows_M: Their positions among the unlabelled images, int64.
        every_row: The same of all processes together.
    """

    x_B3SS: torch.Tensor
    y_B: torch.Tensor
    weak_M3SS: torch.Tensor | None = None
    other_M3SS: torch.Tensor | None = None
    rows_M: torch.Tensor | None = None
    every_row: torch.Tensor | None = None


class Views:
    """Makes the views of any step."""

    def __init__(
        self,
        images_N3SS: torch.Tensor,
        labelled: tuple[torch.Tensor, torch.Tensor],
        rows_U: torch.Tensor,
        config: FinetuneConfig,
        *,
        seed: int,
        device: torch.device,
        group: Group,
    ) -> None:
        """Prepare; see `svp.finetune.training.Training` for the arguments."""
        self._images, self._rows_U = images_N3SS, rows_U
        self._rows_L, self._y_L = labelled
        self._config, self._seed = config, seed
        self._device, self._group = device, group
        self._weak = WeakView(crop=config.crop, padding=config.crop_padding, flip=config.flip)
        self._strong = StrongView(
            weak=self._weak, operations=config.strong_ops, cutout=config.cutout
        )
        self._labelled_passes = Passes(len(self._rows_L), seed, "finetune-labelled")
        self._unlabelled_passes = Passes(len(rows_U), seed, "finetune-unlabelled")

    def at(self, step: int, unlabelled_step: int) -> StepViews:
        """Return the views of a step.

        Args:
            step: From 0.
            unlabelled_step: The same, counted from the first step with unlabelled images; below
                0 = without them.
        """
        config = self._config
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "finetune-views", step))
        pick = torch.from_numpy(self._labelled_passes.batch(step, config.batch_size))
        share, draws = self._share(config.batch_size, generator)
        x_B3SS = self._weak(self._gather(self._rows_L[pick[share]]), generator=draws)
        y_B = self._y_L[pick[share]].to(self._device, non_blocking=True)
        if unlabelled_step < 0:
            return StepViews(x_B3SS=x_B3SS, y_B=y_B)
        count = config.uratio * config.batch_size
        pick = torch.from_numpy(self._unlabelled_passes.batch(unlabelled_step, count))
        share, draws = self._share(count, generator)
        x_M3SS = self._gather(self._rows_U[pick[share]])
        weak_M3SS = self._weak(x_M3SS, generator=draws)
        other_M3SS: torch.Tensor | None = None
        if config.method == "mixmatch":
            other_M3SS = self._weak(x_M3SS, generator=draws)
        elif config.method != "pseudolabel":
            other_M3SS = self._strong(x_M3SS, generator=draws)
        every_row = pick.to(self._device, non_blocking=True)
        return StepViews(
            x_B3SS=x_B3SS,
            y_B=y_B,
            weak_M3SS=weak_M3SS,
            other_M3SS=other_M3SS,
            rows_M=every_row[share],
            every_row=every_row,
        )

    def _share(
        self, count: int, generator: torch.Generator
    ) -> tuple[slice, torch.Generator | ShareDraws]:
        share = self._group.share(count)
        if self._group.size == 1:
            return share, generator
        return share, ShareDraws(generator=generator, start=share.start, total=count)

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        return self._images[rows.to(self._images.device)].to(self._device, non_blocking=True)
