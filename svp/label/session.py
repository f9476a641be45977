"""The state behind the labelling page: which items, what was answered, how to take it back."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from svp.label.answer import Task

MAX_CLASS_LENGTH: Final = 200
MAX_CLASSES: Final = 1000


class RefusedError(ValueError):
    """What the page asked for cannot be: an unknown rank, an empty class."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    place: int
    label: str
    skipped: bool


class Session:
    """Labels one round. Every change is saved before it is known here; methods are thread-safe.

    Args:
        tasks: The items, in the order to label; their `label` is the answer so far.
        classes: Classes to offer first. New ones are added behind, so keys never move.
        save: Makes an answer last: item and label, an empty label takes it back. May raise OSError;
            nothing has changed then.
        skipped: Ids that were skipped before.
        save_skip: Makes it last that an item is skipped, or not any more.
        title: What is labelled, for people.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        classes: Sequence[str],
        *,
        save: Callable[[str, str], None],
        skipped: Sequence[str] = (),
        save_skip: Callable[[str, bool], None] = lambda name, skip: None,
        title: str = "",
    ) -> None:
        self.tasks = tuple(tasks)
        self.title = title
        self._places = {task.rank: place for place, task in enumerate(self.tasks)}
        self.answers = 0
        self._labels = [task.label for task in tasks]
        before = set(skipped)
        self._skipped = [task.id in before and not task.label for task in tasks]
        self._classes = list(classes)
        self._save, self._save_skip = save, save_skip
        self._steps: list[_Step] = []
        self._lock = threading.Lock()

    def place(self, rank: object) -> int:
        """Return the place of the item of this rank.

        Raises:
            RefusedError: There is none.
        """
        if isinstance(rank, int) and rank in self._places:
            return self._places[rank]
        raise RefusedError(f"no image has rank {rank!r}")

    def state(self) -> dict[str, Any]:
        """Return all that the page shows, without guesses and without names of files."""
        with self._lock:
            return {
                "title": self.title,
                "items": [self._item(place) for place in range(len(self.tasks))],
                **self._summary(),
            }

    def guess(self, rank: object) -> dict[str, Any]:
        """Return the proxy's guess for one item."""
        task = self.tasks[self.place(rank)]
        return {"predicted": task.predicted, "confidence": task.confidence}

    def answer(self, rank: object, label: object) -> dict[str, Any]:
        """Label an item; return what changed.

        Raises:
            RefusedError: The rank is unknown or the label is no class name.
            OSError: It could not be saved.
        """
        place = self.place(rank)
        name = " ".join(label.split()) if isinstance(label, str) else ""
        if not name or len(name) > MAX_CLASS_LENGTH or not name.isprintable():
            raise RefusedError(f"a class must have 1 to {MAX_CLASS_LENGTH} printable characters")
        with self._lock:
            if name not in self._classes and len(self._classes) >= MAX_CLASSES:
                raise RefusedError(f"at most {MAX_CLASSES} classes")
            self._change(place, label=name, skipped=False)
            self.answers += 1
            if name not in self._classes:
                self._classes.append(name)
            return {"item": self._item(place), **self._summary()}

    def skip(self, rank: object) -> dict[str, Any]:
        """Leave an item for later; return what changed. An answer it has stays."""
        place = self.place(rank)
        with self._lock:
            if not self._labels[place]:
                self._change(place, label="", skipped=True)
            return {"item": self._item(place), **self._summary()}

    def undo(self) -> dict[str, Any]:
        """Take the last answer or skip back; return what changed, `item` None if there is none."""
        with self._lock:
            if not self._steps:
                return {"item": None, **self._summary()}
            step = self._steps[-1]
            self._store(step.place, step.label, step.skipped)
            self._steps.pop()
            return {"item": self._item(step.place), **self._summary()}

    def _change(self, place: int, *, label: str, skipped: bool) -> None:
        step = _Step(place=place, label=self._labels[place], skipped=self._skipped[place])
        if (step.label, step.skipped) == (label, skipped):
            return
        self._store(place, label, skipped)
        self._steps.append(step)

    def _store(self, place: int, label: str, skipped: bool) -> None:
        name = self.tasks[place].id
        # On disk first: what the page shows as saved is saved.
        if label != self._labels[place]:
            self._save(name, label)
            self._labels[place] = label
        if skipped != self._skipped[place]:
            self._save_skip(name, skipped)
            self._skipped[place] = skipped

    def _item(self, place: int) -> dict[str, Any]:
        task = self.tasks[place]
        return {
            "rank": task.rank,
            "reason": task.reason,
            "label": self._labels[place],
            "skipped": self._skipped[place],
        }

    def _summary(self) -> dict[str, Any]:
        labelled = sum(map(bool, self._labels))
        return {
            "classes": list(self._classes),
            "labelled": labelled,
            "skipped": sum(self._skipped),
            "total": len(self.tasks),
            "undoable": bool(self._steps),
        }
