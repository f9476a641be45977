"""Seeds: every random choice in svp derives from one integer and a context.

Deriving by hash instead of by drawing from a shared stream makes a choice independent of the
order in which others are made, so stages can be skipped, resumed or moved to other machines.
"""

import hashlib

import numpy as np


def derive_seed(seed: int, *context: str | int | bytes) -> int:
    """Return a 63-bit seed for `context` under the study's `seed`.

    Args:
        seed: The user's seed.
        context: What the randomness is for, from general to particular, such as
            `("round", 3, "badge")`.

    Returns:
        An integer in [0, 2**63), equal on every machine and Python version.
    """
    digest = hashlib.sha256(str(seed).encode())
    for part in context:
        raw = part if isinstance(part, bytes) else f"{type(part).__name__}:{part}".encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def numpy_generator(seed: int, *context: str | int | bytes) -> np.random.Generator:
    """Return a NumPy generator for `context` under `seed`; see `derive_seed`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *context)))
