import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.index import DigestIndex, _slots, first_occurrences

# Few distinct words, so that digests repeat, share their first eight bytes, or are zero.
WORDS = st.integers(0, 2)
DIGESTS = st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), max_size=30)


def _array(tuples):
    return np.asarray(tuples, np.uint64).reshape(-1, 4).view(np.uint8)


@settings(max_examples=200, deadline=None)
@given(DIGESTS, DIGESTS)
def test_rows_are_found_as_in_a_dictionary(stored, asked):
    rows = {}
    for row, digest in enumerate(stored):
        if any(digest):
            rows.setdefault(digest, row)
    found = DigestIndex(_array(stored)).find(_array(asked))
    assert found.tolist() == [rows.get(digest, -1) for digest in asked]


@settings(max_examples=200, deadline=None)
@given(DIGESTS)
def test_first_occurrences_as_in_a_dictionary(digests):
    firsts = {}
    for row, digest in enumerate(digests):
        firsts.setdefault(digest, row)
    assert first_occurrences(_array(digests)).tolist() == list(firsts.values())


def test_wrong_arrays_are_refused():
    for wrong in (np.zeros((3, 31), np.uint8), np.zeros((3, 32), np.int8), np.zeros(32, np.uint8)):
        with pytest.raises(ValueError, match=r"\(N, 32\) uint8"):
            first_occurrences(wrong)
        with pytest.raises(ValueError, match=r"Pool\.digests"):
            DigestIndex(wrong)


@pytest.mark.parametrize(
    "numbered", [lambda n: np.arange(n) << 40, lambda n: np.arange(n).byteswap(), np.arange]
)
@pytest.mark.parametrize("word", range(4))
def test_digests_that_only_number_the_items_are_found_as_fast(word, numbered):
    stored = np.zeros((50_000, 4), np.uint64)
    stored[:, word] = numbered(len(stored)).astype(np.uint64)
    index = DigestIndex(stored.view(np.uint8))
    assert len(index) == len(stored) - 1  # the first is zero
    found = index.find(stored[::-1].copy().view(np.uint8))
    assert found.tolist() == [*range(len(stored) - 1, 0, -1), -1]
    slots = index._table[0]
    rows = slots[slots >= 0]
    walked = (np.flatnonzero(slots >= 0) - _slots(stored, len(slots))[rows]) % len(slots)
    assert walked.mean() < 4, "most are where the search for them begins"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9_999), st.integers(1, 4_000)), max_size=6), st.booleans())
def test_long_stretches_are_found_as_single_rows(stretches, distinct):
    stored = np.random.default_rng(0).integers(0, 2**63, (10_000, 4), np.uint64)
    stored[5_000] = 0
    index = DigestIndex(stored.view(np.uint8), distinct=distinct)
    asked = np.concatenate([np.zeros(0, np.int64), *(np.arange(a, a + b) for a, b in stretches)])
    asked = asked[asked < 10_000]
    runs = index.runs(stored[asked].view(np.uint8))
    if 5_000 in asked:
        assert runs is None
    else:
        np.testing.assert_array_equal(runs.rows(), asked)
        np.testing.assert_array_equal(runs.positions(), np.arange(len(asked)))
