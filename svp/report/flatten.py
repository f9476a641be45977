"""Drawings without a style sheet: every element carries the concrete values it is drawn with.

Browsers know CSS variables; Inkscape, office programs and most SVG libraries do not. Only what our
own style sheets use is understood: selectors of element names, classes and descendants, and
variables inherited from element to element. Rules for media (dark, narrow, print) are left out.
"""

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Final

_SVG: Final = "http://www.w3.org/2000/svg"
# The properties of our drawings that SVG also takes as attributes.
_PROPERTIES: Final = frozenset(
    {
        "fill", "font-family", "font-size", "font-weight", "opacity", "overflow", "paint-order",
        "shape-rendering", "stroke", "stroke-dasharray", "stroke-linecap", "stroke-linejoin",
        "stroke-width",
    }
)  # fmt: skip
# Characters that XML cannot hold, not even escaped.
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COMMENT: Final = re.compile(r"/\*.*?\*/", re.DOTALL)
_RULE: Final = re.compile(r"([^{}]+)\{([^{}]*)\}")
_COMPOUND: Final = re.compile(r"(:root|[a-z]+)?((?:\.[\w-]+)*)")
_VARIABLE: Final = re.compile(r"var\(\s*(--[\w-]+)\s*(?:,\s*((?:[^()]|\([^()]*\))*))?\)")
_NESTING: Final = 8  # of a variable in a variable


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """What one element must be: `:root`, a name or anything, with these classes."""

    name: str
    classes: frozenset[str]

    def matches(self, element: "_Step") -> bool:
        return self.classes <= element.classes and self.name in ("", element.name)


@dataclasses.dataclass(frozen=True, slots=True)
class _Rule:
    steps: tuple[_Step, ...]
    declared: Mapping[str, str]
    weight: tuple[int, int, int]


def flatten(svg: str) -> str:
    """Return an SVG document drawn the same without its style sheets.

    Args:
        svg: A document whose style is in `<style>` elements; characters that XML cannot hold are
            replaced.
    """
    # Our own templates, escaped: no entity of anybody else's.
    root = ET.fromstring(_FORBIDDEN.sub("\ufffd", svg))
    style = "".join(sheet.text or "" for sheet in root.iter(f"{{{_SVG}}}style"))
    for element in root.iter():
        for sheet in element.findall(f"{{{_SVG}}}style"):
            element.remove(sheet)
    _draw(root, (), _rules(style), {}, {})
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    root.set("xmlns", _SVG)
    return ET.tostring(root, encoding="unicode") + "\n"


def _rules(style: str) -> tuple[_Rule, ...]:
    """Return the rules that always hold and are understood, least important first."""
    rules = []
    for place, (selectors, body) in enumerate(_RULE.findall(_without_media(style))):
        pairs = (part.partition(":") for part in body.split(";") if ":" in part)
        declared = {name.strip(): value.strip() for name, _, value in pairs}
        for selector in selectors.split(","):
            steps = _steps(selector)
            if steps:
                classes = sum(len(step.classes) + (step.name == ":root") for step in steps)
                names = sum(step.name not in ("", ":root") for step in steps)
                rules.append(_Rule(steps, declared, (classes, names, place)))
    return tuple(sorted(rules, key=lambda rule: rule.weight))


def _without_media(style: str) -> str:
    """Leave out comments and at-rules with all that is in them."""
    kept, depth, start = [], 0, 0
    style = _COMMENT.sub("", style)
    for match in re.finditer(r"@[^{}]*\{|[{}]", style):
        if depth == 0 and match[0].startswith("@"):
            kept.append(style[start : match.start()])
            depth = 1
        elif depth:
            depth += -1 if match[0] == "}" else 1
            start = match.end()
    return "".join([*kept, style[start:]])


def _steps(selector: str) -> tuple[_Step, ...]:
    steps = []
    for part in selector.split():
        match = _COMPOUND.fullmatch(part)
        if match is None or not part:
            return ()
        steps.append(_Step(match[1] or "", frozenset(match[2].split(".")[1:])))
    return tuple(steps)


def _draw(
    element: ET.Element,
    above: tuple[_Step, ...],
    rules: tuple[_Rule, ...],
    variables: Mapping[str, str],
    known: dict[tuple[_Step, ...], dict[str, str]],
) -> bool:
    """Set the attributes of an element and of all in it; say whether it is shown.

    Args:
        element: It.
        above: What the elements around it are, outermost first.
        rules: All, least important first.
        variables: As they are around it.
        known: What a place in the tree declares, to ask once for many dots.
    """
    name = element.tag.removeprefix(f"{{{_SVG}}}")
    path = (*above, _Step(name, frozenset(element.attrib.pop("class", "").split())))
    if path not in known:
        known[path] = {
            key: value
            for rule in rules
            if _holds(rule.steps, path)
            for key, value in rule.declared.items()
        }
    declared = known[path]
    own = {key: value for key, value in declared.items() if key.startswith("--")}
    variables = {**variables, **own} if own else variables
    for key in sorted(_PROPERTIES & declared.keys()):
        value = _resolved(declared[key], variables)
        if value:
            element.set(key, value)
    for child in list(element):
        if not _draw(child, path, rules, variables, known):
            element.remove(child)
    return declared.get("display") != "none"


def _holds(steps: tuple[_Step, ...], path: tuple[_Step, ...]) -> bool:
    """Say whether a selector means the last element of a path."""
    *outer, last = steps
    top = len(path) == 1 and last.name == ":root" and last.classes <= path[0].classes
    if not (top or last.matches(path[-1])):
        return False
    around = iter(path[:-1])
    return all(any(step.matches(element) for element in around) for step in outer)


def _resolved(value: str, variables: Mapping[str, str]) -> str:
    """Return a value without variables; empty where one has no value."""
    for _ in range(_NESTING):
        match = _VARIABLE.search(value)
        if match is None:
            return value
        known: str | None = variables.get(match[1], match[2])
        if known is None:
            return ""
        value = value[: match.start()] + known.strip() + value[match.end() :]
    return ""
