"""How a user names an encoder: `family:MODEL`, or a directory.

    open_clip:MODEL[/PRETRAINED][@PATH]    open_clip:ViT-B-32/laion2b_s34b_b79k
    timm:MODEL[@PATH]                      timm:resnet50.a1_in1k
    byol:ARCH@PATH[#online|target]         byol:resnet50@res50_byol_eman_200ep.pth.tar#online
    DIRECTORY                              what `svp pretrain` or a refresh wrote
    ...+DECODER                            any of them with another decoder: timm:resnet50+nvjpeg

Parsing imports no torch and opens no file but to see whether it exists.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

from svp.errors import InputError

FAMILIES: Final = ("open_clip", "timm", "byol")
BRANCHES: Final = ("online", "target")
DECODERS: Final = ("pillow", "pillow-reduced", "nvjpeg")
ENTRY_POINT_GROUP: Final = "svp.encoders"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """A parsed encoder name.

    Attributes:
        text: What the user wrote.
        family: One of `FAMILIES`, "folder", or the name of a plug-in.
        model: Architecture name; empty where `path` alone says it.
        pretrained: open_clip's tag of published weights, or None.
        path: Local weights, or None.
        branch: "online" or "target" of a two-network checkpoint, or None.
        decoder: What makes pixels of bytes, one of `DECODERS`; None: as the encoder itself says.
    """

    text: str
    family: str
    model: str
    pretrained: str | None = None
    path: Path | None = None
    branch: str | None = None
    decoder: str | None = None


def near_names(name: str, known: Iterable[str], count: int = 4) -> str:
    """Return the names like `name` as one phrase that ends a message."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)
    near += [low for low in by_lower if name and low.startswith(name.lower()) and low not in near]
    if not near:
        return "Run `svp encoders` for the names."
    return f"Near names: {', '.join(by_lower[low] for low in near[: 2 * count])}."


def plugins() -> dict[str, metadata.EntryPoint]:
    """Return the installed encoder plug-ins by family name, unloaded."""
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}


def split_decoder(text: str) -> tuple[str, str | None]:
    """Return an encoder name without its decoder, and the decoder if it names one.

    Only the names of decoders count, so that "+" may be part of a path.
    """
    head, mark, tail = text.rpartition("+")
    return (head, tail) if mark and tail in DECODERS else (text, None)


def _split_branch(text: str) -> tuple[str, str | None]:
    # A file may itself be called "x#1.pth"; the file that exists wins over the fragment.
    head, mark, tail = text.rpartition("#")
    if not mark or "/" in tail or Path(text).expanduser().exists():
        return text, None
    if tail not in BRANCHES:
        raise InputError(
            f"The branch behind '#' must be {' or '.join(BRANCHES)}. Got {tail!r} in {text!r}. "
            "Correct the branch, or the path if '#' belongs to it."
        )
    return head, tail


def _local(text: str, spec: str) -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        raise InputError(
            f"The weights of an encoder must exist. Got {text!r} in {spec!r}, which is no file or "
            "directory here. Correct the path behind '@'."
        )
    return path


def _parse_family(text: str, family: str, rest: str) -> EncoderSpec:
    # Model names never hold '@'; paths may, so the first one separates.
    name, at, location = rest.partition("@")
    name = name.strip()
    if at and not location:
        raise InputError(f"A path must follow '@'. Got {text!r}. Give the file with the weights.")
    branch: str | None = None
    if family == "byol" and location:
        location, branch = _split_branch(location)
    path = _local(location, text) if location else None
    pretrained: str | None = None
    if family == "open_clip" and "/" in name:
        name, _, pretrained = name.partition("/")
        if not pretrained:
            raise InputError(
                f"A tag must follow '/'. Got {text!r}. Name published weights, such as "
                "open_clip:ViT-B-32/laion2b_s34b_b79k."
            )
    if not name and not (family == "open_clip" and path is not None and path.is_dir()):
        raise InputError(
            f"An encoder must name its model. Got {text!r}. Write {family}:MODEL; "
            "`svp encoders` lists the names."
        )
    if family == "byol" and path is None:
        raise InputError(
            f"A byol encoder must name its checkpoint. Got {text!r}. Write byol:ARCH@PATH."
        )
    return EncoderSpec(
        text=text, family=family, model=name, pretrained=pretrained, path=path, branch=branch
    )


def _encoder_folders(folder: Path) -> list[str]:
    """Return the names of the encoder directories beside a directory that does not exist."""
    try:
        return [path.parent.name for path in folder.parent.glob("*/encoder.json")]
    except OSError:
        return []


def parse_spec(spec: str) -> EncoderSpec:
    """Parse an encoder name.

    Args:
        spec: See the module's table. A relative path counts from the working directory, `~` is
            the home directory.

    Returns:
        The parts. Whether the model exists is known only to its loader.

    Raises:
        InputError: If the text has no such form, or names a path that does not exist.
    """
    text, decoder = split_decoder(spec.strip())
    return dataclasses.replace(_parse(text), text=spec.strip(), decoder=decoder)


def _parse(text: str) -> EncoderSpec:
    if not text:
        raise InputError(
            "An encoder must be named. Got an empty text. Run `svp encoders` for what there is."
        )
    family, colon, rest = text.partition(":")
    if colon and (family in FAMILIES or family in plugins()):
        return _parse_family(text, family, rest)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return EncoderSpec(text=text, family="folder", model="", path=folder)
    known = (*FAMILIES, *plugins())
    if not colon or "/" in family:
        raise InputError(
            f"An encoder must be FAMILY:MODEL or an existing directory. Got {text!r}. "
            f"Families: {', '.join(known)}. {near_names(folder.name, _encoder_folders(folder))}"
        )
    raise InputError(
        f"The family of an encoder must be one of {', '.join(known)}. Got {family!r} in {text!r}. "
        f"{near_names(family, known)}"
    )
