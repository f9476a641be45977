import threading

import numpy as np

from feature_store import Failure, open_store


def test_the_first_chunk_wins_and_the_segment_is_consistent(store, table, samples):
    # One worker fails on items the other one reads, in both orders: whatever is stored first,
    # no row may resolve to a fill value and every failed row has a reason.
    digests = samples.digests(32)
    plan = table.plan(digests, dim=8, dtype="float16", chunk_rows=16)[0]
    lucky, unlucky = table.writer(plan), table.writer(plan)
    first, second = plan.chunks()
    x = samples.embed(digests)
    unlucky.write(first, x[:16], {3: Failure("transient", "network")})
    lucky.write(first, x[:16])
    lucky.write(second, x[16:])
    unlucky.write(second, x[16:], {5: Failure("transient", "network")})
    sealed = lucky.seal()
    assert unlucky.seal() == sealed
    assert [entry.row for entry in sealed.failures] == [3]
    assert sealed.failures[0].failure == Failure("transient", "network")
    assert table.missing(digests, retry=True).tolist() == [3]
    kept = np.delete(digests, 3, axis=0)
    np.testing.assert_array_equal(table.read(kept), samples.embed(kept))
    assert table.verify() == []


def test_differing_values_of_racing_writers_are_harmless(store, table, samples):
    digests = samples.digests(160)
    plan = table.plan(digests, dim=8, dtype="float16", chunk_rows=8)[0]
    errors = []

    def work(value):
        try:
            writer = open_store(store.url).table(table.encoder_id).writer(plan)
            for chunk in writer.pending():
                writer.write(chunk, np.full((len(chunk), 8), value, np.float16))
            writer.seal()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    read = table.read(digests).reshape(20, 64)
    assert set(np.unique(read)) <= {1, 2, 3}
    assert (read == read[:, :1]).all(), "a chunk comes from one writer"
    assert table.verify() == []


def test_threads_share_a_writer_and_a_table(store, table, samples):
    from concurrent.futures import ThreadPoolExecutor

    digests = samples.digests(160)
    plan = table.plan(digests, dim=8, dtype="float16", chunk_rows=8)[0]
    writer = table.writer(plan)

    def write(chunk):
        writer.write(chunk, samples.embed(digests[chunk.start : chunk.stop]))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, writer.pending()))
    writer.seal()
    fresh = open_store(store.url).table(table.encoder_id)
    orders = [np.random.default_rng(seed).permutation(160) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        for order, read in zip(
            orders, threads.map(lambda order: fresh.read(digests[order]), orders), strict=True
        ):
            np.testing.assert_array_equal(read, samples.embed(digests[order]))
