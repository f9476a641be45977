"""`svp init` and `svp embed`: from images to rows in the store."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from svp.cli.deviation import say_deviation
from svp.cli.options import (
    BatchSizeOption,
    DaskOption,
    DeviceOption,
    JsonOption,
    ResultFileOption,
    SetOption,
    WorkersOption,
    dask_workers,
    parse_settings,
    resolve_device,
)
from svp.cli.output import emit
from svp.errors import FailureRateError, InputError
from svp.progress import automatic

if TYPE_CHECKING:
    from svp.embed import EmbedResult, GoldenReport
    from svp.study.embedding import Embedded

Precision = Literal["fp32", "bf16", "fp16"]

_SHOWN = 10
_OF_ONE_RUN = (
    "encoder.batch_size", "encoder.workers",
    "encoder.views", "encoder.view_seed", "encoder.view_flip",
)  # fmt: skip


def init(
    study: Annotated[Path, typer.Argument(help="Folder to make.")],
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            help=(
                "Image folder, manifest, archive, WebDataset shards, Parquet or saved data set, "
                "or s3:// prefix. May be repeated."
            ),
        ),
    ],
    encoder: Annotated[
        str, typer.Option("--encoder", help="Encoder spec; `svp encoders` lists them.")
    ],
    store: Annotated[
        str,
        typer.Option("--store", envvar="SVP_STORE", help="Folder of embeddings; may be shared."),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="What people call it; default: the folder's name.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides every random choice.")] = 0,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Numeric mode of the encoder.")
    ] = "fp32",
    proxy: Annotated[
        Literal["linear", "mlp"], typer.Option("--proxy", help="Head that selects.")
    ] = "linear",
    strategy: Annotated[
        str, typer.Option("--strategy", help="`svp strategies` lists them.")
    ] = "margin",
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Write a new study: which images, which encoder, where embeddings are kept.

    Example:

      svp init mystudy --source photos --encoder ./encoder --store store
    """
    from svp.study.config import (
        DataSection,
        EncoderSection,
        ProxySection,
        StoreSection,
        StrategySection,
        StudyConfig,
    )
    from svp.study.options import check_options
    from svp.study.study import Study

    config = StudyConfig(
        name=name or study.resolve().name,
        seed=seed,
        data=DataSection(source=tuple(source)),
        encoder=EncoderSection(spec=encoder, precision=precision),
        store=StoreSection(url=store),
        proxy=ProxySection(kind=proxy),
        strategy=StrategySection(name=strategy),
    )
    check_options(config)
    made = Study.create(study, config)
    emit(
        "svp.init/1",
        {"study": made.path, "file": made.path / "study.toml"},
        f"Wrote {made.path / 'study.toml'}. Next: svp embed {made.path}",
        as_json=as_json,
        result_file=result_file,
    )


