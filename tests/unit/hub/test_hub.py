"""Models by name: the real client of the hub against one on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

import asrtool
from asrtool import hub
from asrtool.bin import (
    align,
    decode,
    export,
    export_ctc_head,
    export_llm,
    fetch,
    pack,
    probe,
    push,
    recognize,
    stream,
    train,
)
from asrtool.errors import UserError
from asrtool.model_folder import Experiment
from tests import toy_experiment as toys
from tests import toy_hub

TEXT = "abc de"


@pytest.fixture(scope="module")
def packed(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "model"
    pack.main([str(toy / "exp"), "--config", str(toy / "decode.yaml"), "--out", str(out)])
    return out


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[toy_hub.Hub]:
    yield from toy_hub.serve(monkeypatch, tmp_path / "cache")


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def heard(name: str) -> str:
    return asrtool.load(name).recognize(toys.sound(TEXT)).text


# -- what is there -------------------------------------------------------------


def test_a_model_is_loaded_by_its_name_and_downloaded_once(packed, server, log, monkeypatch):
    commit = server.add("me/tones", packed)
    assert heard("hf:me/tones") == TEXT
    assert f"hf:me/tones is commit {commit[:12]}" in log.text
    files = [line for line in server.asked if line.startswith("GET /me/tones/resolve/")]
    assert len(files) == len([file for file in packed.rglob("*") if file.is_file()])
    server.asked.clear()
    assert heard("hf:me/tones") == TEXT
    assert not [line for line in server.asked if line.startswith("GET /me/tones/resolve/")]
    offline(monkeypatch)
    server.asked.clear()
    assert heard("hf:me/tones") == TEXT and not server.asked


def test_the_copy_is_taken_where_the_hub_is_out_of_reach(packed, server, monkeypatch):
    from huggingface_hub import constants

    server.add("me/tones", packed)
    folder = Experiment.open("hf:me/tones").folder
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert Experiment.open("hf:me/tones").folder == folder


def test_a_branch_and_a_commit_are_revisions(packed, server):
    first = server.add("me/tones", packed)
    repo = server.repos["me/tones"]
    repo.commit({"model.json": b"{}"}, "main")
    repo.branches["v1"] = first
    for revision in ("v1", first):
        assert Experiment.open(f"hf:me/tones@{revision}").folder.name == first
    with pytest.raises(UserError, match="lists no files"):
        Experiment.open("hf:me/tones")
    folder = Experiment.open("hf:me/tones@v1").folder
    assert hub.origin(folder) == f"hf:me/tones@{first}" and hub.origin(packed) is None


def test_a_command_takes_the_name_and_fetch_prints_the_folder(packed, server, tmp_path, capsys):
    commit = server.add("me/tones", packed)
    soundfile.write(tmp_path / "a.wav", toys.sound(TEXT), toys.RATE)
    recognize.main(["hf:me/tones", str(tmp_path / "a.wav")])
    assert capsys.readouterr().out == f"{TEXT}\n"
    fetch.main(["hf:me/tones"])
    folder = Path(capsys.readouterr().out.strip())
    assert folder.name == commit and (folder / "model.safetensors").exists()
    fetch.main([str(packed)])
    assert capsys.readouterr().out == f"{packed}\n"


def test_a_private_model_needs_a_token(packed, server, monkeypatch):
    server.add("me/secret", packed, private=True)
    with pytest.raises(UserError, match="no public model me/secret; if it is private, log in"):
        Experiment.open("hf:me/secret")
    monkeypatch.setenv("HF_TOKEN", toy_hub.TOKEN)
    assert Experiment.open("hf:me/secret").packed


@pytest.mark.slow
def test_the_client_takes_its_settings_from_the_environment(packed, server, tmp_path):
    commit = server.add("me/secret", packed, private=True)
    settings = {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": toy_hub.TOKEN,
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "asrtool", "fetch", "hf:me/secret"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    expected = tmp_path / "home/hub/models--me--secret/snapshots" / commit
    assert done.stdout.strip() == str(expected), done.stderr


# -- what is not ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hf:me/nothing", r"^the hub has no public model me/nothing; if it is private, log in"),
        ("hf:me/gated", r"^hf:me/gated: request access to this model on its page, then log in"),
        ("hf:me/tones@v9", r"^hf:me/tones has no revision 'v9'$"),
        ("hf:me/other", r"^hf:me/other is not an asrtool model: it has no model.json"),
        ("hf:me", r"^'hf:me' is not the name of a model on the hub; expected hf:user/model"),
        ("hf:../me", r"^the hub has no public model|^hf:\.\./me cannot be downloaded"),
        ("hf:me/tones@", "is not the name of a model on the hub"),
        ("hf:a/b/c", "is not the name of a model on the hub"),
        ("me/tones", r"holds no config.yaml.*a model on the hub is called hf:me/tones$"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(packed, server, name, sentence):
    server.add("me/tones", packed)
    server.add("me/gated", packed, gated=True)
    server.repos["me/other"] = toy_hub.Repo()
    server.repos["me/other"].commit({"config.json": b"{}"})
    with pytest.raises(UserError, match=sentence) as raised:
        Experiment.open(name)
    assert "\n" not in str(raised.value)


def test_a_token_that_may_not_read_it_is_another_sentence(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", toy_hub.TOKEN)
    with pytest.raises(UserError, match="the hub has no model me/nothing that your token may read"):
        Experiment.open("hf:me/nothing")


def test_without_a_network_and_a_copy_it_says_so(server, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        Experiment.open("hf:me/tones")


def test_without_a_connection_and_a_copy_it_says_so(server, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # it tries several times
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(UserError, match="the hub cannot be reached .*refused.*, and it is not in"):
        Experiment.open("hf:me/tones")


def test_without_the_client_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[hub\]'"):
        Experiment.open("hf:me/tones")


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ("../outside.txt", "which is not inside its folder"),
        ("/etc/passwd", "which is not inside its folder"),
        ("vocab/../../x", "which is not inside its folder"),
        (".git/config", "which is not inside its folder"),
        ("files/0-my_package.py", "a model must not contain code"),
        ("my_package.so", "a model must not contain code"),
    ],
)
def test_a_list_with_names_that_have_no_place_there_is_refused(packed, server, listed, sentence):
    server.add("me/tones", packed)
    files = server.repos["me/tones"].files("main")
    card = json.loads(files["model.json"])
    card["files"][listed] = "0"
    server.repos["me/tones"].commit(files | {"model.json": json.dumps(card).encode()})
    with pytest.raises(UserError, match=sentence):
        Experiment.open("hf:me/tones")


def test_a_damaged_download_is_refused_as_a_damaged_folder_is(packed, server):
    server.add("me/tones", packed)
    files = server.repos["me/tones"].files("main")
    server.repos["me/tones"].commit(files | {"cmvn.json": files["cmvn.json"] + b" "})
    with pytest.raises(UserError, match="cmvn.json is not what was packed: SHA-256"):
        Experiment.open("hf:me/tones")
    del files["cmvn.json"]
    server.repos["me/tones"].commit(files)
    with pytest.raises(UserError, match="is incomplete: cmvn.json is missing"):
        Experiment.open("hf:me/tones")


def test_a_download_brings_no_module(packed, server, monkeypatch):
    """A file that the list does not name is not downloaded, and the folder is not searched."""
    server.add("me/tones", packed)
    files = server.repos["me/tones"].files("main")
    code = b"raise SystemExit('the model ran its code')\n"
    server.repos["me/tones"].commit(files | {"my_package.py": code})
    folder = Experiment.open("hf:me/tones").folder
    assert not list(folder.rglob("*.py"))
    (folder / "my_package.py").write_bytes(code)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="there is no module 'my_package' to import"):
        Experiment.open("hf:me/tones", imports=["my_package"])


# -- a path never leaves the machine ---------------------------------------------


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


COMMANDS = {
    "recognize": lambda model, toy, out: recognize.main([model, str(audio_of(toy))]),
    "stream": lambda model, toy, out: stream.main([model, str(audio_of(toy))]),
    "decode": lambda model, toy, out: decode.main(
        ["--exp", model, "--config", str(toy / "decode.yaml"), "--out", str(out)]
        + ["--data", str(toy / "dump/test")]
    ),
    "align": lambda model, toy, out: align.main(
        [model, "--data", str(toy / "dump/test"), "--out", str(out)]
    ),
    "pack": lambda model, toy, out: pack.main([model, "--out", str(out)]),
    "push": lambda model, toy, out: push.main(
        [model, "me/tones", "--license", "mit", "--out", str(out)]
    ),
    "fetch": lambda model, toy, out: fetch.main([model]),
    "export": lambda model, toy, out: export.main([model, "--out", str(out)]),
    "export_llm": lambda model, toy, out: export_llm.main([model, "--out", str(out)]),
    "export_ctc_head": lambda model, toy, out: export_ctc_head.main([model, "--out", str(out)]),
    "probe": lambda model, toy, out: probe.probe(
        None, Path(model), Experiment.open(model).decode_config(), toy / "dump/test", []
    ),
    "train": lambda model, toy, out: train.main(
        ["--config", str(toy / "train.yaml"), "--train", str(toy / "dump/train"), "--init", model]
        + ["--valid", str(toy / "dump/dev"), "--vocab", str(toy / "vocab"), "--exp", str(out)]
        + ["--set", "trainer.epochs=1"]
    ),
}
REFUSED = {  # what they say about this model
    "stream": "the encoder cannot stream|cannot be streamed",
    "export_llm": "holds no language model of `transformers`",
    "probe": "'NoneType' object has no attribute",  # after the model was loaded
}


def audio_of(toy: Path) -> Path:
    return toy / "data/test/audio/u000.wav"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_never_leaves_the_machine(toy, tmp_path, cut_off, command, monkeypatch):
    # the graph takes half a minute, and is made after the model was opened
    monkeypatch.setattr(export, "export", lambda *_: 0.0, raising=False)
    run = COMMANDS[command]
    if command in REFUSED:
        with pytest.raises((UserError, AttributeError), match=REFUSED[command]):
            run(str(toy / "exp"), toy, tmp_path / "out")
    else:
        run(str(toy / "exp"), toy, tmp_path / "out")
    with pytest.raises(UserError, match="holds no config.yaml|does not exist|cannot be read"):
        run("me/tones", toy, tmp_path / "other")


def test_the_refusal_is_noticed(cut_off):
    with pytest.raises(AssertionError, match="a connection was asked for"):
        Experiment.open("hf:me/tones")
