"""Archives read in place: random access, evil names, damage, threads."""

import gzip
import hashlib
import io
import os
import pickle
import stat
import struct
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svp.data import DecodeError, DigestCache, decode_image, open_source
from svp.data.gzip_file import GzipFile
from svp.data.random_file import RandomFile
from svp.errors import InputError

EVIL = ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"]


def png(value=0):
    stream = io.BytesIO()
    Image.new("L", (2, 2), value % 256).save(stream, "PNG", compress_level=0)
    return stream.getvalue() + value.to_bytes(4, "big")


def noise(value, size=3_000):
    return np.random.Generator(np.random.PCG64(value)).bytes(size)


def pack_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def pack_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def pack(path, members):
    if path.suffix == ".zip":
        return pack_zip(path, members, zipfile.ZIP_DEFLATED)
    return pack_tar(path, members, "w:gz" if path.name.endswith("gz") else "w")


KINDS = ["pool.zip", "pool.tar", "pool.tar.gz", "pool.TGZ"]


def pack_any(folder, kind, members):
    return pack(folder / kind.lower(), members).rename(folder / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_items(tmp_path, kind):
    members = {
        "train/dog/2.png": png(2),
        "./train/cat/1.PNG": png(1),
        "test/\u732b/\u00fc.png": png(3),
        "notes.txt": b"hello",
        "__MACOSX/train/cat/._1.png": b"junk",
        "train/cat/.hidden.png": b"junk",
    }
    source = open_source(pack_any(tmp_path, kind, members))
    scan = source.scan()
    assert scan.pool.ids == ("test/\u732b/\u00fc.png", "train/cat/1.PNG", "train/dog/2.png")
    assert scan.pool.labels == ("\u732b", "cat", "dog")
    assert scan.pool.splits == ("test", "train", "train")
    assert scan.failures == ()
    assert source.read(scan.pool.uris[1]) == png(1)
    assert scan.pool.digests[2].tobytes() == hashlib.sha256(png(2)).digest()
    assert decode_image(source.read(scan.pool.uris[0])).getpixel((0, 0)) == (3, 3, 3)
    with pytest.raises(FileNotFoundError):
        source.read("train/cat/9.png")


@pytest.mark.parametrize("kind", KINDS[:3])
def test_evil_names_are_refused_one_by_one(tmp_path, kind):
    members = {name: png(number) for number, name in enumerate(EVIL)} | {"good.png": png(9)}
    scan = open_source(pack_any(tmp_path, kind, members)).scan()
    assert scan.pool.ids == ("good.png",)
    assert len(scan.failures) == len(EVIL)
    assert {failure.kind for failure in scan.failures} == {"refused"}
    assert {failure.reason for failure in scan.failures} == {
        "its name is an absolute path",
        'its name leaves the source by ".."',
    }


def test_backslashes_of_windows_packers_separate_folders(tmp_path):
    path = pack_zip(tmp_path / "pool.zip", {"cat\\1.png": png(1)})
    pool = open_source(path).scan().pool
    assert pool.ids == ("cat/1.png",)
    assert pool.labels == ("cat",)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_archives_inside_archives_are_recorded(tmp_path, kind):
    path = pack_any(tmp_path, kind, {"a.png": png(), "more.zip": b"PK", "more/x.tar.gz": b""})
    scan = open_source(path).scan()
    assert [(failure.id, failure.kind) for failure in scan.failures] == [
        ("more.zip", "refused"),
        ("more/x.tar.gz", "refused"),
    ]


def test_encrypted_and_rarely_compressed_members_are_recorded(tmp_path):
    path = tmp_path / "pool.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("locked.png", png(1))
        archive.writestr("open.png", png(2))
        archive.writestr("rare.png", png(3), zipfile.ZIP_LZMA)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\3\4") + 6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    scan = open_source(path).scan()
    assert scan.pool.ids == ("open.png",)
    assert [(failure.id, failure.kind, failure.reason) for failure in scan.failures] == [
        ("locked.png", "refused", "it is encrypted"),
        ("rare.png", "refused", "its compression (method 14) is not read"),
    ]


def test_links_in_archives_are_recorded(tmp_path):
    with zipfile.ZipFile(tmp_path / "pool.zip", "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a.png", png())
    with tarfile.open(tmp_path / "pool.tar", "w") as archive:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        device = tarfile.TarInfo("pipe.png")
        device.type = tarfile.FIFOTYPE
        archive.addfile(device)
        info = tarfile.TarInfo("a.png")
        info.size = len(png())
        archive.addfile(info, io.BytesIO(png()))
    for name, count in (("pool.zip", 1), ("pool.tar", 3)):
        scan = open_source(tmp_path / name).scan()
        assert scan.pool.ids == ("a.png",)
        assert [failure.kind for failure in scan.failures] == ["refused"] * count


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_member_named_twice_is_refused(tmp_path, kind):
    path = tmp_path / kind
    if kind.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", png(1))
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("a.png", png(2))
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
            for _ in range(2):
                archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(InputError, match=r"name each member once. Got 'a\.png' twice"):
        open_source(path)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_archives_without_images(tmp_path, kind):
    with pytest.raises(InputError, match="must hold images"):
        open_source(pack_any(tmp_path, kind, {"notes.txt": b"hello"}))
    with pytest.raises(InputError, match="must be readable"):
        open_source(tmp_path / f"no-{kind}")


@pytest.mark.parametrize("kind", KINDS[:3])
def test_an_archive_that_was_cut_off_is_refused(tmp_path, kind):
    path = pack_any(tmp_path, kind, {f"{number}.png": noise(number) for number in range(8)})
    data = path.read_bytes()
    end = len(data)
    if kind.endswith(".tar"):
        end = 8 * (512 + 3_072) - 72  # the last member's bytes; padding and end marks follow
    for cut in sorted({*np.linspace(1, end - 1, 40).astype(int).tolist(), end - 1}):
        if kind.endswith(".tar") and cut % 3_584 == 0:
            continue  # exactly between members: an archive without end marks, which is allowed
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match="must be complete"):
            open_source(path)


