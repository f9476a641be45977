"""Encoder: exact weights on a device, with the input they expect and one identity."""

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn

from feature_store.store import encoder_id_of
from svp.encoders import byol, folder, openclip, timmodels
from svp.encoders.decoders import (
    DecoderName,
    ImageDecoder,
    check_decoder,
    decoder_identity,
    image_decoder,
)
from svp.encoders.identity import Precision, autocast_of, describe
from svp.encoders.preprocessing import Preprocessing
from svp.encoders.spec import EncoderSpec, parse_spec, plugins
from svp.encoders.weights import Loaded
from svp.errors import InputError
from svp.progress import Progress, Silent

_LOADERS: Final[Mapping[str, Callable[..., Loaded]]] = {
    "open_clip": openclip.load,
    "timm": timmodels.load,
    "byol": byol.load,
    "folder": folder.load,
}
_CHANNELS: Final = 3


class _FullFloat32:
    """Switches TF32 off while at least one forward pass is being launched, in any thread.

    TF32 keeps 10 bits of mantissa and is cuDNN's default; the identity promises float32. The
    switches belong to the process, so only the last thread that leaves may set them back.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._undo: list[Callable[[], None]] = []

    def _switch(self, owner: Any, name: str, value: object) -> None:
        self._undo.append(functools.partial(setattr, owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def _off(self) -> None:
        matmul, cudnn = cast(Any, torch.backends.cuda.matmul), cast(Any, torch.backends.cudnn)
        # Reading the older switches raises where the caller set the newer ones one by one.
        with contextlib.suppress(RuntimeError):
            self._switch(matmul, "allow_tf32", False)
            self._switch(cudnn, "allow_tf32", False)
        # Off, the older ones mean "as the level above", which the newer ones may have switched on.
        for owner in (matmul, getattr(cudnn, "conv", None)):
            if getattr(owner, "fp32_precision", "ieee") == "tf32":
                self._switch(owner, "fp32_precision", "ieee")

    @contextlib.contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        if device.type != "cuda":
            yield
            return
        with self._lock:
            if not self._inside:
                self._off()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    while self._undo:
                        self._undo.pop()()


_full_float32: Final = _FullFloat32()


class Encoder:
    """Maps images to embeddings.

    Attributes:
        identity: JSON of all that moves a vector; see `svp.encoders.identity`.
        id: 16 hexadecimal digits over the identity; the encoder's name in a feature store.
        dim: d.
        storage_dtype: float16 where autocast is 16-bit, else float32.
        preprocessing: Image to bytes.
        module: The network on `device`: normalised float (B, 3, S, S) -> (B, d). Training it
            makes another encoder: save it (`svp.encoders.folder.save_encoder`) and open that.
        device: Where the module is.
        precision: "fp32", "bf16" or "fp16".
        decoder: What makes pixels of bytes; see `svp.encoders.decoders`.
        provenance: JSON: source and licence of the weights. Not part of the identity.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        decoder: DecoderName = "pillow",
    ) -> None:
        autocast = autocast_of(precision)
        self.identity: dict[str, Any] = describe(loaded, precision, decoder_identity(decoder))
        self.id: str = encoder_id_of(self.identity)
        self.preprocessing: Preprocessing = loaded.preprocessing
        self.provenance: dict[str, Any] = loaded.provenance
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.decoder: DecoderName = decoder
        self.storage_dtype: np.dtype[Any] = np.dtype(self.identity["storage"])
        self._autocast: torch.dtype | None = getattr(torch, autocast) if autocast else None
        self._storage: torch.dtype = torch.float16 if autocast else torch.float32
        self._place(loaded.module)
        self.dim: int = self._probe()

    def __repr__(self) -> str:
        model = self.identity["architecture"].get("model", self.identity["architecture"]["family"])
        return f"Encoder({model}, id={self.id}, dim={self.dim}, {self.precision}, {self.device})"

    def _place(self, module: nn.Module) -> None:
        mean, std = (
            torch.tensor(values, device=self.device).view(1, _CHANNELS, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        # (x / 255 - mean) / std as one multiplication and one addition.
        self._scale, self._shift = 1 / (255 * std), -mean / std
        module = module.eval().to(self.device)
        # Convolutions on bytes that arrive as (B, S, S, 3) want this layout; others ignore it.
        self.module: nn.Module = module.to(memory_format=torch.channels_last)

    def replica(self, device: str | torch.device) -> "Encoder":
        """Return the same encoder with weights of its own on another device, or on the same."""
        twin = copy.copy(self)
        twin.device = torch.device(device)
        twin._place(copy.deepcopy(self.module))
        return twin

    def image_decoder(self) -> ImageDecoder:
        """Return what makes the pixels of this encoder's images."""
        return image_decoder(self.decoder, self.preprocessing, self.device)

    def _probe(self) -> int:
        # One grey image: a model that pools nothing or yields NaN must fail before a pool does.
        size = self.preprocessing.size
        grey = torch.full((1, _CHANNELS, size, size), 128, dtype=torch.uint8)
        try:
            x_1d = self.features(grey)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).split("\n", 1)[0][:200]
            raise InputError(
                f"The encoder must accept images of {size} px in {self.precision} on "
                f"{self.device}. Got {type(error).__name__}: {reason}. Check the preprocessing, "
                "the device and the precision."
            ) from error
        if x_1d.ndim != 2:
            raise InputError(
                f"The encoder must return one vector per image. Got shape {tuple(x_1d.shape)}. "
                "Choose a model with pooled features."
            )
        self._check_finite(x_1d)
        return int(x_1d.shape[1])

    def normalise(self, x_u8_BCHW: torch.Tensor) -> torch.Tensor:
        """Return uint8 images as normalised float32 (B, 3, S, S) on the encoder's device."""
        x_BCHW = x_u8_BCHW.to(self.device, non_blocking=True)
        x_BCHW = x_BCHW.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, x_BCHW, self._scale)

    def normalise_float(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return float images in [0, 1] normalised, on the encoder's device; for augmentations."""
        x_BCHW = x_BCHW.to(self.device, torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, x_BCHW, 255 * self._scale)

    @torch.no_grad()
    def features_of(
        self, x_BCHW: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return embeddings (B, d) of normalised images, in the storage type, not yet checked.

        Args:
            x_BCHW: See `normalise`.
            run: Another form of `module`, such as a compiled one; None means the module itself.
        """
        run = self.module if run is None else run
        was_training = self.module.training
        self.module.eval()
        try:
            with _full_float32(self.device):
                if self._autocast is None:
                    x_Bd = run(x_BCHW)
                else:
                    with torch.autocast(self.device.type, dtype=self._autocast):
                        x_Bd = run(x_BCHW)
        finally:
            self.module.train(was_training)
        return x_Bd.to(self._storage)

    def features(self, x_u8_BCHW: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, d) of uint8 images, in the storage type, not yet checked.

        On a GPU the call returns before the work is done; whoever reads the result checks it.
        """
        return self.features_of(self.normalise(x_u8_BCHW))

    def _check_finite(self, x_Bd: torch.Tensor) -> None:
        if not bool(torch.isfinite(x_Bd).all()):
            raise not_finite(self)

    def encode(self, batch_u8_BCHW: torch.Tensor) -> torch.Tensor:
        """Embed a batch in evaluation mode, without gradients.

        Args:
            batch_u8_BCHW: uint8 (B, 3, S, S) from `preprocessing`, on any device.

        Returns:
            (B, d) on the encoder's device, in the storage type.

        Raises:
            InputError: If a value is not finite, which 16-bit types make possible.
        """
        x_Bd = self.features(batch_u8_BCHW)
        self._check_finite(x_Bd)
        return x_Bd


def not_finite(encoder: Encoder) -> InputError:
    """Return the error for embeddings that hold NaN or infinity."""
    return InputError(
        f"Embeddings must be finite in {encoder.storage_dtype}. Got NaN or infinity from "
        f"{encoder!r}. Use precision fp32, or check the weights."
    )


def _load(spec: EncoderSpec, *, offline: bool | None, progress: Progress) -> Loaded:
    loader = _LOADERS.get(spec.family)
    if loader is None:
        loader = cast(Callable[..., Loaded], plugins()[spec.family].load())
    return loader(spec, offline=offline, progress=progress)


def open_encoder(
    spec: str,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    decoder: DecoderName | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Encoder:
    """Open the encoder that `spec` names.

    Args:
        spec: See `svp.encoders.spec`.
        device: Where it runs.
        precision: Weights are always float32; "bf16" and "fp16" autocast the forward pass.
        decoder: What makes pixels of bytes; part of the identity. None: as the spec says, else
            as the encoder does: a refreshed one goes on with its parent's.
        offline: Whether to refuse downloads; None asks the environment.
        progress: Told about downloads before they start.

    Returns:
        The encoder, which has embedded one grey image as a test of itself.

    Raises:
        InputError: A bad name, weights that do not fit, or weights not at hand offline.
        IdentityError: An encoder directory whose weights are not the ones it describes.
        TemporaryError: A download failed.
    """
    autocast_of(precision)
    parsed = parse_spec(spec)
    named = decoder or parsed.decoder
    if named is not None:
        decoder_identity(named)  # what is not there is said before anything is downloaded
    loaded = _load(parsed, offline=offline, progress=progress or Silent())
    chosen = check_decoder(named or loaded.decoder)
    return Encoder(loaded, device=device, precision=precision, decoder=chosen)
