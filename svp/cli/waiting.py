"""`svp labels status`: is a round labelled?"""

from typing import Annotated

import typer

from svp.cli.labelling import labels_app
from svp.cli.options import JsonOption, ResultFileOption, StudyArgument
from svp.cli.output import emit

__all__ = ["labels_app"]


@labels_app.command("status")
def status(
    study: StudyArgument,
    number: Annotated[
        int | None, typer.Option("--round", min=0, help="The round; default: the newest.")
    ] = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Say how many images of a round have a label. Cheap: it reads a few small files.

    Example:

      svp labels status mystudy --json
    """
    from svp.study.study import Study
    from svp.study.waiting import label_status

    found = label_status(Study.open(study), number)
    state = "is labelled" if found.complete else f"waits for {found.waiting:,}"
    emit(
        "svp.labels.status/1",
        {"status": found},
        f"Round {found.round} {state}: {found.labelled:,} of {found.selected:,} images have a "
        f"label. The study has {found.labels:,}.",
        as_json=as_json,
        result_file=result_file,
    )
