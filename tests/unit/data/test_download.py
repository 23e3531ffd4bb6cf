"""Downloads from a server on this machine: resumed, checked, unpacked safely, in place only when all is there."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asrtool.bin.download import main
from asrtool.data import download

ROOT = Path(__file__).resolve().parents[3]


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; answers Range requests if `ranges`; closes the connection after `cuts.pop(0)` bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.busy = 0
        self.ranges = True
        self.asked: list[str | None] = []  # the Range header of every request
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        content = self.server.files.get(self.path)
        if self.server.busy:
            self.server.busy -= 1
            return self.send_error(503)
        if content is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def archive(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()


# -- fetching -------------------------------------------------------------------


def test_a_connection_that_ends_too_early_is_resumed_where_it_stopped(server: Server, tmp_path: Path) -> None:
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


def test_a_file_that_was_complete_but_not_renamed_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
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


def test_a_server_without_ranges_is_asked_for_everything_again(server: Server, tmp_path: Path) -> None:
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
    with pytest.raises(download.DownloadError, match=f"expected {SHA256}; it was removed, try again"):
        download.fetch(f"{server.address}/x", tmp_path / "x", SHA256)
    assert names(tmp_path) == []


def test_a_file_that_the_server_does_not_have_is_an_error_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(download.DownloadError, match=r"/x: the server says 404"):
        download.fetch(f"{server.address}/x", tmp_path / "x")
    assert len(server.asked) == 1


def test_a_server_that_never_sends_anything_is_given_up_and_the_beginning_is_kept(
    server: Server, tmp_path: Path
) -> None:
    server.files["/x"], server.cuts = DATA, [1000] + [0] * download.TRIES
    with pytest.raises(download.DownloadError, match=r"1000 bytes are in .*x\.part, the same command goes on"):
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
    "member", [("top/../../out", b""), link("top/x", "../../../etc"), link("top/x", "/etc/passwd"), device("top/null")]
)
def test_a_member_that_points_outside_is_refused_and_nothing_is_unpacked(tmp_path: Path, member: object) -> None:
    path = tmp_path / "in" / "x.tar.gz"
    path.parent.mkdir()
    path.write_bytes(archive(("top/good", b"1"), member))
    with pytest.raises(download.DownloadError, match="refused, .*; nothing was unpacked"):
        download.unpack(path, tmp_path / "in" / "goal")
    assert names(tmp_path) == ["in/x.tar.gz"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: data[:60] + b"?" + data[61:], lambda _: b"", lambda _: b"<html>"]
)
def test_a_damaged_archive_is_named_and_nothing_is_unpacked(tmp_path: Path, damage) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(damage(archive(("top/a", os.urandom(500)), ("top/b", os.urandom(500)))))
    with pytest.raises(download.DownloadError, match=r"x\.tar\.gz: damaged"):
        download.unpack(path, tmp_path / "goal")
    assert names(tmp_path) == ["x.tar.gz"]


def test_an_archive_with_a_wrong_number_of_files_is_not_put_in_place(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(archive(("top/recordings/1.wav", b""), ("top/recordings/2.wav", b"")))
    with pytest.raises(download.DownloadError, match=r"holds 2 files recordings/\*\.wav, expected 3"):
        download.unpack(path, tmp_path / "goal", expect=("recordings/*.wav", 3))
    assert names(tmp_path) == ["x.tar.gz"]


# -- the command ------------------------------------------------------------------


def test_parts_of_a_corpus_come_together_in_one_folder_and_are_fetched_once(server: Server, tmp_path: Path) -> None:
    for part in ("dev", "test"):
        server.files[f"/{part}.tar.gz"] = archive((f"Corpus/{part}/1.flac", b"1"), ("Corpus/README.TXT", b"hello"))
    for part in ("dev", "test", "dev"):
        main([f"{server.address}/{part}.tar.gz", "--into", str(tmp_path / "downloads" / "Mine"), "--makes", part])
    assert names(tmp_path / "downloads") == ["Mine/README.TXT", "Mine/dev/1.flac", "Mine/test/1.flac"]
    assert len(server.asked) == 2


def test_a_whole_corpus_takes_the_name_that_it_is_given(server: Server, tmp_path: Path) -> None:
    server.files["/main.tar.gz"] = archive(("corpus-26eb9aaf/recordings/1.wav", b"1"))
    options = ["--into", str(tmp_path / "corpus"), "--expect", "recordings/*.wav", "1"]
    main([f"{server.address}/main.tar.gz", *options])
    assert names(tmp_path) == ["corpus/recordings/1.wav"]


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "egs" / script / "local" / "download_data.sh"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_librispeech_refuses_an_archive_that_is_not_the_published_one(server: Server, tmp_path: Path) -> None:
    server.files["/12/dev-clean.tar.gz"] = archive(("LibriSpeech/dev-clean/1.flac", b"1"))
    done = run("librispeech", str(tmp_path / "corpus"), "dev-clean", OPENSLR=server.address)
    assert done.returncode == 1
    assert "expected 76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3" in done.stderr
    assert names(tmp_path) == []


def test_librispeech_names_its_parts_where_one_is_misspelt(tmp_path: Path) -> None:
    done = run("librispeech", str(tmp_path / "corpus"), "dev-clear")
    assert done.returncode == 2
    assert "no part 'dev-clear'" in done.stderr
    assert "dev-clean" in done.stderr


def test_fsdd_is_whole_with_3000_recordings(server: Server, tmp_path: Path) -> None:
    recordings = [(f"fsdd-1.0/recordings/{number}.wav", b"") for number in range(3000)]
    server.files["/x.tar.gz"], server.files["/y.tar.gz"] = archive(*recordings), archive(*recordings[1:])
    assert run("fsdd", str(tmp_path / "x"), f"{server.address}/x.tar.gz").returncode == 0
    assert len(list((tmp_path / "x" / "recordings").iterdir())) == 3000
    done = run("fsdd", str(tmp_path / "y"), f"{server.address}/y.tar.gz")
    assert "holds 2999 files recordings/*.wav, expected 3000" in done.stderr
    assert not (tmp_path / "y").exists()