@pytest.mark.parametrize("kind", ["pool.zip", "pool.tar", "pool.tar.gz"])
def test_what_is_no_archive_is_refused(tmp_path, kind):
    for data in (b"", b"hello" * 1_000, b"PK\3\4" + bytes(100), b"\x1f\x8b" + bytes(100)):
        (tmp_path / kind).write_bytes(data)
        with pytest.raises(InputError, match="must be complete"):
            open_source(tmp_path / kind)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_member_is_corrupt(tmp_path, compression):
    members = {"a.png": noise(1), "b.png": b"text " * 500, "c.png": noise(3)}
    path = pack_zip(tmp_path / "pool.zip", members, compression)
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo("b.png").header_offset
    data = bytearray(path.read_bytes())
    data[header + 30 + len("b.png") + 12] ^= 0xFF
    path.write_bytes(data)
    source = open_source(path)
    scan = source.scan()
    assert scan.pool.ids == ("a.png", "c.png")
    assert [(failure.id, failure.kind) for failure in scan.failures] == [("b.png", "corrupt")]
    with pytest.raises(DecodeError, match="archive member") as caught:
        source.read("b.png")
    assert caught.value.kind == "corrupt"


def test_a_zip_bomb_is_not_inflated(tmp_path, monkeypatch):
    path = pack_zip(tmp_path / "pool.zip", {"a.png": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    struct.pack_into("<L", data, data.index(b"PK\1\2") + 24, 100)  # promises 100 bytes
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="fails its checksum"):
        open_source(path).read("a.png")
    monkeypatch.setattr("svp.data.listing.MAX_BYTES", 1_000)
    honest = pack_zip(tmp_path / "big.zip", {"a.png": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    scan = open_source(honest).scan()
    assert [(failure.id, failure.kind) for failure in scan.failures] == [("a.png", "too_large")]


def test_zips_with_something_before_them_and_long_extra_fields(tmp_path):
    path = tmp_path / "pool.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.extra = struct.pack("<HH", 0xCAFE, 400) + bytes(400)
        archive.writestr(info, png(1))
        with archive.open("b.png", "w", force_zip64=True) as member:
            member.write(noise(2))
    path.write_bytes(b"#!/bin/sh\n" * 20 + path.read_bytes())
    source = open_source(path)
    assert source.read("a.png") == png(1)
    assert source.read("b.png") == noise(2)


def test_long_names_in_tars(tmp_path):
    name = "/".join(["a-folder-with-a-long-name" * 3] * 4) + "/\u00fc.png"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            info = tarfile.TarInfo(name)
            info.size = len(png())
            archive.addfile(info, io.BytesIO(png()))
        source = open_source(path)
        assert source.scan().pool.ids == (name,)
        assert source.read(name) == png()


@pytest.mark.parametrize("kind", KINDS[:3])
def test_threads_read_one_archive_at_once(tmp_path, kind):
    members = {f"{number:04}.png": noise(number, 500 + 37 * number) for number in range(400)}
    source = open_source(pack_any(tmp_path, kind, members))
    names = [*members] * 3
    np.random.Generator(np.random.PCG64(1)).shuffle(names)
    with ThreadPoolExecutor(8) as executor:
        for name, data in zip(names, executor.map(source.read, names), strict=True):
            assert data == members[name]


@pytest.mark.parametrize("kind", KINDS[:3])
def test_archives_travel_between_processes(tmp_path, kind):
    source = open_source(pack_any(tmp_path, kind, {"a.png": png(1)}))
    assert pickle.loads(pickle.dumps(source)).read("a.png") == png(1)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_digests_of_an_archive_are_cached_until_it_changes(tmp_path, kind):
    cache = DigestCache(tmp_path / "cache")
    path = pack_any(tmp_path, kind, {"a.png": png(1), "b.png": png(2)})
    first = open_source(path).scan(cache=cache)
    again = open_source(path).scan(cache=cache)
    assert (first.reread, again.reread) == (2, 0)
    assert first.pool.id == again.pool.id
    pack_any(tmp_path, kind, {"a.png": png(1), "b.png": png(3)})
    changed = open_source(path).scan(cache=cache)
    assert changed.reread == 2
    assert changed.pool.id != first.pool.id


def test_a_gzip_file_is_read_at_any_offset(tmp_path, monkeypatch):
    monkeypatch.setattr("svp.data.gzip_file._SPAN", 20_000)
    monkeypatch.setattr("svp.data.gzip_file._MAX_POINTS", 8)
    rng = np.random.Generator(np.random.PCG64(5))
    data = b"".join(rng.bytes(3_000) + bytes(5_000) for _ in range(100))
    # Two members, as parallel packers write them, and padding.
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(data[:300_000]) + gzip.compress(data[300_000:]) + bytes(700))
    file = GzipFile(RandomFile(path))
    pieces = []
    while piece := file.read(7_777):
        pieces.append(piece)
    assert b"".join(pieces) == data
    assert 2 <= len(file._points) <= 8
    starts = rng.integers(0, len(data), 200).tolist()

    def check(start):
        return file.read_at(start, 9_000) == data[start : start + 9_000]

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(check, starts))
    assert file.read_at(len(data), 10) == b""


def test_positions_are_shared_where_there_is_no_pread(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)))
    monkeypatch.delattr(os, "pread", raising=False)
    file = RandomFile(Path(path))
    assert isinstance(file._lock, type(threading.Lock()))
    assert file.read_at(10, 5) == bytes(range(10, 15))
    assert file.read_at(250, 50) == bytes(range(250, 256))
