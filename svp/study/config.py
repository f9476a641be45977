"""What a study is set to do: `study.toml` as frozen dataclasses, read and written.

Options that belong to another stage (the proxy's, the strategy's, the fine-tune's) are carried as
they are and checked by that stage's own dataclass before any work starts: see `svp.study.options`.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from svp.errors import InputError
from svp.study.prices import PricesSection
from svp.study.tables import from_table, to_table
from svp.study.tracking import check_trackers

STUDY_FILE: Final = "study.toml"

Options = Mapping[str, Any]


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise InputError(message)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataSection:
    """Where the images are.

    Attributes:
        source: Image folders, CSV or Parquet manifests, zip or tar archives; several are joined.
        root: Folder that the paths inside a manifest are relative to; default: the manifest's own.
    """

    source: tuple[str, ...]
    root: str | None = None

    def __post_init__(self) -> None:
        _require(
            bool(self.source) and all(self.source),
            "data.source must name at least one folder, manifest or archive. Got none. "
            'Write source = ["path/to/images"].',
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSection:
    """Which network turns images into embeddings, and how it runs.

    Attributes:
        spec: Encoder spec, such as `open_clip:ViT-B-32/laion2b_s34b_b79k`.
        precision: Numeric mode; part of the encoder's identity.
        batch_size: Images per forward pass; 0 = automatic.
        workers: Decoding threads; 0 = one per core.
        views: Renderings to embed: `eval`, `weak:N`, `strong:N`.
        view_seed: Decides the random views; studies that share a store share views of one seed.
        view_flip: Whether the random views mirror; off where left and right mean something.
    """

    spec: str
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: int = 0
    workers: int = 0
    views: tuple[str, ...] = ("eval",)
    view_seed: int = 0
    view_flip: bool = True

    def __post_init__(self) -> None:
        _require(
            bool(self.spec.strip()),
            "encoder.spec must name an encoder. Got nothing. `svp encoders` lists them.",
        )
        _require(
            self.batch_size >= 0,
            f"encoder.batch_size must be 0 (automatic) or more. Got {self.batch_size}. Correct it.",
        )
        _require(
            self.workers >= 0,
            f"encoder.workers must be 0 (one per core) or more. Got {self.workers}. Correct it.",
        )
        _require(
            self.view_seed >= 0,
            f"encoder.view_seed must be 0 or more. Got {self.view_seed}. Correct it.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoreSection:
    """Where embeddings are kept; many studies share one store."""

    url: str

    def __post_init__(self) -> None:
        _require(bool(self.url), "store.url must name a folder. Got nothing. Write one.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProxySection:
    """The head trained on embeddings to choose by.

    Attributes:
        kind: `linear` (convex, solved to its optimum) or `mlp` (one hidden layer).
        options: The other keys, which belong to that proxy's own configuration. `preset` names a
            published recipe that the others amend; with `trainer` it is trained by its steps,
            `flexmatch` and its relatives on stored views of unlabelled images too.
    """

    kind: Literal["linear", "mlp"] = "linear"
    options: Options = dataclasses.field(default_factory=dict, metadata={"rest": True})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StrategySection:
    """How items are chosen.

    Attributes:
        name: Strategy of every round that has labels to learn from.
        first_round: Strategy before there are labels of two classes.
        random_share: Share of every batch drawn at random, with recorded chances, so that a
            campaign can be judged by its own labels.
        collapse_duplicates: Least cosine of near-duplicates, of which one is a candidate; not
            given: all are.
        groups: Quotas per group of the manifest's column `group`; not given: none.
        class_balance: Whether predicted classes with few labels are filled up first.
        prefilter: `NAME:K`: only the K * budget best by the score NAME are candidates.
        params: Parameters of the strategy.
    """

    name: str = "margin"
    first_round: Literal["kmeans", "random"] = "kmeans"
    random_share: float = 0.0
    collapse_duplicates: float | None = None
    groups: Literal["equal", "proportional"] | None = None
    class_balance: bool = False
    prefilter: str | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_REFRESH_AT: Final = "at-labels:"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefreshSection:
    """When stale features are computed anew from a network fine-tuned on the labels so far.

    Attributes:
        mode: `ask` records the criterion's verdict and says when it asks for a refresh; `auto`
            refreshes by itself; `never` records only; `at-labels:N` refreshes at N labels,
            whatever the criterion says.
        max_refreshes: Most refreshes of the campaign.
        score: LogME's reading, `corrected` or `official`.
        threshold: Change of the score below which features count as stale; default: the
            reading's own.
        labels_per_class: Mean labels per class before the criterion may ask.
        n_sigma: PED: radii of a class.
        finetune: Keys of [finetune] that the refresh's own training replaces; by default it is
            supervised and starts from the pretrained encoder with a fresh head.
    """

    mode: str = "ask"
    max_refreshes: int = 1
    score: Literal["corrected", "official"] = "corrected"
    threshold: float | None = None
    labels_per_class: float = 5.0
    n_sigma: float = 0.6
    finetune: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        text = self.mode.removeprefix(_REFRESH_AT)
        fixed = text != self.mode and text.isdecimal() and int(text) >= 1
        _require(
            fixed or self.mode in ("auto", "ask", "never"),
            "refresh.mode must be auto, ask, never or at-labels:N with N >= 1. "
            f"Got {self.mode!r}. Choose one of them.",
        )
        _require(
            self.max_refreshes >= 0,
            f"refresh.max_refreshes must be 0 or more. Got {self.max_refreshes}. Correct it.",
        )

    @property
    def fixed_at(self) -> int | None:
        """N of `at-labels:N`; None in every other mode."""
        text = self.mode.removeprefix(_REFRESH_AT)
        return int(text) if text != self.mode else None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSection:
    """The final training; every key belongs to the fine-tune's own configuration."""

    options: Options = dataclasses.field(default_factory=dict, metadata={"rest": True})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrackingSection:
    """Where the numbers of rounds and trainings go beside the study's `metrics.jsonl`.

    Attributes:
        to: Of `tensorboard`, `mlflow` and `wandb`; each is an extra to install.
    """

    to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_trackers(self.to)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """One labelling campaign.

    Attributes:
        name: What people call it.
        seed: Decides every random choice of the study.
        data: Where the images are.
        encoder: Which network embeds them.
        store: Where embeddings are kept.
        proxy: The head trained for selection.
        strategy: How items are chosen.
        refresh: When features are computed anew.
        finetune: The final training.
        tracking: Where numbers go.
        prices: What labels, machines and storage cost, for `svp plan`; None: not stated.
    """

    name: str
    seed: int = 0
    data: DataSection
    encoder: EncoderSection
    store: StoreSection
    proxy: ProxySection = dataclasses.field(default_factory=ProxySection)
    strategy: StrategySection = dataclasses.field(default_factory=StrategySection)
    refresh: RefreshSection = dataclasses.field(default_factory=RefreshSection)
    finetune: FinetuneSection = dataclasses.field(default_factory=FinetuneSection)
    tracking: TrackingSection = dataclasses.field(default_factory=TrackingSection)
    prices: PricesSection | None = None

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"seed must be 0 or more. Got {self.seed}. Correct it.")


