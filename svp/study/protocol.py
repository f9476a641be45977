"""Protocols of published studies, as files: which data, which budgets, which recipes.

The files are in `svp/study/protocols`, one per paper and data set; a file of one's own works the
same way. What a file cannot reproduce is said in its `notes`.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from svp.errors import InputError
from svp.study.cells import SimulationConfig
from svp.study.config import DataSection, EncoderSection, FinetuneSection, StoreSection, StudyConfig
from svp.study.study import Study
from svp.study.tables import from_table, near_names


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PublishedData:
    """The data set of a protocol.

    Attributes:
        name: Its name.
        items: Images to choose from.
        test: Images to test on.
        classes: Classes.
        download: Where it is.
        layout: Examples of files in the folder to pass as `--source`.
    """

    name: str
    items: int
    test: int
    classes: int
    download: str
    layout: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PublishedEncoder:
    """The network of a protocol.

    Attributes:
        published: What the paper used, in words.
        suggested: A spec for `--encoder`.
        views: Renderings to embed.
    """

    published: str
    suggested: str
    views: tuple[str, ...] = ("eval",)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """A published study.

    Attributes:
        title: In a few words.
        paper: Authors, year, title.
        metrics: Columns of the results that the paper reports.
        notes: What differs, and what to know.
        dataset: Which images.
        encoder: Which network.
        simulation: Budgets, seeds, strategies and recipes of the proxies.
        finetune: Recipe of the final training, as under [finetune] of a study.
    """

    title: str
    paper: str
    metrics: tuple[str, ...]
    notes: tuple[str, ...] = ()
    dataset: PublishedData
    encoder: PublishedEncoder
    simulation: SimulationConfig
    finetune: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def protocol_names() -> tuple[str, ...]:
    """Return the names of the protocols that come with svp."""
    folder = resources.files("svp.study") / "protocols"
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml")))


def read_protocol(name: str) -> Protocol:
    """Read a protocol that comes with svp by its name, or a user's own by its path.

    Raises:
        InputError: There is none of that name, or the file is wrong.
    """
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"A protocol must be a TOML file that can be read. Got {name}: {error}. "
                "Correct the path."
            ) from error
    else:
        known = protocol_names()
        if name not in known:
            raise InputError(
                f"A protocol must be one of svp's or a .toml file. Got {name!r}. "
                f"{near_names(name, known)} `svp protocols` lists them."
            )
        file = resources.files("svp.study") / "protocols" / f"{name}.toml"
        text = file.read_text(encoding="utf-8")
    try:
        return from_table(Protocol, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} must be TOML. Got: {error}. Correct that line.") from error
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def needs(protocol: Protocol, name: str) -> str:
    """Return what to download for a protocol, how to lay it out, and the command then."""
    data, encoder = protocol.dataset, protocol.encoder
    return (
        f"Images: download {data.name} from {data.download}: {data.items:,} to choose from and "
        f"{data.test:,} to test on.\n"
        f"Layout: {data.classes} class folders each, as DIR/{', DIR/'.join(data.layout)}; or a "
        "manifest with columns path, label, split.\n"
        f"Encoder: the paper's is {encoder.published}; --encoder {encoder.suggested}\n"
        f"Then: svp simulate --protocol {name} --source DIR --encoder {encoder.suggested} "
        "--store STORE"
    )


def open_protocol_study(
    protocol: Protocol,
    name: str,
    folder: Path,
    *,
    source: tuple[str, ...],
    encoder: str | None,
    store: str | None,
) -> Study:
    """Return the study that runs a protocol: the one in `folder`, or a new one.

    Raises:
        InputError: There is no study yet and something to make it of is missing; the message says
            what to download.
    """
    if (folder / "study.toml").is_file() and not source:
        return Study.open(folder)
    missing = [
        option
        for option, value in (("--source", source), ("--encoder", encoder), ("--store", store))
        if not value
    ]
    if missing:
        raise InputError(
            f"The protocol {name} must be given its data. Got no {', '.join(missing)}.\n"
            f"{needs(protocol, name)}"
        )
    from svp.data.opening import source_exists

    absent = [text for text in source if not source_exists(text)]
    if absent:
        raise InputError(
            f"The protocol {name} must have its data in place. Got {', '.join(absent)}, which is "
            f"not there.\n{needs(protocol, name)}"
        )
    if (folder / "study.toml").is_file():
        return Study.open(folder)
    return Study.create(
        folder,
        StudyConfig(
            name=protocol.title,
            data=DataSection(source=source),
            encoder=EncoderSection(spec=str(encoder), views=protocol.encoder.views),
            store=StoreSection(url=str(store)),
            finetune=FinetuneSection(options=protocol.finetune),
        ),
    )
