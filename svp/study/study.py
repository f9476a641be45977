"""A study on disk: a folder of plain files, and nothing else holds state.

```
study.toml                   configuration
encoder.json                 which embeddings `svp embed` made last: encoder id, pool id
labels/*.csv                 imports, append-only
rounds/000/                  selection.csv, selection.parquet, proxy.safetensors, round.json (last)
refreshes/001/               model, encoder, refresh.json (last): features computed anew
simulation/<digest>/         cells, results.csv, summary.json
model/                       the fine-tuned model
```
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_store.atomic import create_bytes
from svp.encoders.spec import split_decoder
from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.study.config import STUDY_FILE, StudyConfig, read_study_toml, write_study_toml

if TYPE_CHECKING:
    from feature_store.store import FeatureStore
    from svp.data.source import Scan, Source


def _is_url(text: str) -> bool:
    return "://" in text


def _relative(text: str, folder: Path) -> str:
    """Return a path of the caller's as the study file should name it.

    Relative inside the study's folder or beside it, so that both move together; else absolute.
    """
    if _is_url(text):
        return text
    target = Path(text).expanduser().resolve()
    relative = os.path.relpath(target, folder.resolve())
    parts = Path(relative).parts
    return str(target) if parts[:2] == ("..", "..") else Path(relative).as_posix()


def _spec_path(spec: str) -> tuple[str, str, str]:
    """Split an encoder spec around the path inside it: (before, path, after)."""
    base, _ = split_decoder(spec)
    decoder = spec[len(base) :]
    family, colon, rest = base.partition(":")
    if not colon or "/" in family:
        return "", base, decoder
    name, at, path = rest.partition("@")
    branch = next((mark for mark in ("#online", "#target") if path.endswith(mark)), "")
    return f"{family}:{name}{at}", path.removesuffix(branch), branch + decoder


def absolute_spec(spec: str) -> str:
    """Return an encoder spec whose path, if there is one, is absolute."""
    before, path, after = _spec_path(spec)
    if path and Path(path).expanduser().exists():
        path = str(Path(path).expanduser().resolve())
    return before + path + after


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """One labelling campaign: its folder and its configuration."""

    path: Path
    config: StudyConfig

    @classmethod
    def create(cls, directory: str | Path, config: StudyConfig) -> "Study":
        """Write a new study.

        Args:
            directory: Its folder; made if it is not there.
            config: Its configuration, with paths as the caller sees them (relative to the
                working directory); the study file names them relative to itself.

        Raises:
            InputError: There is a study already, or a source does not exist.
            StoreInputError: The store's path cannot become a store.
        """
        folder = Path(directory)
        if (folder / STUDY_FILE).exists():
            raise InputError(
                f"A new study must have a folder of its own. Got {folder}, which holds one. "
                f"Choose another folder, or edit {folder / STUDY_FILE}."
            )
        if folder.exists() and not folder.is_dir():
            raise InputError(f"A study must be a folder. Got the file {folder}. Choose another.")
        from svp.data.opening import source_exists

        for text in config.data.source:
            if not source_exists(text):
                raise InputError(
                    f"A source must be a folder, manifest or archive that exists. Got {text}. "
                    "Correct the path."
                )
        from svp.encoders.spec import parse_spec

        parse_spec(config.encoder.spec)
        if not _is_url(config.store.url):
            from feature_store.store import check_place

            check_place(config.store.url)
        before, path, after = _spec_path(config.encoder.spec)
        if path:
            path = _relative(path, folder)
        root = config.data.root
        written = dataclasses.replace(
            config,
            data=dataclasses.replace(
                config.data,
                source=tuple(_relative(text, folder) for text in config.data.source),
                root=None if root is None else _relative(root, folder),
            ),
            encoder=dataclasses.replace(config.encoder, spec=before + path + after),
            store=dataclasses.replace(config.store, url=_relative(config.store.url, folder)),
        )
        folder.mkdir(parents=True, exist_ok=True)
        if not create_bytes(folder / STUDY_FILE, write_study_toml(written).encode()):
            raise InputError(
                f"A new study must have a folder of its own. Got {folder}, which holds one. "
                "Choose another folder."
            )
        return cls.open(folder)

    @classmethod
    def open(cls, directory: str | Path, overrides: Mapping[str, Any] | None = None) -> "Study":
        """Open the study in `directory`; `overrides` are values by dotted key that win.

        The environment's SVP_STORE wins over the file's `store.url`, for every command alike.

        Raises:
            InputError: There is no study, or its file is wrong.
        """
        folder = Path(directory)
        if folder.name == STUDY_FILE:
            folder = folder.parent
        path = folder / STUDY_FILE
        if not path.is_file():
            raise InputError(
                f"A study must be a folder with a {STUDY_FILE}. Got {folder}, which has none. "
                f"Make it: svp init {folder} --source DIR --encoder SPEC --store URL"
            )
        environment = {}
        if store := os.environ.get("SVP_STORE"):
            absolute = store if _is_url(store) else str(Path(store).expanduser().resolve())
            environment["store.url"] = absolute
        return cls(path=folder, config=read_study_toml(path, {**environment, **(overrides or {})}))

    @property
    def labels_dir(self) -> Path:
        """Folder of label imports."""
        return self.path / "labels"

    @property
    def rounds_dir(self) -> Path:
        """Folder of rounds."""
        return self.path / "rounds"

    @property
    def refreshes_dir(self) -> Path:
        """Folder of refreshes."""
        return self.path / "refreshes"

    @property
    def model_dir(self) -> Path:
        """Folder of the fine-tuned model."""
        return self.path / "model"

    @property
    def simulation_dir(self) -> Path:
        """Folder of simulations."""
        return self.path / "simulation"

    def located(self, text: str) -> str:
        """Return a path of the study file as the working directory sees it; URLs unchanged."""
        if _is_url(text):
            return text
        path = Path(text).expanduser()
        # Resolved, so that studies beside each other name their shared images alike.
        return str(path if path.is_absolute() else (self.path / path).resolve())

    @property
    def store_url(self) -> str:
        """Where embeddings are kept."""
        return self.located(self.config.store.url)

    @property
    def encoder_spec(self) -> str:
        """The encoder spec, with the path inside it resolved against the study's folder."""
        before, path, after = _spec_path(self.config.encoder.spec)
        if path and (self.path / Path(path).expanduser()).exists():
            path = self.located(path)
        return before + path + after

    def source(self) -> "Source":
        """Open the study's images."""
        from svp.data import open_source

        root = self.config.data.root
        return open_source(
            [self.located(text) for text in self.config.data.source],
            root=None if root is None else self.located(root),
        )

    def scan(self, source: "Source | None" = None, progress: Progress | None = None) -> "Scan":
        """List and digest the study's images; only files that changed are read again."""
        from svp.data import DigestCache

        source = self.source() if source is None else source
        return source.scan(
            cache=DigestCache.default(), progress=progress if progress is not None else Silent()
        )

    def open_store(self, *, create: bool = False) -> "FeatureStore":
        """Open the study's feature store; make it if `create` says so."""
        from feature_store.errors import StoreNotFoundError
        from feature_store.store import open_store

        try:
            return open_store(self.store_url, create=create)
        except StoreNotFoundError as error:
            raise InputError(
                "The study's images must be embedded first. Got no store at "
                f"{self.store_url}. Run: svp embed {self.path}"
            ) from error

    def embedded(self) -> dict[str, Any] | None:
        """Return what `svp embed` recorded for the present spec and precision, or None."""
        path = self.path / "encoder.json"
        if not path.is_file():
            return None
        try:
            recorded: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path} must be as `svp embed` wrote it. Got {type(error).__name__}: {error}. "
                f"Delete it, then: svp embed {self.path}"
            ) from error
        asked = {"spec": self.config.encoder.spec, "precision": self.config.encoder.precision}
        same = all(recorded.get(key) == value for key, value in asked.items())
        return recorded if same else None

    def encoder_id(self) -> str:
        """Return the id of the encoder whose embeddings the study uses.

        The record that `svp embed` left is enough; without one the encoder is opened, because
        only its weights say who it is.
        """
        recorded = self.embedded()
        if recorded is not None:
            return str(recorded["encoder_id"])
        if not self.open_store().encoders():
            raise InputError(
                "The study's images must be embedded first. Got an empty store at "
                f"{self.store_url}. Run: svp embed {self.path}"
            )
        from svp.encoders.encoder import open_encoder

        encoder = open_encoder(
            self.encoder_spec, device="cpu", precision=self.config.encoder.precision
        )
        return str(encoder.id)
