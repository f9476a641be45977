"""Stored views: an image's view follows from seed, name and digest, wherever it is made."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_fixtures import photograph, small_folder

from feature_store import CorruptChunkError, FeatureStore, ViewMismatchError, open_store
from feature_store.transfer import copy_store
from svp.augment import draws
from svp.augment.draws import ImageDraws
from svp.data.opening import open_source
from svp.embed import EmbedConfig, ViewConfig, embed, embed_views, load_features, parse_views
from svp.embed.views import StoredView
from svp.encoders.encoder import Encoder, open_encoder
from svp.errors import InputError

CPU = torch.device("cpu")
CONFIG = EmbedConfig(batch_size=8, workers=1, chunk_rows=16)


def digests(count: int) -> np.ndarray:
    data = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(count))
    return np.frombuffer(data, np.uint8).reshape(count, 32)


def pictures(count: int, size: int = 24) -> torch.Tensor:
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).float() / 255


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("eval,weak:2,strong:2", ("eval", "weak-0", "weak-1", "strong-0", "strong-1")),
        (" strong:1 , eval", ("strong-0", "eval")),
        ("weak:2,weak-0,weak-7", ("weak-0", "weak-1", "weak-7")),
        (["eval", "weak:1"], ("eval", "weak-0")),
    ],
)
def test_names_of_views(text: str, names: tuple[str, ...]) -> None:
    assert parse_views(text) == names


@pytest.mark.parametrize("text", ["", "weak", "weak:0", "weak:1001", "weak-01", "medium:2", "a,,b"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="eval,weak:2,strong:2"):
        parse_views(text)


def test_the_numbers_of_an_image_are_fixed_for_ever() -> None:
    # Tables of years ago must agree with new ones: these words come from SHAKE-256 alone.
    words = np.frombuffer(hashlib.shake_256(b"key").digest(400), "<u4")
    expected = [float(word >> 8) / 2**24 for word in words]
    stream = ImageDraws([b"other", b"key"])
    drawn = torch.cat([stream.fractions(3), stream.fractions(90), stream.fractions(7)], dim=1)
    assert drawn[1].tolist() == expected
    assert not torch.equal(drawn[0], drawn[1])


def test_draws_are_uniform_and_belong_to_their_image() -> None:
    keys = [bytes([number % 256, number // 256]) for number in range(4000)]
    counts = draws.integers((3, 4000), 14, generator=ImageDraws(keys), device=CPU, images=1)
    assert np.bincount(counts.flatten().numpy(), minlength=14).min() > 750
    assert int(counts.max()) == 13
    alone = draws.integers((3, 1), 14, generator=ImageDraws(keys[7:8]), device=CPU, images=1)
    assert torch.equal(alone[:, 0], counts[:, 7])
    shares = draws.uniform((4000, 2), -1, 1, generator=ImageDraws(keys), device=CPU)
    assert shares.shape == (4000, 2)
    assert abs(float(shares.mean())) < 0.03
    assert -1 <= float(shares.min()) < -0.99
    assert draws.uniform((0,), 0, 1, generator=ImageDraws([]), device=CPU).shape == (0,)


@pytest.mark.parametrize("name", ["weak-0", "strong-0"])
def test_neither_batch_nor_order_nor_global_state_moves_a_view(name: str) -> None:
    x, keys = pictures(40), digests(40)
    view = StoredView(name, ViewConfig())
    whole = view(x, keys)
    assert whole.shape == x.shape
    assert float(whole.min()) >= -1e-6
    assert float(whole.max()) <= 1 + 1e-6
    torch.manual_seed(5)
    order = torch.randperm(40)
    torch.testing.assert_close(view(x[order], keys[order.numpy()]), whole[order], rtol=0, atol=1e-5)
    again = StoredView(name, ViewConfig())
    parts = [again(x[i : i + 3], keys[i : i + 3]) for i in range(0, 40, 3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_seed_name_and_image_each_decide_a_view() -> None:
    x, keys = pictures(1).expand(16, -1, -1, -1), digests(16)
    base = StoredView("strong-0", ViewConfig())(x, keys)
    assert len({tuple(image.flatten().tolist()) for image in base}) > 12
    for other in (
        StoredView("strong-0", ViewConfig(seed=1)),
        StoredView("strong-1", ViewConfig()),
        StoredView("weak-0", ViewConfig()),
    ):
        assert not torch.allclose(other(x, keys), base)
    # Weak: a shift of an eighth at most, mirrored or not; without flip the columns keep rising.
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    flipped = StoredView("weak-0", ViewConfig())(ramp, digests(64))
    straight = StoredView("weak-0", ViewConfig(flip=False))(ramp, digests(64))
    assert 16 < int((flipped[:, 0, 0, 10] > flipped[:, 0, 0, 20]).sum()) < 48
    assert int((straight[:, 0, 0, 10] > straight[:, 0, 0, 20]).sum()) == 0


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    small_folder(tmp_path / "encoder")
    return open_encoder(str(tmp_path / "encoder"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        photograph(20, 18, seed=number).save(folder / f"{number:02d}.png")
    return folder


def run(folder: Path, encoder: Encoder, store: FeatureStore, views: str, **changes: object):
    source = open_source(folder)
    given = {"views": parse_views(views), "config": CONFIG, **changes}
    return embed_views(source.scan().pool, source, encoder, store, **given)


def test_views_are_tables_that_any_machine_fills_alike(
    tmp_path: Path, encoder: Encoder, images: Path
) -> None:
    store = open_store(tmp_path / "store", create=True)
    results = run(images, encoder, store, "eval,weak:2,strong:1")
    assert [(one.view, one.embedded) for one in results] == [
        ("eval", 20), ("weak-0", 20), ("weak-1", 20), ("strong-0", 20),
    ]  # fmt: skip
    assert [one.reused for one in run(images, encoder, store, "weak:2,strong:1")] == [20] * 3
    pool = open_source(images).scan().pool
    tables = {one.view: load_features(store, pool, encoder.id, one.view)[1] for one in results}
    for name, x_Nd in tables.items():
        others = [other for key, other in tables.items() if key != name]
        assert all(np.abs(x_Nd - other).max() > 1e-3 for other in others)
    # Elsewhere: other batches, two shards, the second one first.
    elsewhere = open_store(tmp_path / "elsewhere", create=True)
    for shard in ((1, 2), (0, 2)):
        config = EmbedConfig(batch_size=5, workers=2, shard=shard)
        run(images, encoder, elsewhere, "strong:1,weak:2", config=config)
    for name in ("weak-0", "weak-1", "strong-0"):
        x_Nd = load_features(elsewhere, pool, encoder.id, name)[1]
        np.testing.assert_allclose(x_Nd, tables[name], rtol=1e-4, atol=1e-4)


def test_another_seed_or_policy_is_refused_before_any_work(
    tmp_path: Path, encoder: Encoder, images: Path
) -> None:
    store = open_store(tmp_path / "store", create=True)
    run(images, encoder, store, "weak:1")
    for other in (ViewConfig(seed=1), ViewConfig(flip=False)):
        with pytest.raises(ViewMismatchError, match="weak-0"):
            run(images, encoder, store, "eval,weak:1", view_config=other)
    assert store.table(encoder.id, "eval").rows == 0
    record = store.view_record(encoder.id, "weak-0")
    assert record is not None
    assert (record["seed"], record["settings"]["flip"]) == (0, True)
    # Another index is another table.
    assert run(images, encoder, store, "weak-1", view_config=ViewConfig(seed=1))[0].embedded == 20


def test_a_table_of_unknown_making_is_not_added_to(
    tmp_path: Path, encoder: Encoder, images: Path
) -> None:
    store = open_store(tmp_path / "store", create=True)
    source = open_source(images)
    embed(
        source.scan().pool, source, encoder, store,
        view="weak-0", augment=lambda x, digests: x.flip(3), config=CONFIG,
    )  # fmt: skip
    with pytest.raises(ViewMismatchError, match="how its images were made"):
        run(images, encoder, store, "weak:1")


def test_a_flipped_bit_in_a_record_is_damage(tmp_path: Path, encoder: Encoder) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.put_encoder(encoder.identity)
    store.put_view(encoder.id, "weak-0", {"seed": 1})
    path = tmp_path / "store" / "encoders" / encoder.id / "weak-0" / "view.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"seed":1', b'"seed":3'))
    with pytest.raises(CorruptChunkError, match=r"view\.json"):
        store.put_view(encoder.id, "weak-0", {"seed": 3})


def test_a_copy_keeps_views_apart(tmp_path: Path, encoder: Encoder, images: Path) -> None:
    one = open_store(tmp_path / "one", create=True)
    other = open_store(tmp_path / "other", create=True)
    run(images, encoder, one, "weak:1")
    copy_store(one, other)
    assert other.view_record(encoder.id, "weak-0") == one.view_record(encoder.id, "weak-0")
    assert run(images, encoder, other, "weak:1")[0].reused == 20
    clashing = open_store(tmp_path / "clashing", create=True)
    clashing.put_encoder(encoder.identity)
    clashing.put_view(encoder.id, "weak-0", StoredView("weak-0", ViewConfig(seed=9)).record)
    with pytest.raises(ViewMismatchError):
        copy_store(one, clashing)
    assert clashing.table(encoder.id, "weak-0").rows == 0
