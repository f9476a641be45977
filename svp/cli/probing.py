"""`svp encoders probe`: how good an encoder's features are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from svp.cli.options import DeviceOption, JsonOption, ResultFileOption, resolve_device
from svp.cli.output import emit
from svp.errors import InputError
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.study.linear_probe import Probe


def probe(
    encoder: Annotated[
        str | None,
        typer.Argument(help="Encoder spec, or an id in the store. Default: the study's."),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option("--study", help="Use this study's images, labels and store."),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Labelled images. May be repeated.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", envvar="SVP_STORE", help="With --source: where embeddings are."),
    ] = None,
    recipe: Annotated[
        Literal["optimum", "base"],
        typer.Option("--recipe", help="optimum: solved, regularisation chosen; base: BASE's SGD."),
    ] = "optimum",
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option("--precision", help="With --source: numeric mode, part of the identity."),
    ] = "fp32",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=0, help="Images per forward pass; 0 = automatic.")
    ] = 0,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Decoding threads; 0 = one per core.")
    ] = 0,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Decides the parts that the source does not.")
    ] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Measure an encoder on labelled images: linear probe and nearest neighbours.

    Embeds only what the store lacks. Held out is the split `test`, else a fifth of the labels.

    Examples:

      svp encoders probe ./encoder --source photos --store store

      svp encoders probe --study mystudy
    """
    from svp.study.probing import probe_source, probe_study
    from svp.study.study import Study

    if study is not None:
        if source:
            raise InputError(
                "svp encoders probe takes --study or --source and --store. Got both. Leave one."
            )
        done = probe_study(
            Study.open(study),
            encoder,
            recipe=recipe,
            seed=seed,
            device=resolve_device(device),
            progress=automatic(),
        )
    else:
        if encoder is None or not source or store is None:
            raise InputError(
                "svp encoders probe must know what to measure on what. Got neither --study nor "
                "all of ENCODER, --source and --store. See svp encoders probe --help."
            )
        done = probe_source(
            encoder,
            source,
            store,
            recipe=recipe,
            seed=seed,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            device=resolve_device(device),
            progress=automatic(),
        )
    emit(
        "svp.encoders.probe/1",
        {"probe": done},
        probe_text(done),
        as_json=as_json,
        result_file=result_file,
    )


def probe_text(done: "Probe") -> str:
    """Return what a probe measured, for people."""
    held = "of the split test" if done.held_out_by == "test" else "drawn from all labels"
    l2 = "" if done.l2 is None else f", l2 {done.l2:.2g} chosen on {done.validation:,} of them"
    top5 = "" if done.top5 is None else f", {done.top5:.1%} among the five likeliest"
    dropped = f" {done.dropped:,} could not be embedded." if done.dropped else ""
    return (
        f"Encoder {done.encoder_id}, {done.dim} dimensions, {done.classes:,} classes.\n"
        f"Linear probe: {done.top1:.1%} ± {done.top1_se:.1%} right{top5}.\n"
        f"{done.knn_k} nearest neighbours: {done.knn:.1%} right.\n"
        f"On {done.held_out:,} labels {held}; fitted on {done.train:,}{l2}.\n"
        f"Embedded {done.embedded:,} images, {done.reused:,} were there already.{dropped}"
    )
