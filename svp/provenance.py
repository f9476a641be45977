"""What made a result: versions, hardware, time. Goes into every file svp writes."""

import datetime
import os
import platform
import sys
from importlib import metadata
from typing import Final

from svp import __version__

_PACKAGES: Final = (
    "numpy",
    "torch",
    "torchvision",
    "timm",
    "open-clip-torch",
    "zarr",
    "pillow",
    "pyarrow",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Return the versions of Python, svp and the packages that can move a number."""
    found = {"python": platform.python_version(), "svp": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str | int]:
    """Return processor, core count and accelerator, without importing torch for it."""
    described: dict[str, str | int] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count() or 1,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name(0)
        described["gpus"] = torch.cuda.device_count()
    return described


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
