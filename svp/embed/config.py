"""How to embed: sizes, threads, devices. Nothing here changes a vector beyond kernel noise."""

import dataclasses
from typing import Literal, get_args

from svp.errors import InputError

CompileMode = Literal["auto", "on", "off"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """How to embed; nothing here changes a vector beyond kernel noise.

    Attributes:
        batch_size: Images per forward pass; None means 256 on a CPU, and on a GPU what a quarter
            of its memory holds. Either is halved when memory runs out.
        workers: Decoding threads; None means one per processor.
        chunk_rows: Rows written at once; None lets the store choose. A kill costs at most
            that, in each replica.
        segment_rows: Rows published at once; None lets the store choose.
        max_failure_rate: Share of the distinct images that may fail, in [0, 1]; those that the
            scan could not read count.
        retry: Try items again whose failure is recorded.
        shard: (i, n): embed only the i-th of n parts, from 0. Parts depend on the images alone,
            so n machines may start at different times.
        devices: Where replicas of the encoder run, such as ("cuda:0", "cuda:1"). Empty means the
            encoder's own device, and every GPU if that is "cuda" without a number.
        compile: Whether `torch.compile` prepares the encoder; "auto" does it on a GPU for pools
            large enough to win back the minute that it takes.
    """

    batch_size: int | None = None
    workers: int | None = None
    chunk_rows: int | None = None
    segment_rows: int | None = None
    max_failure_rate: float = 0.01
    retry: bool = False
    shard: tuple[int, int] = (0, 1)
    devices: tuple[str, ...] = ()
    compile: CompileMode = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "chunk_rows", "segment_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1. Got {value}. Choose a larger one.")
        if not 0 <= self.max_failure_rate <= 1:
            raise InputError(
                f"max_failure_rate must be in [0, 1]. Got {self.max_failure_rate}. "
                "Write 0.01 for one image in a hundred."
            )
        index, count = self.shard
        if not 0 <= index < count:
            raise InputError(
                f"shard must be (i, n) with 0 <= i < n. Got {self.shard}. Count from 0."
            )
        if self.compile not in get_args(CompileMode):
            raise InputError(f"compile must be auto, on or off. Got {self.compile!r}. Use auto.")
