"""Embed a study's images, and record which embeddings the study uses from then on."""

import dataclasses
from typing import TYPE_CHECKING

from feature_store.atomic import write_json
from svp.progress import Progress, Silent
from svp.provenance import now, versions
from svp.study.study import Study

if TYPE_CHECKING:
    from svp.embed import EmbedResult


def embed_study(
    study: Study,
    *,
    device: str = "cpu",
    retry: bool = False,
    max_failure_rate: float | None = None,
    progress: Progress | None = None,
) -> "EmbedResult":
    """Embed what has no embedding yet, and write `encoder.json`.

    Args:
        study: The study.
        device: Where the encoder runs.
        retry: Try items again whose failure is on record.
        max_failure_rate: Share of items that may fail; None = the stage's own default.
        progress: Where to report.

    Raises:
        FailureRateError: Too many items failed; what was embedded stays.
    """
    from svp.embed import EmbedConfig, embed
    from svp.encoders.encoder import open_encoder

    progress = progress if progress is not None else Silent()
    section = study.config.encoder
    source = study.source()
    scan = study.scan(source, progress)
    encoder = open_encoder(
        study.encoder_spec, device=device, precision=section.precision, progress=progress
    )
    config = EmbedConfig(batch_size=section.batch_size, workers=section.workers, retry=retry)
    if max_failure_rate is not None:
        config = dataclasses.replace(config, max_failure_rate=max_failure_rate)
    result = embed(
        scan.pool,
        source,
        encoder,
        study.open_store(create=True),
        config=config,
        progress=progress,
    )
    write_json(
        study.path / "encoder.json",
        {
            "schema": "svp.encoder/1",
            "spec": section.spec,
            "precision": section.precision,
            "encoder_id": encoder.id,
            "pool_id": scan.pool.id,
            "items": len(scan.pool),
            "identity": encoder.identity,
            "created": now(),
            "versions": versions(),
        },
    )
    return result
