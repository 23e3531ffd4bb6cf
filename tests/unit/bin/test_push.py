"""`asrtool push`: a model card that claims what is there, an upload by the real client, and no
weights of others without their licence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import asrtool
from asrtool.bin import decode, extract_features, make_vocab, pack, push, score, train
from asrtool.errors import UserError
from asrtool.model_folder import Experiment
from asrtool.trainer import checkpoint
from tests import toy_experiment as toys
from tests import toy_hub, toy_ssl

TEXT = "abc de"
MIT = ("--license", "mit")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[toy_hub.Hub]:
    monkeypatch.setenv("HF_TOKEN", toy_hub.TOKEN)
    running = toy_hub.serve(monkeypatch, tmp_path / "cache")
    hub = next(running)
    monkeypatch.setenv("HF_TOKEN", toy_hub.TOKEN)
    yield hub
    next(running, None)


@pytest.fixture(scope="module")
def scored(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy experiment with a decoding of its weights, and one of others."""
    exp = Path(shutil.copytree(toy / "exp", tmp_path_factory.mktemp("scored") / "tones"))
    out = exp / "greedy" / "test"
    decode.main(
        ["--exp", str(exp), "--config", str(toy / "decode.yaml"), "--out", str(out)]
        + ["--data", str(toy / "dump/test")]
    )
    score.main([str(toy / "data/test"), str(out), "--metric", "wer"])
    other = Path(shutil.copytree(out, exp / "other" / "test"))
    stamp = json.loads((other / ".stage.json").read_text())
    stamp["options"]["weights"] = "0" * 16
    (other / ".stage.json").write_text(json.dumps(stamp))
    shutil.copytree(out, exp / "copied" / "test", ignore=lambda *_: [".stage.json"])
    return exp


