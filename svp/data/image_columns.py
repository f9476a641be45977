"""Which columns of an Arrow table hold image, label and group, and what a label is called.

Tables that the `datasets` library wrote say so themselves (features `Image` and `ClassLabel` in
the schema's metadata); others are read by type and name.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from svp.errors import InputError

_METADATA_KEY: Final = b"huggingface"
_IMAGE_NAMES: Final = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_LABEL_NAMES: Final = ("label", "labels", "class", "cls")
_GROUP_NAME: Final = "group"
Features = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImageColumns:
    """The columns of one table that svp reads.

    Attributes:
        image: Name of the image column: binary, or a struct of `bytes` and `path`.
        has_path: Whether the image says a path, too.
        label: Name of the label column, or None.
        classes: Class names by number, or None where labels are texts or bare numbers.
        group: Name of the group column, or None.
        other_labels: Further class columns, which are not read.
    """

    image: str
    has_path: bool
    label: str | None
    classes: tuple[str, ...] | None
    group: str | None
    other_labels: tuple[str, ...] = ()

    def label_text(self, value: Any) -> str | None:
        """Return a label cell as a class name; None for no label (null, or -1 by number)."""
        if value is None or (self.classes is not None and value == -1):
            return None
        if self.classes is not None and isinstance(value, int):
            return self.classes[value] if 0 <= value < len(self.classes) else str(value)
        return str(value).strip() or None


def image_columns(schema: Any, features: Features | None, where: str) -> ImageColumns:
    """Recognise the columns of a table.

    Args:
        schema: Its `pyarrow.Schema`.
        features: What `datasets` says of the columns, where the schema itself does not.
        where: The file, for messages.

    Raises:
        InputError: If no column holds images, or several may.
    """
    features = _features(schema) or features or {}
    fields = {field.name: field.type for field in schema}
    holding = {name: kind for name, kind in fields.items() if _holds_images(kind)}
    said = [name for name, one in features.items() if one.get("_type") == "Image"]
    image = _one([name for name in said if name in holding] or list(holding), _IMAGE_NAMES)
    if image is None:
        raise InputError(
            "A table of images must have one column of encoded images (binary, or a struct with "
            f"bytes), called image if there are several. Got {', '.join(holding) or 'none'} among "
            f"{', '.join(fields) or 'no columns'} in {where}. Rename or drop columns."
        )
    classes = [
        name
        for name, one in features.items()
        if one.get("_type") == "ClassLabel" and name in fields
    ]
    plain = [name for name in _LABEL_NAMES if name in fields and _holds_labels(fields[name])]
    label = next(iter([name for name in _LABEL_NAMES if name in classes] or classes or plain), None)
    return ImageColumns(
        image=image,
        has_path=_is_struct(fields[image]) and fields[image].get_field_index("path") >= 0,
        label=label,
        classes=_class_names(features[label], where) if label in classes and label else None,
        group=_GROUP_NAME if _GROUP_NAME in fields else None,
        other_labels=tuple(name for name in classes if name != label),
    )


def has_images(schema: Any) -> bool:
    """Return whether some column of a table may hold encoded images."""
    return any(_holds_images(field.type) for field in schema)


def _features(schema: Any) -> Features | None:
    try:
        held = json.loads((schema.metadata or {})[_METADATA_KEY])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return None
    return checked_features(held)


def checked_features(held: Any) -> Features | None:
    """Return what `datasets` wrote as features if it has the form of it, else None."""
    if not isinstance(held, dict):
        return None
    return {str(name): one for name, one in held.items() if isinstance(one, dict)}


def _class_names(feature: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    names = feature.get("names")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"Class names must be a list of texts. Got {type(names).__name__} in the features of "
            f"{where}. Save the data set again."
        )
    return tuple(names)


def _one(names: Sequence[str], preferred: Sequence[str]) -> str | None:
    if len(names) == 1:
        return names[0]
    return next((name for name in preferred if name in names), None)


def _is_struct(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(kind))


def _holds_images(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_images(kind.field(at).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))
