"""What a round leaves behind so that a replay can say what changed since, by name.

```
rounds/NNN/labels.csv     the labels that it knew: id, label
rounds/NNN/vectors.npy    one checksum per embedding, in the order of ids; where they are those of
                          an earlier round, that round keeps them
```
The receipt holds digests of both, of the proxy's file and of `selection.csv`, and a seal: a digest
of every entry of its own. A digest tells accidents and edits apart from what was written; it is no
signature, since whoever can edit a file can also seal it anew.

Shapes: M = items that may be labelled and have an embedding, d = features.
"""

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from feature_store.atomic import write_bytes
from feature_store.digest import canonical_json, sha256_hex
from svp.seed import numpy_generator

if TYPE_CHECKING:
    import torch

    from svp.strategies.base import Rows
    from svp.study.record import RoundResult

UInt64Array = npt.NDArray[np.uint64]

LABELS_FILE: Final = "labels.csv"
VECTORS_FILE: Final = "vectors.npy"
_TILE_ROWS: Final = 8192
#: Entries that are no part of the seal: the seal, and what is added after it.
_UNSEALED: Final = ("seal", "timings_s")


def vector_sums(x_Md: "torch.Tensor | Rows") -> UInt64Array:
    """Return one checksum per embedding, (M,), read tile by tile.

    A sum of the row's bytes as numbers times fixed odd numbers, modulo 2**64: any change of a
    single value changes it, whatever the type.
    """
    import torch

    from svp.strategies.base import gather

    total, sums = x_Md.shape[0], []
    odd_w: UInt64Array = np.zeros(0, dtype=np.uint64)
    for start in range(0, total, _TILE_ROWS):
        rows = np.arange(start, min(start + _TILE_ROWS, total))
        x_Td = gather(x_Md, rows).cpu().contiguous()
        words_Tw = x_Td.view(torch.uint8).numpy().view(_word(x_Td.shape[1] * x_Td.element_size()))
        if not len(odd_w):
            drawn = numpy_generator(0, "vector-sums").integers(
                0, 2**64, size=words_Tw.shape[1], dtype=np.uint64
            )
            odd_w = drawn | np.uint64(1)
        sums.append((words_Tw.astype(np.uint64) * odd_w).sum(axis=1, dtype=np.uint64))
    return np.concatenate(sums) if sums else np.zeros(0, dtype=np.uint64)


def _word(row_bytes: int) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if row_bytes % 4 == 0 else np.uint16 if row_bytes % 2 == 0 else np.uint8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Vectors:
    """The embeddings of a round, as its receipt names them.

    Attributes:
        items: Digest of the ids, in order.
        digest: Digest of the checksums; None where workers held the embeddings.
        file: Where the checksums are, under `rounds/`; None likewise.
    """

    items: str
    digest: str | None
    file: str | None


def items_digest(ids: Sequence[str]) -> str:
    """Return a digest of ids in their order."""
    return sha256_hex(canonical_json(list(ids)))


def sums_digest(sums_M: UInt64Array) -> str:
    """Return the digest of checksums."""
    return sha256_hex(np.ascontiguousarray(sums_M, dtype="<u8").tobytes())


def write_labels_known(folder: Path, labels: Mapping[str, str]) -> None:
    """Write the labels that a round knew."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "label"))
    writer.writerows(sorted(labels.items()))
    write_bytes(folder / LABELS_FILE, text.getvalue().encode())


def read_labels_known(folder: Path) -> dict[str, str] | None:
    """Return the labels that a round knew; None if it did not keep them, or they are damaged."""
    try:
        with (folder / LABELS_FILE).open(encoding="utf-8", newline="") as stream:
            return {row["id"]: row["label"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, csv.Error):
        return None


def write_vectors(
    folder: Path,
    ids: Sequence[str],
    x_Md: "torch.Tensor | Rows | None",
    earlier: Sequence["RoundResult"],
) -> Vectors:
    """Write the checksums of a round's embeddings, unless an earlier round has the same.

    Args:
        folder: Of the round.
        ids: Of the items.
        x_Md: Their embeddings; None: they are with workers, and nothing is written.
        earlier: Rounds before.
    """
    items = items_digest(ids)
    if x_Md is None:
        return Vectors(items=items, digest=None, file=None)
    sums_M = vector_sums(x_Md)
    digest = sums_digest(sums_M)
    for done in earlier:
        known = done.receipt.get("evidence", {}).get("vectors", {})
        if known.get("digest") == digest and known.get("items") == items and known.get("file"):
            return Vectors(items=items, digest=digest, file=str(known["file"]))
    stream = io.BytesIO()
    np.save(stream, sums_M.astype("<u8"), allow_pickle=False)
    write_bytes(folder / VECTORS_FILE, stream.getvalue())
    return Vectors(items=items, digest=digest, file=f"{folder.name}/{VECTORS_FILE}")


def read_vectors(rounds_dir: Path, vectors: Mapping[str, Any]) -> UInt64Array | None:
    """Return the checksums that a receipt names; None if they are gone or not those."""
    name = str(vectors.get("file") or "")
    if not name or ".." in Path(name).parts or Path(name).is_absolute():
        return None
    try:
        sums_M: UInt64Array = np.load(rounds_dir / name, allow_pickle=False).astype(np.uint64)
    except (OSError, ValueError):
        return None
    return sums_M if sums_digest(sums_M) == vectors.get("digest") else None


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(receipt: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of every entry of a receipt, so that an edit is found and named."""
    return {
        name: sha256_hex(json.dumps(value, sort_keys=True).encode())
        for name, value in receipt.items()
        if name not in _UNSEALED
    }


def broken_seals(receipt: Mapping[str, Any]) -> list[str]:
    """Return the entries of a receipt that were edited, added or removed since it was written."""
    sealed = receipt.get("seal")
    if not isinstance(sealed, Mapping):
        return []
    now = seal(receipt)
    return sorted(name for name in {*sealed, *now} if sealed.get(name) != now.get(name))
