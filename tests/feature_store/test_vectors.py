import numpy as np
import pytest

from feature_store import FeatureStoreError
from feature_store.vectors import import_vectors, imported_identity


@pytest.fixture
def saved(tmp_path):
    def save(x):
        np.save(tmp_path / "x.npy", x)
        return tmp_path / "x.npy"

    return save


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4"])
def test_vectors_become_a_table_of_their_own(store, table, samples, saved, dtype):
    digests = samples.digests(50)
    samples.fill(table, digests, dim=8)
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(dtype)
    path = saved(x)
    done = import_vectors(store, path, digests, {"by": "me"})
    assert (done.rows, done.written, done.dim, done.dtype) == (
        50,
        50,
        8,
        x.dtype.newbyteorder("=").name,
    )
    assert done.encoder_id != table.encoder_id
    identity = store.encoder(done.encoder_id)
    assert identity == imported_identity(path, {"by": "me"})
    assert (identity["family"], identity["description"]) == ("imported", {"by": "me"})
    imported = store.table(done.encoder_id)
    np.testing.assert_array_equal(imported.read(digests), x)
    np.testing.assert_array_equal(table.read(digests), samples.embed(digests))
    assert imported.verify() == []
    assert import_vectors(store, path, digests, {"by": "me"}).written == 0
    other = import_vectors(store, saved(x + 1), digests, {"by": "me"})
    assert other.encoder_id != done.encoder_id, "another file is another encoder"


def test_a_killed_import_continues(store, samples, saved):
    digests, x = samples.digests(50), samples.embed(samples.digests(50))
    path = saved(x)

    def stop(*now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_vectors(store, path, digests, {}, report=stop)
    done = import_vectors(store, path, digests, {})
    np.testing.assert_array_equal(store.table(done.encoder_id).read(digests), x)


def test_repeated_items_need_equal_vectors(store, samples, saved):
    digests = samples.digests(20)[[0, 1, 2, 0]]
    x = samples.embed(digests)
    assert import_vectors(store, saved(x), digests, {}).rows == 3
    x[3] += 1
    with pytest.raises(FeatureStoreError, match="rows 0 and 3"):
        import_vectors(store, saved(x), digests, {})


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((4, 3)),
        np.zeros(4, np.float32),
        np.zeros((4, 3), np.int16),
        np.zeros((3, 3), np.float32),
        np.full((4, 3), np.nan, np.float32),
    ],
)
def test_what_does_not_fit_is_refused(store, samples, saved, x):
    with pytest.raises(FeatureStoreError):
        import_vectors(store, saved(x), samples.digests(4), {})


def test_pickles_and_other_files_are_refused(store, samples, saved, tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(FeatureStoreError, match="npy"):
        import_vectors(store, tmp_path / "x.npy", samples.digests(1), {})
    (tmp_path / "x.npy").write_bytes(b"text")
    with pytest.raises(FeatureStoreError, match="npy"):
        import_vectors(store, tmp_path / "x.npy", samples.digests(1), {})
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(FeatureStoreError, match="several"):
        import_vectors(store, tmp_path / "x.npz", samples.digests(1), {})
