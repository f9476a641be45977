import numpy as np
import pytest
import torch

from feature_store import CorruptChunkError, MissingRowsError, read_tensor, tensors


@pytest.fixture
def digests(table, samples):
    digests = samples.digests(100)
    samples.fill(table, digests, chunk_rows=16, segment_rows=40)
    return digests


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float32, torch.float64])
def test_a_tensor_holds_the_rows(table, samples, digests, dtype):
    order = np.random.default_rng(0).permutation(100)
    for asked in (digests, digests[order], digests[:0]):
        x = read_tensor(table, asked, dtype=dtype)
        assert (x.dtype, tuple(x.shape)) == (dtype or torch.float16, (len(asked), 8))
        np.testing.assert_array_equal(x.numpy(), samples.embed(asked))


def test_bfloat16_is_rounded_block_by_block(table, samples, digests, monkeypatch):
    monkeypatch.setattr(tensors, "STAGE_BYTES", 7 * 16)
    x = read_tensor(table, digests, dtype=torch.bfloat16)
    assert torch.equal(x, torch.from_numpy(samples.embed(digests)).to(torch.bfloat16))


def test_damage_and_an_empty_table_are_errors(store, table, samples, digests, segment_files):
    empty = store.table(store.put_encoder({"arch": "other"}))
    with pytest.raises(MissingRowsError):
        read_tensor(empty, digests)
    with pytest.raises(MissingRowsError, match="empty table"):
        read_tensor(empty, digests[:0])
    path = next(path for path in segment_files(table) if "embeddings/c.1.0" in str(path))
    path.write_bytes(bytes(path.stat().st_size))
    for dtype in (None, torch.bfloat16):
        with pytest.raises(CorruptChunkError):
            read_tensor(store.table(table.encoder_id), digests, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_pool_goes_to_the_device_in_blocks(table, samples, digests, monkeypatch, dtype):
    monkeypatch.setattr(tensors, "STAGE_BYTES", 7 * 16)
    expected = torch.from_numpy(samples.embed(digests)).to(dtype or torch.float16)
    assert read_tensor(table, digests, pinned=True).is_pinned()
    x = read_tensor(table, digests, device="cuda", dtype=dtype)
    assert x.device.type == "cuda"
    assert torch.equal(x.cpu(), expected)