def parse_study(
    table: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> StudyConfig:
    """Build a configuration from the table of a study file.

    Args:
        table: What TOML gives.
        overrides: Values by dotted key, such as `{"strategy.name": "badge"}`, that win.

    Raises:
        InputError: A key is unknown or a value wrong; the message names the dotted path.
    """
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in table.items()
    }
    for dotted, value in (overrides or {}).items():
        *parents, last = dotted.split(".")
        target = merged
        for parent in parents:
            inner = target.get(parent, {})
            if not isinstance(inner, Mapping):
                raise InputError(f"{dotted} must lie in a table. Got {parent} = {inner!r}.")
            target[parent] = dict(inner)
            target = target[parent]
        target[last] = value
    return from_table(StudyConfig, merged)


def read_study_toml(path: Path, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Read a study file; see `parse_study`."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be TOML. Got: {error}. Correct that line.") from error
    try:
        return parse_study(table, overrides)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_study_toml(config: StudyConfig) -> str:
    """Return the study file of `config`: commented TOML that reads back to an equal value."""
    table = to_table(config)
    lines = [
        "# A study of svp: which images to label next.",
        "# Relative paths are relative to this file. Unknown keys are refused.",
        "",
        f"name = {_value(table.pop('name'))}",
        f"seed = {_value(table.pop('seed'))}  # decides every random choice",
    ]
    for name, comment in _SECTIONS.items():
        if name == "prices" and name not in table:
            continue  # svp knows no prices, so it proposes none
        section = table.pop(name, {})
        lines += ["", *(f"# {line}" for line in comment), f"[{name}]"]
        tables = {key: value for key, value in section.items() if isinstance(value, dict)}
        lines += [f"{_key(k)} = {_value(v)}" for k, v in section.items() if k not in tables]
        for key, inner in tables.items():
            if inner:
                lines += ["", f"[{name}.{_key(key)}]"]
                lines += [f"{_key(k)} = {_value(v)}" for k, v in inner.items()]
    return "\n".join(lines) + "\n"


_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "data": ("Image folders, CSV or Parquet manifests, zip or tar archives; several are joined.",),
    "encoder": (
        "The network that turns images into embeddings. Changing spec or precision embeds anew.",
        "precision: fp32, bf16 or fp16. workers: decoding threads, 0 = one per core.",
        'views: "eval", and random ones, "weak:2", "strong:2". view_flip: may they be mirrored?',
    ),
    "store": ("Where embeddings are kept. Many studies may share one store.",),
    "proxy": ("The head trained on embeddings to choose by: kind is linear or mlp.",),
    "strategy": (
        "`svp strategies` lists the names; parameters go under [strategy.params].",
        "first_round chooses before there are labels: kmeans (spread out) or random.",
        "random_share: of every batch, to judge the campaign by. Also collapse_duplicates = 0.98,",
        'groups = "equal" or "proportional", class_balance = true, prefilter = "margin:10".',
    ),
    "refresh": (
        "Computing stale features anew: ask, auto, never, or at-labels:N. [refresh.finetune]",
        "replaces keys of [finetune] for that training.",
    ),
    "finetune": ("The final training; `svp finetune` uses its defaults for what is not here.",),
    "tracking": ('Rounds and trainings also to "tensorboard", "mlflow", "wandb".',),
    "prices": ("What things cost on the day `as_of`, for `svp plan`.",),
}


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _text(key)


def _text(text: str) -> str:
    # JSON strings are TOML strings, except that TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(entry) for entry in value)}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    raise InputError(f"A study file must hold text, numbers, lists and tables. Got {value!r}.")
