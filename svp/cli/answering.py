"""`svp label`: answer in the browser."""

import sys
from typing import Annotated

import typer

from svp.cli.options import JsonOption, ResultFileOption, StudyArgument
from svp.cli.output import emit


def label(
    study: StudyArgument,
    number: Annotated[
        int | None, typer.Option("--round", min=0, help="The round; default: the newest.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class to offer besides the known ones. May be repeated."),
    ] = None,
    annotator: Annotated[
        str, typer.Option("--annotator", help="Who answers, kept with each answer.")
    ] = "",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port of the page; 0: a free one.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Whether to open the page.")
    ] = True,
    idle: Annotated[
        float | None,
        typer.Option("--idle", min=0, help="Stop after so many seconds without a request."),
    ] = None,
    as_json: JsonOption = False,
    result_file: ResultFileOption = None,
) -> None:
    """Label a round by keyboard, on a page that only this machine can open.

    Every answer is saved at once. Finish on the page, or stop with Ctrl-C.

    Example:

      svp label mystudy

      svp label mystudy --class cat --class dog --annotator ann
    """
    from svp.study.label import label_round
    from svp.study.study import Study

    def opened(url: str) -> None:
        # Not a log line: whoever reads it may label.
        print(f"Label here: {url}", file=sys.stderr, flush=True)
        if browser:
            import webbrowser

            webbrowser.open(url)

    done = label_round(
        Study.open(study),
        number=number,
        classes=classes or (),
        annotator=annotator,
        port=port,
        idle_s=idle,
        opened=opened,
    )
    emit(
        "svp.label/1",
        {"result": done},
        f"{done.answers:,} answers. Of round {done.round}, {done.labelled:,} images are labelled, "
        f"{done.waiting:,} wait.",
        as_json=as_json,
        result_file=result_file,
    )
