"""Use a fine-tuned model: on new images, and in other programs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.study.config import STUDY_FILE

if TYPE_CHECKING:
    from svp.encoders.images import Batch
    from svp.finetune.model import FinetunedModel
    from svp.finetune.predicting import Predicted


def open_model(path: str | Path, *, device: str = "cpu") -> "FinetunedModel":
    """Open the model in a folder that `svp finetune` wrote, or the model of a study.

    Raises:
        InputError: There is no finished model.
        IdentityError: Its weights were exchanged.
    """
    from svp.finetune.outputs import load_model

    path = Path(path)
    if (path / STUDY_FILE).exists():
        path = path / "model"
    return load_model(path, device=device)


def predict_source(
    path: str | Path,
    source: str | Path | Sequence[str | Path],
    output: Path,
    *,
    top: int = 1,
    batch_size: int = 256,
    workers: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> "Predicted":
    """Predict every image of a source and write one row each.

    Args:
        path: Model or study.
        source: Image folder, manifest or archive, or several.
        output: A `.parquet` or `.csv` file.
        top: Classes to report per image, the likeliest first.
        batch_size: Images per forward pass.
        workers: Decoding threads; 0 = one per core.
        device: Where to run.
        progress: Where to report.
    """
    from svp.data import DigestCache, open_source
    from svp.encoders.images import read_batches
    from svp.finetune.export import preprocessing_of
    from svp.finetune.predicting import FORMATS, write_predictions

    progress = progress if progress is not None else Silent()
    if output.suffix not in FORMATS:
        raise InputError(
            f"--output must end in {' or '.join(FORMATS)}. Got {output.name!r}. Rename it."
        )
    model = open_model(path, device=device)
    opened = open_source(source)
    pool = opened.scan(cache=DigestCache.default(), progress=progress).pool
    starts = range(0, len(pool), batch_size)
    asked = (
        (
            pool.uris[first : first + batch_size],
            np.asarray(pool.digests[first : first + batch_size]),
        )
        for first in starts
    )
    with progress.task("predict", len(pool), "images") as task:
        batches = read_batches(opened, asked, preprocessing_of(model), workers=workers or None)

        def told() -> Iterator["Batch"]:
            for batch in batches:
                yield batch
                task.advance(len(batch.images))

        return write_predictions(model, pool.ids, told(), output, top=top)


def export_trained(
    path: str | Path, output: Path, form: Literal["timm", "open_clip", "onnx"]
) -> list[Path]:
    """Write a model in the form of another library; see `svp.finetune.export`.

    Args:
        path: Model or study.
        output: The folder to write to.
        form: Which.

    Returns:
        The files.
    """
    from svp.finetune.export import export_model

    return export_model(open_model(path), output, form)
