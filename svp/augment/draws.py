"""Random numbers for augmentations, from an explicit source.

Numbers are drawn where the source lives and then moved. A CPU generator therefore gives the
same views on every device, and masks drawn with it never make an accelerator wait.

A source is a `torch.Generator`, one stream for a batch; or `ShareDraws`, the numbers of some
images of such a batch; or `ImageDraws`, one stream for every image: then an image's numbers do not
depend on who else is in the batch.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

_CPU: Final = torch.device("cpu")
_NUMBER_BYTES: Final = 4
_MANTISSA_BITS: Final = 24  # all that float32 holds of a number in [0, 1)
_FIRST_NUMBERS: Final = 32


class ImageDraws:
    """A stream of random numbers for each image, which follows from that image's key alone.

    Scheme `SCHEME`: number k of an image is the k-th little-endian 32-bit word of SHAKE-256 over
    its key, its 24 high bits as a fraction. It needs no library's generator, so the numbers are
    the same on every machine and with every version of torch and NumPy.

    Attributes:
        keys: One per image of the batch, in order.
    """

    SCHEME: Final = "shake256-u24"

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.keys = tuple(keys)
        self._drawn = 0
        self._number_BM = self._numbers(_FIRST_NUMBERS)

    def _numbers(self, count: int) -> torch.Tensor:
        # More output of SHAKE-256 continues what less output began.
        data = b"".join(hashlib.shake_256(key).digest(_NUMBER_BYTES * count) for key in self.keys)
        word_BM = np.frombuffer(data, "<u4").reshape(len(self.keys), count)
        fraction_BM = (word_BM >> np.uint32(32 - _MANTISSA_BITS)).astype(np.float32)
        return torch.from_numpy(fraction_BM * np.float32(2.0**-_MANTISSA_BITS))

    def fractions(self, count: int) -> torch.Tensor:
        """Return the next `count` numbers in [0, 1) of every image, float32 (B, count), on CPU."""
        start, self._drawn = self._drawn, self._drawn + count
        if self._drawn > self._number_BM.shape[1]:
            self._number_BM = self._numbers(2 * self._drawn)
        return self._number_BM[:, start : self._drawn]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShareDraws:
    """The numbers that some images get from a generator that draws for a whole batch.

    Attributes:
        generator: Moves on as if for all images, so that all shares stay in step.
        start: First image of the share.
        total: Images of the whole batch.
    """

    generator: torch.Generator
    start: int
    total: int

    @property
    def device(self) -> torch.device:
        """Where the generator draws."""
        return self.generator.device

    def whole(self, shape: Sequence[int], images: int) -> tuple[int, ...]:
        """Return `shape` with the axis `images` as long as the whole batch."""
        return (*shape[:images], self.total, *shape[images + 1 :])


Source = torch.Generator | ShareDraws | ImageDraws
"""Where random numbers come from."""


def home(source: Source) -> torch.device:
    """Return the device on which a source draws."""
    return _CPU if isinstance(source, ImageDraws) else source.device


def _fractions(shape: Sequence[int], source: Source, images: int) -> torch.Tensor:
    if isinstance(source, ShareDraws):
        drawn = _fractions(source.whole(shape, images), source.generator, images)
        return drawn.narrow(images, source.start, shape[images])
    if not isinstance(source, ImageDraws):
        return torch.rand(*shape, generator=source, device=source.device)
    others = [size for axis, size in enumerate(shape) if axis != images]
    drawn = source.fractions(int(np.prod(others, dtype=np.int64)))
    return drawn.reshape(shape[images], *others).movedim(0, images)


def uniform(
    shape: Sequence[int],
    low: float,
    high: float,
    *,
    generator: Source,
    device: torch.device,
    images: int = 0,
) -> torch.Tensor:
    """Return float32 numbers in [low, high) of `shape` on `device`.

    Args:
        shape: Of the result.
        low: Least value.
        high: Upper end.
        generator: The source.
        device: Where the result goes.
        images: Axis of `shape` that runs over the images.
    """
    drawn = _fractions(shape, generator, images)
    return (low + (high - low) * drawn).to(device, non_blocking=True)


def integers(
    shape: Sequence[int],
    high: int,
    *,
    generator: Source,
    device: torch.device,
    images: int = 0,
) -> torch.Tensor:
    """Return int64 numbers in [0, high) of `shape` on `device`; `images` as in `uniform`.

    `ImageDraws` gives each number a share that is off by less than one in 2^24.
    """
    if isinstance(generator, ImageDraws):
        # In float64 the product is exact, so it stays below `high`.
        drawn = (_fractions(shape, generator, images).double() * high).long()
    elif isinstance(generator, ShareDraws):
        whole = torch.randint(
            high,
            generator.whole(shape, images),
            generator=generator.generator,
            device=generator.device,
        )
        drawn = whole.narrow(images, generator.start, shape[images])
    else:
        drawn = torch.randint(high, tuple(shape), generator=generator, device=generator.device)
    return drawn.to(device, non_blocking=True)


def chosen(n: int, p: float, *, generator: Source, device: torch.device) -> torch.Tensor:
    """Return a (n,) bool mask on `device`, each entry True with probability `p`."""
    return uniform((n,), 0.0, 1.0, generator=generator, device=device) < p


def chosen_rows(
    n: int, p: float, *, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Return on `device` the ascending rows of [0, n) kept with probability `p` each."""
    mask = torch.rand(n, generator=generator, device=generator.device) < p
    return mask.nonzero().squeeze(1).to(device, non_blocking=True)