@pytest.fixture(scope="module")
def packed(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "model"
    pack.main([str(scored), "--out", str(out)])
    return out


def written(model: Path, out: Path, *options: str) -> tuple[dict, str]:
    """The YAML head and the text of the card of a folder that is written and not uploaded."""
    push.main([str(model), "me/tones", "--out", str(out), *options])
    return read_card((out / "README.md").read_text())


def read_card(text: str) -> tuple[dict, str]:
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


# -- the card --------------------------------------------------------------------


def test_the_card_has_the_scores_of_these_weights_and_no_others(scored, tmp_path, server, capfd):
    options = ("--language", "en", "--dataset", "me/beeps", "--tag", "ctc", "--name", "Tones")
    head, body = written(scored, tmp_path / "out", *MIT, *options)
    assert server.asked == []  # nothing leaves the machine
    stored = json.loads((scored / "greedy/test/score.json").read_text())
    low, high = (100 * end for end in stored["interval"])
    assert head["license"] == "mit" and head["pipeline_tag"] == "automatic-speech-recognition"
    assert head["language"] == ["en"] and head["datasets"] == ["me/beeps"]
    assert (
        head["library_name"] == "asrtool" and "ctc" in head["tags"] and head["metrics"] == ["wer"]
    )
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert model["name"] == "Tones" and result["dataset"] == {"name": "test", "type": "test"}
    (metric,) = result["metrics"]
    assert metric["value"] == round(100 * stored["total"]["rate"], 2) and metric["type"] == "wer"
    assert metric["args"]["interval"] == [round(low, 2), round(high, 2)]
    assert "base_model" not in head
    row = f"| greedy | test | wer | {metric['value']:.2f} % | {low:.2f} to {high:.2f} |"
    assert row in body and "| other |" not in body and "| copied |" not in body
    said = capfd.readouterr().err
    assert "other/test/score.json is omitted from the model card: it is of other weights" in said
    assert (
        "copied/test/score.json is omitted from the model card: its decoding has no stamp" in said
    )


def test_the_real_client_reads_the_card(scored, tmp_path, server):
    from huggingface_hub import ModelCard

    written(scored, tmp_path / "out", *MIT)
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.license == "mit" and data.eval_results[0].metric_type == "wer"


def test_the_card_says_how_it_is_loaded_and_how_it_was_trained(scored, tmp_path):
    _, body = written(scored, tmp_path / "out", *MIT)
    assert 'asrtool.load("hf:me/tones").recognize("a.wav")' in body
    assert "asrtool recognize hf:me/tones a.wav" in body
    commit = (scored / "git.txt").read_text().split()[2]
    assert commit in body and "## Configuration" in body and "type: conformer" in body
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["sha256"] in body and card["license"] == "mit"


def test_a_model_without_scores_claims_none(toy, tmp_path):
    head, body = written(toy / "exp", tmp_path / "out", *MIT)
    assert "metrics" not in head and "model-index" not in head
    assert "None: these weights had not been scored" in body and "%" not in body


def test_a_packed_model_keeps_its_scores_and_its_licence(packed, tmp_path):
    first, _ = written(packed, tmp_path / "first", "--license", "cc-by-4.0")
    second, _ = written(tmp_path / "first", tmp_path / "second")
    assert first == second and second["license"] == "cc-by-4.0" and second["metrics"] == ["wer"]
    assert asrtool.load(tmp_path / "second").recognize(toys.sound(TEXT)).text == TEXT


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "a model needs a licence: give one, as in --license apache-2.0"),
        ((*MIT, "--base", "encoder"), "--base encoder: expected <name>=<value>"),
        ((*MIT, "--base", "encoder=me/x"), r"no such part \(parts with base weights: none\)"),
        ((*MIT, "--adapters-only"), "no base weights that were not trained, so there is nothing"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(toy, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        written(toy / "exp", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_and_a_name_that_is_none_are_refused(toy, tmp_path):
    with pytest.raises(UserError, match="already exists; give another --out"):
        written(toy / "exp", tmp_path, *MIT)
    with pytest.raises(UserError, match="'hf:tones' is not the name of a model on the hub"):
        push.main([str(toy / "exp"), "tones", *MIT])
    with pytest.raises(UserError, match="give the branch 'v1' by --revision"):
        push.main([str(toy / "exp"), "me/tones@v1", *MIT])


# -- the upload ------------------------------------------------------------------


def test_a_pushed_model_is_loaded_by_its_name(scored, server, capsys):
    push.main([str(scored), "me/tones", *MIT])
    assert capsys.readouterr().out.endswith("hf:me/tones\n")
    files = server.repos["me/tones"].files("main")
    assert files["README.md"].decode() == server.cards[0] and ".gitattributes" in files
    assert any(line.startswith("PUT /large/") for line in server.asked)  # the weights, by LFS
    assert asrtool.load("hf:me/tones").recognize(toys.sound(TEXT)).text == TEXT
    assert not server.repos["me/tones"].private


def test_what_a_model_no_longer_has_is_deleted_and_what_others_put_there_stays(scored, server):
    push.main([str(scored), "me/tones", *MIT])
    repo = server.repos["me/tones"]
    repo.commit(repo.files("main") | {"lm/config.yaml": b"old", "samples/a.wav": b"sound"})
    push.main([str(scored), "me/tones", "--license", "apache-2.0"])
    files = repo.files("main")
    assert "lm/config.yaml" not in files and files["samples/a.wav"] == b"sound"
    assert read_card(files["README.md"].decode())[0]["license"] == "apache-2.0"


def test_a_branch_is_made_and_the_main_one_stays(scored, server):
    push.main([str(scored), "me/tones", *MIT])
    main = server.repos["me/tones"].branches["main"]
    push.main([str(scored), "me/tones", "--license", "apache-2.0", "--revision", "v2"])
    assert server.repos["me/tones"].branches["main"] == main
    assert Experiment.open("hf:me/tones@v2").card["license"] == "apache-2.0"
    assert Experiment.open("hf:me/tones").card["license"] == "mit"


def test_a_private_model_is_private_and_a_public_one_is_not_taken_for_one(scored, server):
    push.main([str(scored), "me/secret", *MIT, "--private"])
    assert server.repos["me/secret"].private
    push.main([str(scored), "me/tones", *MIT])
    before = server.repos["me/tones"].branches["main"]
    with pytest.raises(UserError, match="hf:me/tones exists and is public"):
        push.main([str(scored), "me/tones", *MIT, "--private"])
    assert server.repos["me/tones"].branches["main"] == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"HF_TOKEN": "hf_wrong"}, "you have no permission to write to me/tones: log in"),
        ({"HF_HUB_OFFLINE": True}, "cannot be uploaded: HF_HUB_OFFLINE is set"),
        ({"ENDPOINT": "http://127.0.0.1:9"}, "hf:me/tones cannot be uploaded: .*refused"),
    ],
)
def test_an_upload_that_fails_is_one_sentence(toy, server, monkeypatch, change, sentence):
    from huggingface_hub import constants

    for name, value in change.items():
        if name == "HF_TOKEN":
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.setattr(constants, name, value)
    with pytest.raises(UserError, match=sentence) as raised:
        push.main([str(toy / "exp"), "me/tones", *MIT])
    assert "\n" not in str(raised.value) and not server.repos


# -- weights of others -----------------------------------------------------------

FROZEN = """
data: {{input: waveform, batch: {{seconds: 40}}, workers: 0}}
model: {{type: hybrid, encoder: {encoder}}}
losses: {{ctc: {{type: ctc, weight: 1.0}}}}
optim: {{lr: 1e-3}}
trainer: {{steps: 2, average: 1}}
"""
ENCODERS = {
    "encoder.frontend": "{{type: conformer, num_layers: 1, dim: 16, num_heads: 2, ffn_dim: 32, "
    "kernel: 5, downsamplers: {{0: {{type: linear}}}}, frontend: {{type: whisper, tuning: frozen, "
    "weights: {weights}}}}}",
    "encoder": "{{type: whisper, tuning: lora, weights: {weights}}}",
}


