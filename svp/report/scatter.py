"""The embedding map as geometry: one drawing that is coloured by round or by class.

Every point carries two CSS classes, its round's and its class's, and the style sheet decides which
of them colours it. So one drawing serves both, and the page needs no script to switch.
Coordinates are SVG user units, y downwards.
"""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Final

from svp.report.chart import coordinate
from svp.report.content import Report
from svp.report.evidence import EmbeddingMap, MapPoint
from svp.report.quantity import number, plural

# Limits of the page's size, whatever it is given.
MAX_POINTS: Final = 3000
#: Groups of rounds that have a colour and a switch of their own; the first ones share.
ROUND_GROUPS: Final = 6
#: Classes that have a colour of their own, the ones with most labels; the others share grey.
CLASS_COLOURS: Final = 10
_WIDTH, _HEIGHT, _MARGIN = 860, 560, 14
_NAME_GAP: Final = 15.0
_LONGEST_NAME: Final = 18
_POOL_RADIUS: Final = 1.7


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """One item with a label or a round."""

    x: str
    y: str
    radius: str
    style: str
    title: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """What is switched on and off together.

    Attributes:
        style: CSS class, `r0` for the pool, `r1` to `r6` for rounds, `rx` for labels that no round
            asked for.
        name: For the legend.
        count: Items.
        path: All items as one path, for the pool; empty for the others.
        dots: One a item.
    """

    style: str
    name: str
    count: int
    path: str = ""
    dots: tuple[Dot, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClassName:
    """A class on the map: its colour, its name at the middle of its labelled items."""

    style: str
    name: str
    count: int
    x: str = ""
    y: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scatter:
    """A laid out map; see `scatter`."""

    title: str
    description: str
    width: int
    height: int
    layers: tuple[Layer, ...]
    classes: tuple[ClassName, ...]
    shown: int
    total: int
    method: str


def scatter(content: EmbeddingMap) -> Scatter | None:
    """Lay a map out; None without points.

    Args:
        content: The map; points over the limit are left out, those of the pool first.
    """
    points = _limited(content.points)
    if not points:
        return None
    place = _placed(points)
    rounds = sorted({point.round for point in points if point.round is not None})
    group_of = round_groups(rounds)
    counts = Counter(point.label for point in points if point.label)
    names = sorted(counts, key=lambda name: (-counts[name], name))[:CLASS_COLOURS]
    # By name, so that a class keeps its colour when another gets more labels.
    colour = {name: f"k{1 + at}" for at, name in enumerate(sorted(names))}
    members: dict[int, list[MapPoint]] = {}
    for point in points:
        key = -1 if point.round is None and point.label else 0
        members.setdefault(key if point.round is None else group_of[point.round], []).append(point)
    layers = []
    for key in sorted(members, key=lambda key: (key > 0, -key if key <= 0 else key)):
        own = members[key]
        if key == 0:
            path = "".join(_disc(*place[point.id]) for point in own)
            layers.append(Layer(style="r0", name="not asked for", count=len(own), path=path))
            continue
        inside = [one for one in rounds if group_of[one] == key]
        layers.append(
            Layer(
                style="rx" if key < 0 else f"r{key}",
                name="labels from elsewhere" if key < 0 else _rounds_name(inside),
                count=len(own),
                dots=tuple(
                    _dot(point, place[point.id], colour, is_last=key == ROUND_GROUPS)
                    for point in own
                ),
            )
        )
    return Scatter(
        title="Embedding map",
        description=_describe(points, content, rounds),
        width=_WIDTH,
        height=_HEIGHT,
        layers=tuple(layers),
        classes=_classes(points, place, colour, counts),
        shown=len(points),
        total=content.total,
        method=content.method,
    )


def round_groups(rounds: Sequence[int]) -> dict[int, int]:
    """Return the colour of each round, 1 to 6: the last is 6, the first ones share 1 if many."""
    highest = ROUND_GROUPS
    return {
        one: max(1, highest - (len(rounds) - 1 - place)) for place, one in enumerate(sorted(rounds))
    }


def map_of(report: Report) -> Scatter | None:
    """Return the report's map, laid out."""
    return None if report.embedding_map is None else scatter(report.embedding_map)


def _limited(points: Sequence[MapPoint]) -> tuple[MapPoint, ...]:
    ordered = sorted(points, key=lambda point: (point.round is None, not point.label))
    return tuple(ordered[:MAX_POINTS])


def _placed(points: Sequence[MapPoint]) -> dict[str, tuple[float, float]]:
    """Return where each item is drawn; one unit is as long across as up."""
    xs, ys = [point.x for point in points], [point.y for point in points]
    wide, high = max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    scale = min((_WIDTH - 2 * _MARGIN) / wide, (_HEIGHT - 2 * _MARGIN) / high)
    left = (_WIDTH - scale * (max(xs) - min(xs))) / 2
    top = (_HEIGHT - scale * (max(ys) - min(ys))) / 2
    return {
        point.id: (left + scale * (point.x - min(xs)), top + scale * (max(ys) - point.y))
        for point in points
    }


def _disc(x: float, y: float) -> str:
    start = f"{coordinate(round(x - _POOL_RADIUS, 1))} {coordinate(round(y, 1))}"
    return f"M{start}a1.7 1.7 0 1 0 3.4 0a1.7 1.7 0 1 0-3.4 0"


def _dot(point: MapPoint, at: tuple[float, float], colour: dict[str, str], *, is_last: bool) -> Dot:
    said = [point.id]
    if point.round is not None:
        said.append(f"round {point.round}, #{point.rank}")
    said.append(f"label: {point.label}" if point.label else "no label yet")
    return Dot(
        x=coordinate(round(at[0], 1)),
        y=coordinate(round(at[1], 1)),
        radius="4.5" if is_last and point.round is not None else "3.4",
        style=colour.get(point.label, "k0") if point.label else "kn",
        title="; ".join(said),
    )


def _rounds_name(rounds: Sequence[int]) -> str:
    if len(rounds) == 1:
        return f"round {rounds[0]}"
    return f"rounds {rounds[0]} to {rounds[-1]}"


def _classes(
    points: Sequence[MapPoint],
    place: dict[str, tuple[float, float]],
    colour: dict[str, str],
    counts: Counter[str],
) -> tuple[ClassName, ...]:
    named: list[ClassName] = []
    taken: list[tuple[float, float, float]] = []
    for name in sorted(colour, key=lambda name: -counts[name]):
        at = [place[point.id] for point in points if point.label == name]
        shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        half = 4.5 * len(shown)
        x = min(max(statistics.median(x for x, _ in at), half + 4), _WIDTH - half - 4)
        y = min(max(statistics.median(y for _, y in at), _NAME_GAP), _HEIGHT - _NAME_GAP)
        while any(abs(x - ox) < half + oh and abs(y - oy) < _NAME_GAP for ox, oy, oh in taken):
            y += 1.0
        taken.append((x, y, half))
        named.append(
            ClassName(
                style=colour[name],
                name=shown,
                count=counts[name],
                x=coordinate(round(x, 1)),
                y=coordinate(round(y, 1)),
            )
        )
    named.sort(key=lambda one: int(one.style[1:]))
    rest = len(counts) - len(colour)
    if rest:
        others = sum(count for name, count in counts.items() if name not in colour)
        label = plural(rest, "other class", "other classes")
        named.append(ClassName(style="k0", name=label, count=others))
    return tuple(named)


def _describe(points: Sequence[MapPoint], content: EmbeddingMap, rounds: Sequence[int]) -> str:
    labelled = sum(1 for point in points if point.label)
    picked = sum(1 for point in points if point.round is not None)
    return (
        f"{number(len(points))} of {number(content.total)} items by {content.method}: items near "
        f"each other look alike to the encoder. {number(picked)} were asked for in "
        f"{plural(len(rounds), 'round')}, {number(labelled)} have a label."
    )
