"""Runs svp as a process of the worker: another environment, or a prefix such as `docker run`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from svp.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """How a worker starts svp.

    Attributes:
        command: Program and first arguments: `("/opt/svp/bin/svp",)`, or a prefix that ends in
            the image's name, such as `("docker", "run", "--rm", "-v", "/srv:/srv", "svp")`.
        env: Variables of the process, such as `CUDA_VISIBLE_DEVICES`.
    """

    command: Sequence[str] = ("svp",)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.command, str) or not self.command or not all(self.command):
            raise InputError(
                f"command must be words that start svp. Got {self.command!r}. "
                'Write command=("svp",).'
            )

    def task(self, arguments: Sequence[str], kept: Mapping[str, str], **options: Any) -> Any:
        """Return the operator of one command."""
        from pipelines.airflow.operator import SvpOperator

        return SvpOperator(
            program=self.command, env=self.env, arguments=arguments, kept=kept, **options
        )

    def mapped(
        self, arguments: Sequence[Sequence[str]], kept: Mapping[str, str], **options: Any
    ) -> Any:
        """Return the operator of a command that is run once per entry of `arguments`."""
        from pipelines.airflow.operator import SvpOperator

        return SvpOperator.partial(program=self.command, env=self.env, kept=kept, **options).expand(
            arguments=[list(entry) for entry in arguments]
        )
