"""Label Studio: tasks to import, the page's configuration, and the answers it exports.

The forms are those of Label Studio 1.x: tasks with `data` and `predictions`
(labelstud.io/guide/tasks, /guide/predictions), exports in JSON and JSON-MIN (/guide/export).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import quoteattr

from svp.errors import InputError
from svp.label.answer import Answers, Label, Task, moment
from svp.label.names import Names

# Names of the control and of the picture in the labelling configuration.
CONTROL: Final = "label"
PICTURE: Final = "image"
_UPLOAD_PREFIX: Final = 9  # Label Studio puts eight digits and a hyphen before an uploaded file


def tasks_json(tasks: Iterable[Task], *, version: str) -> str:
    """Return tasks for Label Studio's import, in the order to label.

    Args:
        tasks: The items.
        version: What to call the proxy whose guesses come along as predictions.
    """
    return json.dumps([_task(task, version) for task in tasks], indent=1, ensure_ascii=False) + "\n"


def _task(task: Task, version: str) -> dict[str, Any]:
    written: dict[str, Any] = {
        "data": {
            PICTURE: task.image,
            "svp_id": task.id,
            "svp_digest": task.digest,
            "round": task.round,
            "rank": task.rank,
            "utility": task.utility,
            "reason": task.reason,
            "strategy": task.strategy,
        }
    }
    if task.predicted is not None:
        result = {
            "from_name": CONTROL,
            "to_name": PICTURE,
            "type": "choices",
            "value": {"choices": [task.predicted]},
        }
        written["predictions"] = [
            {"model_version": version, "score": task.confidence, "result": [result]}
        ]
    return written


def labelling_config(classes: Sequence[str]) -> str:
    """Return the labelling configuration for a project: one picture, one choice.

    Keys 1 to 9 are the first nine classes.
    """
    choices = "\n".join(
        f"    <Choice value={quoteattr(name)}{_hotkey(number)}/>"
        for number, name in enumerate(classes, start=1)
    )
    return (
        "<View>\n"
        f'  <Image name="{PICTURE}" value="${PICTURE}"/>\n'
        f'  <Choices name="{CONTROL}" toName="{PICTURE}" choice="single-radio"'
        ' required="true">\n'
        f"{choices}\n"
        "  </Choices>\n"
        "</View>\n"
    )


def _hotkey(number: int) -> str:
    return f' hotkey="{number}"' if number <= 9 else ""


def is_export(document: Any) -> bool:
    """Return whether a JSON document looks like tasks of Label Studio."""
    return (
        isinstance(document, list)
        and bool(document)
        and all(isinstance(task, dict) for task in document)
        and any("annotations" in task or "annotator" in task or "data" in task for task in document)
    )


def read_export(document: Sequence[Mapping[str, Any]], names: Names, where: str) -> Answers:
    """Read an export, JSON or JSON-MIN.

    A cancelled annotation and one without a choice count as skipped; predictions are no answers.

    Raises:
        InputError: A task's image is ambiguous, or an annotation has several choices.
    """
    labels: list[Label] = []
    blank = skipped = 0
    for number, task in enumerate(document, start=1):
        place = f"task {task.get('id', number)} of {where}"
        try:
            given = _annotations(task)
            answered = False
            for annotation in given:
                label = None if annotation.get("was_cancelled") else _choice(annotation, place)
                if label is None:
                    skipped += 1
                    continue
                answered = True
                labels.append(
                    Label(
                        id=_item(task, names),
                        label=label,
                        annotator=_annotator(annotation),
                        labeled_at=_time(annotation),
                    )
                )
            blank += not answered and not given
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"A task must be as Label Studio exports it. Got {place} "
                f"({type(error).__name__}: {error}). Export it again as JSON."
            ) from error
    return Answers(labels=tuple(labels), blank=blank, skipped=skipped)


def _annotations(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "data" in task:
        # Old exports call them completions.
        return [*(task.get("annotations") or task.get("completions") or ())]
    value = task.get(CONTROL)
    if value in (None, ""):
        return []
    chosen = value.get("choices") if isinstance(value, Mapping) else value
    choices = chosen if isinstance(chosen, list) else [chosen]
    result = {"type": "choices", "from_name": CONTROL, "value": {"choices": choices}}
    return [
        {
            "result": [result],
            "completed_by": task.get("annotator"),
            "updated_at": task.get("updated_at"),
        }
    ]


def _choice(annotation: Mapping[str, Any], place: str) -> str | None:
    results = [part for part in annotation.get("result") or () if part.get("type") == "choices"]
    own = [part for part in results if part.get("from_name") == CONTROL]
    chosen = {str(choice).strip() for part in own or results for choice in part["value"]["choices"]}
    if len(chosen) > 1:
        raise InputError(
            f"An answer must be one class. Got {', '.join(sorted(chosen))} in {place}. "
            "svp learns one class per image: use a single choice; nothing was imported."
        )
    return next(iter(chosen), None) or None


def _annotator(annotation: Mapping[str, Any]) -> str:
    by = annotation.get("completed_by")
    if isinstance(by, Mapping):
        by = by.get("email") or by.get("id")
    return "" if by is None else str(by)


def _time(annotation: Mapping[str, Any]) -> str:
    text = str(annotation.get("updated_at") or annotation.get("created_at") or "")
    moment(text)
    return text


def _item(task: Mapping[str, Any], names: Names) -> str:
    data = task.get("data", task)
    own = data.get("svp_id")
    if own is not None:
        return str(own)
    of_digest = names.of_digest(str(data.get("svp_digest", "")))
    if of_digest is not None:
        return of_digest
    image = str(data[PICTURE])
    parts = urlsplit(image)
    inner = parse_qs(parts.query).get("d")
    path = inner[0] if inner else unquote(parts.path)
    found = names.of_path(path)
    if found not in names:
        last = path.rpartition("/")[2]
        if len(last) > _UPLOAD_PREFIX and last[_UPLOAD_PREFIX - 1] == "-":
            return names.of_path(last[_UPLOAD_PREFIX:])
    return found
