import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_store.runs import Runs


@given(st.lists(st.integers(0, 12), max_size=40))
def test_runs_hold_the_rows(rows):
    runs = Runs.of(np.asarray(rows, np.int64))
    assert runs.rows().tolist() == rows
    assert runs.positions().tolist() == list(range(len(rows)))
    assert all(runs.row[1:] != (runs.row + runs.length)[:-1]), "runs are as long as they can be"


@given(st.lists(st.integers(0, 30), max_size=40), st.sets(st.integers(1, 30)))
def test_cutting_keeps_the_rows_and_names_their_piece(rows, bounds):
    starts = np.asarray([0, *sorted(bounds)], np.int64)
    cut, piece = Runs.of(np.asarray(rows, np.int64)).cut(starts)
    assert cut.rows().tolist() == rows
    assert cut.positions().tolist() == list(range(len(rows)))
    expected = np.searchsorted(starts, rows, side="right") - 1
    assert np.repeat(piece, cut.length).tolist() == expected.tolist()


def test_runs_over_many_pieces():
    cut, piece = Runs.of(np.arange(3, 100)).cut(np.arange(0, 100, 8))
    assert cut.row.tolist() == [3, *range(8, 100, 8)]
    assert piece.tolist() == list(range(13))
    assert cut.length.sum() == 97
