"""CVAT: "CVAT for images 1.1", whose tags are classes of whole images.

The form is that of docs.cvat.ai/docs/other/xml_format. CVAT keeps the name of an image, which is
the item's id. Guesses are not written: CVAT has no place for them but the answers.
"""

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from svp.errors import InputError
from svp.label.answer import Answers, Label, Task
from svp.label.names import Names

_MEMBER: Final = "annotations.xml"
# Of one file; an image takes about 200 bytes.
MAX_BYTES: Final = 2**30


def annotations_xml(tasks: Sequence[Task], classes: Iterable[str]) -> str:
    """Return the images and the labels so far, in the order to label."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    lines += ["  <meta>", "    <task>", f"      <size>{len(tasks)}</size>"]
    lines += ["      <mode>annotation</mode>", "      <labels>"]
    lines += [
        f"        <label><name>{escape(name)}</name><type>tag</type><attributes/></label>"
        for name in classes
    ]
    lines += ["      </labels>", "    </task>", "  </meta>"]
    for number, task in enumerate(tasks):
        size = "" if task.size is None else f' width="{task.size[0]}" height="{task.size[1]}"'
        opening = f'  <image id="{number}" name={quoteattr(task.id)}{size}'
        if not task.label:
            lines.append(f"{opening}/>")
            continue
        lines += [
            f"{opening}>",
            f'    <tag label={quoteattr(task.label)} source="manual"/>',
            "  </image>",
        ]
    return "\n".join([*lines, "</annotations>", ""])


def read_xml(path: Path, names: Names) -> Answers:
    """Read an export: the XML file, or the archive that CVAT wraps it in.

    Raises:
        InputError: It is no such file, an image has several tags, or a name is ambiguous.
    """
    parser = expat.ParserCreate()
    images: list[tuple[str, list[str]]] = []
    depth: list[str] = []

    def refuse(*_: object) -> None:
        raise InputError(
            f"A CVAT file must have no document type. Got one in {path}. Export it again."
        )

    def start(tag: str, attributes: dict[str, str]) -> None:
        if not depth and tag != "annotations":
            raise InputError(
                f"A CVAT file must hold <annotations>. Got <{tag}> in {path}. "
                'Export it as "CVAT for images 1.1".'
            )
        if depth == ["annotations"] and tag == "track":
            raise InputError(
                f"A CVAT file must be of images. Got one of a video in {path}. "
                'Export it as "CVAT for images 1.1".'
            )
        if depth == ["annotations"] and tag == "image":
            images.append((attributes["name"], []))
        elif depth == ["annotations", "image"] and tag == "tag":
            images[-1][1].append(attributes["label"].strip())
        depth.append(tag)

    def end(_: str) -> None:
        depth.pop()

    # Entities can blow a small file up, and name files of this machine.
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    try:
        parser.Parse(_bytes(path), True)
    except (expat.ExpatError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(
            f"A CVAT file must be XML as CVAT exports it. Got {path} "
            f"({type(error).__name__}: {error}). Export it again."
        ) from error
    labels = []
    for name, tags in images:
        chosen = sorted(set(tags))
        if len(chosen) > 1:
            raise InputError(
                f"An answer must be one class. Got {', '.join(chosen)} for {name} in {path}. "
                "svp learns one class per image: remove a tag; nothing was imported."
            )
        if chosen:
            labels.append(Label(id=names.of_path(name), label=chosen[0]))
    return Answers(labels=tuple(labels), blank=len(images) - len(labels))


def _bytes(path: Path) -> bytes:
    data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    if data is not None and data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_MEMBER) as member:
            data = member.read(MAX_BYTES + 1)
    if data is None or len(data) > MAX_BYTES:
        raise InputError(
            f"A CVAT file must have at most {MAX_BYTES:,} bytes. Got more in {path}. Split the job."
        )
    return data
