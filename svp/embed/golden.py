"""The golden-image self-test: does an encoder still give the vectors that it gave at first?

The identity holds what a user chose. A driver, a library or a processor may move vectors without
changing it. So the vectors of six known images are stored beside the encoder by whoever embeds
with it first; everyone who embeds with it later computes them again and compares. The images are
made by integer arithmetic alone, equal on every machine, and go through the encoder's own
preprocessing, in one batch whose size never changes.

Two numbers are compared, of the image that moved most: the relative error, largest |difference|
over the largest |value|, and the cosine distance. See `TOLERANCES` for the bands.

Shapes: G = golden images, S = side of the preprocessed square, d = dim.
"""

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from feature_store import FeatureStore
from svp.encoders.encoder import Encoder
from svp.errors import IdentityError
from svp.progress import Progress, Silent
from svp.provenance import hardware, now, versions

Float32Array = npt.NDArray[np.float32]
Status = Literal["recorded", "same", "drifted", "accepted", "incomparable"]

SCHEMA: Final = "svp.golden/1"
_GRAVITY: Final[Mapping[Status, int]] = {
    "recorded": 0, "same": 0, "incomparable": 1, "drifted": 2, "accepted": 3,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far vectors may move.

    Attributes:
        soft_relative: Relative error up to which nothing is said.
        hard_relative: Relative error beyond which embedding is refused.
        soft_cosine: Cosine distance up to which nothing is said.
        hard_cosine: Cosine distance beyond which embedding is refused.
    """

    soft_relative: float
    hard_relative: float
    soft_cosine: float
    hard_cosine: float


TOLERANCES: Final[Mapping[str, Tolerance]] = {
    "fp32": Tolerance(soft_relative=1e-4, hard_relative=1e-2, soft_cosine=1e-7, hard_cosine=1e-4),
    "fp16": Tolerance(soft_relative=5e-3, hard_relative=3e-2, soft_cosine=2e-5, hard_cosine=1e-4),
    "bf16": Tolerance(soft_relative=2e-2, hard_relative=6e-2, soft_cosine=2e-4, hard_cosine=1e-3),
}
"""By precision, from what was measured on a CPU with two ResNets, a ViT and a ConvNeXt at 224 px.

Other kernels for the same numbers move float32 vectors by a relative error of 2e-6 at most (cosine
distance 1e-12), TF32 by 3e-4 to 1e-3 (5e-7). The same model in fp16 moves by 1.4e-3 (1e-6), in
bf16 by 1e-2 (7e-5). Real changes are larger: another resize filter moves by 0.08 to 0.12 (2.5e-4
to 1e-2), a mean off by 0.01 by 0.04 to 0.5 (4e-4 and more). So the soft band begins above kernel
noise, and in fp32 below TF32, which is thus reported; the hard band begins above what a precision
explains and below another filter.
"""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GoldenReport:
    """What the self-test found.

    Attributes:
        status: "recorded": nobody had embedded with this encoder, its vectors are stored now.
            "same": within the soft band. "drifted": beyond it, within the hard band. "accepted":
            beyond the hard band, and the caller goes on. "incomparable": stored by a version of
            svp with other golden images.
        relative_error: Of the image that moved most, largest |difference| / largest |value|.
        cosine_distance: Of the image that moved most, in [0, 2].
        pixels_moved: Whether preprocessing gave other bytes: then it is Pillow, not the network.
        differences: What is not as it was when the vectors were stored: "torch 2.6.0, was 2.5.1".
        recorded_at: When they were stored, UTC.
    """

    status: Status
    relative_error: float = 0.0
    cosine_distance: float = 0.0
    pixels_moved: bool = False
    differences: tuple[str, ...] = ()
    recorded_at: str = ""


class DriftError(IdentityError):
    """The golden images give other vectors here than those stored with the encoder.

    Attributes:
        report: What moved, and by how much.
    """

    def __init__(self, message: str, *, report: GoldenReport) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # It travels from a worker to its client.
        return functools.partial(DriftError, report=self.report), (str(self),)


def golden_images() -> tuple[Image.Image, ...]:
    """Return the six golden images, RGB, of several sizes and proportions.

    Flat colour with a gradient, a fine checkerboard, noise, rings, and two that look like
    photographs to a network: noise at several scales, one of them tall. Integers only.
    """
    return tuple(
        Image.fromarray(np.ascontiguousarray(pixels_HW3))
        for pixels_HW3 in (
            _gradient(180, 240),
            _checkers(64, 64),
            _noise("noise", 131, 97),
            _rings(224, 224),
            _scene("scene", 213, 320),
            _scene("tall scene", 400, 250),
        )
    )


def _noise(name: str, height: int, width: int) -> npt.NDArray[np.uint8]:
    data = hashlib.shake_256(f"{SCHEMA} {name}".encode()).digest(height * width * 3)
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _gradient(height: int, width: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x // (width - 1), 255 * y // (height - 1)
    return np.stack([red, green, np.full_like(red, 90)], axis=2).astype(np.uint8)


def _checkers(height: int, width: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    odd = ((x // 4 + y // 4) % 2)[:, :, None]
    return np.where(odd == 1, [20, 60, 200], [220, 40, 30]).astype(np.uint8)


def _rings(height: int, width: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    squared = (x - width // 2) ** 2 + (y - height // 2) ** 2
    return np.stack([squared >> 4, squared >> 6, 255 - (squared >> 7)], axis=2).astype(np.uint8)


def _scene(name: str, height: int, width: int) -> npt.NDArray[np.uint8]:
    total_HW3 = np.zeros((height, width, 3), np.int64)
    weight = 0
    for cell in (128, 32, 8, 2):
        coarse = _noise(f"{name} {cell}", height // cell + 2, width // cell + 2).astype(np.int64)
        y, x = np.arange(height), np.arange(width)
        row, down = y // cell, (y % cell)[:, None, None]
        col, right = x // cell, (x % cell)[None, :, None]
        above = coarse[row][:, col] * (cell - right) + coarse[row][:, col + 1] * right
        below = coarse[row + 1][:, col] * (cell - right) + coarse[row + 1][:, col + 1] * right
        mixed_HW3 = (above * (cell - down) + below * down) // cell**2
        # Coarse structure weighs more, as in photographs.
        np.add(total_HW3, cell.bit_length() * mixed_HW3, out=total_HW3, casting="unsafe")
        weight += cell.bit_length()
    return (total_HW3 // weight).astype(np.uint8)


def golden_record(encoder: Encoder) -> dict[str, Any]:
    """Return the golden images' vectors and what made them, as JSON values.

    Raises:
        InputError: If a vector is not finite.
    """
    images = golden_images()
    x_G3SS = torch.stack([encoder.preprocessing(image) for image in images])
    x_Gd = encoder.encode(x_G3SS).float().cpu().numpy()
    source = hashlib.sha256()
    for image in images:
        source.update(repr(image.size).encode() + image.tobytes())
    return {
        "schema": SCHEMA,
        "images": source.hexdigest(),
        "pixels": hashlib.sha256(x_G3SS.numpy().tobytes()).hexdigest(),
        "shape": list(x_Gd.shape),
        "vectors": base64.b64encode(x_Gd.astype("<f4").tobytes()).decode(),
        "precision": encoder.precision,
        "device": encoder.device.type,
        "versions": versions(),
        "hardware": hardware(),
        "created": now(),
    }


def _vectors(record: Mapping[str, Any]) -> Float32Array:
    data = base64.b64decode(record["vectors"], validate=True)
    return np.frombuffer(data, "<f4").reshape(record["shape"])


def _differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, ...]:
    def facts(record: Mapping[str, Any]) -> dict[str, str]:
        found = {**record["versions"], **record["hardware"], "device": record["device"]}
        return {str(key): str(value) for key, value in found.items()}

    was, is_now = facts(stored), facts(here)
    return tuple(
        f"{key} {is_now.get(key, 'none')}, was {was.get(key, 'none')}"
        for key in sorted(was.keys() | is_now.keys())
        if was.get(key) != is_now.get(key)
    )


def compare(stored: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[GoldenReport, bool]:
    """Compare two records of `golden_record`.

    Returns:
        The report, and whether the difference is beyond the hard band; such a report has the
        status "accepted", which is for the caller to grant.
    """
    if stored.get("schema") != here["schema"]:
        # Nothing else is known of such a record.
        return GoldenReport(status="incomparable"), False
    facts: dict[str, Any] = {
        "differences": _differences(stored, here),
        "recorded_at": str(stored["created"]),
    }
    if any(stored[key] != here[key] for key in ("images", "shape")):
        return GoldenReport(status="incomparable", **facts), False
    was_Gd, is_Gd = (_vectors(record).astype(np.float64) for record in (stored, here))
    largest_G = np.maximum(np.abs(was_Gd).max(axis=1), np.finfo(np.float32).tiny)
    relative = float((np.abs(is_Gd - was_Gd).max(axis=1) / largest_G).max())
    norms_G = np.linalg.norm(was_Gd, axis=1) * np.linalg.norm(is_Gd, axis=1)
    # Two zero vectors are equal, a zero and another one are not alike at all.
    cosine_G = np.where(
        norms_G > 0,
        (was_Gd * is_Gd).sum(axis=1) / np.where(norms_G > 0, norms_G, 1),
        np.all(was_Gd == is_Gd, axis=1),
    )
    cosine = float(np.clip(1 - cosine_G, 0, 2).max())
    band = TOLERANCES[str(here["precision"])]
    hard = relative > band.hard_relative or cosine > band.hard_cosine
    soft = relative > band.soft_relative or cosine > band.soft_cosine
    report = GoldenReport(
        status="accepted" if hard else "drifted" if soft else "same",
        relative_error=relative,
        cosine_distance=cosine,
        pixels_moved=stored["pixels"] != here["pixels"],
        **facts,
    )
    return report, hard


def check_golden(
    store: FeatureStore,
    encoder: Encoder,
    *,
    accept_drift: bool = False,
    progress: Progress | None = None,
) -> GoldenReport:
    """Run the self-test: store the golden vectors, or compare with those that are stored.

    Call it once after loading an encoder and before embedding with it into `store`; one forward
    pass of six images. It stores the encoder's identity too, and moves no random state.

    Args:
        store: Where the encoder is, or will be.
        encoder: The encoder as it runs here.
        accept_drift: Go on, with a warning, where vectors moved beyond the hard band.
        progress: Told about drift.

    Returns:
        What was found; see `GoldenReport`.

    Raises:
        DriftError: Vectors moved beyond the hard band of `TOLERANCES`.
        InputError: A vector is not finite.
        CorruptChunkError: The stored record is damaged.
    """
    progress = progress or Silent()
    store.put_encoder(encoder.identity, about=encoder.provenance)
    here = golden_record(encoder)
    stored = store.golden(encoder.id)
    if stored is None:
        if store.put_golden(encoder.id, here):
            return GoldenReport(status="recorded", recorded_at=here["created"])
        stored = store.golden(encoder.id) or here  # another process was first
    report, refused = compare(stored, here)
    if refused and not accept_drift:
        raise DriftError(
            f"The golden images must give the vectors stored with encoder {encoder.id}. Got "
            f"others: {_moved(report)}. Embed where the stored ones were made, or go on knowingly "
            "with --accept-drift, or use another store.",
            report=report,
        )
    warning = golden_warning(report, encoder.id)
    if warning is not None:
        progress.say(warning)
    return report


def golden_warning(report: GoldenReport, encoder_id: str) -> str | None:
    """Return what people must hear of a report, or None."""
    if report.status in ("drifted", "accepted"):
        return (
            "Warning: the golden images give other vectors than those stored with encoder "
            f"{encoder_id}: {_moved(report)}"
        )
    if report.status == "incomparable":
        return (
            f"Encoder {encoder_id}: not compared with its stored golden images, which another "
            "version of svp made"
        )
    return None


def worst_report(reports: Iterable[GoldenReport]) -> GoldenReport:
    """Return the report that says most against its machine; of equal ones the first."""
    return max(reports, key=lambda report: _GRAVITY[report.status])


def _moved(report: GoldenReport) -> str:
    what = "preprocessing moved, so pixels differ" if report.pixels_moved else "the network moved"
    return (
        f"relative error {report.relative_error:.1e}, cosine distance "
        f"{report.cosine_distance:.1e}; {what}; differences: "
        f"{'; '.join(report.differences) or 'none known'}"
    )
