"""One fine-tune from an encoder to a published model, continued after any interruption."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feature_store.digest import canonical_json, sha256_hex
from svp.errors import IdentityError, InputError
from svp.finetune.checkpoint import CheckpointFile, Checkpointing
from svp.finetune.clock import StageClock
from svp.finetune.config import FinetuneConfig
from svp.finetune.data import FinetuneData, hash_tensor, module_digest
from svp.finetune.evaluation import Evaluation, evaluate, pool_scores
from svp.finetune.launch import own_device
from svp.finetune.model import (
    FinetunedModel,
    Head,
    Normalisation,
    TrainableEncoder,
    trainable_copy,
)
from svp.finetune.outputs import (
    METRICS,
    load_model,
    predictions_table,
    publish,
    read_metrics,
)
from svp.finetune.parallel import Group, process_group
from svp.finetune.probe import start_head
from svp.finetune.training import Training
from svp.progress import Progress, Silent, Watch
from svp.provenance import hardware, now, versions


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FinetuneResult:
    """A finished fine-tune.

    Attributes:
        model: Ready to predict, on the run's device.
        metrics: What `metrics.json` says.
        evaluation: Scores on the held-out rows; None without any.
        output: Where the files are.
        reused: Whether the directory already held this very run, so that nothing was done.
    """

    model: FinetunedModel
    metrics: dict[str, Any]
    evaluation: Evaluation | None
    output: Path
    reused: bool


def finetune(
    encoder: TrainableEncoder,
    data: FinetuneData,
    config: FinetuneConfig,
    *,
    output: str | Path,
    seed: int,
    head: Head | None = None,
    device: str | torch.device = "cpu",
    checkpointing: Checkpointing | None = None,
    probabilities: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> FinetuneResult:
    """Train a copy of the encoder's network with a head, evaluate it and publish it.

    A rerun with the same arguments continues an interrupted run and ends bit for bit where an
    undisturbed one does (same device, same number of threads and processes); of a finished run it
    returns the result without work. Started by `torchrun`, its processes share the work: each
    calls this with the same arguments, the first one writes.

    Args:
        encoder: Where training starts; never modified.
        data: Images and labels.
        config: The settings.
        output: Directory for `model.safetensors`, `predictions.parquet`, `config.json`,
            `metrics.json`, and while running `checkpoint.pt`.
        seed: Decides every random choice.
        head: Last layer to start from instead of a random one (mode `ft`).
        device: Where to train.
        checkpointing: When the state is saved; every minute by default.
        probabilities: Whether `predictions.parquet` holds every class's probability.
        restart: Discard what another run left in `output` instead of refusing it.
        progress: Where to report to.
        watch: Takes the step and the mean losses of the stretch that ends there, and at the end
            the accuracy on held-out images.

    Returns:
        The model, also found in `output` by `load_model`.

    Raises:
        InputError: Arguments do not fit each other, or the loss stopped being finite.
        IdentityError: `output` holds another run, and `restart` is False.
    """
    output, device = Path(output), torch.device(own_device(str(device)))
    progress = progress if progress is not None else Silent()
    if config.method != "supervised" and config.mode != "lp":
        _check_unlabelled(data, config)
    if head is None and config.head == "zero-shot":
        raise InputError(
            "head must be given for finetune.head = zero-shot. Got none. Build it with "
            "svp.finetune.zeroshot.zero_shot_head, or set head = random."
        )
    if head is not None and config.mode != "ft":
        raise InputError(
            f"head must be left out unless mode is ft. Got mode {config.mode}, whose probe "
            "makes its own. Use mode ft to start from a given head."
        )
    data = data.ordered()
    data_sha256 = data.digest()
    fingerprint = _fingerprint(encoder, data_sha256, config, seed, head)
    with process_group(device) as group:
        return _finetune(
            encoder,
            data,
            config,
            output=output,
            fingerprint=fingerprint,
            data_sha256=data_sha256,
            seed=seed,
            head=head,
            device=device,
            checkpointing=checkpointing or Checkpointing(),
            probabilities=probabilities,
            restart=restart,
            progress=progress if group.first else Silent(),
            watch=watch if group.first else None,
            group=group,
        )


def _finetune(
    encoder: TrainableEncoder,
    data: FinetuneData,
    config: FinetuneConfig,
    *,
    output: Path,
    fingerprint: str,
    data_sha256: str,
    seed: int,
    head: Head | None,
    device: torch.device,
    checkpointing: Checkpointing,
    probabilities: bool,
    restart: bool,
    progress: Progress,
    watch: Watch | None,
    group: Group,
) -> FinetuneResult:
    finished = _finished(output, fingerprint, restart, group)
    if finished is not None:
        model = load_model(output, device=device, encoder=_if_foreign(encoder))
        scores = finished["evaluation"]
        return FinetuneResult(
            model=model,
            metrics=finished,
            evaluation=None if scores is None else Evaluation.from_dict(scores),
            output=output,
            reused=True,
        )
    checkpoint = CheckpointFile(output / "checkpoint.pt", fingerprint, checkpointing)
    if restart:
        try:
            state = checkpoint.load()
        except IdentityError:
            state = None
            if group.first:
                checkpoint.remove()
    else:
        state = checkpoint.load()

    started = now()
    normalisation = Normalisation.of(encoder)
    classifier = trainable_copy(encoder, len(data.class_names)).to(device)
    images = _place(data.images_N3SS, device)
    clock = StageClock(dict(state["seconds"]) if state is not None else {})
    if state is None:
        with clock.measure("probe"):
            start_head(classifier, normalisation, images, data, config, seed=seed, head=head)
            group.copy_first(classifier)
    training = Training(
        classifier,
        normalisation,
        images,
        (torch.from_numpy(data.labelled_rows), torch.from_numpy(data.labels_L)),
        _unlabelled(data, config),
        config,
        seed=seed,
        device=device,
        group=group,
    )
    if state is not None:
        training.load_state_dict(state["training"])
        classifier.unit_features = state["unit_features"]
    _train(training, checkpoint if group.first else None, clock, progress, watch)

    classifier.load_state_dict(training.evaluation_state())
    description = {
        "class_names": list(data.class_names),
        "config": dataclasses.asdict(config),
        "encoder": dict(encoder.identity),
        "encoder_id": encoder.id,
        "normalisation": dataclasses.asdict(normalisation),
        "unit_features": classifier.unit_features,
        "seed": seed,
        "fingerprint": fingerprint,
        "data_sha256": data_sha256,
        "labels_sha256": data.labels_digest(),
        "images": len(data.ids),
        "labelled": len(data.labelled_rows),
        "unlabelled": len(data.unlabelled_rows),
        "held_out": len(data.held_out_rows),
    }
    model = FinetunedModel(
        classifier,
        normalisation,
        data.class_names,
        batch_size=config.eval_batch_size,
        precision=config.precision,
        description=description,
    )
    share = group.share(len(images))
    own = images[share]
    with progress.task("predict", len(own), "images") as task, clock.measure("predict"):
        own_NC = model.probabilities(own).to(device)
        task.advance(len(own))
        probs_NC = group.gather(own_NC, len(images)).cpu()
    predicted_N = probs_NC.argmax(dim=1).numpy()
    evaluation = None
    if len(data.held_out_rows):
        evaluation = evaluate(
            data.held_out_labels_E, predicted_N[data.held_out_rows], len(data.class_names)
        )
        if watch is not None:
            watch(training.step_number, {"accuracy": evaluation.accuracy})
    metrics: dict[str, Any] = {
        "fingerprint": fingerprint,
        "steps": training.step_number,
        "evaluation": None if evaluation is None else evaluation.to_dict(),
        "pool": _pool_scores(data, predicted_N),
        "history": training.history,
        "seconds": clock.seconds,
        "started": started,
        "finished": now(),
        "versions": versions(),
        "hardware": hardware(),
        "device": str(device),
        "processes": group.size,
        "threads": torch.get_num_threads(),
    }
    if group.first:
        table = predictions_table(data.ids, probs_NC, data.class_names, probabilities=probabilities)
        publish(output, model=model, predictions=table, config=description, metrics=metrics)
        checkpoint.remove()
    group.wait()
    stored = read_metrics(output)
    assert stored is not None
    return FinetuneResult(
        model=model, metrics=stored, evaluation=evaluation, output=output, reused=False
    )


def _train(
    training: Training,
    checkpoint: CheckpointFile | None,
    clock: StageClock,
    progress: Progress,
    watch: Watch | None,
) -> None:
    """Take the steps that are left; save the state now and then where there is a `checkpoint`."""

    def save(checkpoint: CheckpointFile) -> None:
        clock.lap()
        checkpoint.save(
            {
                "training": training.state_dict(),
                "unit_features": training.classifier.unit_features,
                "seconds": clock.seconds,
            }
        )

    with (
        progress.task("fine-tune", training.total, "steps", training.step_number) as task,
        clock.measure("train"),
    ):
        while training.step_number < training.total:
            known = len(training.history)
            training.run_step()
            if watch is not None and len(training.history) > known:
                numbers = dict(training.history[-1])
                watch(int(numbers.pop("step")), numbers)
            note = f"loss {training.history[-1]['loss']:.3f}" if training.history else ""
            task.advance(1, note)
            if checkpoint is not None and checkpoint.due(training.step_number):
                save(checkpoint)


def _check_unlabelled(data: FinetuneData, config: FinetuneConfig) -> None:
    if not len(data.unlabelled_rows) and not config.include_labelled:
        raise InputError(
            f"The method {config.method} must have unlabelled images. Got none. Set method = "
            "supervised."
        )


def _unlabelled(data: FinetuneData, config: FinetuneConfig) -> tuple[torch.Tensor, torch.Tensor]:
    rows = data.unlabelled_rows
    if config.include_labelled:
        rows = np.concatenate([data.labelled_rows, rows])
    if data.known_labels_N is None:
        truth = np.full(len(rows), -1, dtype=np.int64)
    else:
        truth = data.known_labels_N[rows]
    return torch.from_numpy(rows), torch.from_numpy(truth)


def _place(images_N3SS: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the images on the device if they take less than a third of its free memory."""
    if device.type != "cuda" or images_N3SS.device == device:
        return images_N3SS
    free, _ = torch.cuda.mem_get_info(device)
    return images_N3SS.to(device) if images_N3SS.numel() < free / 3 else images_N3SS