def embed(
    study: Annotated[
        Path | None, typer.Argument(help="The study's folder; or give the three options.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Without a study: the images.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Without a study: the encoder spec.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", envvar="SVP_STORE", help="Where embeddings are kept."),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Numeric mode of the encoder.")
    ] = None,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    chunk_rows: Annotated[
        int | None,
        typer.Option("--chunk-rows", min=1, help="Rows written at once; see what a kill costs."),
    ] = None,
    segment_rows: Annotated[
        int | None, typer.Option("--segment-rows", min=1, help="Rows published at once.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what failed in an earlier run.")
    ] = False,
    max_failure_rate: Annotated[
        float | None,
        typer.Option("--max-failure-rate", help="Share of images that may fail; else exit 5."),
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Only part I of N, counted from 0.")
    ] = "0/1",
    views: Annotated[
        str | None,
        typer.Option("--views", help="Renderings to embed, such as eval,weak:2,strong:2."),
    ] = None,
    view_seed: Annotated[
        int | None, typer.Option("--view-seed", min=0, help="Decides the random views.")
    ] = None,
    view_flip: Annotated[
        bool | None,
        typer.Option(
            "--view-flip/--no-view-flip",
            help="Mirror random views; off where left and right mean something.",
        ),
    ] = None,
    accept_drift: Annotated[
        bool,
        typer.Option(
            "--accept-drift", help="Go on where the encoder gives other vectors than it once did."
        ),
    ] = False,
    dask: DaskOption = None,
    compile_encoder: Annotated[
        Literal["auto", "on", "off"],
        typer.Option("--compile", help="torch.compile; auto: on a GPU, for large pools."),
    ] = "auto",
    device: DeviceOption = "auto",
    settings: SetOption = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Embed every image that has no embedding yet. Killed? Run it again: it goes on.

    Examples:

      svp embed mystudy

      svp embed --source photos --encoder timm:resnet18@weights.safetensors --store store

      svp embed mystudy --views eval,weak:2,strong:2

      svp embed --source photos --encoder ./encoder+pillow-reduced --store store

      svp embed mystudy --dask tcp://scheduler:8786
    """
    given: dict[str, Any] = {
        "encoder.spec": encoder,
        "encoder.precision": precision,
        "encoder.batch_size": batch_size,
        "encoder.workers": workers,
        "encoder.views": None if views is None else views.split(","),
        "encoder.view_seed": view_seed,
        "encoder.view_flip": view_flip,
        "store.url": store,
    }
    options: dict[str, Any] = {
        "retry": retry,
        "max_failure_rate": max_failure_rate,
        "chunk_rows": chunk_rows,
        "segment_rows": segment_rows,
        "shard": _parse_shard(shard),
        "compile": compile_encoder,
        "accept_drift": accept_drift,
        "progress": automatic(),
    }
    refused: FailureRateError | None = None
    golden: GoldenReport | None = None
    results: tuple[EmbedResult, ...]
    try:
        with dask_workers(dask, device) as extra:
            # Where others embed, the encoder only says here who it is.
            own_device = "cpu" if extra else device
            embedded, following = _run(
                study, source, given, parse_settings(settings), own_device, {**options, **extra}
            )
        results, golden = embedded.results, embedded.golden
    except FailureRateError as error:
        if error.result is None:
            raise
        # Which images failed, and why, matters most when they were too many.
        refused, results, following = error, (error.result,), "repair the images, then --retry"
    emit(
        "svp.embed/1",
        {"result": results[0], "views": results, "golden": golden, "next": following},
        _sentences(results, following),
        as_json=as_json,
        result_file=result_file,
    )
    if refused is not None:
        raise refused


def _run(
    study: Path | None,
    source: list[str] | None,
    given: dict[str, Any],
    settings: dict[str, Any],
    device: str,
    options: dict[str, Any],
) -> "tuple[Embedded, str]":
    """Embed a study or a source; return the results and what to do next."""
    from svp.study.embedding import embed_source, embed_study
    from svp.study.study import Study

    encoder, store = given["encoder.spec"], given["store.url"]
    if study is not None:
        if source or encoder:
            raise InputError(
                "svp embed takes a study or --source, --encoder and --store. Got both. Leave one."
            )
        opened = Study.open(
            study,
            {
                **{k: given[k] for k in _OF_ONE_RUN if given[k] is not None},
                **settings,
            },
        )
        _check_agrees("--store", store, opened.store_url, "store.url", same=_same_place)
        _check_agrees(
            "--precision", given["encoder.precision"], opened.config.encoder.precision,
            "encoder.precision",
        )  # fmt: skip
        embedded = embed_study(opened, device=resolve_device(device), **options)
        say_deviation(opened, "embed")
        return embedded, f"svp select {study} --budget N"
    if not source or encoder is None or store is None:
        raise InputError(
            "svp embed must know what to embed. Got neither a study nor all of --source, "
            "--encoder and --store. See svp embed --help."
        )
    views = {
        key: given[f"encoder.{key}"]
        for key in ("views", "view_seed", "view_flip")
        if given[f"encoder.{key}"] is not None
    }
    embedded = embed_source(
        source,
        encoder,
        store,
        precision=given["encoder.precision"] or "fp32",
        batch_size=given["encoder.batch_size"] or 0,
        workers=given["encoder.workers"] or 0,
        device=resolve_device(device),
        **views,
        **options,
    )
    return embedded, "svp init STUDY with the same source, encoder and store"


def _same_place(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one == other
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _check_agrees(
    option: str,
    given: str | None,
    own: str,
    key: str,
    same: Callable[[str, str], bool] = operator.eq,
) -> None:
    """Refuse what only this command would know: the next one would look elsewhere."""
    if given is not None and not same(given, own):
        raise InputError(
            f"{option} must be the study's, {own}. Got {given}. Change {key} in its study.toml, "
            "so that every command sees it."
        )


def _parse_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(
            f"--shard must be I/N with I below N. Got {text!r}. Write 0/4 for the first of four."
        )
    return int(index), int(count)


def _sentences(results: "tuple[EmbedResult, ...]", following: str) -> str:
    lines = []
    for result in results:
        name = "" if len(results) == 1 and result.view == "eval" else f"{result.view}: "
        said = f"{name}Embedded {result.embedded:,} images, {result.reused:,} were there already."
        if result.embedded:
            said += f" {result.images_per_s:,.0f} images/s, {result.seconds:.1f} s."
        lines.append(said)
    lines[-1] += f" Encoder {results[0].encoder_id}. Next: {following}"
    # What cannot be read is the same in every view.
    result = max(results, key=lambda one: one.failed_items)
    if result.failed_items:
        lines.append(
            f"Could not be read or embedded: {result.failed_items:,}. --retry tries them again:"
        )
        lines += [f"  {one.id}: {one.kind}, {one.reason}" for one in result.failures[:_SHOWN]]
        if result.failed_items > _SHOWN:
            lines.append(f"  … and {result.failed_items - _SHOWN:,} more")
    return "\n".join(lines)
