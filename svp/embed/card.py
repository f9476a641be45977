"""What there is to know about one encoder: identity, licence, origin, self-test, tables.

Only reads: showing an encoder stores nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from feature_store import FeatureStore
from svp.embed.golden import SCHEMA, GoldenReport, compare, golden_record
from svp.encoders.encoder import Encoder

UNKNOWN: Final = "unknown"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TableCard:
    """One table of an encoder.

    Attributes:
        view: Its name.
        rows: Images that have an embedding.
        dim: Width, None while the table is empty.
        dtype: Stored type, None while the table is empty.
        segments: Published segments.
        failed: Images whose failure is recorded.
        made: How the images of a random view are made; None for `eval`, and where unrecorded.
    """

    view: str
    rows: int
    dim: int | None
    dtype: str | None
    segments: int
    failed: int
    made: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GoldenCard:
    """The stored self-test of an encoder.

    Attributes:
        recorded_at: When the vectors were stored, UTC.
        device: Kind of device that made them.
        versions: Of the libraries that made them.
        hardware: That made them.
        check: What the same encoder gives here; None where only its id was given.
    """

    recorded_at: str
    device: str
    versions: dict[str, Any]
    hardware: dict[str, Any]
    check: GoldenReport | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ParentCard:
    """The encoder that a refreshed one was fine-tuned from.

    Attributes:
        id: Its id.
        licence: Its licence if it is in the same store, else "unknown".
    """

    id: str
    licence: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncoderCard:
    """One encoder.

    Attributes:
        id: 16 hexadecimal digits over the identity.
        dim: Width of its embeddings; None where nothing says it.
        licence: Of the weights, as their library tells it; else "unknown".
        identity: All that decides a vector.
        provenance: Where the weights came from.
        parent: Of a refreshed encoder, else None.
        store: The store that was looked into, or None.
        stored: Whether the encoder is in it.
        golden: Its self-test in that store, or None.
        tables: Its tables in that store.
    """

    id: str
    dim: int | None
    licence: str
    identity: dict[str, Any]
    provenance: dict[str, Any]
    parent: ParentCard | None
    store: str | None = None
    stored: bool = False
    golden: GoldenCard | None = None
    tables: tuple[TableCard, ...] = ()


def _licence(provenance: Mapping[str, Any]) -> str:
    return str(provenance.get("licence") or UNKNOWN)


def _parent(identity: Mapping[str, Any], store: FeatureStore | None) -> ParentCard | None:
    lineage = identity.get("lineage")
    parent = lineage.get("parent") if isinstance(lineage, Mapping) else None
    if parent is None:
        return None
    licence = UNKNOWN
    if store is not None and parent in store.encoders():
        licence = _licence(store.encoder_record(str(parent))["about"])
    return ParentCard(id=str(parent), licence=licence)


def _tables(store: FeatureStore, encoder_id: str) -> tuple[TableCard, ...]:
    cards = []
    for view in store.views(encoder_id):
        table = store.table(encoder_id, view)
        cards.append(
            TableCard(
                view=view,
                rows=table.rows,
                dim=table.dim,
                dtype=None if table.dtype is None else str(table.dtype),
                segments=len(table.segments()),
                failed=len(table.failures()),
                made=store.view_record(encoder_id, view),
            )
        )
    return tuple(cards)


def _golden(stored: Mapping[str, Any] | None, here: Encoder | None) -> GoldenCard | None:
    if stored is None:
        return None
    return GoldenCard(
        recorded_at=str(stored.get("created", UNKNOWN)),
        device=str(stored.get("device", UNKNOWN)),
        versions=dict(stored.get("versions", {})),
        hardware=dict(stored.get("hardware", {})),
        check=None if here is None else compare(stored, golden_record(here))[0],
    )


def card_of_stored(store: FeatureStore, encoder_id: str) -> EncoderCard:
    """Describe an encoder by what a store knows of it.

    Raises:
        StoreNotFoundError: If it is not stored.
        EncoderMismatchError: If its stored identity does not give its id.
    """
    record = store.encoder_record(encoder_id)
    tables, golden = _tables(store, encoder_id), store.golden(encoder_id)
    widths = [table.dim for table in tables if table.dim is not None]
    if golden is not None and golden.get("schema") == SCHEMA:
        widths.append(int(golden["shape"][1]))
    about = dict(record["about"])
    return EncoderCard(
        id=encoder_id,
        dim=widths[0] if widths else None,
        licence=_licence(about),
        identity=record["identity"],
        provenance=about,
        parent=_parent(record["identity"], store),
        store=store.url,
        stored=True,
        golden=_golden(golden, None),
        tables=tables,
    )


def card_of_encoder(encoder: Encoder, store: FeatureStore | None = None) -> EncoderCard:
    """Describe an open encoder, with its tables and its self-test in a store if one is given."""
    holder = store if store is not None and encoder.id in store.encoders() else None
    return EncoderCard(
        id=encoder.id,
        dim=encoder.dim,
        licence=_licence(encoder.provenance),
        identity=encoder.identity,
        provenance=encoder.provenance,
        parent=_parent(encoder.identity, store),
        store=None if store is None else store.url,
        stored=holder is not None,
        golden=None if holder is None else _golden(holder.golden(encoder.id), encoder),
        tables=() if holder is None else _tables(holder, encoder.id),
    )
