"""CIFAR-10 from its two zip archives: a part of it, decoded for one encoder.

Shapes: N = images of the part, S = side in pixels.
"""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from feature_store.pool import Pool
from svp.data import open_source
from svp.encoders.encoder import Encoder
from svp.encoders.images import decode_pool
from svp.errors import InputError
from svp.progress import automatic
from svp.seed import numpy_generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some images, those to choose from and those to test on, in the order of their ids.

    Attributes:
        pool: Ids, digests, labels.
        images_N3SS: Decoded, uint8.
        y_N: Class numbers, int64.
        classes: Their names.
        held_out_N: Whether an image is of the test split.
    """

    pool: Pool
    images_N3SS: torch.Tensor
    y_N: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    held_out_N: npt.NDArray[np.bool_]


def read_part(data: Path, encoder: Encoder, *, pool: int, test: int) -> Part:
    """Decode a random part of the archives, always the same for the same numbers.

    Args:
        data: Folder of `train.zip` and `test.zip`, with one folder a class.
        encoder: Whose preprocessing to use.
        pool: Images to choose from.
        test: Images to test on.

    Raises:
        InputError: The archives have no class folders, or an image cannot be read.
    """
    progress = automatic()
    source = open_source([str(data / name) for name in ("train.zip", "test.zip")])
    whole = source.scan(progress=progress).pool
    if whole.splits is None or whole.labels is None:
        raise InputError("The archives must have class folders. Got none. Check --data.")
    draw = numpy_generator(0, "subset")
    splits = np.asarray(whole.splits)
    chosen = draw.permutation(np.flatnonzero(splits != "test"))[:pool]
    tested = draw.permutation(np.flatnonzero(splits == "test"))[:test]
    part = whole.subset(np.sort(np.concatenate([chosen, tested])))
    images, kept, _ = decode_pool(
        source, part.uris, encoder.preprocessing, digests=part.digests, progress=progress
    )
    if len(kept) != len(part):
        raise InputError(
            f"All images must be readable. Got {len(kept)} of {len(part)}. Check --data."
        )
    names = tuple(str(name) for name in part.labels or ())
    classes = tuple(sorted({str(name) for name in whole.labels}))
    number = {name: index for index, name in enumerate(classes)}
    return Part(
        pool=part,
        images_N3SS=images,
        y_N=np.array([number[name] for name in names], dtype=np.int64),
        classes=classes,
        held_out_N=np.asarray(part.splits) == "test",
    )
