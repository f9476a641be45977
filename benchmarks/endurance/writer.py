"""A writer that the trials kill.

    python -m benchmarks.endurance.writer URL LOG PAUSE_S SHARD OF

Embeds the items whose rows follow from their digests, and logs each chunk before it is stored.
With OF > 1 it takes only the segments of its shard, as one of several processes that share nothing.
"""

import hashlib
import os
import sys
import time

import numpy as np

from feature_store import open_store

ROWS, DIM = 1600, 256
SIZES = {"chunk_rows": 32, "segment_rows": 320}
CHUNKS = ROWS // SIZES["chunk_rows"]
IDENTITY = {"arch": "endurance"}


def all_digests() -> np.ndarray:
    rows = [hashlib.sha256(b"%d" % i).digest() for i in range(ROWS)]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32).copy()


def embed(digests: np.ndarray) -> np.ndarray:
    """Return what belongs to each digest: its bytes, minus 128, again and again."""
    return np.tile(digests.astype(np.float32) - 128, DIM // 32).astype(np.float16)


def main(url: str, log: str, pause_s: str, shard: str, of: str) -> None:
    store = open_store(url, create=True)
    table = store.table(store.put_encoder(IDENTITY))
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print("ready", flush=True)
    digests = all_digests()
    todo = table.missing(digests)
    for plan in table.plan(digests[todo], dim=DIM, dtype="float16", **SIZES):
        if int(plan.id, 16) % int(of) != int(shard):
            continue
        writer = table.writer(plan)
        for chunk in writer.pending():
            os.write(handle, f"{plan.id} {chunk.index}\n".encode())
            time.sleep(float(pause_s))
            writer.write(chunk, embed(plan.digests[chunk.start : chunk.stop]))
        writer.seal()


if __name__ == "__main__":
    main(*sys.argv[1:])
