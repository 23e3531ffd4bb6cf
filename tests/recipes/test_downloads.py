"""`local/download_data.sh` of all recipes: only the published files, or how to apply for them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recipes.preparation import ROOT
from tests.toy_server import Server, archive, names, serve, zipped


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    yield from serve(monkeypatch)


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "egs" / script / "local" / "download_data.sh"), *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_librispeech_refuses_an_archive_that_is_not_the_published_one(
    server: Server, tmp_path: Path
) -> None:
    server.files["/12/dev-clean.tar.gz"] = archive(("LibriSpeech/dev-clean/1.flac", b"1"))
    done = run("librispeech", str(tmp_path / "corpus"), "dev-clean", OPENSLR=server.address)
    assert done.returncode == 1
    assert (
        "expected 76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3" in done.stderr
    )
    assert names(tmp_path) == []


def test_librispeech_names_its_parts_where_one_is_misspelt(tmp_path: Path) -> None:
    done = run("librispeech", str(tmp_path / "corpus"), "dev-clear")
    assert done.returncode == 2
    assert "no part 'dev-clear'" in done.stderr
    assert "dev-clean" in done.stderr


def test_fsdd_is_whole_with_3000_recordings(server: Server, tmp_path: Path) -> None:
    recordings = [(f"fsdd-1.0/recordings/{number}.wav", b"") for number in range(3000)]
    server.files["/x.tar.gz"], server.files["/y.tar.gz"] = (
        archive(*recordings),
        archive(*recordings[1:]),
    )
    assert run("fsdd", str(tmp_path / "x"), f"{server.address}/x.tar.gz").returncode == 0
    assert len(list((tmp_path / "x" / "recordings").iterdir())) == 3000
    done = run("fsdd", str(tmp_path / "y"), f"{server.address}/y.tar.gz")
    assert "contains 2999 files recordings/*.wav, expected 3000" in done.stderr
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("script", "path", "said"),
    [
        ("aishell1", "/33/data_aishell.tgz", "expected 15582913665"),
        ("magicdata", "/123/MagicData-RAMC.tar.gz", "expected 15470673657"),
    ],
)
def test_a_corpus_refuses_an_archive_that_is_not_the_published_one(
    server: Server, tmp_path: Path, script: str, path: str, said: str
) -> None:
    server.files[path] = archive(("top/1.wav", b"1"))
    done = run(script, str(tmp_path / "corpus"), OPENSLR=server.address)
    assert (done.returncode, names(tmp_path)) == (1, [])
    assert said in done.stderr


def test_magicdata_read_speech_comes_in_three_parts(server: Server, tmp_path: Path) -> None:
    for part in ("train", "dev", "test"):
        server.files[f"/68/{part}_set.tar.gz"] = archive(
            (f"{part}/TRANS.txt", b"x"), (f"{part}/1/1.wav", b"1")
        )
    assert (
        run("magicdata", str(tmp_path / "corpus"), "read", OPENSLR=server.address).returncode == 0
    )
    parts = sorted(
        f"{part}/{name}" for part in ("train", "dev", "test") for name in ("1/1.wav", "TRANS.txt")
    )
    assert names(tmp_path / "corpus") == parts


def test_a_training_set_of_libri_light_asks_for_its_own_archive(
    server: Server, tmp_path: Path
) -> None:
    for part in ("dev-clean", "dev-other", "test-clean", "test-other"):
        (tmp_path / "corpus" / part).mkdir(parents=True)
    server.files["/librispeech_finetuning.tgz"] = archive(
        ("librispeech_finetuning/1h/0/1.flac", b"1")
    )
    done = run("librispeech", str(tmp_path / "corpus"), "train_1h", LIBRI_LIGHT=server.address)
    assert (
        "expected 5d1efdc777b548194d7e09ba89126e2188026df9fd57aa57eb14408d2b2342af" in done.stderr
    )


@pytest.mark.parametrize(
    ("script", "form"),
    [("aishell2", "aishelltech.com/aishell_2"), ("kespeech", "KeSpeech/KeSpeech")],
)
def test_a_corpus_that_needs_an_application_says_where_and_what_tree_is_expected(
    tmp_path: Path, script: str, form: str
) -> None:
    done = run(script, str(tmp_path / "Corpus"))
    assert done.returncode == 1
    assert form in done.stderr
    assert f"{tmp_path}/Corpus/" in done.stderr
    assert "wav.scp" in done.stderr


def test_noises_are_those_that_were_published(server: Server, tmp_path: Path) -> None:
    server.files["/28/rirs_noises.zip"] = zipped("RIRS_NOISES/1.wav")
    script = str(ROOT / "tools" / "download_noise.sh")
    environment = {**os.environ, "OPENSLR": server.address}
    for name, said in (
        ("rirs_noises", "expected 1311166223"),
        ("music", "'music' is neither musan nor rirs_noises"),
    ):
        done = subprocess.run(
            ["bash", script, str(tmp_path), name], env=environment, capture_output=True, text=True
        )
        assert done.returncode != 0
        assert said in done.stderr
    assert names(tmp_path) == []
