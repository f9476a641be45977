"""`svp pretrain`, `svp finetune` and `svp demo`: what takes minutes."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from svp.cli.deviation import say_deviation
from svp.cli.options import (
    DeviceOption,
    JsonOption,
    ResultFileOption,
    SetOption,
    StudyArgument,
    parse_settings,
    resolve_device,
)
from svp.cli.output import emit
from svp.cli.probing import probe_text
from svp.errors import InputError
from svp.progress import Silent, automatic


def pretrain(
    source: Annotated[
        list[str], typer.Option("--source", help="Images; labels are not used. May be repeated.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The encoder folder to write.")],
    method: Annotated[
        Literal["byol", "eman", "simclr"],
        typer.Option("--method", help="BYOL, its EMAN form, or SimCLR."),
    ] = "eman",
    preset: Annotated[
        Literal["small_32", "imagenet_224"],
        typer.Option("--preset", help="Recipe: thumbnails on a CPU, or photographs on a GPU."),
    ] = "small_32",
    arch: Annotated[str | None, typer.Option("--arch", help="Backbone, such as resnet18.")] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Side of the input in pixels.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the images.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images per step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate at this batch size.")
    ] = None,
    views: Annotated[
        Literal["recipe", "thumbnails", "photographs", "glyphs"],
        typer.Option("--views", help="Augmentations; glyphs are never mirrored or recoloured."),
    ] = "recipe",
    flip: Annotated[
        bool, typer.Option(help="Mirror images; off where left and right mean something.")
    ] = True,
    precision: Annotated[
        Literal["fp32", "bf16"] | None, typer.Option("--precision", help="bf16 pays on GPUs.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--exclude-split", help="Leave out the items of this split of the source."),
    ] = "test",
    probe: Annotated[
        bool, typer.Option("--probe", help="Afterwards measure it, as svp encoders probe does.")
    ] = False,
    store: Annotated[
        str | None,
        typer.Option("--store", envvar="SVP_STORE", help="With --probe: where embeddings go."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Decides weights, order and views.")
    ] = 0,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Decoding threads; 0 = one per core.")
    ] = 0,
    track: Annotated[
        list[str] | None,
        typer.Option("--track", help="tensorboard, mlflow or wandb too; may be repeated."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Pretrain an encoder on your own images, without labels. Killed? Run it again.

    Examples:

      svp pretrain --source photos --output encoder --epochs 10

      svp pretrain --source photos --output encoder --method simclr --probe --store store
    """
    from svp.study.pretraining import pretrain_source

    if probe and store is None:
        raise InputError("--probe must come with --store. Got none. Add --store store.")
    given: dict[str, Any] = {
        "arch": arch,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": learning_rate,
        "precision": precision,
    }
    done = pretrain_source(
        source,
        output,
        preset=preset,
        method=method,
        views=views,
        flip=flip,
        overrides={key: value for key, value in given.items() if value is not None},
        exclude_split=split,
        seed=seed,
        workers=workers,
        device=resolve_device(device),
        trackers=track or (),
        progress=automatic(),
    )
    knn = [epoch.knn for epoch in done.history if epoch.knn is not None]
    monitor = f" Nearest-neighbour accuracy {knn[-1]:.1%} (by the source's labels)." if knn else ""
    probed = None
    if probe and store is not None:
        from svp.study.probing import probe_source

        probed = probe_source(
            str(output),
            source,
            store,
            seed=seed,
            workers=workers,
            device=resolve_device(device),
            progress=automatic(),
        )
    measured = "" if probed is None else f"\n{probe_text(probed)}"
    emit(
        "svp.pretrain/1",
        {"result": done, "loss": done.loss, "spread": done.spread, "probe": probed},
        f"Wrote {done.output}: {done.steps:,} steps, {done.images_per_s:,.0f} images/s, "
        f"loss {done.loss:.3f}, feature spread {done.spread:.3f} (0 = collapsed).{monitor} "
        f"Next: svp init STUDY --source … --encoder {done.output} --store STORE{measured}",
        as_json=as_json,
        result_file=result_file,
    )


def finetune(
    study: StudyArgument,
    method: Annotated[
        Literal[
            "supervised",
            "flexmatch",
            "fixmatch",
            "freematch",
            "softmatch",
            "uda",
            "pseudolabel",
            "mixmatch",
        ]
        | None,
        typer.Option("--method", help="Labelled images only, or the unlabelled ones too."),
    ] = None,
    head: Annotated[
        Literal["random", "zero-shot"] | None,
        typer.Option("--head", help="First last layer; zero-shot reads the class names."),
    ] = None,
    mode: Annotated[
        Literal["ft", "lp-ft", "lp"] | None,
        typer.Option("--mode", help="Fresh head; probe first, then all; probe only."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="A recipe by name, such as small.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: model in the study's folder.")
    ] = None,
    simulated: Annotated[
        str | None,
        typer.Option(
            "--simulated",
            metavar="STRATEGY/PROXY/SEED",
            help="Use the labels that a run of `svp simulate` bought.",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard another run's state in the output folder.")
    ] = False,
    gpus: Annotated[
        int, typer.Option("--gpus", min=1, help="GPUs of this machine to train on together.")
    ] = 1,
    device: DeviceOption = "auto",
    settings: SetOption = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Train the target model on the labels so far and predict every image. Killed? Run it again.

    Example:

      svp finetune mystudy --method flexmatch
    """
    from svp.finetune.launch import own_device, relaunch, writes
    from svp.study.finetune import finetune_study
    from svp.study.simulate import simulation_labels
    from svp.study.study import Study

    if gpus > 1:
        relaunch(gpus)
    given: dict[str, Any] = {
        "finetune.preset": preset,
        "finetune.method": method,
        "finetune.head": head,
        "finetune.mode": mode,
        "finetune.steps": steps,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    opened = Study.open(study, {**overrides, **parse_settings(settings)})
    labels = None
    if simulated is not None:
        parts = simulated.split("/")
        if len(parts) != 3 or not parts[2].isdecimal():
            raise InputError(
                f"--simulated must be STRATEGY/PROXY/SEED. Got {simulated!r}. "
                "Write margin/linear/0."
            )
        labels = simulation_labels(opened, parts[0], parts[1], int(parts[2]))
    done = finetune_study(
        opened,
        labels=labels,
        output=output,
        device=own_device(resolve_device(device)),
        restart=restart,
        progress=automatic() if writes() else Silent(),
    )
    if not writes():
        return
    if simulated is None and output is None:
        say_deviation(opened, "finetune")
    evaluation = done.metrics.get("evaluation")
    scored = (
        f"Accuracy {evaluation['accuracy']:.2%} on {evaluation['examples']:,.0f} held-out images. "
        if evaluation
        else "No held-out labels, so no accuracy. "
    )
    emit(
        "svp.finetune/1",
        {"output": done.output, "metrics": done.metrics},
        f"{scored}Model and predictions: {done.output}. Next: svp report {study}",
        as_json=as_json,
        result_file=result_file,
    )


def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write everything.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides every random choice.")] = 0,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Run the whole job on scikit-learn's digits, written out as images. No download.

    Example:

      svp demo demo
    """
    from svp.cli.simulation import simulation_text
    from svp.demo import run_demo

    done = run_demo(folder, seed=seed, progress=automatic(), simulation_text=simulation_text)
    emit(
        "svp.demo/1",
        dataclasses.asdict(done),
        done.text,
        as_json=as_json,
        result_file=result_file,
    )
