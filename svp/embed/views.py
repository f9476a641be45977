"""Stored views: random renderings of images that are the same wherever they are made.

A view is named by its kind and an index: `weak-0`, `strong-1`. The random numbers of an image
follow from (seed, view, the image's SHA-256) alone: not from the machine, the batch, the order or
the shard. So tables grow and are shared like those of the plain image, `eval`.

Seed and policy decide a table's vectors without being part of its name. They are recorded beside
the table before its first vector, and a run with others is refused.

Policy: the weak and strong views of FlexMatch (Zhang et al. 2021), see `svp.augment.fixmatch`, at
the size of the encoder's input.

Shapes: B = batch, S = side of the encoder's input.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

import torch

from feature_store import FeatureStore, Pool
from svp.augment.draws import ImageDraws
from svp.augment.fixmatch import StrongView, WeakView
from svp.data.failure import ScanFailure
from svp.embed.result import EmbedResult
from svp.embed.run import EVAL, EmbedConfig, UInt8Array, embed
from svp.encoders.encoder import Encoder
from svp.encoders.images import Reader
from svp.errors import InputError
from svp.progress import Progress

Kind = Literal["weak", "strong"]

POLICY: Final = "flexmatch"
POLICY_VERSION: Final = 1
_MOST: Final = 1000
_SEVERAL: Final = re.compile(r"(weak|strong):(\d{1,4})")
_ONE: Final = re.compile(r"(weak|strong)-(0|[1-9]\d{0,2})")


def parse_views(text: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of views.

    Args:
        text: `eval`, `weak:N` or `strong:N` for the first N, `weak-K` or `strong-K` for one;
            separated by commas, or one by one.

    Returns:
        Each name once, in the order given: ("eval", "weak-0", "weak-1").

    Raises:
        InputError: If a word has none of these forms.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    names: list[str] = []
    for word in (word.strip() for word in words):
        several = _SEVERAL.fullmatch(word)
        if several is not None and 1 <= int(several[2]) <= _MOST:
            names += [f"{several[1]}-{index}" for index in range(int(several[2]))]
        elif word == EVAL or _ONE.fullmatch(word):
            names.append(word)
        else:
            raise InputError(
                f"A view must be eval, weak:N, strong:N, weak-K or strong-K, N at most {_MOST:,} "
                f"and K below it. Got {word!r}. Write eval,weak:2,strong:2."
            )
    return tuple(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """What decides the images of every stored view but `eval`.

    Attributes:
        seed: Decides every random choice. Studies that share a store share views of one seed.
        flip: Whether half of the images are mirrored. Off for digits, text and the like.
    """

    seed: int = 0
    flip: bool = True

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"The seed of views must be 0 or more. Got {self.seed}. Correct it.")


class StoredView:
    """Makes one stored view; the `augment` of `svp.embed.embed`.

    Attributes:
        name: Such as `strong-0`.
        record: JSON: all that decides the images beside their bytes and the encoder's input size.
    """

    def __init__(self, name: str, config: ViewConfig) -> None:
        match = _ONE.fullmatch(name)
        if match is None:
            raise InputError(f"A stored view must be weak-K or strong-K. Got {name!r}. Correct it.")
        weak = WeakView(flip=config.flip)
        self._view: WeakView | StrongView
        self._view = weak if match[1] == "weak" else StrongView(weak=weak)
        self.name = name
        self._prefix = f"svp.view/{POLICY_VERSION}\0{config.seed}\0{name}\0".encode()
        self.record: dict[str, Any] = {
            "policy": POLICY,
            "policy_version": POLICY_VERSION,
            "kind": match[1],
            "index": int(match[2]),
            "seed": config.seed,
            "draws": ImageDraws.SCHEME,
            "settings": dataclasses.asdict(self._view),
        }

    def __call__(self, x_B3SS: torch.Tensor, digests_B32: UInt8Array) -> torch.Tensor:
        """Return this view of each image, float in [0, 1], on the images' device.

        Args:
            x_B3SS: Images in [0, 1], float.
            digests_B32: SHA-256 of each image's encoded bytes.
        """
        keys = [self._prefix + digest.tobytes() for digest in digests_B32]
        return self._view(x_B3SS, generator=ImageDraws(keys))


def embed_views(
    pool: Pool,
    source: Reader,
    encoder: Encoder,
    store: FeatureStore,
    *,
    views: Sequence[str] = (EVAL,),
    view_config: ViewConfig | None = None,
    unreadable: Sequence[ScanFailure] = (),
    config: EmbedConfig | None = None,
    progress: Progress | None = None,
    embed_one: Callable[..., EmbedResult] = embed,
) -> tuple[EmbedResult, ...]:
    """Embed several views of a pool, one table after another; see `svp.embed.embed`.

    Args:
        pool: Items.
        source: Reads their uris.
        encoder: Its identity and id are stored first.
        store: Where the embeddings go.
        views: Names as `parse_views` returns them.
        view_config: Seed and settings of the random views.
        unreadable: What the scan that made the pool left out.
        config: See `EmbedConfig`.
        progress: Where to report; says which view it is at.
        embed_one: Embeds one view, as `svp.embed.embed` does.

    Returns:
        One result per view, in order.

    Raises:
        ViewMismatchError: The store holds a table of that name with another seed or policy;
            nothing was embedded.
        FailureRateError: Too many images failed; what was embedded stays.
    """
    encoder_id = store.put_encoder(encoder.identity, about=encoder.provenance)
    made = {name: StoredView(name, view_config or ViewConfig()) for name in views if name != EVAL}
    # All of them before any work: a refusal must not come after hours of the first view. Those
    # with a record first, so that a refused run has not yet begun another table.
    for name in sorted(made, key=lambda name: store.view_record(encoder_id, name) is None):
        store.put_view(encoder_id, name, made[name].record)
    results = []
    for name in views:
        if progress is not None and len(views) > 1:
            progress.say(f"view {name}")
        results.append(
            embed_one(
                pool,
                source,
                encoder,
                store,
                view=name,
                augment=made.get(name),
                unreadable=unreadable,
                config=config,
                progress=progress,
            )
        )
    return tuple(results)
