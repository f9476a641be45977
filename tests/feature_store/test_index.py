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


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(-20, 4_999), min_size=1, max_size=200),
    st.sampled_from([0, 1, 3]),
)
def test_few_rows_are_found_by_looking_at_all(seed, asked, word):
    # Equal digests, failed items, numbers instead of digests: the first row, none, and all rows.
    rng = np.random.default_rng(seed)
    stored = np.zeros((5_000, 4), np.uint64)
    stored[:, word] = rng.integers(0, 3_000, 5_000)
    rows = {}
    for row, digest in enumerate(map(tuple, stored.tolist())):
        if any(digest):
            rows.setdefault(digest, row)
    wanted = stored[asked].copy()
    wanted[np.asarray(asked) < 0] += np.uint64(7_000)  # stored nowhere
    expected = [rows.get(tuple(digest), -1) for digest in wanted.tolist()]
    index = DigestIndex(stored.view(np.uint8))
    for _ in range(4):
        assert index.find(wanted.view(np.uint8)).tolist() == expected


def test_the_table_is_made_for_the_third_question():
    stored = np.random.default_rng(0).integers(0, 2**63, (300_000, 4), np.uint64).view(np.uint8)
    for distinct in (True, False):
        index = DigestIndex(stored, distinct=distinct)
        asked = np.random.default_rng(1).permutation(len(stored))[:3_000]
        for made in (False, False, True, True):
            assert index.runs(stored[asked]).rows().tolist() == asked.tolist()
            assert ("_table" in vars(index)) == made
    index = DigestIndex(stored)
    assert index.find(stored).tolist() == list(range(len(stored)))
    assert "_table" in vars(index), "many rows are worth the table at once"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 30_000), min_size=4, max_size=4))
def test_first_occurrences_among_many(seed, distinct):
    # Words that repeat in every combination: equal in some, in all, in none.
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, count, 5_000, np.uint64) for count in distinct]
    digests = np.stack(columns, axis=1).view(np.uint8)
    firsts = {}
    for row, digest in enumerate(map(bytes, digests)):
        firsts.setdefault(digest, row)
    assert first_occurrences(digests).tolist() == list(firsts.values())
