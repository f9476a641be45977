"""Encoder: exact weights on a device, with the input they expect and one identity."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn

from feature_store.store import encoder_id_of
from svp.data.decode import DECODER
from svp.encoders import byol, folder, openclip, timmodels
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


@contextlib.contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    # TF32 keeps 10 bits of mantissa and is cuDNN's default; the identity promises float32.
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = cast(Any, torch.backends.cuda.matmul), cast(Any, torch.backends.cudnn)
    undo: list[Callable[[], None]] = []

    def switch(owner: Any, name: str, value: object) -> None:
        undo.append(functools.partial(setattr, owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    try:
        # Reading the older switches raises where the caller set the newer ones one by one.
        with contextlib.suppress(RuntimeError):
            switch(matmul, "allow_tf32", False)
            switch(cudnn, "allow_tf32", False)
        # Off, the older ones mean "as the level above", which the newer ones may have switched on.
        for owner in (matmul, getattr(cudnn, "conv", None)):
            if getattr(owner, "fp32_precision", "ieee") == "tf32":
                switch(owner, "fp32_precision", "ieee")
        yield
    finally:
        for restore in reversed(undo):
            restore()


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
        provenance: JSON: source and licence of the weights. Not part of the identity.
    """

    def __init__(
        self, loaded: Loaded, *, device: str | torch.device = "cpu", precision: Precision = "fp32"
    ) -> None:
        autocast = autocast_of(precision)
        self.identity: dict[str, Any] = describe(loaded, precision, DECODER)
        self.id: str = encoder_id_of(self.identity)
        self.preprocessing: Preprocessing = loaded.preprocessing
        self.provenance: dict[str, Any] = loaded.provenance
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.storage_dtype: np.dtype[Any] = np.dtype(self.identity["storage"])
        self._autocast: torch.dtype | None = getattr(torch, autocast) if autocast else None
        self._storage: torch.dtype = torch.float16 if autocast else torch.float32
        mean, std = (
            torch.tensor(values, device=self.device).view(1, _CHANNELS, 1, 1)
            for values in (loaded.preprocessing.mean, loaded.preprocessing.std)
        )
        # (x / 255 - mean) / std as one multiplication and one addition.
        self._scale, self._shift = 1 / (255 * std), -mean / std
        module = loaded.module.eval().to(self.device)
        # Convolutions on bytes that arrive as (B, S, S, 3) want this layout; others ignore it.
        self.module: nn.Module = module.to(memory_format=torch.channels_last)
        self.dim: int = self._probe()

    def __repr__(self) -> str:
        model = self.identity["architecture"].get("model", self.identity["architecture"]["family"])
        return f"Encoder({model}, id={self.id}, dim={self.dim}, {self.precision}, {self.device})"

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
    def features_of(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, d) of normalised images, in the storage type, not yet checked."""
        was_training = self.module.training
        self.module.eval()
        try:
            with _full_float32(self.device):
                if self._autocast is None:
                    x_Bd = self.module(x_BCHW)
                else:
                    with torch.autocast(self.device.type, dtype=self._autocast):
                        x_Bd = self.module(x_BCHW)
        finally:
            self.module.train(was_training)
        return cast(torch.Tensor, x_Bd).to(self._storage)

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
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Encoder:
    """Open the encoder that `spec` names.

    Args:
        spec: See `svp.encoders.spec`.
        device: Where it runs.
        precision: Weights are always float32; "bf16" and "fp16" autocast the forward pass.
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
    loaded = _load(parse_spec(spec), offline=offline, progress=progress or Silent())
    return Encoder(loaded, device=device, precision=precision)
