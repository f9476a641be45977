"""A pod that runs one svp command, and what its exit code means to Airflow."""

from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.common.compat.sdk import AirflowException

from pipelines.airflow.outcome import check_exit


class SvpPodOperator(KubernetesPodOperator):
    """A pod of the svp image; tried again after exit code 75 and after a kill only."""

    def cleanup(self, pod: Any, remote_pod: Any, *args: Any, **kwargs: Any) -> None:
        """Clean up as Airflow does, then decide by the container's exit code."""
        try:
            super().cleanup(pod, remote_pod, *args, **kwargs)
        except AirflowException as error:
            # Evicted pods have no exit code: another try may help.
            check_exit(self.arguments[0], self._exit_code(remote_pod), str(error))
            raise

    def _exit_code(self, remote_pod: Any) -> int | None:
        for status in (remote_pod.status and remote_pod.status.container_statuses) or ():
            if status.name == self.base_container_name and status.state.terminated:
                return int(status.state.terminated.exit_code)
        return None
