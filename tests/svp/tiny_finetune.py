"""Digits as 3-channel thumbnails and a small encoder: enough to fine-tune within a second."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from svp.encoders.backbones import build_backbone
from svp.encoders.preprocessing import Preprocessing
from svp.finetune.data import FinetuneData

SIZE = 8


class TinyEncoder:
    """A network with random weights, shaped like an svp encoder."""

    def __init__(self, module=None, dim=None):
        self.module = module if module is not None else build_backbone("resnet8", image_size=SIZE)
        self.dim = dim if dim is not None else self.module.num_features
        self.module.eval().requires_grad_(False)
        self.id = "0123456789abcdef"
        self.decoder = "pillow"
        self.preprocessing = Preprocessing(size=SIZE, resize_to=SIZE, resize="squash")
        family = "backbone" if module is None else "elsewhere"
        self.identity = {
            "architecture": {"family": family, "model": "resnet8", "image_size": SIZE},
            "pooling": "global average",
        }

    def normalise(self, x_u8):
        return (x_u8.float() / 255 - 0.4) / 0.3


class NormFree(torch.nn.Module):
    """Layers that do not mix the images of a batch, dropout among them."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, stride=2, padding=1),
            torch.nn.GroupNorm(4, 16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Conv2d(16, 24, 3, stride=2, padding=1),
            torch.nn.ReLU(),
        )

    def forward(self, x):
        return self.blocks(x).mean(dim=(2, 3))


def digits(labels=20, unlabelled=300, held_out=200, *, absent=None, seed=0):
    """Return a labelled set of about equal classes, unlabelled digits, and held-out ones."""
    images, classes = load_digits(return_X_y=True)
    x = torch.from_numpy((images.reshape(-1, 1, 8, 8) / 16 * 255).astype(np.uint8))
    x = x.expand(-1, 3, -1, -1).contiguous()
    y = classes.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(y))
    usable = order if absent is None else order[y[order] != absent]
    by_class = [usable[y[usable] == c] for c in range(10)]
    rounds = [rows[i] for i in range(labels) for rows in by_class if i < len(rows)]
    labelled = np.array(rounds[:labels])
    rest = np.setdiff1d(order, labelled, assume_unique=True)
    rest = rest[np.random.default_rng(seed + 1).permutation(len(rest))]
    hold, free = rest[:held_out], rest[held_out : held_out + unlabelled]
    return FinetuneData(
        images_N3SS=x,
        ids=tuple(f"digit-{i:04d}" for i in range(len(y))),
        class_names=tuple(f"digit {c}" for c in range(10)),
        labelled_rows=labelled,
        labels_L=y[labelled],
        unlabelled_rows=free,
        held_out_rows=hold,
        held_out_labels_E=y[hold],
        known_labels_N=y,
    )
