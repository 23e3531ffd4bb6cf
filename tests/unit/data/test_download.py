"""Downloads from a server on this machine: resumed, checked, unpacked safely, in place only when
all is there.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from asrtool.bin.download import main
from asrtool.data import download
from asrtool.errors import UserError
from tests.toy_server import Server, archive, names, serve, zipped


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    yield from serve(monkeypatch)


DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()


# -- fetching -------------------------------------------------------------------


def test_a_connection_that_ends_too_early_is_resumed_where_it_stopped(
    server: Server, tmp_path: Path
) -> None:
    server.files["/x"], server.cuts = DATA, [4000, 3000]
    download.fetch(f"{server.address}/x", tmp_path / "x", SHA256, wait=0)
    assert (tmp_path / "x").read_bytes() == DATA
    assert server.asked == [None, "bytes=4000-", "bytes=7000-"]
    assert names(tmp_path) == ["x"]


def test_a_later_run_goes_on_with_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.files["/x"] = DATA
    (tmp_path / "x.part").write_bytes(DATA[:5000])
    download.fetch(f"{server.address}/x", tmp_path / "x", SHA256)
    assert (tmp_path / "x").read_bytes() == DATA
    assert server.asked == ["bytes=5000-"]


def test_a_file_that_was_complete_but_not_renamed_is_not_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    server.files["/x"] = DATA
    (tmp_path / "x.part").write_bytes(DATA)
    download.fetch(f"{server.address}/x", tmp_path / "x", SHA256)
    assert (tmp_path / "x").read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA)}-"]


def test_leftovers_longer_than_the_file_are_thrown_away(server: Server, tmp_path: Path) -> None:
    server.files["/x"] = DATA
    (tmp_path / "x.part").write_bytes(DATA + b"more")
    download.fetch(f"{server.address}/x", tmp_path / "x", SHA256)
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_server_without_ranges_is_asked_for_everything_again(
    server: Server, tmp_path: Path
) -> None:
    server.files["/x"], server.ranges = DATA, False
    (tmp_path / "x.part").write_bytes(b"something else")
    download.fetch(f"{server.address}/x", tmp_path / "x", SHA256)
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.files["/x"], server.busy = DATA, 2
    download.fetch(f"{server.address}/x", tmp_path / "x", SHA256, wait=0)
    assert len(server.asked) == 3


def test_a_wrong_checksum_removes_the_file_and_says_so(server: Server, tmp_path: Path) -> None:
    server.files["/x"] = DATA[:-1] + b"?"
    with pytest.raises(UserError, match=f"expected {SHA256}; it was removed, try again"):
        download.fetch(f"{server.address}/x", tmp_path / "x", SHA256)
    assert names(tmp_path) == []


def test_a_file_that_the_server_does_not_have_is_an_error_at_once(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"/x: the server replied 404"):
        download.fetch(f"{server.address}/x", tmp_path / "x")
    assert len(server.asked) == 1


def test_a_server_that_never_sends_anything_is_given_up_and_the_beginning_is_kept(
    server: Server, tmp_path: Path
) -> None:
    server.files["/x"], server.cuts = DATA, [1000] + [0] * download.TRIES
    with pytest.raises(
        UserError, match=r"1000 bytes are in .*x\.part; the same " r"command continues"
    ):
        download.fetch(f"{server.address}/x", tmp_path / "x", wait=0)
    assert (tmp_path / "x.part").read_bytes() == DATA[:1000]


# -- unpacking -------------------------------------------------------------------


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def device(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.CHRTYPE
    return info


@pytest.mark.parametrize(
    "member",
    [
        ("top/../../out", b""),
        link("top/x", "../../../etc"),
        link("top/x", "/etc/passwd"),
        device("top/null"),
    ],
)
def test_a_member_that_points_outside_is_refused_and_nothing_is_unpacked(
    tmp_path: Path, member: object
) -> None:
    path = tmp_path / "in" / "x.tar.gz"
    path.parent.mkdir()
    path.write_bytes(archive(("top/good", b"1"), member))
    with pytest.raises(UserError, match="refused, .*; nothing was unpacked"):
        download.unpack(path, tmp_path / "in" / "goal")
    assert names(tmp_path) == ["in/x.tar.gz"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: data[:60] + b"?" + data[61:],
        lambda _: b"",
        lambda _: b"<html>",
    ],
)
def test_a_damaged_archive_is_named_and_nothing_is_unpacked(tmp_path: Path, damage) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(damage(archive(("top/a", os.urandom(500)), ("top/b", os.urandom(500)))))
    with pytest.raises(UserError, match=r"x\.tar\.gz: damaged"):
        download.unpack(path, tmp_path / "goal")
    assert names(tmp_path) == ["x.tar.gz"]


def test_an_archive_with_a_wrong_number_of_files_is_not_put_in_place(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(archive(("top/recordings/1.wav", b""), ("top/recordings/2.wav", b"")))
    with pytest.raises(UserError, match=r"contains 2 files recordings/\*\.wav, expected " r"3"):
        download.unpack(path, tmp_path / "goal", expect=("recordings/*.wav", 3))
    assert names(tmp_path) == ["x.tar.gz"]


# -- the command ------------------------------------------------------------------


def test_parts_of_a_corpus_come_together_in_one_folder_and_are_fetched_once(
    server: Server, tmp_path: Path
) -> None:
    for part in ("dev", "test"):
        server.files[f"/{part}.tar.gz"] = archive(
            (f"Corpus/{part}/1.flac", b"1"), ("Corpus/README.TXT", b"hello")
        )
    for part in ("dev", "test", "dev"):
        main(
            [
                f"{server.address}/{part}.tar.gz",
                "--into",
                str(tmp_path / "downloads" / "Mine"),
                "--makes",
                part,
            ]
        )
    assert names(tmp_path / "downloads") == [
        "Mine/README.TXT",
        "Mine/dev/1.flac",
        "Mine/test/1.flac",
    ]
    assert len(server.asked) == 2


def test_a_whole_corpus_takes_the_name_that_it_is_given(server: Server, tmp_path: Path) -> None:
    server.files["/main.tar.gz"] = archive(("corpus-26eb9aaf/recordings/1.wav", b"1"))
    options = ["--into", str(tmp_path / "corpus"), "--expect", "recordings/*.wav", "1"]
    main([f"{server.address}/main.tar.gz", *options])
    assert names(tmp_path) == ["corpus/recordings/1.wav"]


# -- archives within an archive, zip files --------------------------------------------


def aishell(*speakers: tuple[str, str]) -> bytes:
    """data_aishell.tgz as it is published: an archive of each speaker in it."""
    inner = [
        (f"data_aishell/wav/{speaker}.tar.gz", archive((f"{part}/{speaker}/{speaker}W1.wav", b"1")))
        for part, speaker in speakers
    ]
    return archive(("data_aishell/transcript/aishell_transcript_v0.8.txt", b"S0002W1 x\n"), *inner)


SPEAKERS = (("train", "S0002"), ("train", "S0003"), ("test", "S0764"))
UNPACKED = [f"wav/{part}/{speaker}/{speaker}W1.wav" for part, speaker in sorted(SPEAKERS)]


def test_archives_within_an_archive_are_unpacked_and_removed(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(aishell(*SPEAKERS))
    download.unpack(tmp_path / "x.tgz", tmp_path / "goal", nested="wav/*.tar.gz")
    assert names(tmp_path / "goal") == sorted(["transcript/aishell_transcript_v0.8.txt", *UNPACKED])


@pytest.mark.parametrize(
    ("inner", "said"),
    [(archive(("../../out", b"1")), "refused"), (archive(("a", os.urandom(999)))[:-9], "damaged")],
    # an archive holds its time: its bytes as an id would differ between workers
    ids=["refused", "damaged"],
)
def test_a_bad_archive_within_an_archive_leaves_nothing(
    tmp_path: Path, inner: bytes, said: str
) -> None:
    (tmp_path / "x.tgz").write_bytes(archive(("top/wav/S1.tar.gz", inner)))
    with pytest.raises(UserError, match=rf"S1\.tar\.gz: {said}"):
        download.unpack(tmp_path / "x.tgz", tmp_path / "goal", nested="wav/*.tar.gz")
    assert names(tmp_path) == ["x.tgz"]


def test_what_was_left_packed_is_unpacked_later_and_stays(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(aishell(*SPEAKERS))
    download.unpack(tmp_path / "x.tgz", tmp_path / "data_aishell")
    by_hand = tmp_path / "data_aishell" / "wav" / "train" / "S0002" / "mine.wav"
    by_hand.parent.mkdir(parents=True)
    by_hand.touch()
    main(
        [
            f"{server.address}/x.tgz",
            "--into",
            str(tmp_path / "data_aishell"),
            "--nested",
            "wav/*.tar.gz",
        ]
    )
    assert server.asked == []
    found = names(tmp_path / "data_aishell" / "wav")
    assert [name for name in found if name.endswith(".wav")] == [
        "test/S0764/S0764W1.wav", "train/S0002/mine.wav", "train/S0003/S0003W1.wav",
    ]  # fmt: skip
    assert "S0002.tar.gz" in found


def test_a_zip_file_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped("RIRS_NOISES/a/1.wav", "RIRS_NOISES/README"))
    download.unpack(tmp_path / "x.zip", tmp_path / "goal")
    assert names(tmp_path / "goal") == ["README", "a/1.wav"]


@pytest.mark.parametrize("member", ["top/../../out", "/etc/out", "C:\\out", "top\\..\\..\\out"])
def test_a_zip_file_that_points_outside_is_refused(tmp_path: Path, member: str) -> None:
    (tmp_path / "x.zip").write_bytes(zipped("top/good", member))
    with pytest.raises(
        UserError, match="refused, .* would be extracted outside; nothing was unpacked"
    ):
        download.unpack(tmp_path / "x.zip", tmp_path / "goal")
    assert names(tmp_path) == ["x.zip"]


def test_a_damaged_zip_file_is_named(tmp_path: Path) -> None:
    data = zipped("top/a")
    for damaged in (data[:-30], data.replace(b"1" * 100, b"1" * 99 + b"2")):
        (tmp_path / "x.zip").write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.zip: damaged"):
            download.unpack(tmp_path / "x.zip", tmp_path / "goal")
        assert names(tmp_path) == ["x.zip"]


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"md5": "0" * 32}, "MD5 of the file is"),
        ({"size": 7}, "size in bytes of the file is 10240, expected 7"),
    ],
)
def test_another_size_or_md5_than_published_is_an_error_and_the_file_goes(
    server: Server, tmp_path: Path, expected: dict, said: str
) -> None:
    server.files["/x"] = DATA
    with pytest.raises(UserError, match=said):
        download.fetch(f"{server.address}/x", tmp_path / "x", **expected)
    assert names(tmp_path) == []
    download.fetch(
        f"{server.address}/x", tmp_path / "x", md5=hashlib.md5(DATA).hexdigest(), size=len(DATA)
    )
    assert names(tmp_path) == ["x"]


# -- what changes between two attempts, and archives that are no archives of speech -------------


def test_a_file_that_changed_in_between_is_fetched_from_the_start(
    server: Server, tmp_path: Path
) -> None:
    server.files["/a"], server.tags["/a"] = b"old" * 1000, '"1"'
    server.cuts = [1500]
    (tmp_path / "a.part").touch()
    with pytest.raises(download._Interrupted):
        download._get(f"{server.address}/a", tmp_path / "a.part")
    server.files["/a"], server.tags["/a"] = b"new" * 1000, '"2"'
    download.fetch(f"{server.address}/a", tmp_path / "a", wait=0.01)
    assert (tmp_path / "a").read_bytes() == b"new" * 1000
    assert names(tmp_path) == ["a"]


def test_a_file_of_another_length_is_fetched_from_the_start_where_there_is_no_tag(
    server: Server, tmp_path: Path
) -> None:
    server.files["/a"], server.cuts = b"old" * 1000, [1500]
    with pytest.raises(download._Interrupted):
        download._get(f"{server.address}/a", tmp_path / "a.part")
    server.files["/a"] = b"new" * 1001
    download.fetch(f"{server.address}/a", tmp_path / "a", wait=0.01)
    assert (tmp_path / "a").read_bytes() == b"new" * 1001


def test_a_part_that_begins_elsewhere_is_not_put_behind(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = bytes(range(256)) * 10
    (tmp_path / "a.part").write_bytes(server.files["/a"][:1000])
    server.off = 7
    download.fetch(f"{server.address}/a", tmp_path / "a", wait=0.01)
    assert (tmp_path / "a").read_bytes() == server.files["/a"]
    assert server.asked == ["bytes=1000-", None]


def test_two_processes_do_not_write_into_one_file(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = bytes(100_000)
    code = "import sys; from pathlib import Path; from asrtool.data import download; "
    code += "download.fetch(sys.argv[1], Path(sys.argv[2]), wait=0.01)"
    command = [sys.executable, "-c", code, f"{server.address}/a", str(tmp_path / "a")]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert (tmp_path / "a").read_bytes() == server.files["/a"]
    assert server.asked == [None]


@pytest.mark.parametrize("name", [b"./", b".", b"\0/", b""])
def test_entries_for_the_folder_itself_do_no_harm(tmp_path: Path, name: bytes) -> None:
    data = zipped("NAME", "top/a.txt")
    (tmp_path / "a.zip").write_bytes(data.replace(b"NAME", name.ljust(4, b"\0")))
    download.unpack(tmp_path / "a.zip", tmp_path / "goal")
    assert names(tmp_path / "goal") == ["a.txt"]


def test_an_encrypted_zip_file_is_said_to_be_one(tmp_path: Path) -> None:
    data = bytearray(zipped("top/a.txt"))
    for start in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
        data[start] |= 1  # the bit that says so
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="'top/a.txt' is encrypted; unpack it with"):
        download.unpack(tmp_path / "a.zip", tmp_path / "goal")
    assert not (tmp_path / "goal").exists()


@pytest.mark.parametrize("kind", ["tar.gz", "tar", "zip"])
def test_a_member_of_8_terabytes_is_refused_before_it_is_written(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tarfile.TarInfo("top/a.wav")
    info.size = 1 << 43
    head = tarfile.TarInfo("top")
    head.type = tarfile.DIRTYPE
    data = head.tobuf(tarfile.GNU_FORMAT) + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("top/a.wav", bytes(1 << 20))
        monkeypatch.setattr(download, "SMALL", 1e5)
    else:
        (tmp_path / f"a.{kind}").write_bytes(gzip.compress(data) if kind == "tar.gz" else data)
    with pytest.raises(UserError, match="refused, it unpacks to .* GB or more"):
        download.unpack(tmp_path / f"a.{kind}", tmp_path / "goal")
    assert names(tmp_path) == [f"a.{kind}"]
