"""Pretraining a backbone on unlabelled images.

Every random choice derives from (seed, epoch) or (seed, step) by hash, and the state between two
steps is in the checkpoint. So a run that was killed at any instant and started again ends with
the same bits as one left alone, on the same machine and thread count. SIGTERM and SIGINT wait for
the step that runs and for a last checkpoint.

Shapes: N = images, S = image side.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from feature_store.atomic import write_json
from svp import provenance
from svp.encoders.folder import write_encoder_folder
from svp.encoders.preprocessing import Preprocessing, imagenet_preprocessing
from svp.errors import InputError
from svp.pretrain import checkpoint
from svp.pretrain.config import PretrainConfig
from svp.pretrain.run import Epoch, Int64Array, Run
from svp.pretrain.stopping import Stopping
from svp.progress import Progress, Silent, Watch

_CHECKPOINT: Final = "checkpoint.pt"
_RECORD: Final = "pretrain.json"
_COLLAPSED: Final = 1e-3
_NOTE_STEPS: Final = 10


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainResult:
    """A finished run.

    Attributes:
        output: The encoder folder, itself an encoder spec.
        steps: Optimiser steps.
        images: Images in the pool.
        seconds: Training time over all resumed runs.
        images_per_s: Images per second of training time, each seen in two views.
        history: One entry per epoch.
    """

    output: Path
    steps: int
    images: int
    seconds: float
    images_per_s: float
    history: tuple[Epoch, ...]

    @property
    def loss(self) -> float:
        """Mean loss of the last epoch."""
        return self.history[-1].loss

    @property
    def spread(self) -> float:
        """Spread of the features at the end; 0 is collapse."""
        return self.history[-1].spread


def preprocessing_of(config: PretrainConfig) -> Preprocessing:
    """Return how images must be rendered for `pretrain`, and how the new encoder will see them."""
    return dataclasses.replace(
        imagenet_preprocessing(config.image_size), mean=config.mean, std=config.std
    )


def pretrain(
    images_u8_N3SS: torch.Tensor,
    config: PretrainConfig,
    *,
    seed: int,
    output: Path,
    labels_N: Int64Array | None = None,
    device: torch.device | str = "cpu",
    checkpoint_every_s: float = 60.0,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> PretrainResult:
    """Pretrain a backbone by BYOL, EMAN or SimCLR and write it as an encoder folder.

    Called again with the same arguments it continues an unfinished run, and returns the result
    of a finished one.

    Args:
        images_u8_N3SS: Images as rendered by `preprocessing_of(config)`, uint8, on any device; on
            the training device they cost no transfer.
        config: The recipe.
        seed: Decides weights, order and views.
        output: The folder to write; created with its parents.
        labels_N: Class per image from 0, -1 for unknown, for the nearest-neighbour monitor only:
            they never touch the weights.
        device: Where to train.
        checkpoint_every_s: Seconds between checkpoints; 0 for one after every step.
        progress: Where to report; default: nowhere.
        watch: Takes each epoch and its loss, spread and nearest-neighbour accuracy.

    Returns:
        What was seen, and where the encoder is.

    Raises:
        InputError: If the images do not fit the configuration, `output` holds another run, or
            the loss stops being finite.
    """
    progress = progress if progress is not None else Silent()
    _check(images_u8_N3SS, config, labels_N)
    identity: dict[str, Any] = {
        "config": config.identity(),
        "seed": seed,
        "images": {"count": len(images_u8_N3SS), "sha256": _digest(images_u8_N3SS)},
    }
    output.mkdir(parents=True, exist_ok=True)
    if (output / _RECORD).exists():
        finished = _finished(output, identity)
        progress.say(f"{output} is finished; nothing to do.")
        return finished

    run = Run(images_u8_N3SS, config, seed=seed, device=torch.device(device))
    state = checkpoint.load(output / _CHECKPOINT, identity)
    if state is not None:
        run.restore(state)
        progress.say(f"Continuing at step {run.step:,} of {run.total:,}.")

    seconds_before = run.seconds
    started = saved = time.monotonic()
    label, done = f"pretrain {config.arch}", run.step * run.batch
    with (
        Stopping() as stopping,
        progress.task(label, run.total * run.batch, "images", done) as task,
    ):
        while run.step < run.total:
            run.train_step()
            note = f"loss {run.loss:.3f}" if run.step % _NOTE_STEPS == 0 else ""
            if run.step % run.steps_per_epoch == 0:
                seen = run.end_epoch(labels_N)
                note = _describe(seen, config.epochs)
                if watch is not None:
                    watch(seen.epoch, _numbers(seen))
                if seen.spread < _COLLAPSED:
                    progress.say(f"Features have collapsed: {note}. Lower lr or raise momentum0.")
            task.advance(run.batch, note)
            now = time.monotonic()
            run.seconds = seconds_before + now - started
            if stopping.asked or now - saved >= checkpoint_every_s:
                _ = run.loss  # raises before a broken state could replace a good one
                checkpoint.save(output / _CHECKPOINT, identity, run.state())
                saved = now
            if stopping.asked:
                stopping.leave()
    return _publish(run, output, identity, images=len(images_u8_N3SS))


def _check(images: torch.Tensor, config: PretrainConfig, labels_N: Int64Array | None) -> None:
    wanted = (3, config.image_size, config.image_size)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != wanted:
        raise InputError(
            f"images must be uint8 (N, {', '.join(map(str, wanted))}). Got {images.dtype} "
            f"{tuple(images.shape)}. Render them with preprocessing_of(config)."
        )
    if len(images) < 2:
        raise InputError(
            f"images must be at least 2. Got {len(images)}. Pretraining needs a pool to learn from."
        )
    if labels_N is not None and labels_N.shape != (len(images),):
        raise InputError(
            f"labels must be one per image, shape ({len(images)},). Got {labels_N.shape}. "
            "Use -1 for images without a label."
        )


def _digest(images: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for part in torch.split(images, 4096):
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _describe(seen: Epoch, epochs: int) -> str:
    text = f"epoch {seen.epoch}/{epochs}, loss {seen.loss:.3f}, spread {seen.spread:.2f}"
    return text if seen.knn is None else f"{text}, kNN {seen.knn:.1%}"


def _finished(output: Path, identity: Mapping[str, Any]) -> PretrainResult:
    record = json.loads((output / _RECORD).read_text())
    checkpoint.check_identity(record["identity"], identity, output)
    result = record["result"]
    history = tuple(Epoch(**seen) for seen in result.pop("history"))
    return PretrainResult(output=output, history=history, **result)


def _numbers(seen: Epoch) -> dict[str, float]:
    known = {} if seen.knn is None else {"knn_acc": seen.knn}
    return {"loss": seen.loss, "spread": seen.spread, **known}


def _publish(run: Run, output: Path, identity: Mapping[str, Any], *, images: int) -> PretrainResult:
    result = PretrainResult(
        output=output,
        steps=run.step,
        images=images,
        seconds=run.seconds,
        images_per_s=run.total * run.batch / max(run.seconds, 1e-9),
        history=tuple(run.history),
    )
    config = run.config
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in run.encoder().state_dict().items()
    }
    made_by = {
        "method": config.method,
        "branch": config.branch,
        "seed": identity["seed"],
        "config": identity["config"],
        "images": identity["images"],
        "epochs": config.epochs,
        "steps": run.step,
        "loss": result.loss,
        "spread": result.spread,
    }
    write_encoder_folder(
        output,
        module_state=state,
        arch=config.arch,
        image_size=config.image_size,
        preprocessing=preprocessing_of(config),
        provenance=made_by,
    )
    # Written last: a folder with this file is a finished run.
    write_json(
        output / _RECORD,
        {
            "schema": "svp.pretrain/1",
            "identity": identity,
            "result": {
                "steps": result.steps,
                "images": result.images,
                "seconds": round(result.seconds, 3),
                "images_per_s": round(result.images_per_s, 1),
                "history": [dataclasses.asdict(seen) for seen in result.history],
            },
            "versions": provenance.versions(),
            "hardware": provenance.hardware(),
            "finished": provenance.now(),
        },
    )
    with contextlib.suppress(FileNotFoundError):
        (output / _CHECKPOINT).unlink()
    return result
