"""The sensor between a selection and what needs its labels: deferred, so it holds no worker."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseSensorOperator

from pipelines.airflow.arguments import status_arguments
from pipelines.airflow.operator import publish
from pipelines.airflow.outcome import check_exit
from pipelines.airflow.trigger import LabelsTrigger


class LabelsReadySensor(BaseSensorOperator):
    """Waits until every image of a round has a label.

    Args:
        program: How the triggerer starts svp; it runs `labels status`, which needs the study's
            folder alone.
        study: The study's folder.
        round_number: The round; rendered. Empty: the newest.
        env: Variables of the process.
    """

    template_fields: Sequence[str] = ("round_number", "env")

    def __init__(
        self,
        *,
        program: Sequence[str],
        study: str,
        round_number: str = "",
        env: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.program = list(program)
        self.study = study
        self.round_number = round_number
        self.env = dict(env or {})

    def execute(self, context: Any) -> None:
        """Give the worker back until the labels are there."""
        del context
        self.defer(
            trigger=LabelsTrigger(
                command=[*self.program, *status_arguments(self.study, str(self.round_number))],
                poll_s=float(self.poke_interval),
                env=self.env,
            ),
            method_name="execute_complete",
            timeout=datetime.timedelta(seconds=self.timeout),
        )

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return how many labels there are; fail for good if svp could not say."""
        check_exit("labels status", event["exit_code"], event.get("said", ""))
        status: dict[str, Any] = dict(event["status"])
        publish(context, self.outlets, status)
        return status
