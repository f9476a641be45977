"""Checking a published segment against itself, byte by byte and meaning by meaning."""

from dataclasses import dataclass

import numpy as np

from feature_store import layout
from feature_store.plan import SegmentPlan
from feature_store.reader import SegmentReader
from feature_store.runs import Runs


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a check found."""

    segment: str
    object: str
    """Key inside the segment."""
    what: str


def audit_segment(reader: SegmentReader) -> list[Problem]:
    """Check every stored byte of a segment and return what is wrong; nothing if all is well."""
    manifest = reader.manifest
    damaged = [Problem(manifest.id, error.chunk, str(error)) for error in reader.problems()]
    return damaged or _contradictions(reader)


def _contradictions(reader: SegmentReader) -> list[Problem]:
    """Compare what intact objects say with each other: digests, failures and NaN rows."""
    manifest = reader.manifest
    digests = reader.digests().copy()
    for entry in manifest.failures:
        digests[entry.row] = np.frombuffer(bytes.fromhex(entry.digest), np.uint8)
    planned = SegmentPlan(
        encoder_id=manifest.encoder_id,
        view=manifest.view,
        digests=digests,
        positions=np.arange(manifest.rows),
        dim=manifest.dim,
        dtype=manifest.dtype,
        chunk_rows=manifest.chunk_rows,
        attempt=manifest.attempt,
    )
    problems = []
    if planned.planned != manifest.planned or planned.id != manifest.id:
        what = f"Segment {manifest.id} must hold the rows it was planned for. Got others."
        problems.append(Problem(manifest.id, "digests", what))
    failed = np.zeros(manifest.rows, bool)
    failed[[entry.row for entry in manifest.failures]] = True
    for chunk, stored in zip(
        layout.chunks(manifest.rows, manifest.chunk_rows), manifest.embeddings, strict=False
    ):
        x_Bd = np.empty((len(chunk), manifest.dim), reader.dtype)
        reader.read(Runs.of(np.arange(chunk.start, chunk.stop)), x_Bd)
        if not np.array_equal(np.isnan(x_Bd).any(axis=1), failed[chunk.start : chunk.stop]):
            what = f"Rows of {stored.key} must be NaN exactly where items failed. Got others."
            problems.append(Problem(manifest.id, stored.key, what))
    return problems
