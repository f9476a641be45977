import base64
import dataclasses
import hashlib
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from svp.errors import InputError
from svp.report import (
    Balance,
    Comparison,
    Copies,
    CopyGroup,
    CopyItem,
    Cost,
    Curve,
    CurvePoint,
    EmbeddingMap,
    Fact,
    Gallery,
    GalleryItem,
    Judgement,
    MapPoint,
    Money,
    RefreshDone,
    RefreshHistory,
    Report,
    Round,
    Saving,
    Stage,
    TargetModel,
    make_thumbnail,
    render,
)
from svp.report.bars import balance_bars, confused_pairs, cut, imbalance, recall_bars
from svp.report.chart import emphasise, label_axis, line_chart, nice_step, share_axis, spread_labels
from svp.report.headline import headline, quoted_saving
from svp.report.page import MAX_ITEMS, MAX_THUMBNAIL_BYTES, limit_gallery, shared_reason
from svp.report.quantity import duration, number, percent, plural, significant

EVIL = "<script>alert(1)</script>.png"
QUOTES = "\"><img src=x onerror=alert(1)>' onload='x"
SECTIONS = (
    "curves", "rounds", "map", "selection", "copies", "balance", "refreshes", "model", "time",
    "setup",
)  # fmt: skip
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """What a browser would see: tags, attributes, text; refuses tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


def curve(strategy, means, proxy="linear", **options):
    points = tuple(
        CurvePoint(labels=100 * (i + 1), mean=mean, sd=0.01, seeds=3)
        for i, mean in enumerate(means)
    )
    return Curve(strategy=strategy, proxy=proxy, points=points, **options)


def history():
    verdicts = ((10, None, None, False), (20, -0.1, None, False), (30, -0.2, 0.5, False),
                (40, -0.2, 0.01, True))  # fmt: skip
    judgements = tuple(
        Judgement(
            round=place,
            labels=labels,
            encoder="0123456789abcdef",
            stale=stale,
            reason=EVIL,
            ped_steps=6,
            score=score,
            change=change,
            threshold=0.05,
            refresh=1 if stale else None,
        )
        for place, (labels, score, change, stale) in enumerate(verdicts, start=1)
    )
    done = RefreshDone(number=1, labels=40, finetune_s=60.0, embed_s=9.0, encoder=QUOTES)
    return RefreshHistory(mode="auto", judgements=judgements, done=(done,))


def full_report():
    images = load_digits().images
    items = tuple(
        GalleryItem(
            id=EVIL if rank == 2 else f"train/{rank:03d}.png",
            rank=rank,
            utility=-0.01 * rank,
            reason=f"margin {0.01 * rank:.2f} between the two best classes",
            predicted=QUOTES if rank == 2 else "seven",
            confidence=0.5,
            thumbnail=make_thumbnail(
                Image.fromarray((images[rank] * 15).astype("uint8")).convert("RGB")
            ),
        )
        for rank in range(1, 41)
    )
    return Report(
        name="Digits <b>pilot</b>",
        generated="21 November 2025",
        pool_size=1797,
        labels=90,
        comparisons=(
            Comparison(
                name="digits",
                curves=(
                    curve("random", (0.6, 0.7, 0.75), is_random=True),
                    curve("margin", (0.6, 0.8, 0.9)),
                    curve("peek", (0.7, 0.9, 0.95), reads_labels=True),
                ),
                savings=(
                    Saving(
                        strategy="margin",
                        proxy="linear",
                        accuracy=0.75,
                        labels=175,
                        random_labels=300,
                        exceeds=True,
                        mean_ratio=0.3,
                        sd_ratio=0.05,
                        rounds=2,
                        censored=1,
                        final_accuracy=0.9,
                        gain=0.1,
                        gain_half_width=0.02,
                    ),
                ),
                note="Three seeds.",
            ),
        ),
        rounds=(
            Round(number=0, strategy="kmeans", selected=30, labels=0, seconds=1.5),
            Round(number=1, strategy="margin", selected=30, labels=30, accuracy=0.7),
            Round(number=2, strategy=EVIL, selected=30, labels=60, accuracy=0.8, refresh="no"),
        ),
        balance=Balance(
            classes=("one", EVIL, "three"),
            sources=("round 0", "round 1"),
            counts=((10, 20, 0), (20, 20, 20)),
        ),
        embedding_map=EmbeddingMap(
            points=tuple(
                MapPoint(
                    id=EVIL if place == 5 else f"{place}",
                    x=place % 7,
                    y=place / 3,
                    label=(QUOTES, "b", "")[place % 3] if place < 12 else "",
                    round=place % 3 if place < 12 else None,
                    rank=place + 1 if place < 12 else None,
                )
                for place in range(40)
            ),
            method="t-SNE",
            total=1797,
        ),
        gallery=Gallery(round=2, strategy="margin", items=items, total=400),
        earlier=(
            Gallery(
                round=1,
                strategy=EVIL,
                items=(GalleryItem(id=QUOTES, rank=1, reason=EVIL, thumbnail=items[0].thumbnail),),
                total=30,
            ),
        ),
        copies=Copies(
            threshold=0.98,
            items=1797,
            exact=1,
            near=1,
            waste=2,
            labels_differ=1,
            sides_differ=1,
            total=9,
            groups=(
                CopyGroup(
                    items=(
                        CopyItem(id="kept.png", kind="kept", thumbnail=items[0].thumbnail),
                        CopyItem(id=EVIL, kind="near", cosine=0.991, label=QUOTES),
                    ),
                    size=3,
                    labels_differ=True,
                    sides_differ=True,
                ),
            ),
        ),
        refreshes=history(),
        model=TargetModel(
            accuracy=0.9,
            method="lp-ft",
            classes=("one", EVIL),
            confusion=((8, 2), (0, 10)),
            metrics=(Fact(name="Macro F1", value="90%"),),
        ),
        stages=(Stage(name="embed", seconds=12.0), Stage(name="train", seconds=120.0)),
        money=Money(
            currency=EVIL,
            as_of="2025-11-01",
            costs=(
                Cost(name="labels", quantity="90 labels", amount=9.0),
                Cost(name=QUOTES, quantity="1 s", amount=0.001),
                Cost(name="train", quantity="2 s", amount=0.002),
                Cost(name="embed", quantity="1 h", amount=0.5),
            ),
        ),
        configuration=(Fact(name="seed", value="0"), Fact(name="data.source", value=EVIL)),
        identities=(Fact(name="pool", value="0123456789abcdef"),),
        versions=(Fact(name="svp", value="0.1.0"),),
    )


@pytest.fixture(scope="module")
def page():
    return render(full_report())


# The page


def test_the_page_asks_the_network_for_nothing(page):
    seen = Page(page)
    for tag, name, value in seen.attributes:
        if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}:
            assert value.startswith(("data:image/", "#")), (tag, name, value[:60])
        assert name != "style"
        assert not name.startswith("on")
    without_namespace = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|javascript:", without_namespace)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(seen.tags)


def test_the_policy_forbids_everything_but_this_style_sheet_and_data_images(page):
    seen = Page(page)
    policy = next(value for value in seen.values("content") if "default-src" in value)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_ids_and_names_from_outside_are_inert(page):
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<b>pilot" not in page
    seen = Page(page)
    assert any(EVIL in value for value in seen.values("title"))
    assert any(EVIL in value and QUOTES in value for value in seen.values("alt"))
    assert not any(name.startswith("on") for _, name, _ in seen.attributes)


def test_all_sections_are_there_and_linked(page):
    seen = Page(page)
    for name in SECTIONS:
        assert name in seen.values("id")
        assert f"#{name}" in seen.values("href")
    assert 'class="empty"' not in page
    ids = seen.values("id")
    assert len(ids) == len(set(ids))
    named = {part for value in seen.values("aria-labelledby") for part in value.split()}
    assert named <= set(ids)


def test_an_empty_study_says_which_command_fills_each_section():
    text = render(Report(name="New", study="studies/new"))
    seen = Page(text)
    said = " ".join(" ".join(seen.text).split())
    for command in (
        "simulate", "select", "labels import", "finetune", "plan", "init", "embed",
        "pool duplicates", "refresh",
    ):  # fmt: skip
        assert f"svp {command} studies/new" in said
    assert text.count('class="empty"') == len(SECTIONS)
    assert "figure" not in seen.tags


def test_the_same_content_gives_the_same_bytes(page):
    assert render(full_report()) == page


def test_every_picture_has_a_text_and_every_chart_a_description(page):
    seen = Page(page)
    assert len(seen.values("alt")) == seen.tags.count("img") == 42
    assert seen.tags.count("desc") == page.count('role="img" aria-labelledby')
    assert "margin 90.0% at 300" in page


def test_the_headline_states_the_censoring(page):
    said = " ".join(" ".join(Page(page).text).split())
    assert "margin (linear) reached 75.0% with 175 labels; random labelling needed 300" in said
    assert "so 42% were saved" in said
    assert "Random never went above 75.0%, so 1 of 2 rounds only bound what margin saves." in said
    assert "simulated; 1 of 2 rounds censored" in said
    assert "chance" not in said


def test_strategies_that_read_labels_are_marked(page):
    assert "peek †" in page
    assert "† reads the labels" in page


def test_the_gallery_is_capped():
    item = GalleryItem(id="a", rank=1)
    many = tuple(dataclasses.replace(item, id=f"{i}", rank=i + 1) for i in range(MAX_ITEMS + 50))
    gallery = limit_gallery(Gallery(round=0, strategy="random", items=many, total=len(many)))
    assert len(gallery.items) == MAX_ITEMS
    text = render(Report(name="x", gallery=Gallery(round=0, strategy="r", items=many, total=250)))
    assert "the first 200 shown" in text
    assert text.count('class="card"') == MAX_ITEMS


def test_thumbnails_that_do_not_fit_are_left_out_but_their_items_stay():
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    small = make_thumbnail(Image.fromarray(noise))
    huge = dataclasses.replace(small, data=bytes(MAX_THUMBNAIL_BYTES - len(small.data) + 1))
    items = tuple(
        GalleryItem(id=str(i), rank=i, thumbnail=picture)
        for i, picture in enumerate((huge, small, None), start=1)
    )
    kept = limit_gallery(Gallery(round=0, strategy="r", items=items, total=3)).items
    assert [item.thumbnail is None for item in kept] == [False, True, True]


def test_one_reason_for_all_is_said_once(page):
    assert page.count("between the two best classes") == 1
    items = (
        GalleryItem(id="a", rank=1, reason="far: 1.2"),
        GalleryItem(id="b", rank=2, reason="near: 3"),
    )
    assert shared_reason(items) == ""
    assert shared_reason(items[:1]) == ""


def test_large_class_sets_become_lists_of_confusions():
    names = tuple(f"class {i}" for i in range(30))
    confusion = np.eye(30, dtype=int) * 9
    confusion[3, 7] = 5
    model = TargetModel(
        accuracy=0.9, classes=names, confusion=tuple(map(tuple, confusion.tolist()))
    )
    text = render(Report(name="x", model=model))
    assert "Most frequent confusions of 30 classes" in text
    assert confused_pairs(model) == (("class 3", "class 7", "5"),)
    assert "6 more" in text


# Thumbnails


def test_thumbnails_shrink_and_carry_no_metadata():
    image = Image.new("RGB", (800, 400), (10, 200, 30))
    exif = image.getexif()
    exif[0x010E] = "secret place"
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", exif=exif)
    made = make_thumbnail(Image.open(io.BytesIO(buffer.getvalue())))
    assert (made.width, made.height, made.mime) == (160, 80, "image/jpeg")
    assert b"secret" not in made.data
    assert made.uri.startswith("data:image/jpeg;base64,")


def test_small_pictures_are_kept_exactly():
    pixels = np.random.default_rng(0).integers(0, 255, (32, 20, 3), dtype=np.uint8)
    made = make_thumbnail(Image.fromarray(pixels))
    assert made.mime == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made.data))), pixels)


def test_very_long_pictures_keep_a_pixel():
    made = make_thumbnail(Image.new("RGB", (5000, 3)))
    assert (made.width, made.height) == (160, 1)


# Charts


def test_known_points_land_where_they_should():
    chart = line_chart(
        (curve("random", (0.5, 0.6, 0.7), is_random=True),), key="k", title="t", metric="accuracy"
    )
    left, right, top, bottom = map(float, (chart.left, chart.right, chart.top, chart.bottom))
    ticks = {label: float(y) for y, label in chart.y_ticks}
    assert ticks["50%"] > ticks["70%"]
    series = chart.series[0]
    xy = [tuple(map(float, pair.split())) for pair in series.line[1:].split("L")]
    assert [x for x, _ in xy] == [left, (left + right) / 2, right]
    low, high = ticks["50%"], ticks["70%"]
    assert [y for _, y in xy] == pytest.approx([low, (low + high) / 2, high], abs=0.02)
    band = [tuple(map(float, pair.split())) for pair in series.band[1:-1].split("L")]
    sd = (low - high) / 20  # 0.01 of the 0.2 between them
    assert band[0][1] == pytest.approx(low - sd, abs=0.02)
    assert band[-1] == pytest.approx((left, low + sd), abs=0.02)
    assert all(top <= y <= bottom for _, y in band)
    assert series.marks[0].title == "random: 50.00% ± 1.00 at 100 labels"


def test_a_single_point_or_flat_curve_can_be_drawn():
    for means in ((0.5,), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0)):
        points = tuple(
            CurvePoint(labels=10 * (i + 1), mean=m, sd=None, seeds=1) for i, m in enumerate(means)
        )
        chart = line_chart((Curve(strategy="a", points=points),), key="k", title="t", metric="m")
        assert "nan" not in repr(chart)
        assert chart.series[0].band == ""


@pytest.mark.parametrize(
    ("span", "about", "step"), [(1.0, 5, 0.2), (0.032, 8, 0.005), (3800, 7, 1000), (10, 10, 1.0)]
)
def test_steps_are_round(span, about, step):
    assert nice_step(span, about) == pytest.approx(step)


def test_axes_hold_their_data():
    x = label_axis([200, 4000], start=50, end=700, about=7)
    assert (x(200), x(4000)) == (50, 700)
    assert x.ticks == (1000, 2000, 3000, 4000)
    y = share_axis([CurvePoint(labels=1, mean=0.98, sd=0.05, seeds=2)], start=400, end=20, about=6)
    assert y.low <= 0.93
    assert y.high == 1.0


def test_labels_keep_their_distance():
    placed = spread_labels([100, 101, 102, 300], low=0, high=400, gap=15)
    assert placed == pytest.approx([86, 101, 116, 300])
    at_edge = spread_labels([399, 400], low=0, high=400, gap=15)
    assert at_edge == pytest.approx([385, 400])
    crowded = spread_labels([5.0] * 5, low=0, high=40, gap=15)
    assert crowded == pytest.approx([0, 10, 20, 30, 40])
    assert spread_labels([], low=0, high=1, gap=1) == []


def test_many_strategies_leave_the_best_in_colour():
    curves = [curve(f"s{i:02d}", (0.5, 0.5 + i / 100)) for i in range(12)]
    curves.append(curve("random", (0.9, 0.95), is_random=True))
    assert emphasise(curves) == ("s11", "s10", "s09", "s08", "s07", "s06")
    chart = line_chart(curves, key="k", title="t", metric="m")
    styles = [series.style for series in chart.series]
    assert styles == ["other"] * 6 + ["random", "s6", "s5", "s4", "s3", "s2", "s1"]
    assert all(not s.label_y and not s.marks for s in chart.series if s.style == "other")
    text = render(Report(name="x", comparisons=(Comparison(name="c", curves=tuple(curves)),)))
    assert "6 more in grey" in text


def test_a_strategy_keeps_its_colour_across_proxies():
    curves = (
        curve("a", (0.5, 0.9)),
        curve("b", (0.5, 0.6)),
        curve("a", (0.5, 0.6), proxy="mlp"),
        curve("b", (0.5, 0.7), proxy="mlp"),
    )
    text = render(Report(name="x", comparisons=(Comparison(name="c", curves=curves),)))
    assert text.count("Proxy: ") == 2
    for name, style in (("a", "s1"), ("b", "s2")):
        groups = re.findall(
            rf'<g class="(s\d)">(?:(?!</g>).)*class="name"[^>]*>{name} ', text, re.DOTALL
        )
        assert set(groups) == {style}


def test_curves_must_be_finite():
    with pytest.raises(InputError, match="finite"):
        CurvePoint(labels=1, mean=float("nan"), sd=None, seeds=1)


# Bars


def test_balance_shows_each_round():
    balance = Balance(classes=("a", "b"), sources=("r0", "r1"), counts=((1, 3), (1, 5)))
    largest, smallest = balance_bars(balance)
    assert (largest.name, largest.value, largest.note) == ("b", "8", "80.0%")
    assert [(s.x, s.width) for s in largest.segments] == [("0.00", "37.50"), ("37.50", "62.50")]
    assert [s.width for s in smallest.segments] == ["12.50", "12.50"]
    assert imbalance(balance) == ("4.0", 0)


def test_unseen_classes_make_the_imbalance_a_bound():
    balance = Balance(classes=("a", "b"), sources=("r0",), counts=((7, 0),))
    assert imbalance(balance) == ("≥ 7.0", 1)


def test_misshapen_content_is_refused():
    with pytest.raises(InputError, match="rows of 2 classes"):
        Balance(classes=("a", "b"), sources=("r0",), counts=((7,),))
    with pytest.raises(InputError, match="confusion matrix"):
        TargetModel(accuracy=1.0, classes=("a", "b"), confusion=((1,),))


def test_recall_is_worst_first_and_skips_untested_classes():
    model = TargetModel(
        accuracy=0.5, classes=("a", "b", "c"), confusion=((9, 1, 0), (5, 5, 0), (0, 0, 0))
    )
    assert [(bar.name, bar.value) for bar in recall_bars(model)] == [("b", "50.0%"), ("a", "90.0%")]


def test_long_tables_keep_both_ends():
    bars = balance_bars(
        Balance(
            classes=tuple(f"{i:03d}" for i in range(100)),
            sources=("r",),
            counts=(tuple(range(100)),),
        )
    )
    assert len(bars) == 25
    assert bars[12].is_gap
    assert bars[12].name == "76 more"
    assert (bars[0].name, bars[-1].name) == ("099", "000")
    assert cut(bars[:3]) == bars[:3]


# Headline


def saving(**changes):
    base = {"strategy": "margin", "labels": 100.0, "accuracy": 0.9, "random_labels": 200.0}
    return Saving(**({"final_accuracy": 0.9} | base | changes))


def with_savings(*savings, curves=()):
    return Report(name="x", comparisons=(Comparison(name="c", curves=curves, savings=savings),))


@pytest.mark.parametrize(
    ("one", "sentence", "tile"),
    [
        (saving(), "needed 200, so 50% were saved", "50%"),
        (saving(bound="at least"), "so at least 50% were saved", "≥ 50%"),
        (saving(random_labels=80.0), "needed 80. It saved nothing", "−25%"),
        (saving(random_labels=80.0, bound="at most"), "was above that with its first", "≤ −25%"),
    ],
)
def test_the_headline_says_what_was_measured(one, sentence, tile):
    said = headline(with_savings(one))
    assert sentence in said.sentence
    assert said.caveat == ""
    assert said.tiles[2].value == tile


def test_chance_is_named_where_it_is_not_ruled_out():
    said = headline(with_savings(saving(gain=0.02, gain_half_width=0.05)))
    assert said.caveat == "At the end the two differ by 2.0 ± 5.0 points: chance is not ruled out."
    assert headline(with_savings(saving(gain=0.06, gain_half_width=0.05))).caveat == ""
    assert "One seed" in headline(with_savings(saving(gain=0.06))).caveat


def test_the_studys_own_strategy_is_quoted_even_where_another_saved_more():
    own, other = saving(), saving(strategy="badge", random_labels=400.0)
    report = with_savings(other, own)
    assert quoted_saving(report) == other
    assert quoted_saving(dataclasses.replace(report, strategy="margin")) == own
    assert quoted_saving(Report(name="x", strategy="margin")) is None


def test_a_strategy_that_peeks_is_not_quoted():
    peek, honest = saving(strategy="peek", random_labels=900.0), saving()
    curves = (curve("peek", (0.9,), reads_labels=True),)
    assert quoted_saving(with_savings(peek, honest, curves=curves)) == honest
    assert quoted_saving(with_savings(peek, curves=curves)) == peek


def test_the_target_model_outranks_the_proxy():
    done = Round(number=3, strategy="margin", selected=1, labels=9, accuracy=0.8)
    assert headline(Report(name="x", rounds=(done,))).tiles[1].value == "80.0%"
    model = TargetModel(accuracy=0.95)
    assert headline(Report(name="x", rounds=(done,), model=model)).tiles[1].value == "95.0%"


# Quantities


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (number(-1234.5, 1), "−1,234.5"),
        (number(-0.04, 1), "0.0"),
        (percent(None), "–"),
        (percent(0.12345, 2), "12.35%"),
        (significant(0.0123), "0.0123"),
        (significant(-1.5e-9), "−1.50e−9"),
        (significant(1234.0), "1,234"),
        (significant(float("inf")), "∞"),
        (duration(0.5), "0.50 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(3725), "1 h 02 min"),
        (plural(1, "class", "classes"), "1 class"),
        (plural(2000, "class", "classes"), "2,000 classes"),
    ],
)
def test_quantities_read_well(said, text):
    assert said == text
