"""ASVP's own proxy training on arrays of ours, run from a clone of its repository.

Its network, its data set and its training loop run as they are, with the settings of its script.
What the run changes: `cuda` calls stay on the CPU.

The clone: https://github.com/ZiTingW/asvp
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.speed.labelbench import Round, Trained
from benchmarks.speed.machine import clock
from svp.proxies import MLPConfig, Standardiser
from svp.seed import derive_seed

_MODULES = ("utils", "dataset_model")


def run(clone: Path, task: Round, config: MLPConfig, *, seed: int) -> Trained:
    """Train ASVP's proxy.

    Args:
        clone: Its repository.
        task: What to train on; it gets standardised rows, for it has no standardiser.
        config: Epochs, batch size and rate.
        seed: Of PyTorch's generator, from which it draws.
    """
    torch.manual_seed(derive_seed(seed, "peer"))
    standardiser = Standardiser.fit(task.x_Nd)
    z_Ld = standardiser(task.x_Nd[task.labelled_L]).numpy()
    y_L = task.y_N[task.labelled_L].numpy()

    def here(self: Any, *arguments: Any, **named: Any) -> Any:
        return self

    with (
        mock.patch.object(torch.Tensor, "cuda", here),
        mock.patch.object(torch.cuda, "FloatTensor", torch.FloatTensor),
        mock.patch.object(sys, "path", [str(clone), *sys.path]),
    ):
        loop, parts = (importlib.import_module(name) for name in _MODULES)
        model = parts.MLP(z_Ld.shape[1], [config.hidden or z_Ld.shape[1]], task.classes)
        loader = torch.utils.data.DataLoader(
            parts.FeasDataset(z_Ld, y_L, None),
            batch_size=config.batch_size,
            num_workers=0,
            shuffle=True,
        )
        settings = types.SimpleNamespace(
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=True,
            train_eps=config.epochs,
        )
        (model, losses), taken = clock(lambda: loop.train_mlp(loader, model, settings))
    model.eval()
    with torch.no_grad():
        right = model(standardiser(task.x_Td)).argmax(dim=1) == task.y_T
    return Trained(
        seconds=taken.wall,
        cpu_s=taken.cpu,
        steps=len(losses),
        accuracy=float(right.float().mean()),
    )
