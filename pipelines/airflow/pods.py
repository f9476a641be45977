"""Runs svp as pods of the svp image, through Airflow's Kubernetes provider."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pods:
    """How svp's pods look.

    The study's folder must be mounted at the same path in every pod.

    Attributes:
        image: The image that the repository's Dockerfile builds.
        env: Variables of the container.
        options: Further arguments of `KubernetesPodOperator`, such as `namespace`, `volumes`,
            `volume_mounts`, `container_resources` or `pod_template_file`.
        grace_s: Seconds between SIGTERM and SIGKILL; svp finishes a chunk meanwhile.
    """

    image: str
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grace_s: int = 120

    def task(self, arguments: Sequence[str], kept: Mapping[str, str], **options: Any) -> Any:
        """Return the operator of one command."""
        from pipelines.airflow.pod_operator import SvpPodOperator

        return SvpPodOperator(arguments=list(arguments), **self._settings(kept, options))

    def mapped(
        self, arguments: Sequence[Sequence[str]], kept: Mapping[str, str], **options: Any
    ) -> Any:
        """Return the operator of a command that is run once per entry of `arguments`."""
        from pipelines.airflow.pod_operator import SvpPodOperator

        return SvpPodOperator.partial(**self._settings(kept, options)).expand(
            arguments=[list(entry) for entry in arguments]
        )

    def _settings(self, kept: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
        del kept  # the result stays in its file: a pod sends no XCom
        return {
            "image": self.image,
            "env_vars": dict(self.env),
            "do_xcom_push": False,
            "termination_grace_period": self.grace_s,
            "name": f"svp-{options['task_id'].replace('_', '-')}",
            **self.options,
            **options,
        }
