"""FiftyOne: a FiftyOneImageClassificationDataset to import, and what it exports.

The form is that of docs.voxel51.com/user_guide/import_datasets: `labels.json` with classes and a
class by name, `data.json` with the picture's path by the same name. The name is the item's id, so
nothing depends on file names. Guesses go into a file of their own, for another field: they must
not come back as answers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from svp.errors import InputError
from svp.label.answer import Answers, Label, Task
from svp.label.names import Names

GUESSES: Final = "svp proxy guesses"


def dataset_files(tasks: Sequence[Task], classes: Sequence[str]) -> dict[str, str]:
    """Return the dataset's files by name.

    `labels.json` holds the answers so far, `predictions.json` the guesses, `data.json` the paths
    of the pictures.
    """
    number = {name: index for index, name in enumerate(classes)}
    answers = {task.id: number[task.label] if task.label else None for task in tasks}
    guesses = {
        task.id: {
            "label": number[task.predicted],
            "confidence": task.confidence,
            "attributes": {"round": task.round, "rank": task.rank, "utility": task.utility},
        }
        for task in tasks
        if task.predicted is not None
    }
    head = {"classes": list(classes)}
    return {
        "labels.json": _text({**head, "labels": answers}),
        "predictions.json": _text({**head, "svp": GUESSES, "labels": guesses}),
        "data.json": _text({task.id: task.image for task in tasks}),
    }


def _text(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def is_export(document: Any) -> bool:
    """Return whether a JSON document looks like labels of FiftyOne."""
    return isinstance(document, dict) and (
        isinstance(document.get("labels"), dict) or isinstance(document.get("samples"), list)
    )


def read_export(
    document: Mapping[str, Any], names: Names, where: str, *, field: str | None = None
) -> Answers:
    """Read `labels.json` of a classification dataset, or `samples.json` of a FiftyOneDataset.

    Args:
        document: Its content.
        names: The study's items; a sample with a field `svp_id` says itself which one it is.
        where: What to call it in errors.
        field: The field of a sample with the answers; default `ground_truth`, else the only one.

    Raises:
        InputError: It holds guesses of svp, the field is not clear, or a value is malformed.
    """
    if document.get("svp") == GUESSES:
        raise InputError(
            f"A file of answers must hold people's answers. Got the proxy's guesses in {where}. "
            "Export the field that people labelled."
        )
    try:
        if "samples" in document:
            given = _samples(document["samples"], names, where, field)
        else:
            classes = document.get("classes") or ()
            given = [
                (names.of_path(name), _label(value, classes))
                for name, value in document["labels"].items()
            ]
    except (AttributeError, TypeError, KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"A FiftyOne file must be as FiftyOne exports it. Got {where} "
            f"({type(error).__name__}: {error}). Export it again."
        ) from error
    labels = tuple(Label(id=identifier, label=label) for identifier, label in given if label)
    return Answers(labels=labels, blank=len(given) - len(labels))


def _label(value: Any, classes: Sequence[str]) -> str:
    if isinstance(value, list):
        if len(value) > 1:
            raise ValueError(f"several classes for one image: {value}")
        value = value[0] if value else None
    if isinstance(value, Mapping):
        value = value.get("label")
    if value is None:
        return ""
    if isinstance(value, int) and classes:
        if value < 0:
            raise ValueError(f"a class numbered {value}")
        value = classes[value]
    return str(value).strip()


def _samples(
    samples: Sequence[Mapping[str, Any]], names: Names, where: str, field: str | None
) -> list[tuple[str, str]]:
    present = sorted(
        {
            name
            for sample in samples
            for name, value in sample.items()
            if isinstance(value, Mapping) and value.get("_cls") == "Classification"
        }
    )
    if field is None:
        field = "ground_truth" if "ground_truth" in present else None
        if field is None and len(present) > 1:
            raise InputError(
                f"Samples must have one field of classes. Got {', '.join(present)} in {where}. "
                "Name the one that people labelled with --field."
            )
        field = field or (present[0] if present else "ground_truth")
    return [
        (
            str(sample.get("svp_id") or names.of_path(sample["filepath"])),
            _label(sample.get(field), ()),
        )
        for sample in samples
    ]
