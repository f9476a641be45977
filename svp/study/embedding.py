"""Embed a study's images, and record which embeddings the study uses from then on."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from feature_store.atomic import write_json
from svp.progress import Progress, Silent
from svp.provenance import now, versions
from svp.study.options import build_proxy_config, check_options
from svp.study.refreshes import read_refreshes
from svp.study.stored_views import wants_views
from svp.study.study import Study, absolute_spec

if TYPE_CHECKING:
    from feature_store.store import FeatureStore
    from svp.cluster.executor import Executor
    from svp.data.source import Scan, Source
    from svp.embed import EmbedConfig, EmbedResult, GoldenReport

EVAL_ALONE: Final = ("eval",)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """What was embedded.

    Attributes:
        results: One per view, in order; the first is `eval` if that was among them.
        golden: What the encoder's self-test found, on the machine where it moved most.
        refreshed: The same images under the encoder of the last refresh; None without one.
    """

    results: "tuple[EmbedResult, ...]"
    golden: "GoldenReport"
    refreshed: "EmbedResult | None" = None


def embed_study(
    study: Study,
    *,
    device: str = "cpu",
    retry: bool = False,
    max_failure_rate: float | None = None,
    shard: tuple[int, int] = (0, 1),
    chunk_rows: int | None = None,
    segment_rows: int | None = None,
    compile: Literal["auto", "on", "off"] = "auto",
    accept_drift: bool = False,
    executor: "Executor | None" = None,
    worker_device: str = "auto",
    progress: Progress | None = None,
) -> Embedded:
    """Embed what has no embedding yet, and write `encoder.json`.

    The view `eval` is always embedded first, whether the study names it or not: the other
    commands read it.

    Args:
        study: The study.
        device: Where the encoder runs.
        retry: Try items again whose failure is on record.
        max_failure_rate: Share of items that may fail; None = the stage's own default.
        shard: (i, n): embed only the i-th of n parts, from 0.
        chunk_rows: Rows written at once, the most that a kill can cost; None = the store's choice.
        segment_rows: Rows published at once; None = the store's choice.
        compile: Whether torch compiles the encoder; see `EmbedConfig`.
        accept_drift: Go on where the encoder's golden images give other vectors than stored.
        executor: Whose workers embed; None = this process.
        worker_device: Where the encoder runs on them; `auto` takes a GPU if there is one.
        progress: Where to report.

    Raises:
        FailureRateError: Too many items failed; what was embedded stays.
        DriftError: The golden images give other vectors than those stored with the encoder.
        ViewMismatchError: The store has a view of that name with another seed or policy.
    """
    from svp.embed import EVAL, ViewConfig, check_golden, embed_views, parse_views
    from svp.encoders.encoder import open_encoder

    progress = progress if progress is not None else Silent()
    section = study.config.encoder
    check_options(study.config)
    config = _embed_config(
        batch_size=section.batch_size or None,
        workers=section.workers or None,
        retry=retry,
        max_failure_rate=max_failure_rate,
        shard=shard,
        chunk_rows=chunk_rows,
        segment_rows=segment_rows,
        compile=compile,
    )
    views = tuple(dict.fromkeys((EVAL, *parse_views(section.views))))
    # What a typing error can spoil comes first: a scan reads every byte of the images.
    source = study.source()
    _check_store(study.store_url)
    encoder = open_encoder(
        study.encoder_spec, device=device, precision=section.precision, progress=progress
    )
    scan = study.scan(source, progress)
    store = study.open_store(create=True)
    golden = check_golden(store, encoder, accept_drift=accept_drift, progress=progress)
    results = embed_views(
        scan.pool,
        source,
        encoder,
        store,
        views=views,
        view_config=ViewConfig(seed=section.view_seed, flip=section.view_flip),
        unreadable=scan.failures,
        config=config,
        progress=progress,
        embed_one=_embedder(
            executor, study.encoder_spec, section.precision, worker_device, accept_drift
        ),
    )
    result = results[0]
    golden = _everywhere(golden, results)
    write_json(
        study.path / "encoder.json",
        {
            "schema": "svp.encoder/1",
            "spec": section.spec,
            "precision": section.precision,
            "encoder_id": encoder.id,
            "pool_id": scan.pool.id,
            "items": len(scan.pool),
            "embedded": result.embedded,
            "failed": result.failed,
            "failed_items": result.failed_items,
            "seconds": round(result.seconds, 2),
            "views": views,
            "golden": dataclasses.asdict(golden),
            "workers": [dataclasses.asdict(test) for one in results for test in one.workers],
            "identity": encoder.identity,
            "created": now(),
            "versions": versions(),
        },
    )
    refreshed = None
    for last in read_refreshes(study)[-1:]:
        # Selections read the encoder in force: images added since its refresh need it too.
        refreshed = _embed_by(
            study,
            last.encoder_spec,
            scan,
            source,
            store,
            config,
            device=device,
            accept_drift=accept_drift,
            executor=executor,
            worker_device=worker_device,
            progress=progress,
        )
    return Embedded(results=results, golden=golden, refreshed=refreshed)


def embed_by(
    study: Study,
    spec: str,
    *,
    device: str,
    executor: "Executor | None" = None,
    worker_device: str = "auto",
    progress: Progress,
) -> "EmbedResult":
    """Embed a study's images by another encoder, such as one that a refresh made.

    Args:
        study: The study.
        spec: The other encoder.
        device: Where it runs in this process.
        executor: Whose workers embed; None = this process.
        worker_device: Where the encoder runs on them; `auto` takes a GPU if there is one.
        progress: Where to report.
    """
    section = study.config.encoder
    source = study.source()
    return _embed_by(
        study,
        spec,
        study.scan(source, progress),
        source,
        study.open_store(create=True),
        _embed_config(batch_size=section.batch_size or None, workers=section.workers or None),
        device=device,
        executor=executor,
        worker_device=worker_device,
        progress=progress,
    )


def _embed_by(
    study: Study,
    spec: str,
    scan: "Scan",
    source: "Source",
    store: "FeatureStore",
    config: "EmbedConfig",
    *,
    device: str,
    accept_drift: bool = False,
    executor: "Executor | None" = None,
    worker_device: str = "auto",
    progress: Progress,
) -> "EmbedResult":
    from svp.embed import EVAL, ViewConfig, check_golden, embed_views, parse_views
    from svp.encoders.encoder import open_encoder

    section = study.config.encoder
    encoder = open_encoder(spec, device=device, precision=section.precision, progress=progress)
    check_golden(store, encoder, accept_drift=accept_drift, progress=progress)
    views: tuple[str, ...] = (EVAL,)
    if wants_views(build_proxy_config(study.config.proxy)):
        views = tuple(dict.fromkeys((EVAL, *parse_views(section.views))))
    results = embed_views(
        scan.pool,
        source,
        encoder,
        store,
        views=views,
        view_config=ViewConfig(seed=section.view_seed, flip=section.view_flip),
        unreadable=scan.failures,
        config=config,
        progress=progress,
        # Workers may have started in another folder.
        embed_one=_embedder(
            executor, absolute_spec(spec), section.precision, worker_device, accept_drift
        ),
    )
    return results[0]


def embed_source(
    source: str | Path | Sequence[str | Path],
    encoder_spec: str,
    store_url: str,
    *,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    batch_size: int = 0,
    workers: int = 0,
    device: str = "cpu",
    views: Sequence[str] = EVAL_ALONE,
    view_seed: int = 0,
    view_flip: bool = True,
    accept_drift: bool = False,
    executor: "Executor | None" = None,
    worker_device: str = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Embedded:
    """Embed the images of a source without a study.

    Args:
        source: Image folder, manifest or archive, or several.
        encoder_spec: Encoder spec.
        store_url: Where embeddings are kept; made if it is not there.
        precision: Numeric mode; part of the encoder's identity.
        batch_size: Images per forward pass; 0 = automatic.
        workers: Decoding threads; 0 = one per core.
        device: Where the encoder runs.
        views: Views as `svp.embed.parse_views` reads them.
        view_seed: Decides the random views.
        view_flip: Whether the random views mirror half of the images.
        accept_drift: Go on where the encoder's golden images give other vectors than stored.
        executor: Whose workers embed; None = this process.
        worker_device: Where the encoder runs on them; `auto` takes a GPU if there is one.
        progress: Where to report.
        options: Further fields of `svp.embed.EmbedConfig`.

    Raises:
        FailureRateError: Too many items failed; what was embedded stays.
        DriftError: The golden images give other vectors than those stored with the encoder.
        ViewMismatchError: The store has a view of that name with another seed or policy.
    """
    from feature_store.store import open_store
    from svp.data import DigestCache, open_source
    from svp.embed import ViewConfig, check_golden, embed_views, parse_views
    from svp.encoders.encoder import open_encoder

    progress = progress if progress is not None else Silent()
    config = _embed_config(batch_size=batch_size or None, workers=workers or None, **options)
    names = parse_views(views)
    view_config = ViewConfig(seed=view_seed, flip=view_flip)
    if executor is not None:
        # Workers may have started in another folder.
        source, encoder_spec = _absolute_source(source), absolute_spec(encoder_spec)
    opened = open_source(source)
    _check_store(store_url)
    encoder = open_encoder(encoder_spec, device=device, precision=precision, progress=progress)
    scan = opened.scan(cache=DigestCache.default(), progress=progress)
    store = open_store(store_url, create=True)
    golden = check_golden(store, encoder, accept_drift=accept_drift, progress=progress)
    results = embed_views(
        scan.pool,
        opened,
        encoder,
        store,
        views=names,
        view_config=view_config,
        unreadable=scan.failures,
        config=config,
        progress=progress,
        embed_one=_embedder(executor, encoder_spec, precision, worker_device, accept_drift),
    )
    return Embedded(results=results, golden=_everywhere(golden, results))


def _everywhere(golden: "GoldenReport", results: "Sequence[EmbedResult]") -> "GoldenReport":
    """Return the self-test of this process or of a worker, whichever moved most."""
    from svp.embed import worst_report

    return worst_report([golden, *(test.golden for one in results for test in one.workers)])


def _embedder(
    executor: "Executor | None",
    spec: str,
    precision: Literal["fp32", "bf16", "fp16"],
    device: str,
    accept_drift: bool,
) -> "Callable[..., EmbedResult]":
    """Return what embeds one view: this process, or the workers of an executor."""
    from svp.embed import embed
    from svp.embed.parts import embed_in_parts
    from svp.encoders.encoder import open_encoder

    if executor is None:
        return embed
    opener = functools.partial(open_encoder, spec, precision=precision)
    return functools.partial(
        embed_in_parts, executor, opener, device=device, accept_drift=accept_drift
    )


def _absolute_source(source: str | Path | Sequence[str | Path]) -> list[str]:
    listed = [source] if isinstance(source, str | Path) else list(source)
    return [
        str(one) if "://" in str(one) else str(Path(one).expanduser().resolve()) for one in listed
    ]


def _check_store(url: str) -> None:
    """Refuse a store of another format, or a place for none, without making one."""
    from feature_store.errors import StoreNotFoundError
    from feature_store.store import check_place, open_store

    check_place(url)
    with contextlib.suppress(StoreNotFoundError):
        open_store(url)


def _embed_config(**options: Any) -> "EmbedConfig":
    from svp.embed import EmbedConfig

    return EmbedConfig(**{name: value for name, value in options.items() if value is not None})
