import itertools
import math

import pytest

from svp.label.agreement import agreement
from svp.label.answer import Label
from svp.label.names import Names
from svp.label.vote import resolve


def _vote(who, label, *, weight="", at=""):
    return Label(id="x", label=label, annotator=who, weight=weight, labeled_at=at)


def test_alpha_of_the_published_example():
    # Krippendorff 2011, section C: four observers, twelve units, nominal data, alpha = 0.743.
    rows = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    units = zip(*(row.split() for row in rows), strict=True)
    votes = [{str(who): v for who, v in enumerate(unit) if v != "."} for unit in units]
    measured = agreement(votes)
    assert measured.alpha == pytest.approx(0.743, abs=5e-4)
    assert measured.items == 11  # one unit has a single value
    assert [one.name for one in measured.annotators] == ["0", "1", "2", "3"]


def test_agreement_at_its_ends():
    same = [{"a": "x", "b": "x"}, {"a": "y", "b": "y"}]
    assert (agreement(same).alpha, agreement(same).pairwise) == (1, 1)
    assert math.isnan(agreement([{"a": "x", "b": "x"}]).alpha)
    assert agreement([{"a": "x", "b": "y"}]).pairwise == 0
    assert agreement([{"a": "x"}, {}]) is None


def test_the_outcome_depends_on_the_votes_alone():
    votes = [
        _vote("a", "red", at="2026-01-01"),
        _vote("a", "blue", at="2026-01-03"),
        _vote("b", "red", at="2026-01-02"),
        _vote("c", "blue", weight="0.5", at="2026-01-04"),
        _vote("d", "red", weight="0.5", at="2026-01-05"),
    ]
    outcomes = {resolve(order) for order in itertools.permutations(votes)}
    assert len(outcomes) == 1
    (outcome,) = outcomes
    assert outcome.label.label == "red"  # a tie of 1.5 each: the newest vote is red
    assert outcome.dispute.tie
    assert outcome.label.labeled_at == "2026-01-05"
    assert outcome.label.annotator == "b+d"


def test_withdrawn_votes_do_not_count():
    votes = [_vote("a", "red", at="2026-01-01"), _vote("b", "blue", at="2026-01-02")]
    taken_back = _vote("b", "", at="2026-01-03")
    assert resolve([*votes, taken_back]).label.label == "red"
    assert resolve([*votes, taken_back]).dispute is None
    assert resolve([votes[1], taken_back]).label.label == ""


def test_names_are_found_by_their_ends_and_never_guessed():
    names = Names(["a/x.png", "b/x.png", "x.png", "c/y.jpg", "c/y.png"])
    assert names.of_path("/data/a/x.png") == "a/x.png"
    assert names.of_path("/data/x.png") == "x.png"
    assert names.of_path("b\\x") == "b/x.png"
    assert names.of_path("zzx.png") == "zzx.png"
    assert names.of_path("y.png") == "c/y.png"
    with pytest.raises(ValueError, match="must mean one item"):
        names.of_path("y")
