"""Being one of several processes that PyTorch's launcher started, and starting them.

Imports no torch: the command line asks before anything is loaded.
"""

import os
import sys
from collections.abc import Mapping
from typing import Final

_SIZE: Final = "WORLD_SIZE"
_RANK: Final = "RANK"
_LOCAL_RANK: Final = "LOCAL_RANK"


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether `torchrun` started this process as one of several."""
    return int(environment.get(_SIZE, "1")) > 1 and _RANK in environment


def writes(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is the one that writes and reports."""
    return not launched(environment) or environment[_RANK] == "0"


def own_device(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the device of this process: its own GPU where `device` is CUDA."""
    if not launched(environment) or not device.startswith("cuda"):
        return device
    return f"cuda:{environment.get(_LOCAL_RANK, '0')}"


def launch_command(processes: int, arguments: list[str]) -> list[str]:
    """Return the command that runs `svp ARGUMENTS` on several processes of this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *launcher, "-m", "svp", *arguments]


def relaunch(processes: int) -> None:
    """Become PyTorch's launcher of this very command; return at once in what it starts."""
    if not launched():
        os.execv(sys.executable, launch_command(processes, sys.argv[1:]))
