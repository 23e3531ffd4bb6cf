"""A speech LLM by the commands of the stages: vocabulary, phases, non-speech, decoding; and what
stops them.
"""

from __future__ import annotations

import json

import pytest

from asrtool.bin import decode, make_vocab, pack, push, train
from asrtool.data import tokenizers
from asrtool.data.kaldi import datadir, tables
from asrtool.errors import UserError
from asrtool.recognizer import Recognizer
from asrtool.trainer import checkpoint
from tests import toy_llm

pytestmark = pytest.mark.hf

DECODE = (
    "searcher: {type: llm_beam, beam: 2, constraints: {max_tokens: 8}}\naverage: "
    "1\nbatch_seconds: 20\n"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = toy_llm.prepare(tmp_path_factory.mktemp("speech_llm"))
    (root / "decode.yaml").write_text(DECODE)
    train.main(toy_llm.arguments(root))
    return root


def test_the_vocabulary_is_that_of_the_language_model(trained):
    found = tokenizers.load(trained / "vocab")
    assert (found.size, found.eos, found.unk) == (33, 2, 0)
    assert found.decode(found.encode("  the  cat ")) == "the cat" and found.encode("") == []
    assert found.decode([1, *found.encode("a b"), 2]) == "a b"
    assert (
        found.unknown("aB") == ["B"]
        and found.piece(found.encode("a")[0]) == "a"
        and found.piece(2) == ""
    )
    train_text = [row.value for row in tables.read(trained / "data/train/text").rows]
    assert all(found.decode(found.encode(text)) == text for text in train_text)


def test_phases_train_and_checkpoints_hold_no_pretrained_weights(trained):
    names = checkpoint.shapes(trained / "exp/both/average-1.safetensors")
    assert any("lora_" in name for name in names) and not any(
        "embed_tokens" in name for name in names
    )
    card = json.loads((trained / "exp/both/model.json").read_text())
    assert [source["part"] for source in card["pretrained"]] == ["llm"] and card["trained"] < card[
        "parameters"
    ]
    events = [json.loads(line) for line in (trained / "exp/log.jsonl").read_text().splitlines()]
    valid = [event for event in events if event.get("event") == "valid"]
    assert {"valid/token_error", "valid/lm", "valid/matching"} <= set(valid[-1])
    entropy, bound = (valid[-1][f"valid/matching.{name}"] for name in ("entropy", "entropy_bound"))
    assert 0 <= entropy <= bound


def test_a_later_phase_adds_projections_of_the_matching_loss(trained, tmp_path):
    changes = "phases.both.losses.matching.projected=true"
    command = [*toy_llm.arguments(trained)[:-2], "--exp", str(tmp_path / "exp")]
    new = '\'phases.both.init.missing=["heads.text_query.*", "heads.speech_key.*"]\''
    train.main([*command, "--set", f"{changes} {new} trainer.steps=2"])
    names = checkpoint.shapes(tmp_path / "exp/both/average-1.safetensors")
    assert {"heads.text_query.linear.weight", "heads.speech_key.linear.weight"} <= set(names)
    assert Recognizer.load(tmp_path / "exp") is not None


def test_it_decodes(trained):
    out = trained / "out"
    decode.main(
        [
            "--exp",
            str(trained / "exp"),
            "--config",
            str(trained / "decode.yaml"),
            "--data",
            str(trained / "dump/dev"),
        ]
        + ["--out", str(out)]
    )
    lines = [json.loads(line) for line in (out / "hyps.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(len(line["tokens"]) <= 8 for line in lines)
    utterance = datadir.read(trained / "dump/dev")[0]
    text = Recognizer.load(trained / "exp").recognize(utterance.audio).text
    assert isinstance(text, str)


def test_weights_that_changed_since_training_are_noticed(trained):
    folder = trained / "llm"
    before = (folder / "model.safetensors").read_bytes()
    toy_llm.save_llm(folder, seed=9)
    try:
        with pytest.raises(
            UserError, match="was trained on llm weights .* restore the weights of the training"
        ):
            Recognizer.load(trained / "exp")
    finally:
        (folder / "model.safetensors").write_bytes(before)


def test_a_transcript_beyond_the_context_stops_before_the_first_step(trained, tmp_path):
    short = toy_llm.save_llm(tmp_path / "llm", context=12)
    with pytest.raises(ValueError, match="the language model reads at most 12"):
        train.main(
            [
                *toy_llm.arguments(trained)[:-2],
                "--exp",
                str(tmp_path / "exp"),
                "--set",
                f"model.llm.weights={short}",
            ]
        )


def test_a_set_of_noise_that_is_not_there_is_named(trained, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        change = "data.augment.non_speech.set=nowhere"
        train.main(
            [*toy_llm.arguments(trained)[:-2], "--exp", str(tmp_path / "exp"), "--set", change]
        )


def test_a_name_that_is_no_tokenizer_is_one_sentence(trained, tmp_path):
    text = ["--text", str(trained / "data/train/text"), "--out", str(tmp_path / "vocab")]
    with pytest.raises(UserError, match="no folder with a tokenizer and no tokenizer on the hub"):
        make_vocab.main([*text, "--unit", "hf", "--tokenizer", str(tmp_path)])
    with pytest.raises(UserError, match="give its name by --tokenizer"):
        make_vocab.main([*text, "--unit", "hf"])


def test_a_pushed_model_leaves_the_language_model_where_it_is_and_names_it(trained, tmp_path):
    out = tmp_path / "out"
    command = [str(trained / "exp"), "me/speech", "--license", "mit", "--out", str(out)]
    command += ["--config", str(trained / "decode.yaml")]
    with pytest.raises(
        UserError, match="weights of its llm are in the local folder .* --base llm="
    ):
        push.main(command)
    push.main([*command, "--base", "llm=them/llm@v1"])
    (base,) = json.loads((out / "model.json").read_text())["bases"]
    assert (base["part"], base["weights"], base["revision"]) == ("llm", "them/llm", "v1")
    assert base["files"].keys() == {"model.safetensors"}
    config = (out / "config.yaml").read_text()
    assert "weights: them/llm" in config and str(trained) not in config
    assert not any("embed_tokens" in name for name in checkpoint.shapes(out / "model.safetensors"))
    card = (out / "README.md").read_text()
    assert (
        "base_model:\n- them/llm\n" in card
        and "base weights of its llm are those of `them/llm`" in card
    )


def test_a_packed_model_brings_the_tokenizer_of_its_language_model(trained, tmp_path):
    pack.main(
        [str(trained / "exp"), "--config", str(trained / "decode.yaml")]
        + ["--out", str(tmp_path / "model")]
    )
    assert Recognizer.load(tmp_path / "model").tokenizer.decode([5, 4]) != ""
    before, packed = (folder / "vocab/hf" for folder in (trained / "exp", tmp_path / "model"))
    names = sorted(file.name for file in before.iterdir())
    assert "tokenizer.json" in names and names == sorted(file.name for file in packed.iterdir())
    assert all((before / name).read_bytes() == (packed / name).read_bytes() for name in names)
    listed = json.loads((tmp_path / "model/model.json").read_text())["files"]
    assert {f"vocab/hf/{name}" for name in names} <= set(listed)
