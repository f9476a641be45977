"""Seconds of the stages of a fine-tune."""

import time


class StageClock:
    """Wall seconds per stage, added up over interrupted runs."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = {"probe": 0.0, "train": 0.0, "predict": 0.0} | seconds
        self._stage, self._start = "", 0.0

    def measure(self, stage: str) -> "StageClock":
        """Charge a stage with the time inside `with`."""
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self.lap()

    def lap(self) -> None:
        """Add what went by since the last lap, so that `seconds` can be saved meanwhile."""
        moment = time.monotonic()
        self.seconds[self._stage] += moment - self._start
        self._start = moment
