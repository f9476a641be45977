"""How far off the plan was, said by every stage when it ends."""

from typing import TYPE_CHECKING

from svp.progress import automatic

if TYPE_CHECKING:
    from svp.study.study import Study


def say_deviation(study: "Study", stage: str | None = None) -> None:
    """Write on stderr how far off the study's plan was; nothing without a plan.

    Args:
        study: The study.
        stage: The stage that just ended, such as `embed`; None: all of them together.
    """
    from svp.study.planning import deviations, total_error

    found = deviations(study, stage)
    if stage is not None:
        for last in found[-1:]:
            automatic().say(f"{last.text}.")
    elif found:
        automatic().say(f"The plan was off by {total_error(found):+.0%} so far: svp plan --check")
