"""Drafts by the commands: a speech LLM with its own CTC head, or with the one that its encoder was
trained with, in a file of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from asrtool.bin import decode, export_ctc_head, pack, train
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.searchers.drafts import CARD, EncoderCtcConfig, drafter, load_encoder_ctc
from asrtool.types import EncoderOutput, Padded
from tests import toy_llm

pytestmark = pytest.mark.hf

CONFIGS = Path(__file__).parents[3] / "egs/librispeech/conf/speech_llm"


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """A speech LLM on the frozen encoder of the toy recogniser."""
    root = toy_llm.prepare(tmp_path_factory.mktemp("draft"))
    encoder = next((toy / "exp").glob("*/average-1.safetensors"))
    changes = [
        "'losses.ctc={type: ctc, weight: 0.5}'",
        "'model.encoder_tuning={mode: frozen}'",
        f"model.encoder_weights={encoder}",
        "trainer.best=valid/lm",
    ]
    train.main([*toy_llm.arguments(root), "--set", " ".join(changes)])
    export_ctc_head.main([str(toy / "exp"), "--out", str(root / "head.safetensors")])
    return root


def hypotheses(trained: Path, name: str, config: Path, changes: str = "") -> list[dict]:
    command = ["--exp", str(trained / "exp"), "--config", str(config), "--out", str(trained / name)]
    set_ = ["--set", "'searcher.constraints.max_tokens=12' " + changes]
    decode.main([*command, "--data", str(trained / "dump/dev"), *set_])
    return [json.loads(line) for line in (trained / name / "hyps.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def greedy(trained):
    config = trained / "greedy.yaml"
    config.write_text(
        "searcher: {type: llm_beam, beam: 1, constraints: {no_repeat_ngram: 10,"
        " max_tokens_per_second: 12}}\n"
    )
    return [line["tokens"] for line in hypotheses(trained, "greedy", config)]


def test_the_models_own_head_drafts(trained, greedy, capsys):
    limit = "searcher.constraints.max_tokens_per_second=12"
    found = hypotheses(trained, "own", CONFIGS / "decode_llm_draft.yaml", limit)
    assert [line["tokens"] for line in found] == greedy
    assert all(line["draft"]["passes"] >= 1 for line in found)
    total = sum(line["draft"]["tokens"] for line in found)
    assert f"of {total} drafted tokens accepted" in capsys.readouterr().err


def test_the_head_of_the_encoders_training_drafts(toy, trained, greedy, tmp_path):
    path = f"searcher.encoder_ctc.path={trained / 'head.safetensors'}"
    config = CONFIGS / "decode_llm_draft_mini.yaml"
    found = hypotheses(trained, "encoder", config, path)
    assert [line["tokens"] for line in found] == greedy
    changes = f"{path} searcher.entropy=9 searcher.constraints.max_tokens_per_second=null"
    sure = hypotheses(trained, "sure", config, f"{changes} searcher.constraints.max_tokens=99")
    assert [line["draft"]["passes"] for line in sure] == [0] * len(sure)
    command = [str(trained / "exp"), "--config", str(config), "--out", str(tmp_path / "model")]
    pack.main([*command, "--set", f"{path} searcher.entropy=9"])
    assert (tmp_path / "model/files/0-head.safetensors").exists()
    (trained / "head.safetensors").rename(tmp_path / "elsewhere.safetensors")
    try:
        packed = Recognizer.load(tmp_path / "model")
        assert packed.recognize(torch.randn(8000).numpy()) is not None
    finally:
        (tmp_path / "elsewhere.safetensors").rename(trained / "head.safetensors")


def test_its_drafts_are_what_the_trained_recogniser_hears(toy, trained):
    hybrid, model = Recognizer.load(toy / "exp"), Recognizer.load(trained / "exp").model
    said = datadir.read(trained / "dump/dev")[:2]
    inputs = Padded.stack([hybrid.inputs(utterance.audio) for utterance in said])
    own = drafter(model, None, EncoderCtcConfig(path=str(trained / "head.safetensors")))
    with torch.inference_mode():
        heard, read = hybrid.model.encode(inputs), model.encode(inputs)
        expected = hybrid.model.log_probs(heard)
        found = own.source.log_probs(read)
        texts = [nbest[0].text for nbest in hybrid.search_encoded(heard)]
        drafts = own.draft(read)
    torch.testing.assert_close(found.data, expected.data)
    assert torch.equal(found.lengths, expected.lengths)
    assert texts == [utterance.text for utterance in said]
    assert [model.tokenizer.decode(draft.tokens) for draft in drafts] == texts


def test_a_decoding_is_done_again_with_another_head(trained):
    path, stamp = trained / "other.safetensors", trained / "again/.stage.json"
    config, change = CONFIGS / "decode_llm_draft_mini.yaml", f"searcher.encoder_ctc.path={path}"
    path.write_bytes((trained / "head.safetensors").read_bytes())
    hypotheses(trained, "again", config, change)
    before = stamp.read_text()
    hypotheses(trained, "again", config, change)
    assert stamp.read_text() == before
    head = load_encoder_ctc(str(path))
    card = {CARD: json.dumps({"texts": head.texts, "blank": head.blank})}
    save_file({"weight": -head.weight, "bias": head.bias}, path, card)
    hypotheses(trained, "again", config, change)
    assert stamp.read_text() != before


def test_heads_of_transformers_read_the_same_frames(tmp_path):
    from transformers import HubertConfig, HubertForCTC, Wav2Vec2CTCTokenizer

    from asrtool.encoders import ENCODERS

    names = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "num_conv_pos_embedding_groups": 2}
    theirs = HubertForCTC(HubertConfig(vocab_size=7, **shape)).eval()
    theirs.save_pretrained(str(tmp_path))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(str(tmp_path))
    out = tmp_path / "head.safetensors"
    command = [str(tmp_path), "--transformers", "--out", str(out)]
    export_ctc_head.main([*command, "--case", "lower"])
    head = load_encoder_ctc(str(out))
    assert head.blank == 0 and head.text([5, 4, 6, 3, 1]) == "a b"
    encoder = ENCODERS.build(
        ENCODERS.config_type("hubert")(weights=str(tmp_path)),
        input_dim=1,
        vocab_size=7,
        frame_shift=1 / 16000,
    ).eval()
    samples = torch.randn(1, 8000)
    with torch.inference_mode():
        frames = encoder(Padded(samples, torch.tensor([8000]))).frames
        encoded = EncoderOutput(frames=frames, positions=None, taps={"encoder": frames})
        expected = theirs(samples).logits.log_softmax(-1)
    torch.testing.assert_close(head.log_probs(encoded).data, expected, atol=1e-4, rtol=1e-4)


def test_what_is_no_head_is_one_sentence(toy, trained, tmp_path):
    with pytest.raises(UserError, match=r"no CTC head 'attention' \(it has: ctc\)"):
        export_ctc_head.main(
            [str(toy / "exp"), "--head", "attention", "--out", str(tmp_path / "x")]
        )
    with pytest.raises(UserError, match="no CTC model|no folder and no name"):
        export_ctc_head.main([str(tmp_path), "--transformers", "--out", str(tmp_path / "x")])
    (tmp_path / "x").write_text("no tensors")
    with pytest.raises(UserError, match="is no CTC head .*export_ctc_head"):
        load_encoder_ctc(str(tmp_path / "x"))
    own = EncoderCtcConfig(path=str(trained / "head.safetensors"))
    with pytest.raises(UserError, match="needs model.type: speech_llm"):
        drafter(SimpleNamespace(heads={}), None, own)
    narrow = Padded(torch.zeros(1, 3, 5), torch.tensor([3]))
    with pytest.raises(ValueError, match="frames of 32 numbers, but those of this encoder have 5"):
        load_encoder_ctc(own.path).log_probs(
            EncoderOutput(frames=narrow, positions=None, taps={"encoder": narrow})
        )


def test_a_head_that_reads_a_tap_is_refused(toy):
    tapped = SimpleNamespace(alignment="ctc", source="acoustic")
    model = SimpleNamespace(heads={"ctc": tapped})
    with pytest.raises(UserError, match="reads the tap 'acoustic'"):
        export_ctc_head.check(Experiment.open(toy / "exp"), "train", model, "ctc")
