"""LabelBench's own proxy trainers on arrays of ours, run from a clone of its repository.

Its trainer code and its configuration files run as they are, on feature files in its own format.
What the run changes, because that code expects a GPU and many cores: `cuda` calls stay on the CPU,
loaders use no workers (its best case on few cores) unless its own number is asked for, and feature
files are read with pickling allowed, which are written here a moment before.

The clone: https://github.com/EfficientTraining/LabelBench
"""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.speed.machine import clock
from svp.seed import derive_seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """One training of a peer.

    Attributes:
        seconds: Wall time.
        cpu_s: Processor time, of its worker processes too.
        steps: Optimiser steps.
        accuracy: On the test rows.
    """

    seconds: float
    cpu_s: float
    steps: int
    accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """Arrays of one round, float32 on the CPU.

    Attributes:
        x_Nd: The pool.
        strong_Nd: Its strong view; the weak one is the pool itself, as with CLIP there.
        y_N: Classes.
        labelled_L: Labelled rows.
        x_Vd: Validation rows.
        y_V: Their classes.
        x_Td: Test rows.
        y_T: Their classes.
        classes: C.
    """

    x_Nd: torch.Tensor
    strong_Nd: torch.Tensor
    y_N: torch.Tensor
    labelled_L: torch.Tensor
    x_Vd: torch.Tensor
    y_V: torch.Tensor
    x_Td: torch.Tensor
    y_T: torch.Tensor
    classes: int


def run(
    clone: Path, config: str, task: Round, hidden_layers: int, *, seed: int, workers: bool = False
) -> Trained:
    """Train LabelBench's proxy.

    Args:
        clone: Its repository.
        config: Path of a trainer configuration under `configs/trainer`.
        task: What to train on.
        hidden_layers: 1 for its linear proxy, 2 for its shallow one (its own counting).
        seed: Of PyTorch's and NumPy's generators, from which it draws.
        workers: Whether loaders have as many workers as its configuration says.
    """
    settings = json.loads((clone / "configs" / "trainer" / config).read_text(encoding="utf-8"))
    # A plain number could be the seed of the arrays: its first weights would then follow from the
    # same draws as the centres of the classes.
    number = derive_seed(seed, "peer")
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002  # what its mixup draws from
    with tempfile.TemporaryDirectory() as folder, _on_cpu(clone, workers=workers):
        return _run(settings, task, hidden_layers, Path(folder) / "x")


def _run(settings: dict[str, Any], task: Round, hidden_layers: int, prefix: Path) -> Trained:
    # Only importable with the clone on the path.
    from LabelBench.dataset.feature_extractor import (  # type: ignore[import-not-found]
        FeatureExtractor,
    )
    from LabelBench.model.model_impl.linear import init_Linear  # type: ignore[import-not-found]
    from LabelBench.model.model_impl.shallow import init_MLP  # type: ignore[import-not-found]
    from LabelBench.skeleton.dataset_skeleton import (  # type: ignore[import-not-found]
        ALDataset,
        DatasetOnMemory,
        LabelType,
        TransformDataset,
    )
    from LabelBench.trainer import trainer as peer  # type: ignore[import-not-found]

    seeds = 5
    weak = task.x_Nd.double().numpy()
    files = {
        "val": task.x_Vd.double().numpy(),
        "test": task.x_Td.double().numpy(),
        "train": weak,
        "strong": (weak, task.strong_Nd.double().numpy()),
    }
    for split, x in files.items():
        first = f"{prefix}_0_features_{split}.pt"
        torch.save(x, first, pickle_protocol=4)
        for seed in range(1, seeds):  # it asks for those of each epoch; here they are the same
            os.link(first, f"{prefix}_{seed}_features_{split}.pt")
    onehot = [
        torch.nn.functional.one_hot(y, task.classes).numpy() for y in (task.y_N, task.y_V, task.y_T)
    ]
    sets = [
        TransformDataset(DatasetOnMemory(np.zeros((len(y), 1)), y, task.classes)) for y in onehot
    ]
    dataset = ALDataset(
        *sets, *onehot, LabelType.MULTI_CLASS, task.classes, [str(c) for c in range(task.classes)]
    )
    dataset.update_labeled_idxs(task.labelled_L.tolist())
    extractor = FeatureExtractor(None, str(prefix), {"num_transform_seeds": seeds})
    for build in (peer.get_fns, peer.get_optimizer_fn, peer.get_scheduler_fn):
        settings = build(settings)
    build_optimiser, optimisers = settings["optim_fn"], []

    def kept(parameters: Any) -> Any:
        optimisers.append(build_optimiser(parameters))
        return optimisers[-1]

    settings["optim_fn"] = kept
    model_config = {
        "input_dim": task.x_Nd.shape[1],
        "num_output": task.classes,
        "ret_emb": False,
        "num_hidden": hidden_layers,
    }
    trainer = peer.get_trainer(
        settings["trainer_name"],
        settings,
        dataset,
        init_Linear if hidden_layers == 1 else init_MLP,
        model_config,
        None,
        extractor,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model, taken = clock(trainer.train)
    steps = max(int(state["step"]) for state in optimisers[0].state.values())
    with torch.no_grad():
        mean = task.x_Nd.double().mean(dim=0)
        std = task.x_Nd.double().std(dim=0, correction=0)
        z = ((task.x_Td.double() - mean) / std).float()
        right = model(z).argmax(dim=1) == task.y_T
    return Trained(
        seconds=taken.wall, cpu_s=taken.cpu, steps=steps, accuracy=float(right.float().mean())
    )


@contextlib.contextmanager
def _on_cpu(clone: Path, *, workers: bool) -> Iterator[None]:
    """Let the clone's modules be imported, and run on a CPU."""
    loader = torch.utils.data.DataLoader

    class Alone(loader):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **{**named, **({} if workers else {"num_workers": 0})})

    def here(self: Any, *arguments: Any, **named: Any) -> Any:
        return self

    # Imported beside the heads and not used by them.
    sys.modules.setdefault("clip", types.ModuleType("clip"))
    load = functools.partial(torch.load, weights_only=False)
    with (
        mock.patch.object(torch.Tensor, "cuda", here),
        mock.patch.object(torch.nn.Module, "cuda", here),
        mock.patch.object(torch.utils.data, "DataLoader", Alone),
        mock.patch.object(torch, "load", load),
        mock.patch.object(sys, "path", [str(clone), *sys.path]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
