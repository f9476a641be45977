"""On a GPU: the same vectors as on the CPU, in true float32, without touching global switches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_fixtures import photograph, small_folder

from feature_store import open_store
from svp.data.opening import open_source
from svp.embed import EmbedConfig, embed, load_features
from svp.encoders.encoder import open_encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_gpu_equals_cpu(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(60):
        photograph(20, 18, seed=number).save(tmp_path / "images" / f"{number}.png")
    small_folder(tmp_path / "encoder")
    source = open_source(tmp_path / "images")
    pool = source.scan().pool
    config = EmbedConfig(batch_size=8, chunk_rows=20)
    torch.backends.cudnn.allow_tf32 = True
    seen = {}
    for device in ("cpu", "cuda"):
        encoder = open_encoder(str(tmp_path / "encoder"), device=device)
        store = open_store(tmp_path / device, create=True)
        embed(pool, source, encoder, store, config=config)
        seen[device] = load_features(store, pool, encoder.id)[1]
    np.testing.assert_allclose(seen["cuda"], seen["cpu"], rtol=1e-4, atol=1e-4)
    assert torch.backends.cudnn.allow_tf32
    half = open_encoder(str(tmp_path / "encoder"), device="cuda", precision="bf16")
    images = torch.stack(
        [half.preprocessing(photograph(20, 18, seed=number)) for number in range(8)]
    )
    reference = open_encoder(str(tmp_path / "encoder")).encode(images)
    cosine = torch.cosine_similarity(half.encode(images).float().cpu(), reference)
    assert cosine.min() > 0.999