@pytest.fixture(scope="module")
def built_on(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experiments on the weights in base/: a frozen front end, and LoRA."""
    pytest.importorskip("peft")
    root = tmp_path_factory.mktemp("built_on")
    base = toy_ssl.save(toy_ssl.make_whisper(), root / "base")
    for name in ("train", "dev"):
        toys.write_set(root / "data" / name, 4, len(name))
    for part, encoder in ENCODERS.items():
        config = root / f"{part}.yaml"
        config.write_text(FROZEN.format(encoder=encoder.format(weights=base)))
        for name in ("train", "dev"):
            more = ["--training"] if name == "train" else []
            extract_features.main(
                ["--config", str(config), "--nj", "1", "--data", str(root / "data" / name)]
                + ["--out", str(root / "dump" / name), *more]
            )
        make_vocab.main(
            ["--text", str(root / "data/train/text"), "--unit", "char"]
            + ["--out", str(root / "vocab")]
        )
        train.main(
            ["--config", str(config), "--train", str(root / "dump/train")]
            + ["--valid", str(root / "dump/dev"), "--vocab", str(root / "vocab")]
            + ["--exp", str(root / part)]
        )
    return root


@pytest.fixture
def hub_of_transformers(server: toy_hub.Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """transformers keeps where the cache was when it was imported."""
    from transformers.utils import hub

    for name in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE"):
        if hasattr(hub, name):
            monkeypatch.setattr(hub, name, str(tmp_path / "cache" / "hub"))
    return server


def outputs(model: str | Path) -> list:
    recognizer = asrtool.load(model)
    inputs = recognizer.prepare(toys.sound(TEXT), rate=toys.RATE).inputs
    from asrtool.types import Padded

    encoded = recognizer.encode(Padded.stack([inputs]))
    return recognizer.model.log_probs(encoded).data


@pytest.mark.hf
@pytest.mark.parametrize("part", ENCODERS)
def test_adapters_and_heads_alone_are_pushed_and_find_their_base(
    built_on, hub_of_transformers, part, tmp_path, capfd
):
    server = hub_of_transformers
    commit = server.add("them/base", built_on / "base")
    push.main(
        [str(built_on / part), "me/tones", *MIT, "--adapters-only"]
        + ["--base", f"{part}=them/base@{commit}"]
    )
    files = server.repos["me/tones"].files("main")
    head, body = read_card(files["README.md"].decode())
    assert head["base_model"] == ["them/base"] and head["base_model_relation"] == "adapter"
    assert "contains only the trained tensors" in body and str(built_on) not in body
    assert (
        len(files["model.safetensors"]) < 0.5 * (built_on / "base/model.safetensors").stat().st_size
    )
    expected = outputs(built_on / part)
    capfd.readouterr()
    assert outputs("hf:me/tones").equal(expected)
    assert f"base weights of its {part}: them/base (revision {commit})" in capfd.readouterr().err


@pytest.mark.hf
def test_a_base_that_is_another_or_not_there_is_one_sentence(
    built_on, hub_of_transformers, tmp_path
):
    server, part = hub_of_transformers, "encoder"
    server.add("them/base", built_on / "base")
    options = ("--adapters-only", "--base", f"{part}=them/base")
    written(built_on / part, tmp_path / "out", *MIT, *options)
    files = server.repos["them/base"].files("main")
    changed = bytearray(files["model.safetensors"])
    changed[-1] ^= 1
    server.repos["them/base"].commit(files | {"model.safetensors": bytes(changed)})
    with pytest.raises(UserError, match="on them/base, whose model.safetensors has changed"):
        asrtool.load(tmp_path / "out")
    del server.repos["them/base"]
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match="its base weights, them/base, cannot be loaded"):
        asrtool.load(tmp_path / "out")


@pytest.mark.hf
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "base weights of its encoder are in the local folder .*base: .* --base encoder="),
        (
            ("--base", "encoder=them/base"),
            "includes the weights of them/base, the base of its encoder, and no licence is given: "
            r"upload only what was trained \(--adapters-only\)",
        ),
        (
            ("--base", "encoder=them/base", "--base-license", "them/base=llama3"),
            "llama3 does not permit it",
        ),
    ],
)
def test_weights_of_others_are_not_passed_on_without_a_licence(
    built_on, tmp_path, options, sentence
):
    with pytest.raises(UserError, match=sentence):
        written(built_on / "encoder", tmp_path / "out", *MIT, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.hf
def test_under_an_open_licence_they_are_and_the_card_names_them(built_on, tmp_path):
    options = ("--base", "encoder=them/base", "--base-license", "them/base=apache-2.0")
    head, body = written(built_on / "encoder", tmp_path / "out", *MIT, *options)
    assert head["base_model"] == ["them/base"] and head["base_model_relation"] == "finetune"
    assert "| base model `them/base` | apache-2.0 |" in body
    names = checkpoint.shapes(tmp_path / "out" / "model.safetensors")
    assert any(name.endswith("q_proj.base_layer.weight") for name in names)
    assert str(built_on) not in (tmp_path / "out" / "config.yaml").read_text()
