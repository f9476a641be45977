"""What tests send to real Dask workers; importable there."""

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import torch

from svp.cluster.executor import Advance
from svp.encoders.encoder import Encoder, open_encoder
from svp.errors import InputError, TemporaryError


def cluster() -> distributed.LocalCluster:
    return distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
        host="127.0.0.1", memory_limit=0, silence_logs=50,
    )  # fmt: skip


def note(log: Path, word: str) -> None:
    with log.open("a") as stream:
        stream.write(word + "\n")


def noted(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


@dataclasses.dataclass(frozen=True)
class Squares:
    """Squares numbers; misbehaves once, or always, at the number `at`."""

    log: Path
    how: str = "well"
    at: int = 3

    def open(self) -> str:
        note(self.log, f"open-{os.getpid()}")
        return "ready"

    def run(self, state: str, part: int, advance: Advance) -> int:
        assert state == "ready"
        first = f"run-{part}" not in noted(self.log)
        note(self.log, f"run-{part}")
        if part == self.at:
            if self.how == "input":
                raise InputError("A number must be another one. Got this. Change it.")
            if self.how == "temporary" and first:
                raise TemporaryError("A disk must be there. Got none. Wait.")
            if self.how == "killed" and first:
                os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(200 if self.how == "slow" else 1):
            advance(1)
            time.sleep(0.01)
        return part * part


@dataclasses.dataclass(frozen=True)
class CountingView:
    """The plain image, slowly; writes down every image that is computed."""

    log: Path
    pause_s: float = 0.0

    def __call__(self, x_B3SS: torch.Tensor, digests_B32: object) -> torch.Tensor:
        time.sleep(self.pause_s)
        note(self.log, " ".join(digest.tobytes().hex() for digest in digests_B32))  # type: ignore[attr-defined]
        return x_B3SS


@dataclasses.dataclass(frozen=True)
class OpenMoved:
    """Opens an encoder whose network computes something else under the same identity.

    With a log only the first process that opens it does; the others open it as it is.
    """

    spec: str
    factor: float
    log: Path | None = None

    def __call__(self, *, device: str) -> Encoder:
        encoder = open_encoder(self.spec, device=device)
        if self.log is not None:
            try:
                self.log.touch(exist_ok=False)
            except FileExistsError:
                return encoder
        with torch.no_grad():
            next(encoder.module.parameters()).mul_(self.factor)
        return encoder


def numbers(read: list[int], most: int) -> Iterator[int]:
    for number in range(most):
        read.append(number)
        yield number
