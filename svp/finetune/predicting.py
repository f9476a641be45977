"""Predictions for images that a model never saw, as a table written batch by batch.

Shapes: B = batch, S = side in pixels, C = classes, K = classes reported.
"""

import csv
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from svp.errors import InputError
from svp.finetune.model import FinetunedModel

FORMATS = (".parquet", ".csv")


class ImageBatch(Protocol):
    """Decoded images of one batch."""

    @property
    def images(self) -> torch.Tensor:
        """uint8 (B, 3, S, S); anything where an item failed."""

    @property
    def failures(self) -> Mapping[int, Any]:
        """What went wrong, with a `reason`, by offset in the batch."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """What `write_predictions` did.

    Attributes:
        output: The file.
        items: Rows in it.
        failed: Rows without a prediction.
        counts: How often each class was predicted, those that never were left out.
    """

    output: Path
    items: int
    failed: int
    counts: dict[str, int]


def write_predictions(
    model: FinetunedModel,
    ids: Sequence[str],
    batches: Iterator[ImageBatch],
    output: Path,
    *,
    top: int = 1,
) -> Predicted:
    """Predict batch by batch and write one row per item, in order.

    Columns: `id`, `predicted`, `confidence`; for each further class asked for `predicted_2`,
    `confidence_2` and so on; `error`, why an image has no prediction. Memory does not grow with
    the number of images. The file appears when it is whole.

    Args:
        model: The model.
        ids: Names of all items.
        batches: Their images, in the same order.
        output: A `.parquet` or `.csv` file.
        top: K, at least 1; at most C are written.

    Raises:
        InputError: The file's ending is another one.
    """
    if output.suffix not in FORMATS:
        raise InputError(
            f"The output must end in {' or '.join(FORMATS)}. Got {output.name!r}. Rename it."
        )
    top = min(top, len(model.class_names))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.part")
    writer = _Parquet(partial, top) if output.suffix == ".parquet" else _CSV(partial, top)
    place, failed, counts = 0, 0, dict.fromkeys(model.class_names, 0)
    try:
        for batch in batches:
            probs_BC = model.probabilities(batch.images)
            best_BK, class_BK = probs_BC.topk(top, dim=1)
            rows = []
            for offset, (best, classes) in enumerate(
                zip(best_BK.tolist(), class_BK.tolist(), strict=True)
            ):
                item, failure = ids[place + offset], batch.failures.get(offset)
                if failure is not None:
                    failed += 1
                    rows.append([item, *[None] * (2 * top), failure.reason])
                    continue
                counts[model.class_names[classes[0]]] += 1
                cells: list[Any] = []
                for number, confidence in zip(classes, best, strict=True):
                    cells += [model.class_names[number], confidence]
                rows.append([item, *cells, None])
            writer.write(rows)
            place += len(batch.images)
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise
    writer.close()
    partial.replace(output)
    return Predicted(
        output=output,
        items=place,
        failed=failed,
        counts={name: count for name, count in counts.items() if count},
    )


def _columns(top: int) -> list[str]:
    ranks = ["" if rank == 0 else f"_{rank + 1}" for rank in range(top)]
    pairs = [f"{name}{rank}" for rank in ranks for name in ("predicted", "confidence")]
    return ["id", *pairs, "error"]


class _Parquet:
    def __init__(self, path: Path, top: int) -> None:
        kinds = [pa.float32() if c.startswith("confidence") else pa.string() for c in _columns(top)]
        self._schema = pa.schema(list(zip(_columns(top), kinds, strict=True)))
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, rows: list[list[Any]]) -> None:
        columns = [list(column) for column in zip(*rows, strict=True)]
        if columns:
            self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _CSV:
    def __init__(self, path: Path, top: int) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerow(_columns(top))

    def write(self, rows: list[list[Any]]) -> None:
        self._writer.writerows(rows)

    def close(self) -> None:
        self._file.close()
