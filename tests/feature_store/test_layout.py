import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.layout import chunks, digest_chunk_rows, fitting_chunk_rows, full_chunk_rows

MIB = 2**20


@pytest.mark.parametrize(
    ("rows", "row_bytes", "expected"),
    [
        (2**20, 1024, 16_384),  # d = 512 in fp16: 16 MiB
        (100_000_000, 1024, 16_384),
        (300_000, 1024, 8_192),  # 37 chunks of 8 MiB
        (50_000, 1024, 1_024),  # 49 chunks; smaller ones would be below 1 MiB
        (100, 1024, 1_024),
        (10_000_000, 1536, 8_192),
        (100, 1536, 1_024),
        (10**6, 2**25, 1),  # a row larger than a chunk
    ],
)
def test_chunk_rows(rows, row_bytes, expected):
    assert fitting_chunk_rows(rows, row_bytes) == expected


@given(st.integers(1, 10**9), st.integers(2, 2**24))
def test_chunks_stay_within_their_bounds(rows, row_bytes):
    number = fitting_chunk_rows(rows, row_bytes)
    assert number & (number - 1) == 0
    assert number * row_bytes <= 16 * MIB or number == 1
    assert number * row_bytes >= MIB
    assert number <= full_chunk_rows(row_bytes)
    if number * row_bytes >= 2 * MIB and number > 1:
        assert rows / number >= 32


@given(st.integers(1, 10**7))
def test_digest_chunks(rows):
    number = digest_chunk_rows(rows)
    assert number & (number - 1) == 0
    assert number * 32 <= 16 * MIB
    assert rows <= number or number * 32 == 16 * MIB


@given(st.integers(0, 500), st.integers(1, 100))
def test_chunks_cover_all_rows_once(rows, chunk_rows):
    covered = [row for chunk in chunks(rows, chunk_rows) for row in range(chunk.start, chunk.stop)]
    assert covered == list(range(rows))
    assert all(0 < len(chunk) <= chunk_rows for chunk in chunks(rows, chunk_rows))
    assert [chunk.index for chunk in chunks(rows, chunk_rows)] == list(
        range(-(-rows // chunk_rows))
    )
