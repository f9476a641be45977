"""`svp predict` and `svp export`: what a fine-tuned model is for."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from svp.cli.options import DeviceOption, JsonOption, ResultFileOption, resolve_device
from svp.cli.output import emit
from svp.progress import automatic

ModelArgument = Annotated[
    Path, typer.Argument(help="The folder of a model that `svp finetune` wrote, or a study.")
]


def predict(
    model: ModelArgument,
    source: Annotated[
        list[str], typer.Option("--source", help="Images to predict. May be repeated.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .parquet or .csv file to write.")
    ],
    top: Annotated[
        int, typer.Option("--top", min=1, help="Classes per image, the likeliest first.")
    ] = 1,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images per forward pass.")
    ] = 256,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Decoding threads; 0 = one per core.")
    ] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Predict new images with a fine-tuned model.

    Example:

      svp predict mystudy --source new-photos --output predictions.csv --top 3
    """
    from svp.study.models import predict_source

    done = predict_source(
        model,
        source,
        output,
        top=top,
        batch_size=batch_size,
        workers=workers,
        device=resolve_device(device),
        progress=automatic(),
    )
    failed = f" {done.failed:,} could not be read." if done.failed else ""
    emit(
        "svp.predict/1",
        {"result": done},
        f"Predicted {done.items - done.failed:,} images: {done.output}.{failed}",
        as_json=as_json,
        result_file=result_file,
    )


def export(
    model: ModelArgument,
    form: Annotated[
        Literal["timm", "open_clip", "onnx"],
        typer.Option("--format", help="What is to load it; onnx takes every network."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Write a fine-tuned model in the form of another library.

    Example:

      svp export mystudy --format onnx --output exported
    """
    from svp.study.models import export_trained

    files = export_trained(model, output, form)
    emit(
        "svp.export/1",
        {"format": form, "files": files},
        "Wrote " + ", ".join(str(path) for path in files) + ".",
        as_json=as_json,
        result_file=result_file,
    )
