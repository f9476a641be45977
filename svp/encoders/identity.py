"""What makes an encoder the same encoder: everything that moves a vector, and nothing else.

The identity is plain JSON; `feature_store` digests it into the encoder's id, under which its
embeddings live. In it: architecture, SHA-256 of the tensors actually loaded, branch, pooling,
normalisation of the output, preprocessing, what resizes and crops, decoder, numeric mode, storage
type, version of this schema, and for a refreshed encoder how it was made. Not in it: where the
weights came from, batch size, workers, device. Those move a vector by kernel noise at most and are
provenance. What no identity can see, such as a driver, is the self-test's (`svp.embed.golden`).

How a random view is made belongs to its table, not to the encoder (`svp.embed.views`).
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from svp.data.decode import DECODER
from svp.encoders.weights import Loaded, digest_tensors
from svp.errors import InputError

Precision = Literal["fp32", "bf16", "fp16"]

SCHEMA: Final = "svp.encoder/2"
# `svp.encoders.preprocessing` knows one way to do each; another way must be another identity.
_RESAMPLING: Final[Mapping[str, Any]] = {
    "library": "pillow",
    "version": DECODER["version"],
    "antialias": True,
    "crop": "centre",
}
_AUTOCAST: Final[Mapping[str, str | None]] = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}


def autocast_of(precision: str) -> str | None:
    """Return the name of the type of 16-bit autocast, or None for float32 throughout."""
    if precision not in _AUTOCAST:
        raise InputError(
            f"precision must be one of {', '.join(_AUTOCAST)}. Got {precision!r}. "
            "Use fp32, or bf16 on hardware that has it."
        )
    return _AUTOCAST[precision]


def describe(loaded: Loaded, precision: str, decoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of an encoder.

    Args:
        loaded: Module with its weights, and how its input is made.
        precision: "fp32", "bf16" or "fp16".
        decoder: What turns bytes into pixels, with its version (`svp.encoders.decoders`).

    Returns:
        JSON values only; equal for equal encoders wherever their weights lie.
    """
    autocast = autocast_of(precision)
    identity: dict[str, Any] = {
        "schema": SCHEMA,
        "architecture": loaded.architecture,
        "weights_sha256": digest_tensors(loaded.module.state_dict()),
        "branch": loaded.branch,
        "pooling": loaded.pooling,
        "output": "raw",
        "preprocessing": loaded.preprocessing.as_json(),
        "resampling": dict(_RESAMPLING),
        "decoder": dict(decoder),
        "numeric": {"autocast": autocast, "tf32": False, "batch_norm": "eval"},
        # 16-bit autocast leaves nothing for 32 bits to keep.
        "storage": "float32" if autocast is None else "float16",
    }
    if loaded.lineage is not None:
        identity["lineage"] = loaded.lineage
    return identity
