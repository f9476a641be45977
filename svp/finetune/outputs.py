"""What a fine-tune leaves behind, written so that `metrics.json` appears last.

A directory with `metrics.json` is complete: it names the digests of the files beside it. Files:
`model.safetensors`, `predictions.parquet`, `config.json`, `metrics.json`.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

from feature_store.atomic import write_bytes, write_json
from feature_store.digest import sha256_hex
from svp.encoders.folder import build_module
from svp.errors import IdentityError, InputError
from svp.finetune.model import (
    Classifier,
    FinetunedModel,
    Normalisation,
    TrainableEncoder,
    trainable_copy,
)

SCHEMA: Final = "svp.finetune/1"
MODEL: Final = "model.safetensors"
PREDICTIONS: Final = "predictions.parquet"
CONFIG: Final = "config.json"
METRICS: Final = "metrics.json"


def predictions_table(
    ids: Sequence[str],
    probs_NC: torch.Tensor,
    class_names: Sequence[str],
    *,
    probabilities: bool,
) -> pa.Table:
    """Return id, predicted, confidence, and on request one column `p:<class>` per class."""
    confidence_N, predicted_N = probs_NC.max(dim=1)
    columns: dict[str, Any] = {
        "id": pa.array(ids, type=pa.string()),
        "predicted": pa.array([class_names[c] for c in predicted_N.tolist()], type=pa.string()),
        "confidence": pa.array(confidence_N.numpy()),
    }
    if probabilities:
        for column, name in enumerate(class_names):
            columns[f"p:{name}"] = pa.array(np.ascontiguousarray(probs_NC[:, column].numpy()))
    return pa.table(columns)


def publish(
    output: Path,
    *,
    model: FinetunedModel,
    predictions: pa.Table,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write the four files, `metrics.json` last."""
    buffer = io.BytesIO()
    pq.write_table(predictions, buffer)
    contents = {
        # Tied weights share memory, which the format refuses; a clone does not.
        MODEL: safetensors.torch.save({n: v.clone() for n, v in model.state().items()}),
        PREDICTIONS: buffer.getvalue(),
        CONFIG: (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode(),
    }
    for name, data in contents.items():
        write_bytes(output / name, data)
    digests = {name: sha256_hex(data) for name, data in contents.items()}
    write_json(output / METRICS, {**metrics, "schema": SCHEMA, "sha256": digests})


def read_metrics(output: Path) -> dict[str, Any] | None:
    """Return `metrics.json` of a complete directory, or None."""
    path = output / METRICS
    return _read_json(path) if path.exists() else None


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    encoder: TrainableEncoder | None = None,
) -> FinetunedModel:
    """Open a fine-tuned model; needs neither the encoder's weights nor a network.

    Args:
        path: The directory a fine-tune wrote.
        device: Where to run.
        encoder: Only for encoders from plug-ins, whose network svp cannot build by itself.

    Raises:
        InputError: There is no complete model in `path`.
        IdentityError: The weights are not the ones `metrics.json` speaks of.
    """
    path = Path(path)
    metrics = read_metrics(path)
    if metrics is None or metrics.get("schema") != SCHEMA:
        raise InputError(
            f"{path} must hold a finished fine-tune of schema {SCHEMA}. Got no such "
            f"{METRICS}. Run the fine-tune to its end."
        )
    description = _read_json(path / CONFIG)
    data = (path / MODEL).read_bytes()
    if sha256_hex(data) != metrics["sha256"][MODEL]:
        raise IdentityError(
            f"{path / MODEL} must be the file that {METRICS} describes. Got other bytes. "
            "Restore it or run the fine-tune again."
        )
    state = safetensors.torch.load(data)
    names = description["class_names"]
    if encoder is not None:
        classifier = trainable_copy(encoder, len(names))
    else:
        backbone = build_module(description["encoder"]["architecture"])
        classifier = Classifier(backbone, state["head.weight"].shape[1], len(names))
    classifier.load_state_dict(state)
    classifier.unit_features = description["unit_features"]
    return FinetunedModel(
        classifier.to(device),
        Normalisation(
            scale=tuple(description["normalisation"]["scale"]),
            shift=tuple(description["normalisation"]["shift"]),
        ),
        names,
        batch_size=description["config"]["eval_batch_size"],
        precision=description["config"]["precision"],
        description=description,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} must be readable JSON. Got {type(error).__name__}. "
            "Restore it or run the fine-tune again."
        ) from error
