"""The forward pass of one replica: copies beside it, memory that runs out, compiled encoders.

On a GPU nothing here waits: images go over on a stream of their own while the batch before is
computed, embeddings come back into pinned memory, and events on the device say what took how
long. Whoever needs the embeddings waits for them, one batch later.

When memory runs out, the batch is cut in half and the same images go through again, in order; the
smaller size stays. An embedding belongs to its image, so this moves it by kernel noise at most.

Shapes: B = batch, S = side in pixels, d = dim.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from svp.embed.meter import Spent
from svp.encoders.encoder import Encoder
from svp.errors import TemporaryError

UInt8Array = npt.NDArray[np.uint8]
Augment = Callable[[torch.Tensor, UInt8Array], torch.Tensor]
Network = Callable[[torch.Tensor], torch.Tensor]

CPU_BATCH: Final = 256
_LEAST: Final = 32
_MOST: Final = 4096
_BATCH_BYTES: Final = 128 * 2**20  # of pinned images; a few batches are in memory at once
_MEMORY_SHARE: Final = 0.25  # of a GPU; more gains nothing measurable and leaves no room for others
_COMPILE_ROWS: Final = 250_000  # below, the minute of compiling is not won back
_NO_MEMORY: Final = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of a GPU or of the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def automatic_batch(encoder: Encoder) -> int:
    """Return a batch size that fits: 256 on a CPU, probed by doubling on a GPU.

    The share of the device's whole memory decides, not what is free at the moment, so that a run
    that was killed and is started again uses the same batches.
    """
    device, side = encoder.device, encoder.preprocessing.size
    if device.type != "cuda":
        return CPU_BATCH
    most = min(_MOST, max(1, _BATCH_BYTES // (3 * side * side)))
    budget = _MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    size = _LEAST
    while 2 * size <= most:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            encoder.features(torch.zeros((size, 3, side, side), dtype=torch.uint8))
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            size = max(1, size // 2)
            break
        # What the next size would take.
        if 2 * (torch.cuda.max_memory_allocated(device) - before) > budget:
            break
        size *= 2
    torch.cuda.empty_cache()
    return size


@dataclasses.dataclass(frozen=True, slots=True)
class _Events:
    """Moments on the device: copy begun, forward begun and ended, embeddings back."""

    copying: Any
    begun: Any
    ended: Any
    back: Any


class Launched:
    """The embeddings of a batch that may still be on the device."""

    def __init__(
        self,
        parts: list[tuple[torch.Tensor, int]],
        events: list[_Events],
        before: Any,
        forward_s: float,
    ) -> None:
        self._parts, self._events, self._before = parts, events, before
        self._forward_s = forward_s

    def fetch(self, waited: Spent) -> tuple[npt.NDArray[Any], Spent]:
        """Return the embeddings (B, d), waiting for them, and where the time went.

        Args:
            waited: Seconds for which the loop waited for images and for the disk before it
                launched this batch. On a GPU they count only as far as the device had nothing to
                do meanwhile.
        """
        spent = Spent(decode=waited.decode, write=waited.write, forward=self._forward_s)
        if self._events:
            self._events[-1].back.synchronize()
            spent = self._on_device(waited)
        arrays = [part[:rows].numpy() for part, rows in self._parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays), spent

    def _on_device(self, waited: Spent) -> Spent:
        spent, before, idle_s = Spent(), self._before, 0.0
        for one in self._events:
            spent.forward += one.begun.elapsed_time(one.ended) / 1e3
            spent.copy += one.ended.elapsed_time(one.back) / 1e3
            copied_s = one.copying.elapsed_time(one.begun) / 1e3
            if before is None:
                spent.copy += copied_s
                idle_s = waited.decode + waited.write
            else:
                gap_s = max(0.0, before.elapsed_time(one.begun) / 1e3)
                # The device was idle, and a copy was under way: then the copy was the reason.
                copy_s = min(gap_s, max(0.0, copied_s))
                spent.copy += copy_s
                idle_s += gap_s - copy_s
            before = one.back
        spent.write = min(waited.write, idle_s)
        spent.decode = min(waited.decode, idle_s - spent.write)
        return spent


class Forward:
    """Runs one encoder over batches of images, at most `limit` at once.

    Attributes:
        limit: Images per forward pass; shrinks when memory runs out.
        compiled: Whether `torch.compile` prepared the encoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        limit: int,
        compiled: bool,
        augment: Augment | None,
        say: Callable[[str], None],
    ) -> None:
        self._encoder, self._augment, self._say = encoder, augment, say
        self.limit, self.compiled = limit, compiled
        self._run: Network | None = None
        if compiled:
            self._run = cast(Network, torch.compile(encoder.module, dynamic=False))
        self._last: Any = None
        self._cuda = encoder.device.type == "cuda"
        self._copies = cast(Any, torch.cuda.Stream)(encoder.device) if self._cuda else None

    def launch(self, images: torch.Tensor, digests_B32: UInt8Array) -> Launched:
        """Start the forward pass of uint8 images (B, 3, S, S), in pinned memory for a GPU.

        Raises:
            TemporaryError: If there is no memory for a single image.
        """
        parts: list[tuple[torch.Tensor, int]] = []
        events: list[_Events] = []
        before, done, forward_s = self._last, 0, 0.0
        while done < len(images):
            rows = min(self.limit, len(images) - done)
            part = slice(done, done + rows)
            began = time.perf_counter()
            try:
                x_Bd, event = self._piece(images[part], digests_B32[part])
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                shrink = True
            else:
                shrink = False
            # Outside of the handler: there, the error keeps the tensors of the failed pass alive.
            if shrink:
                self._shrink(rows)
                continue
            forward_s += time.perf_counter() - began
            parts.append((x_Bd, rows))
            if event is not None:
                events.append(event)
            done += rows
        return Launched(parts, events, before, forward_s)

    def _shrink(self, rows: int) -> None:
        if rows == 1:
            raise TemporaryError(
                "Memory must hold the forward pass of one image. Got none left on "
                f"{self._encoder.device}. Free memory, or use another device, then run the same "
                "command again."
            )
        self.limit = rows // 2
        if self._cuda:
            torch.cuda.empty_cache()
        self._say(
            f"memory of {self._encoder.device} ran out at {rows} images per batch: "
            f"continuing with {self.limit}"
        )

    def _piece(
        self, images: torch.Tensor, digests_B32: UInt8Array
    ) -> tuple[torch.Tensor, _Events | None]:
        if not self._cuda:
            return self._features(images, digests_B32), None
        device = self._encoder.device
        compute = torch.cuda.current_stream(device)
        copying, begun, ended, back = (
            cast(Any, torch.cuda.Event)(enable_timing=True) for _ in range(4)
        )
        with torch.cuda.stream(self._copies):
            copying.record(self._copies)
            x_u8 = images.to(device, non_blocking=True)
            # Its memory belongs to the stream of copies and must outlive the forward pass.
            x_u8.record_stream(compute)
        compute.wait_stream(cast(Any, self._copies))
        begun.record(compute)
        x_Bd = self._features(x_u8, digests_B32)
        ended.record(compute)
        host_Bd = torch.empty(x_Bd.shape, dtype=x_Bd.dtype, pin_memory=True)
        host_Bd.copy_(x_Bd, non_blocking=True)
        back.record(compute)
        self._last = back
        return host_Bd, _Events(copying, begun, ended, back)

    def _features(self, images: torch.Tensor, digests_B32: UInt8Array) -> torch.Tensor:
        encoder = self._encoder
        if self._augment is None:
            x_B3SS = encoder.normalise(images)
        else:
            x_B3SS = images.to(encoder.device, non_blocking=True).float() / 255
            x_B3SS = encoder.normalise_float(self._augment(x_B3SS, digests_B32))
        if self._run is None:
            return encoder.features_of(x_B3SS)
        return self._compiled(x_B3SS)

    def _compiled(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        rows = len(x_B3SS)
        if rows < self.limit:
            # One shape, one compilation: the end of a chunk is filled up with grey.
            fill = x_B3SS.new_zeros((self.limit - rows, *x_B3SS.shape[1:]))
            filled = torch.cat([x_B3SS, fill]).contiguous(memory_format=torch.channels_last)
        else:
            filled = x_B3SS
        try:
            return self._encoder.features_of(filled, self._run)[:rows]
        # Compilers fail in many ways, none of which is a reason to stop.
        except Exception as error:
            if lacks_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0][:200]
        self._say(f"torch.compile failed ({reason}): continuing without it")
        self._run, self.compiled = None, False
        return self._encoder.features_of(x_B3SS)


def pays_to_compile(mode: str, device: torch.device, rows: int) -> bool:
    """Return whether to compile for `rows` images; see `EmbedConfig.compile`."""
    return mode == "on" or (mode == "auto" and device.type == "cuda" and rows >= _COMPILE_ROWS)


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make a GPU this thread's own; nothing on a CPU."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield
