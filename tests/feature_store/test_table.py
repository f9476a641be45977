import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_store import (
    CorruptChunkError,
    EncoderMismatchError,
    Failure,
    FeatureStoreError,
    MissingRowsError,
    StoreConflictError,
    open_store,
)


def test_round_trip_in_the_asked_order(store, table, samples):
    digests = samples.digests(200)
    assert samples.fill(table, digests) == 200
    assert len(table.segments()) == 4
    assert (table.dim, table.dtype, table.rows) == (8, np.float16, 200)
    expected = samples.embed(digests)
    fresh = open_store(store.url).table(table.encoder_id)
    for order in (
        np.arange(200),
        np.arange(200)[::-1],
        np.random.default_rng(0).permutation(200),
        np.array([5, 5, 199, 0, 5]),
        np.arange(3, 61),
        np.zeros(0, np.int64),
    ):
        for verify in (True, False):
            np.testing.assert_array_equal(
                fresh.read(digests[order], verify=verify), expected[order]
            )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 99), max_size=120), st.sampled_from(["float16", "float32"]))
def test_any_rows_in_any_order(tmp_path_factory, samples, rows, dtype):
    table = _shared_table(tmp_path_factory, samples)
    digests = samples.digests(100)
    read = table.read(digests[rows], dtype=dtype)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, samples.embed(digests[rows], dtype=dtype))


_TABLES = {}


def _shared_table(tmp_path_factory, samples):
    if not _TABLES:
        store = open_store(tmp_path_factory.mktemp("shared"), create=True)
        table = store.table(store.put_encoder(samples.identity))
        samples.fill(table, samples.digests(100))
        _TABLES["only"] = table
    return _TABLES["only"]


def test_read_into_the_callers_array(table, samples):
    digests = samples.digests(70)
    samples.fill(table, digests)
    for dtype in ("float16", "float32", "float64"):
        out = np.zeros((70, 8), dtype)
        assert table.read(digests, out=out) is out
        np.testing.assert_array_equal(out, samples.embed(digests))
    for wrong in (np.zeros((69, 8)), np.zeros((70, 9)), np.zeros((8, 70)).T):
        with pytest.raises(ValueError, match="out must be"):
            table.read(digests, out=wrong)


def test_equal_content_is_stored_once(table, samples):
    digests = samples.digests(30)
    repeated = np.concatenate([digests, digests[::-1], digests[:3]])
    assert table.missing(repeated).tolist() == list(range(30))
    assert samples.fill(table, repeated) == 30
    assert table.rows == 30
    np.testing.assert_array_equal(table.read(repeated), samples.embed(repeated))


def test_an_overlapping_pool_computes_only_what_is_new(table, samples):
    assert samples.fill(table, samples.digests(100)) == 100
    assert samples.fill(table, samples.digests(100, start=60)) == 60
    assert samples.fill(table, samples.digests(160)) == 0
    digests = samples.digests(160)
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))


def test_views_and_encoders_are_apart(store, table, samples):
    digests = samples.digests(10)
    samples.fill(table, digests)
    other = store.table(store.put_encoder({"arch": "other"}))
    weak = store.table(table.encoder_id, "weak-0")
    assert len(other.missing(digests)) == len(weak.missing(digests)) == 10
    plan = weak.plan(digests, dim=8, dtype="float16")[0]
    with pytest.raises(EncoderMismatchError, match="weak-0"):
        table.writer(plan)


def test_missing_rows_are_counted(table, samples):
    samples.fill(table, samples.digests(50))
    asked = samples.digests(80)
    with pytest.raises(
        MissingRowsError, match=r"All 80 items .* Got 30 without.*svp embed"
    ) as info:
        table.read(asked)
    assert (info.value.missing, info.value.total) == (30, 80)
    with pytest.raises(LookupError):
        table.resolve(asked)
    with pytest.raises(MissingRowsError):
        table.read(np.zeros((1, 32), np.uint8))


def test_an_empty_table_says_so(table, samples):
    assert (table.dim, table.dtype, table.rows, table.segments()) == (None, None, 0, ())
    assert table.failures() == {}
    assert table.read(samples.digests(0)).shape == (0, 0)
    with pytest.raises(MissingRowsError):
        table.read(samples.digests(1))


def test_unsealed_rows_do_not_exist(table, samples):
    digests = samples.digests(40)
    plan = table.plan(digests, dim=8, dtype="float16", chunk_rows=16)[0]
    writer = table.writer(plan)
    for chunk in writer.pending():
        with pytest.raises(FeatureStoreError, match="must have all its 3 chunks"):
            writer.seal()
        writer.write(chunk, samples.embed(digests[chunk.start : chunk.stop]))
    assert table.segments() == ()
    assert len(table.missing(digests)) == 40
    writer.seal()
    assert len(table.missing(digests)) == 0


def test_a_sealed_segment_is_left_alone(table, samples, segment_files):
    digests = samples.digests(40)
    plan = table.plan(digests, dim=8, dtype="float16", chunk_rows=16)[0]
    samples.fill(table, digests, segment_rows=None)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in segment_files(table)}
    again = table.writer(plan)
    assert again.is_sealed
    assert list(again.pending()) == []
    again.write(plan.chunks()[0], np.ones((16, 8), np.float16))
    assert again.seal() == table.segments()[0]
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in segment_files(table)}
    assert after == before


def test_failed_items_are_recorded_and_never_returned(table, samples):
    digests = samples.digests(100)
    bad = {
        digests[i].tobytes(): Failure("corrupt" if i % 2 else "transient", f"item {i}")
        for i in (0, 17, 18, 99)
    }
    assert samples.fill(table, digests, failures=bad) == 100
    assert table.rows == 96
    assert table.failures() == bad
    assert len(table.missing(digests)) == 0
    assert table.missing(digests, retry=True).tolist() == [0, 17, 18, 99]
    with pytest.raises(MissingRowsError, match=r"4 of which failed before.*--retry") as info:
        table.read(digests)
    assert info.value.missing == 4
    kept = np.delete(digests, [0, 17, 18, 99], axis=0)
    np.testing.assert_array_equal(table.read(kept), samples.embed(kept))
    assert table.verify() == []


def test_retry_computes_the_failed_ones_again_each_time(table, samples):
    digests = samples.digests(3)
    bad = {row.tobytes(): Failure("transient", "first") for row in digests}
    assert samples.fill(table, digests, failures=bad) == 3
    assert samples.fill(table, digests, failures=bad) == 0
    still = {digests[1].tobytes(): Failure("missing", "second")}
    assert samples.fill(table, digests, failures=still, retry=True) == 3
    assert table.failures() == still
    assert samples.fill(table, digests, failures=still, retry=True) == 1
    assert samples.fill(table, digests, retry=True) == 1
    assert table.failures() == {}
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))


def test_items_that_failed_before_are_planned_apart(table, samples):
    digests = samples.digests(40)
    bad = {digests[i].tobytes(): Failure("transient", "x") for i in (2, 30)}
    samples.fill(table, digests[:35], failures=bad)
    todo = table.missing(digests, retry=True)
    plans = table.plan(digests[todo], dim=8, dtype="float16")
    assert [plan.attempt for plan in plans] == [0, 1]
    assert todo[plans[0].positions].tolist() == [35, 36, 37, 38, 39]
    assert todo[plans[1].positions].tolist() == [2, 30]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), rows=st.integers(1, 200), most=st.integers(1, 70))
def test_the_rest_of_a_plan_stays_when_parts_are_published(
    tmp_path_factory, samples, data, rows, most
):
    store = open_store(tmp_path_factory.mktemp("plans"), create=True)
    table = store.table(store.put_encoder(samples.identity))
    digests = samples.digests(rows)
    plans = table.plan(digests, dim=700_000, dtype="float32", segment_rows=most)
    published = data.draw(st.sets(st.sampled_from(range(len(plans)))))
    left = [i for i in range(len(plans)) if i not in published]
    rest = np.concatenate([np.zeros(0, np.int64), *(plans[i].positions for i in left)])
    again = table.plan(digests[rest], dim=700_000, dtype="float32", segment_rows=most)
    assert [plan.id for plan in again] == [plans[i].id for i in left]


def test_default_plans_survive_publication(table, samples):
    # Small defaults depend on the rows of a segment, never on how many are left.
    digests = samples.digests(300)
    plans = table.plan(digests, dim=2**20, dtype="float32")
    assert [plan.rows for plan in plans] == [256, 44]
    assert [plan.chunk_rows for plan in plans] == [4, 1]
    again = table.plan(digests[plans[1].positions], dim=2**20, dtype="float32")
    assert [plan.id for plan in again] == [plans[1].id]


def test_everything_that_fixes_the_rows_is_in_the_id(store, table, samples):
    digests = samples.digests(20)
    weak = store.table(table.encoder_id, "weak-0")
    plans = [
        table.plan(digests, dim=8, dtype="float16")[0],
        table.plan(digests[::-1], dim=8, dtype="float16")[0],
        table.plan(digests[:19], dim=8, dtype="float16")[0],
        table.plan(digests, dim=9, dtype="float16")[0],
        table.plan(digests, dim=8, dtype="float32")[0],
        table.plan(digests, dim=8, dtype="float16", chunk_rows=7)[0],
        weak.plan(digests, dim=8, dtype="float16")[0],
    ]
    assert len({plan.id for plan in plans}) == len(plans)
    assert plans[0].id == table.plan(digests, dim=8, dtype="float16")[0].id


def test_plans_refuse_what_cannot_be_stored(table, samples):
    digests = samples.digests(4)
    for arguments, match in (
        ({"digests": digests[[0, 0]]}, "distinct"),
        ({"digests": np.zeros((1, 32), np.uint8)}, "all zero"),
        ({"digests": digests[:, :16]}, r"\(N, 32\)"),
        ({"dtype": "float64"}, "float16, float32"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"chunk_rows": 0}, "chunk_rows must be"),
    ):
        with pytest.raises(ValueError, match=match):
            table.plan(**({"digests": digests, "dim": 8, "dtype": "float16"} | arguments))
    samples.fill(table, digests)
    with pytest.raises(StoreConflictError, match="width 8"):
        table.plan(samples.digests(4, start=9), dim=9, dtype="float16")


def test_writers_refuse_what_does_not_fit(table, samples):
    digests = samples.digests(20)
    plan = table.plan(digests, dim=8, dtype="float16", chunk_rows=16)[0]
    writer = table.writer(plan)
    first, last = plan.chunks()
    x = samples.embed(digests[:16])
    with pytest.raises(ValueError, match=r"must be \(4, 8\)"):
        writer.write(last, x)
    with pytest.raises(ValueError, match="row offsets"):
        writer.write(last, x[:4], {4: Failure("corrupt", "x")})
    other = table.plan(digests, dim=8, dtype="float16", chunk_rows=4)[0].chunks()[1]
    with pytest.raises(ValueError, match=r"pending\(\)"):
        writer.write(other, x[:4])
    for value in (np.nan, np.inf, 1e9):
        broken = x.astype(np.float32)
        broken[3, 5] = value
        with pytest.raises(FeatureStoreError, match="NaN or infinity in 1 rows of chunk 0"):
            writer.write(first, broken)
        writer_of_failed = table.writer(plan)
        writer_of_failed.write(first, broken, {3: Failure("transient", "not finite")})
    assert [chunk.index for chunk in writer.pending()] == [1]
    with pytest.raises(ValueError, match="kind of a failure"):
        Failure("lost", "x")


def test_tables_of_several_dtypes_read_as_the_widest(table, samples):
    one, other = samples.digests(20), samples.digests(20, start=20)
    samples.fill(table, one)
    samples.fill(table, other, dtype="float32")
    mixed = np.concatenate([other[::-1], one])
    read = table.read(mixed)
    assert read.dtype == table.dtype == np.float32
    np.testing.assert_array_equal(read, samples.embed(mixed, dtype="float32"))


