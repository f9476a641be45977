"""Options that a study file carries for other stages, built into those stages' own types."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from svp.errors import InputError
from svp.study.config import ProxySection, RefreshSection, StrategySection, StudyConfig
from svp.study.tables import convert_table, from_table, near_names

if TYPE_CHECKING:
    from svp.alignment import CriterionConfig
    from svp.finetune.config import FinetuneConfig
    from svp.proxies import ProxyConfig
    from svp.strategies.base import Strategy
    from svp.strategies.wrapping import Wrapping


def build_proxy_config(section: ProxySection) -> "ProxyConfig":
    """Return the configuration of the proxy that `[proxy]` describes."""
    from svp.proxies import proxy_preset
    from svp.proxies.presets import preset_kind, with_values

    options = dict(section.options)
    name = options.pop("preset", None)
    if name is not None:
        recipe = proxy_preset(str(name))
        if preset_kind(recipe) != section.kind:
            raise InputError(
                f"proxy.kind must be {preset_kind(recipe)} with the preset {name}. "
                f"Got {section.kind}. Correct one of them."
            )
        values = convert_table(type(recipe), options, "proxy")
        try:
            return with_values(recipe, values)
        except InputError as error:
            raise InputError(f"proxy: {error}") from error
    kind = proxy_type(section.kind, options)
    if "trainer" in options:
        options["kind"] = section.kind
    return from_table(kind, options, "proxy")


def proxy_type(kind: str, options: Mapping[str, Any]) -> "type[ProxyConfig]":
    """Return what configures a proxy of `kind`: with a `trainer` it is trained by its steps."""
    from svp.proxies import LinearConfig, MLPConfig, NetworkConfig

    if "trainer" in options:
        return NetworkConfig
    return LinearConfig if kind == "linear" else MLPConfig


def proxy_section(config: StudyConfig, kind: str | None) -> ProxySection:
    """Return the study's proxy section, the defaults of another kind, or a published recipe."""
    if kind is None or kind == config.proxy.kind:
        return config.proxy
    if kind == "linear":
        return ProxySection(kind="linear")
    if kind == "mlp":
        return ProxySection(kind="mlp")
    from svp.proxies import PRESETS
    from svp.proxies.presets import preset_kind

    if kind in PRESETS:
        options = {"preset": kind}
        if preset_kind(PRESETS[kind]) == "mlp":
            return ProxySection(kind="mlp", options=options)
        return ProxySection(kind="linear", options=options)
    raise InputError(
        f"A proxy must be linear, mlp or a published recipe. Got {kind}. "
        f"{near_names(kind, ('linear', 'mlp', *PRESETS))}"
    )


def build_named_strategy(
    name: str, params: Mapping[str, Any], wrapping: "Wrapping | None" = None
) -> "Strategy":
    """Return the strategy `name` with `params`, wrapped; unknown names and keys are refused."""
    from svp.strategies.catalog import build_strategy

    return build_strategy(name, params, wrapping)


def build_wrapping(section: StrategySection) -> "Wrapping":
    """Return what `[strategy]` puts around a strategy."""
    from svp.strategies.wrapping import Wrapping

    try:
        return Wrapping(
            random_share=section.random_share,
            collapse_duplicates=section.collapse_duplicates,
            groups=section.groups,
            class_balance=section.class_balance,
            prefilter=section.prefilter,
        )
    except InputError as error:
        raise InputError(f"strategy: {error}") from error


def build_finetune_config(options: Mapping[str, Any]) -> "FinetuneConfig":
    """Return the fine-tune's configuration: a preset's, with the other keys replaced."""
    from svp.finetune.config import FinetuneConfig
    from svp.finetune.presets import PRESETS, preset

    chosen = dict(options)
    name = chosen.pop("preset", "small")
    if name not in PRESETS:
        raise InputError(
            f"finetune.preset must be one of svp's. Got {name!r}. {near_names(str(name), PRESETS)}"
        )
    values = convert_table(FinetuneConfig, chosen, "finetune")
    try:
        return preset(name, **values)
    except InputError as error:
        raise InputError(f"finetune: {error}") from error


def build_refresh_config(config: StudyConfig) -> "FinetuneConfig":
    """Return the settings of the training that refreshes features.

    Those of the final training, but supervised with a fresh head, and with the keys of
    `[refresh.finetune]` replaced.
    """
    own = {"mode": "ft", "method": "supervised", **config.refresh.finetune}
    return build_finetune_config({**config.finetune.options, **own})


def build_criterion_config(section: RefreshSection) -> "CriterionConfig":
    """Return when features count as stale, as `[refresh]` says."""
    from svp.alignment import CriterionConfig, PEDConfig

    try:
        return CriterionConfig(
            score=section.score,
            threshold=section.threshold,
            labels_per_class=section.labels_per_class,
            ped=PEDConfig(n_sigma=section.n_sigma),
        )
    except InputError as error:
        raise InputError(f"refresh: {error}") from error


def check_options(config: StudyConfig) -> None:
    """Refuse unknown or wrong options of every stage, before any work."""
    build_proxy_config(config.proxy)
    wrapping = build_wrapping(config.strategy)
    build_named_strategy(config.strategy.name, config.strategy.params, wrapping)
    build_finetune_config(config.finetune.options)
    build_refresh_config(config)
    build_criterion_config(config.refresh)
