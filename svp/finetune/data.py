"""What a fine-tune learns from: decoded images and which of them have labels.

Shapes: N = images, L = labelled, U = unlabelled, E = held out, S = side in pixels.
"""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from feature_store.digest import canonical_json, sha256_hex
from svp.errors import InputError

Int64Array = npt.NDArray[np.int64]


def _none() -> Int64Array:
    return np.empty(0, dtype=np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FinetuneData:
    """Images, decoded once, and what is known about them.

    Attributes:
        images_N3SS: uint8, at the encoder's input size.
        ids: Names of the N images, distinct.
        class_names: Names of the C classes.
        labelled_rows: Rows with labels to train on, at least one.
        labels_L: Their classes, in [0, C). A class may be absent.
        unlabelled_rows: Rows FlexMatch may use; ignored by supervised training.
        held_out_rows: Rows to evaluate on. Neither labelled nor unlabelled.
        held_out_labels_E: Their classes.
        images_sha256: Digest of the images, where it is known without reading them all.
        known_labels_N: True classes of all N images, -1 where unknown, for simulations. Only
            reported against, never trained on.
    """

    images_N3SS: torch.Tensor
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    labelled_rows: Int64Array
    labels_L: Int64Array
    unlabelled_rows: Int64Array = dataclasses.field(default_factory=_none)
    held_out_rows: Int64Array = dataclasses.field(default_factory=_none)
    held_out_labels_E: Int64Array = dataclasses.field(default_factory=_none)
    known_labels_N: Int64Array | None = None
    images_sha256: str | None = None

    def __post_init__(self) -> None:
        images, size = self.images_N3SS, len(self.images_N3SS)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(
                f"images must be uint8 of shape (N, 3, S, S). Got {images.dtype} "
                f"{tuple(images.shape)}. Decode them with the encoder's preprocessing."
            )
        if len(self.ids) != size:
            raise InputError(
                f"ids must name all {size} images. Got {len(self.ids)}. Pass one each."
            )
        if len(self.class_names) < 2:
            raise InputError(
                f"class_names must have at least 2 names. Got {len(self.class_names)}. "
                "Label items of another class first."
            )
        if not len(self.labelled_rows):
            raise InputError("labelled_rows must not be empty. Got none. Import labels first.")
        taken = np.zeros(size, dtype=np.int64)
        for name, rows in (
            ("labelled_rows", self.labelled_rows),
            ("unlabelled_rows", self.unlabelled_rows),
            ("held_out_rows", self.held_out_rows),
        ):
            if len(rows) and (rows.min() < 0 or rows.max() >= size):
                raise InputError(
                    f"{name} must lie in [0, {size}). Got {rows.min()} to {rows.max()}. "
                    "Count rows in the images passed."
                )
            np.add.at(taken, rows, 1)
        if taken.max() > 1:
            raise InputError(
                "Labelled, unlabelled and held-out rows must not overlap. "
                f"Got {int((taken > 1).sum())} rows twice. Remove them from one."
            )
        for name, labels, rows in (
            ("labels_L", self.labels_L, self.labelled_rows),
            ("held_out_labels_E", self.held_out_labels_E, self.held_out_rows),
        ):
            if len(labels) != len(rows):
                raise InputError(
                    f"{name} must hold one class per row, {len(rows)}. Got {len(labels)}. Align."
                )
            if len(labels) and (labels.min() < 0 or labels.max() >= len(self.class_names)):
                raise InputError(
                    f"{name} must lie in [0, {len(self.class_names)}). "
                    f"Got {labels.min()} to {labels.max()}. Index class_names."
                )
        if self.known_labels_N is not None and len(self.known_labels_N) != size:
            raise InputError(
                f"known_labels_N must have {size} entries. Got {len(self.known_labels_N)}. "
                "Use -1 where unknown."
            )

    def ordered(self) -> "FinetuneData":
        """Return the same with rows ascending, so that results follow the labels alone."""
        by_row_L, by_row_E = np.argsort(self.labelled_rows), np.argsort(self.held_out_rows)
        return dataclasses.replace(
            self,
            labelled_rows=self.labelled_rows[by_row_L],
            labels_L=self.labels_L[by_row_L],
            unlabelled_rows=np.sort(self.unlabelled_rows),
            held_out_rows=self.held_out_rows[by_row_E],
            held_out_labels_E=self.held_out_labels_E[by_row_E],
        )

    def labels_digest(self) -> str:
        """Return a SHA-256 over the labelled items' ids and class names, whatever their order."""
        pairs = sorted(
            (self.ids[row], self.class_names[label])
            for row, label in zip(self.labelled_rows, self.labels_L, strict=True)
        )
        return sha256_hex(canonical_json(pairs))

    def digest(self) -> str:
        """Return a SHA-256 over everything that training and its reports depend on."""
        hashed = hashlib.sha256()
        if self.images_sha256 is None:
            hash_tensor(hashed, "images", self.images_N3SS)
        else:
            hashed.update(self.images_sha256.encode())
        for names in (self.ids, self.class_names):
            hashed.update(repr(names).encode())
        for rows in (
            self.labelled_rows,
            self.labels_L,
            self.unlabelled_rows,
            self.held_out_rows,
            self.held_out_labels_E,
            _none() if self.known_labels_N is None else self.known_labels_N,
        ):
            hash_tensor(hashed, "rows", torch.from_numpy(np.asarray(rows, dtype=np.int64)))
        return hashed.hexdigest()


def hash_tensor(hashed: "hashlib._Hash", name: str, tensor: torch.Tensor) -> None:
    """Feed a tensor's name, type, shape and bytes to `hashed`, without a second copy of it."""
    hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    if not tensor.numel():
        return
    if tensor.ndim == 0:
        tensor = tensor[None]
    for part in torch.split(tensor, 4096):
        flat = part.detach().cpu().contiguous().view(-1).view(torch.uint8)
        hashed.update(flat.numpy().data)


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 over named tensors, buffers included, in order of name."""
    hashed = hashlib.sha256()
    for name in sorted(state):
        hash_tensor(hashed, name, state[name])
    return hashed.hexdigest()


def module_digest(module: nn.Module) -> str:
    """Return a SHA-256 over all parameters and buffers of a module."""
    return state_digest(module.state_dict())
