"""What each step sees: which images, and in which views.

Everything is a function of the seed and the step alone. Of several processes each makes the views
of its own share, with the numbers it would get if one process made them all.

Shapes: B = labelled images of a step, M = unlabelled ones, S = side in pixels; of a process' share.
"""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor

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
        first_unlabelled: int | None,
        seed: int,
        device: torch.device,
        group: Group,
        ahead: bool | None = None,
    ) -> None:
        """Prepare; see `svp.finetune.training.Training` for the other arguments.

        Args:
            images_N3SS: uint8.
            labelled: Rows and classes.
            rows_U: Rows of the unlabelled images.
            config: The settings.
            first_unlabelled: First step with unlabelled images; None = no step has them.
            seed: Decides every random choice.
            device: Where the views go.
            group: The processes that train together.
            ahead: Whether a thread reads the next step's pixels meanwhile; default: where they
                have to travel to a GPU.
        """
        self._images, self._rows_U = images_N3SS, rows_U
        self._rows_L, self._y_L = labelled
        self._config, self._seed = config, seed
        self._device, self._group = device, group
        self._first_unlabelled = first_unlabelled
        self._pins = device.type == "cuda" and images_N3SS.device.type == "cpu"
        ahead = self._pins if ahead is None else ahead
        self._reader = ThreadPoolExecutor(1, "svp-pixels") if ahead else None
        self._next: tuple[int, Future[list[tuple[torch.Tensor, torch.Tensor]]]] | None = None
        self._weak = WeakView(crop=config.crop, padding=config.crop_padding, flip=config.flip)
        self._strong = StrongView(
            weak=self._weak, operations=config.strong_ops, cutout=config.cutout
        )
        self._labelled_passes = Passes(len(self._rows_L), seed, "finetune-labelled")
        self._unlabelled_passes = Passes(len(rows_U), seed, "finetune-unlabelled")

    def at(self, step: int) -> StepViews:
        """Return the views of a step, from 0."""
        config = self._config
        if self._next is not None and self._next[0] == step:
            pixels = self._next[1].result()
        else:
            pixels = self._pixels(step)
        if self._reader is not None:
            self._next = (step + 1, self._reader.submit(self._pixels, step + 1))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "finetune-views", step))
        pick, x_B3SS = pixels[0]
        share, draws = self._share(config.batch_size, generator)
        x_B3SS = self._weak(x_B3SS.to(self._device, non_blocking=True), generator=draws)
        y_B = self._y_L[pick[share]].to(self._device, non_blocking=True)
        if len(pixels) == 1:
            return StepViews(x_B3SS=x_B3SS, y_B=y_B)
        pick, x_M3SS = pixels[1]
        share, draws = self._share(len(pick), generator)
        x_M3SS = x_M3SS.to(self._device, non_blocking=True)
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

    def _pixels(self, step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return positions of all processes and pixels of this one: labelled, then unlabelled."""
        config = self._config
        wanted = [(self._labelled_passes.batch(step, config.batch_size), self._rows_L)]
        if self._first_unlabelled is not None and step >= self._first_unlabelled:
            count = config.uratio * config.batch_size
            batch = self._unlabelled_passes.batch(step - self._first_unlabelled, count)
            wanted.append((batch, self._rows_U))
        found = []
        for batch, rows in wanted:
            pick = torch.from_numpy(batch)
            own = rows[pick[self._group.share(len(pick))]]
            pixels = self._images[own.to(self._images.device)]
            # From page-locked memory a copy to the GPU does not wait.
            found.append((pick, pixels.pin_memory() if self._pins else pixels))
        return found

    def _share(
        self, count: int, generator: torch.Generator
    ) -> tuple[slice, torch.Generator | ShareDraws]:
        share = self._group.share(count)
        if self._group.size == 1:
            return share, generator
        return share, ShareDraws(generator=generator, start=share.start, total=count)
