"""Waits for people inside Airflow's triggerer, by asking svp in its own environment."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from airflow.triggers.base import BaseTrigger, TriggerEvent

from pipelines.airflow.operator import process_environment
from pipelines.stages import worth_another_try

_PATIENCE_S: Final = 300.0  # for one answer of `svp labels status`


class LabelsTrigger(BaseTrigger):
    """Fires when every image of a round has a label, or when the question itself is wrong.

    Args:
        command: `svp labels status STUDY --json`, as this machine starts it.
        poll_s: Seconds between two looks.
        env: Variables of the process.
    """

    def __init__(self, command: Sequence[str], poll_s: float, env: Mapping[str, str]) -> None:
        super().__init__()
        self.command = list(command)
        self.poll_s = poll_s
        self.env = dict(env)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what another process needs to make the same trigger."""
        return (
            "pipelines.airflow.trigger.LabelsTrigger",
            {"command": self.command, "poll_s": self.poll_s, "env": self.env},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look again and again; yield one event."""
        while True:
            exit_code, out, said = await self._ask()
            if exit_code == 0:
                status = json.loads(out)["status"]
                counts = (status["round"], status["labelled"], status["selected"])
                self.log.info("Round %s: %s of %s images are labelled", *counts)
                if status["complete"]:
                    yield TriggerEvent({"exit_code": 0, "status": status})
                    return
            elif not worth_another_try(exit_code):
                yield TriggerEvent({"exit_code": exit_code, "said": said})
                return
            await asyncio.sleep(self.poll_s)

    async def _ask(self) -> tuple[int, str, str]:
        """Return exit code, stdout and the last line of stderr."""
        process = await asyncio.create_subprocess_exec(
            *self.command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=process_environment(self.env),
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), _PATIENCE_S)
        except TimeoutError:
            return 75, "", "no answer in time"
        finally:
            if process.returncode is None:
                process.kill()
        lines = err.decode(errors="replace").strip().splitlines()
        return process.returncode or 0, out.decode(errors="replace"), lines[-1] if lines else ""