def test_an_opened_table_sees_new_segments(store, table, samples):
    digests = samples.digests(30)
    other = open_store(store.url).table(table.encoder_id)
    for stop in (10, 20, 30):
        samples.fill(table, digests[:stop])
        assert other.rows == stop
        np.testing.assert_array_equal(other.read(digests[:stop]), samples.embed(digests[:stop]))
    assert all(one.id < two.id for one, two in itertools.pairwise(other.segments()))


def test_provenance_is_kept(table, samples):
    digests = samples.digests(3)
    plan = table.plan(digests, dim=8, dtype="float16")[0]
    writer = table.writer(plan)
    for chunk in writer.pending():
        writer.write(chunk, samples.embed(digests))
    sealed = writer.seal({"torch": "2.6"})
    assert sealed.provenance["torch"] == "2.6"
    assert "created" in table.segments()[0].provenance


def test_many_scattered_rows_are_shared_by_threads(store, table, samples):
    digests = samples.digests(3_000)
    samples.fill(table, digests, chunk_rows=64, segment_rows=3_000)
    order = np.random.default_rng(0).integers(0, 3_000, 6_000)
    for dtype in ("float16", "float32"):
        fresh = open_store(store.url).table(table.encoder_id)
        read = fresh.read(digests[order], dtype=dtype)
        np.testing.assert_array_equal(read, samples.embed(digests[order], dtype=dtype))


def _looks_only(table):
    """Return whether a table has read without keeping digests."""
    return table._state.readers == ()


def test_the_first_few_rows_are_found_while_digests_are_read(store, table, samples):
    # Three segments that overlap, a failed item, a chunk that is filled up, a repeated question.
    digests = samples.digests(3_000)
    bad = {digests[1_000].tobytes(): Failure("corrupt", "cut")}
    for start, stop in ((0, 1_500), (1_500, 2_900)):
        part = digests[start:stop]
        samples.fill(table, part, failures=bad, chunk_rows=128, segment_rows=1_500)
    # A writer that saw none of the others.
    (plan,) = table.plan(digests[2_500:], dim=8, dtype="float16", chunk_rows=128)
    writer = table.writer(plan)
    for chunk in writer.pending():
        writer.write(chunk, samples.embed(plan.digests[chunk.start : chunk.stop]))
    writer.seal()
    order = np.random.default_rng(0).permutation(3_000)
    asked = np.append(order[order != 1_000][:100], [7, 7, 2_999, 0])
    for verify in (True, False):
        fresh = open_store(store.url).table(table.encoder_id)
        for keeps in (False, True, True):
            read = fresh.read(digests[asked], verify=verify)
            np.testing.assert_array_equal(read, samples.embed(digests[asked]))
            assert _looks_only(fresh) == (not keeps)
    # The same rows of the same segments as a table that keeps its digests names.
    fresh = open_store(store.url).table(table.encoder_id)
    looked, kept = fresh.resolve(digests[asked]), fresh.resolve(digests[asked])
    assert looked.segments == kept.segments
    assert looked.segment.tolist() == kept.segment.tolist()
    assert looked.row.tolist() == kept.row.tolist()
    nowhere = samples.digests(2, start=9_999)
    for wrong in (digests[[3, 1_000]], nowhere, np.zeros((1, 32), np.uint8)):
        with pytest.raises(MissingRowsError):
            open_store(store.url).table(table.encoder_id).read(wrong)


def test_damaged_digests_are_refused_by_the_first_few_rows(store, table, samples, segment_files):
    digests = samples.digests(3_000)
    samples.fill(table, digests, chunk_rows=128, segment_rows=3_000)
    path = next(path for path in segment_files(table) if "digests/c.0.0" in str(path))
    intact = path.read_bytes()
    for offset in (0, 32 * 2_500 + 7, len(intact) - 5, len(intact) - 1):
        damaged = bytearray(intact)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        for verify in (True, False):
            fresh = open_store(store.url).table(table.encoder_id)
            for _ in range(2):
                with pytest.raises(CorruptChunkError, match=r"digests/c\.0\.0"):
                    fresh.read(digests[5:8], verify=verify)
    path.write_bytes(intact[:-1])
    with pytest.raises(CorruptChunkError, match=r"digests/c\.0\.0"):
        open_store(store.url).table(table.encoder_id).read(digests[5:8])
