"""Folders that `transformers` and peft read: of a language model that asrtool trained, and of a
speech LLM's parts.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from asrtool.bin import export_llm, make_vocab, train
from asrtool.data import tokenizers
from asrtool.errors import UserError
from asrtool.model_folder import Experiment, build_model
from asrtool.recognizer import Recognizer
from asrtool.trainer import checkpoint
from asrtool.types import Batch, Padded
from tests import toy_experiment, toy_llm

pytestmark = pytest.mark.hf

LM = """
data: {input: text, batch: {tokens: 400}, workers: 0}
model: {type: causal_lm, shape: llama-tiny}
losses: {lm: {type: cross_entropy, weight: 1.0, input: lm, smoothing: 0.0}}
optim: {lr: 1e-2}
trainer: {steps: 20, average: 1, best: valid/perplexity}
"""


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """The experiment of a small causal language model on the toy's letters."""
    root = tmp_path_factory.mktemp("causal_lm")
    (root / "lm.yaml").write_text(LM)
    for number, name in enumerate(("train", "dev")):
        toy_experiment.write_set(root / name, 24, number)
    make_vocab.main(
        ["--text", str(root / "train/text"), "--unit", "char", "--out", str(root / "vocab")]
    )
    folders = [
        "--train",
        str(root / "train"),
        "--valid",
        str(root / "dev"),
        "--vocab",
        str(root / "vocab"),
    ]
    train.main(["--config", str(root / "lm.yaml"), *folders, "--exp", str(root / "exp")])
    return root


def test_a_language_model_of_ours_is_one_of_transformers(language):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_llm.main([str(language / "exp"), "--out", str(language / "llm")])
    model, found = (
        kind.from_pretrained(str(language / "llm"))
        for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    ours = tokenizers.load(language / "vocab")
    ids = ours.encode("ab ce d")
    assert (
        found("ab ce d", add_special_tokens=False)["input_ids"] == ids
        and found.decode(ids) == "ab ce d"
    )
    assert (
        found.eos_token_id == found.bos_token_id == ours.eos == ours.size - 1
        and len(found) == ours.size
    )
    with torch.inference_mode():
        logits = model(torch.tensor([[ours.eos, *ids]])).logits[0]
    phase, config = Experiment.open(language / "exp").phase()
    trained = build_model(config, ours.size)
    checkpoint.load_model(trained, language / "exp" / phase / "average-1.safetensors")
    targets = Padded.stack([torch.tensor(ids)])
    expected = trained.eval()(Batch(ids=("u",), inputs=targets, targets=targets)).head("lm").data[0]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_it_becomes_the_language_model_of_a_speech_llm(language, tmp_path):
    export_llm.main([str(language / "exp"), "--out", str(language / "llm")])
    vocab = [
        "--text",
        str(language / "train/text"),
        "--unit",
        "hf",
        "--tokenizer",
        str(language / "llm"),
    ]
    make_vocab.main([*vocab, "--out", str(tmp_path / "vocab")])
    found = tokenizers.load(tmp_path / "vocab")
    before = tokenizers.load(language / "vocab")
    assert found.encode("ab e") == before.encode("ab e") and found.eos == before.eos


def test_the_parts_of_a_speech_llm_with_lora_merged_and_apart(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = toy_llm.prepare(tmp_path)
    train.main(toy_llm.arguments(root))
    out = root / "parts"
    export_llm.main([str(root / "exp"), "--out", str(out)])
    model = Recognizer.load(root / "exp").model
    ids = torch.randint(3, 20, (2, 7))
    with torch.inference_mode():
        expected = model.llm(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(str(out / "llm"))(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(str(root / "llm"))
        apart = PeftModel.from_pretrained(plain, str(out / "adapters" / "llm"))(ids).logits
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart, expected, atol=1e-5, rtol=1e-5)
    assert AutoTokenizer.from_pretrained(str(out / "llm")).pad_token_id == 2
    assert {"adapter.safetensors", "encoder.safetensors", "config.yaml"} <= {
        path.name for path in out.iterdir()
    }
    again = toy_llm.build(
        toy_llm.config(
            root / "llm",
            encoder=model.config.encoder,
            encoder_weights=str(out / "encoder.safetensors"),
        )
    )
    frames = Padded(torch.randn(1, 30, 20), torch.tensor([30]))
    trained = {name: value for name, value in model.encoder.named_parameters()}
    assert all(
        torch.equal(value, trained[name])
        for name, value in again.encoder.named_parameters()
        if name in trained
    )
    assert again.encoder(frames).frames.data.shape[2] == 32


def test_another_model_is_refused(tmp_path):
    root = toy_experiment.make(tmp_path, toy_experiment.CONFIG.replace("epochs: 20", "epochs: 1"))
    with pytest.raises(UserError, match="holds no language model of `transformers`"):
        export_llm.main([str(root / "exp"), "--out", str(root / "llm")])


def test_an_encoder_of_transformers_is_exported_as_one(tmp_path):
    from peft import PeftModel
    from transformers import HubertModel

    llm, hubert = toy_llm.save_llm(tmp_path / "llm"), toy_llm.save_hubert(tmp_path / "hubert")
    parts = toy_llm.config(llm, hubert)
    model = toy_llm.build(parts)
    out = tmp_path / "parts"
    out.mkdir()
    export_llm.save_parts(model, SimpleNamespace(model=parts), out)
    samples = torch.randn(1, 4000)
    with torch.inference_mode():
        expected = model.encoder.model(samples).last_hidden_state
        merged = HubertModel.from_pretrained(str(out / "encoder"))(samples).last_hidden_state
        plain = HubertModel.from_pretrained(str(hubert))
        before = plain(samples).last_hidden_state
        apart = PeftModel.from_pretrained(plain, str(out / "adapters" / "encoder"))(
            samples
        ).last_hidden_state
    assert not torch.allclose(before, expected, atol=1e-4)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(apart, expected, atol=1e-5, rtol=1e-4)
