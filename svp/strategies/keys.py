"""Keys: 64-bit stand-ins for item ids, and their seeded hash.

Ties broken by position would favour the classes that a folder lists first, and random choices
made by position would change when the pool is reordered. Both are made by a hash of the id.

Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the
finaliser of SplitMix64, a bijection on 64-bit integers).
"""

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def keys_of(ids: Iterable[str]) -> UInt64Array:
    """Return one key per id: the first eight bytes of BLAKE2b of its UTF-8 form."""
    digests = b"".join(
        hashlib.blake2b(item.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for item in ids
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def splitmix64(x: UInt64Array) -> UInt64Array:
    """Return the SplitMix64 output for each state; wraps modulo 2**64."""
    z = x + _GOLDEN
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def hash_keys(keys: UInt64Array, seed: int) -> UInt64Array:
    """Return the hash of each key under `seed`; for one seed it is a bijection.

    Args:
        keys: Any uint64 array.
        seed: Any integer; taken modulo 2**64.
    """
    mixed_seed = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    # Hashed twice, so that seeds that differ in few bits give unrelated orders.
    return splitmix64(splitmix64(keys ^ mixed_seed) + mixed_seed)
