"""The report's map, its refresh history, and what it exports."""

import csv
import dataclasses
import importlib.util
import io
import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from PIL import Image
from test_report import EVIL, QUOTES, Page, full_report, history

from svp.errors import InputError
from svp.report import Cost, EmbeddingMap, MapPoint, Money, RefreshHistory, Report, render
from svp.report.export import draw_figures, write_tables
from svp.report.flatten import flatten
from svp.report.page import MAX_COPIES, MAX_EARLIER
from svp.report.raster import rasterise
from svp.report.scatter import CLASS_COLOURS, MAX_POINTS, round_groups, scatter
from svp.report.scores import score_chart, value_axis
from svp.study.report import write_report
from svp.study.study import Study

SVG = "{http://www.w3.org/2000/svg}"


def points(count, **of):
    return tuple(
        MapPoint(id=f"{i}", x=i % 50, y=i // 50, **{key: make(i) for key, make in of.items()})
        for i in range(count)
    )


def drawn(*all_points):
    return scatter(EmbeddingMap(points=all_points, method="PCA", total=99))


def test_a_map_keeps_its_proportions_and_points_up():
    made = drawn(
        MapPoint(id="low", x=0, y=0, round=0, rank=1),
        MapPoint(id="high", x=0, y=2, round=0, rank=2),
        MapPoint(id="right", x=1, y=0, round=0, rank=3),
    )
    at = {dot.title.split(";")[0]: (float(dot.x), float(dot.y)) for dot in made.layers[0].dots}
    assert at["high"][1] < at["low"][1]
    up, across = at["low"][1] - at["high"][1], at["right"][0] - at["low"][0]
    assert up == pytest.approx(2 * across, abs=0.3)
    assert all(0 <= x <= made.width and 0 <= y <= made.height for x, y in at.values())


def test_one_point_or_none_can_be_drawn():
    assert drawn() is None
    assert "nan" not in repr(drawn(MapPoint(id="a", x=1.0, y=1.0)))


def test_a_dot_says_its_round_rank_and_label():
    made = drawn(
        MapPoint(id="a", x=0, y=0, round=3, rank=2, label="cat"),
        MapPoint(id="b", x=1, y=1, round=3, rank=4),
        MapPoint(id="c", x=1, y=0, label="dog"),
        MapPoint(id="d", x=0, y=1),
    )
    assert [(layer.style, layer.name, layer.count) for layer in made.layers] == [
        ("r0", "not asked for", 1),
        ("rx", "labels from elsewhere", 1),
        ("r6", "round 3", 1 + 1),
    ]
    titles = [dot.title for layer in made.layers for dot in layer.dots]
    assert "a; round 3, #2; label: cat" in titles
    assert "b; round 3, #4; no label yet" in titles
    assert "c; label: dog" in titles


def test_the_last_rounds_have_a_colour_each_and_the_first_share_one():
    assert round_groups([4]) == {4: 6}
    assert round_groups(range(9)) == {0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6}
    made = drawn(*points(90, round=lambda i: i % 9, rank=lambda i: i))
    assert made.layers[0].name == "rounds 0 to 3"


def test_a_map_is_bounded_and_picks_go_first():
    many = points(MAX_POINTS + 500, round=lambda i: 0 if i % 2 else None, rank=lambda i: 1)
    made = drawn(*many)
    assert made.shown == MAX_POINTS
    assert {layer.style: layer.count for layer in made.layers} == {
        "r0": MAX_POINTS - len(many) // 2,
        "r6": len(many) // 2,
    }
    report = Report(name="x", embedding_map=EmbeddingMap(points=many, method="PCA", total=9000))
    assert len(render(report)) < 700_000


def test_rare_classes_share_a_colour():
    made = drawn(*points(300, label=lambda i: f"{i % 13:02d}" if i < 260 else "00"))
    assert len(made.classes) == CLASS_COLOURS + 1
    assert made.classes[0].name == "00"
    assert (made.classes[-1].name, made.classes[-1].style) == ("3 other classes", "k0")


def test_names_on_the_map_do_not_cover_each_other():
    made = drawn(
        *(MapPoint(id=name, x=0, y=0, label=name) for name in ("alpha", "beta", "gamma")),
        MapPoint(id="far", x=1, y=1),
    )
    heights = sorted(float(one.y) for one in made.classes)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 15


def test_every_switch_of_the_map_has_a_rule_and_a_layer():
    page = render(full_report())
    ids = [value for value in Page(page).values("id") if value.startswith("show-")]
    assert ids == ["show-r0", "show-r4", "show-r5", "show-r6"]
    for name in ids:
        assert f"#{name}:not(:checked)" in page
        assert f'<g class="layer {name.removeprefix("show-")}">' in page
    assert page.count("<label><input") == page.count("<input") == len(ids) + 2


def test_scores_of_different_encoders_are_not_joined():
    own = history()
    second = tuple(dataclasses.replace(one, encoder="other") for one in own.judgements[2:])
    parted = dataclasses.replace(own, judgements=own.judgements[:2] + second)
    whole, split = (score_chart(one, key="k") for one in (own, parted))
    assert [len(panel.lines) for panel in whole.panels] == [1, 1]
    assert whole.panels[0].lines[0].count("L") == 2
    assert split.panels[0].lines[0].count("L") == 1
    assert len(split.panels[0].lines) == 1


def test_the_history_marks_threshold_stale_rounds_and_refreshes():
    chart = score_chart(history(), key="k")
    score, change = chart.panels
    assert [mark.is_stale for mark in score.marks] == [False, False, True]
    ticks = {label: float(y) for y, label in change.y_ticks}
    threshold = float(change.threshold)
    assert ticks["0.20"] < threshold < ticks["0.00"]
    assert float(change.marks[-1].y) > threshold > float(change.marks[0].y)
    assert chart.refreshes == ((chart.right, "refresh 1"),)
    assert "−0.100 at 20 labels" in chart.description


def test_a_history_needs_two_scores_to_be_drawn():
    one = dataclasses.replace(history(), judgements=history().judgements[:2])
    assert score_chart(one, key="k") is None
    text = render(Report(name="x", refreshes=one))
    assert "Verdict of each round" in text
    assert score_chart(RefreshHistory(mode="ask", judgements=()), key="k") is None


@pytest.mark.parametrize("values", [(0.5, 0.5), (-3.0, 7.0), (0.0, 0.0), (1e-6, 2e-6)])
def test_axes_of_scores_hold_their_values(values):
    axis = value_axis(values, start=100, end=0, about=4)
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert len(axis.ticks) >= 2


def test_small_costs_share_a_row_and_nothing_is_lost():
    page = render(full_report())
    said = " ".join(" ".join(Page(page).text).split())
    assert "below a cent each 2 stages < 0.01" in said
    assert "together 9.50" in said
    assert "no [prices]" not in said
    assert "states no <code>[prices]</code>" in render(
        dataclasses.replace(full_report(), money=None)
    )
    with pytest.raises(ValueError, match="0 or more"):
        Money(currency="EUR", as_of="", costs=(Cost(name="a", quantity="", amount=-1.0),))


def test_earlier_selections_and_copies_are_bounded():
    full = full_report()
    report = dataclasses.replace(
        full,
        earlier=full.earlier * 30,
        copies=dataclasses.replace(full.copies, groups=full.copies.groups * 30),
    )
    page = render(report)
    assert page.count('<details class="kept">') == MAX_EARLIER
    assert page.count('<div class="copies">') == MAX_COPIES
    assert f"The {MAX_COPIES} largest of 9 groups" in page


def test_a_reason_for_not_looking_is_said():
    text = render(Report(name="x", copies_skipped="Left out: too many."))
    assert "Left out: too many." in text


# Export


def test_figures_are_whole_inert_svg_files():
    figures = draw_figures(full_report())
    assert set(figures) == {
        "curves.svg", "rounds.svg", "map-by-round.svg", "map-by-class.svg", "refreshes.svg",
    }  # fmt: skip
    for name, text in figures.items():
        root = ET.fromstring(text)
        assert root.tag == f"{SVG}svg", name
        assert root.get("aria-label"), name
        assert not root.findall(f".//{SVG}script")
        assert not re.search(
            r"https?:|url\(|@import", text.replace("http://www.w3.org/2000/svg", "")
        )
    for name, legend in (
        ("map-by-round.svg", ["not asked for", "round 0", "round 1", "round 2"]),
        ("map-by-class.svg", [f"{QUOTES[:17]}…", "b", "no label yet"]),
    ):
        root = ET.fromstring(figures[name])
        assert len(root.findall(f".//{SVG}circle")) == 12 + len(legend)
        keys = [text.text for text in root.findall(f".//{SVG}text") if text.get("x") == "10"]
        assert keys == legend


def test_tables_hold_plain_numbers_and_no_formulas():
    report = full_report()
    tables = {
        name: list(csv.reader(io.StringIO(text))) for name, text in write_tables(report).items()
    }
    assert set(tables) == {
        "curves.csv", "savings.csv", "rounds.csv", "selections.csv", "facts.csv", "time.csv",
        "balance.csv", "map.csv", "duplicates.csv", "confusion.csv", "money.csv",
        "judgements.csv", "refreshes.csv",
    }  # fmt: skip
    assert tables["curves.csv"][1] == ["digits", "random", "linear", "100", "0.6", "0.01", "3"]
    assert tables["savings.csv"][1][9] == str(1 - 175 / 300)
    assert tables["balance.csv"] == [
        ["class", "round 0", "round 1"], ["one", "10", "20"], [EVIL, "20", "20"],
        ["three", "0", "20"],
    ]  # fmt: skip
    assert len(tables["map.csv"]) == 41
    assert len(tables["selections.csv"]) == 1 + 40 + 1
    assert tables["selections.csv"][-1][3] == QUOTES
    evil = Report(name="x", embedding_map=EmbeddingMap(
        points=(MapPoint(id="=1+1", x=-1.5, y=0.0, label="@x"),), method="PCA", total=1,
    ))  # fmt: skip
    row = list(csv.reader(io.StringIO(write_tables(evil)["map.csv"])))[1]
    assert row[:4] == ["'=1+1", "-1.5", "0.0", "'@x"]


def test_an_empty_report_exports_nothing():
    assert draw_figures(Report(name="x")) == {}
    assert write_tables(Report(name="x")) == {}


# Figures outside a browser


def test_a_flat_drawing_holds_the_values_a_browser_would_compute():
    drawing = """<svg xmlns="http://www.w3.org/2000/svg"><style>
      :root { --ink: #111111; --own: var(--ink); } /* .a { fill: red } */
      @media (prefers-color-scheme: dark) { :root { --ink: #eeeeee; } .a { fill: white; } }
      text { fill: var(--own); font-size: 12px; }
      .a text, .b:hover text { fill: var(--none, var(--ink)); }
      .a .b { fill: #00ff00; } .hidden { display: none; }
      .late { --own: #222222; stroke: var(--nowhere); cursor: pointer; }
    </style><text>x</text><g class="a late"><text class="b">y</text><g><text>z</text></g>
    <path class="hidden"/></g><g class="late"><text>&lt;w&gt;</text></g></svg>"""
    root = ET.fromstring(flatten(drawing))
    assert {text.text: text.get("fill") for text in root.iter(f"{SVG}text")} == {
        "x": "#111111", "y": "#00ff00", "z": "#111111", "<w>": "#222222",
    }  # fmt: skip
    assert {text.get("font-size") for text in root.iter(f"{SVG}text")} == {"12px"}
    assert not root.findall(f".//{SVG}path")
    assert all(not {"class", "stroke", "cursor"} & set(element.keys()) for element in root.iter())


def test_exported_figures_have_no_style_sheet_and_no_variable():
    for text in draw_figures(full_report()).values():
        root = ET.fromstring(text)
        assert "var(" not in text
        assert "#ffffff" in {element.get("fill") for element in root.iter()}
        assert not root.findall(f".//{SVG}style")
        assert not [element for element in root.iter() if element.get("class")]


def test_a_figure_as_png_has_its_colours_and_its_text():
    pytest.importorskip("resvg_py")
    (text,) = (t for name, t in draw_figures(full_report()).items() if name == "curves.svg")
    picture = Image.open(io.BytesIO(rasterise(text))).convert("RGB")
    root = ET.fromstring(text)
    assert picture.size == (2 * int(root.get("width")), 2 * int(root.get("height")))
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert {(255, 255, 255), (0, 95, 158), (196, 74, 0)} <= colours
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    # The heading is text: its corner has ink, in whatever face this machine has.
    assert min(picture.crop((30, 20, 250, 70)).convert("L").tobytes()) < 80


def test_a_machine_without_faces_still_shows_text():
    resvg = pytest.importorskip("resvg_py")
    only = """<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20">
      <text x="2" y="15" font-family="No Such Face, sans-serif">label</text></svg>"""
    assert min(Image.open(io.BytesIO(rasterise(only))).convert("L").tobytes()) < 128
    blank = resvg.svg_to_bytes(svg_string=only, background="#ffffff", skip_system_fonts=True)
    assert min(Image.open(io.BytesIO(blank)).convert("L").tobytes()) == 255


def test_png_without_the_extra_is_refused_before_any_work(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "resvg_py" else found(name)
    )
    with pytest.raises(InputError, match=r"svp\[png\]"):
        write_report(Study(path=tmp_path / "none", config=None), export=tmp_path, png=True)
    with pytest.raises(InputError, match=r"svp\[png\]"):
        rasterise("<svg/>")
    assert list(tmp_path.iterdir()) == []


def test_a_figure_too_large_for_png_is_refused():
    pytest.importorskip("resvg_py")
    with pytest.raises(InputError, match="fewer groups"):
        rasterise('<svg xmlns="http://www.w3.org/2000/svg" width="900" height="90000"/>')