def _fingerprint(
    encoder: TrainableEncoder,
    data_sha256: str,
    config: FinetuneConfig,
    seed: int,
    head: Head | None,
) -> str:
    hashed = hashlib.sha256()
    if head is not None:
        hash_tensor(hashed, "weight", head.weight_Cd)
        hash_tensor(hashed, "bias", head.bias_C)
        hashed.update(bytes([head.unit_features]))
    return sha256_hex(
        canonical_json(
            {
                "config": dataclasses.asdict(config),
                "data": data_sha256,
                "encoder": encoder.id,
                "weights": module_digest(encoder.module),
                "head": hashed.hexdigest(),
                "seed": seed,
            }
        )
    )


def _finished(output: Path, fingerprint: str, restart: bool, group: Group) -> dict[str, Any] | None:
    metrics = read_metrics(output)
    if metrics is None or metrics.get("fingerprint") == fingerprint:
        return metrics
    if not restart:
        raise IdentityError(
            f"{output} must be empty or hold the same fine-tune. Got one of another "
            "configuration, data, weights or seed. Choose another output directory, or start "
            "again with --restart (restart=True)."
        )
    # Without its marker the directory is incomplete, whatever else lies in it.
    if group.first:
        (output / METRICS).unlink(missing_ok=True)
    return None


def _pool_scores(
    data: FinetuneData, predicted_N: np.ndarray[Any, np.dtype[np.int64]]
) -> dict[str, float] | None:
    """Score the labelled and unlabelled rows; held-out ones are no part of the pool."""
    if data.known_labels_N is None:
        return None
    rows = np.concatenate([data.labelled_rows, data.unlabelled_rows])
    place_L = np.arange(len(data.labelled_rows))
    return pool_scores(data.known_labels_N[rows], predicted_N[rows], place_L, data.labels_L)


def _if_foreign(encoder: TrainableEncoder) -> TrainableEncoder | None:
    family = encoder.identity.get("architecture", {}).get("family")
    return None if family in ("backbone", "timm", "open_clip") else encoder
