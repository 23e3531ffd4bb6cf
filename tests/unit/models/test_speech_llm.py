"""The speech LLM on tiny random parts: ragged batches, tuning, what is stored, and its messages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from asrtool.downsamplers import DOWNSAMPLERS, Conv1dMlpConfig, KeyframeConfig
from asrtool.encoders import ENCODERS
from asrtool.heads import HEADS
from asrtool.losses import LOSSES
from asrtool.models import MODELS, prompt
from asrtool.models.llm import LlmConfig
from asrtool.models.llm_scorer import LlmScorer, right_aligned
from asrtool.searchers import SEARCHERS, LlmBeamConfig
from asrtool.searchers.llm_beam import LlmConstraintsConfig
from asrtool.trainer import checkpoint, optim
from asrtool.trainer.optim import AdamWConfig
from asrtool.training import validation_metrics
from asrtool.tuning import EncoderTuning, Tuning, is_adapter
from asrtool.types import Padded
from tests import toy_llm

pytestmark = pytest.mark.hf


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return toy_llm.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    return toy_llm.save_hubert(tmp_path_factory.mktemp("hubert"))


def losses(model, batch):
    config = LOSSES.config_type("cross_entropy")(weight=1.0, input="llm", smoothing=0.0)
    return LOSSES.build(config, eos=model.eos)(model(batch), batch)


@pytest.mark.parametrize("waveform", [True, False])
def test_the_loss_of_a_ragged_batch_is_that_of_its_utterances(llm, hubert, waveform):
    model = toy_llm.build(toy_llm.config(llm, hubert if waveform else None))
    together = losses(model, toy_llm.batch(waveform))
    for row in range(4):
        alone = losses(model, toy_llm.batch(waveform, rows=[row]))
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_the_loss_is_that_of_transformers_on_the_same_embeddings(llm, hubert):
    model, batch = toy_llm.build(toy_llm.config(llm, hubert)), toy_llm.batch(True, rows=[0])
    speech = model.encode(batch.inputs).frames.data
    found = toy_llm.tokenizer()
    before = torch.tensor(found("")["input_ids"])
    behind = torch.tensor(found("user: write. assistant:", add_special_tokens=False)["input_ids"])
    said = torch.cat([batch.targets.data[0], torch.tensor([found.eos_token_id])])
    table = model.llm.get_input_embeddings()
    embeddings = torch.cat([table(before), speech[0], table(behind), table(said)])[None]
    labels = torch.full((1, embeddings.shape[1]), -100)
    labels[0, -len(said) :] = said
    expected = model.llm(inputs_embeds=embeddings, labels=labels).loss * len(said)
    torch.testing.assert_close(losses(model, batch)[0], expected, atol=1e-5, rtol=1e-5)


def test_parts_of_ragged_rows_are_put_together_at_the_right():
    generator = torch.Generator().manual_seed(0)
    sizes = ([2, 2, 2], [4, 0, 1], [0, 0, 0], [1, 3, 0])
    rows = [[torch.randn(n, 5, generator=generator) for n in part] for part in sizes]
    parts = [Padded.stack(part, padding=float("nan")) for part in rows]
    data, mask = right_aligned(parts, 9)
    for row in range(3):
        whole = torch.cat([part[row] for part in rows])
        assert mask[row].tolist() == [False] * (9 - len(whole)) + [True] * len(whole)
        assert torch.equal(data[row][mask[row]], whole) and not data[row][~mask[row]].any()


def test_the_last_positions_are_read_as_one_block(llm, hubert):
    """As a slice of a batch they would be multiplied with the weights utterance by utterance."""
    model, whole = toy_llm.build(toy_llm.config(llm, hubert)), []
    head = model.llm.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, inputs: whole.append(inputs[0].is_contiguous()))
    losses(model, toy_llm.batch(True))
    assert whole == [True]


def test_streams_of_the_matching_loss(llm, hubert):
    model, batch = (
        toy_llm.build(toy_llm.config(llm, hubert), ("llm", "speech")),
        toy_llm.batch(True),
    )
    streams = model(batch).heads
    assert torch.equal(
        streams["text"].data[0, :11], model.llm.get_input_embeddings()(batch.targets.data)[0]
    )
    assert streams["speech"].data.shape[2] == streams["text"].data.shape[2] == 16
    assert not streams["text"].data.requires_grad


def test_projections_of_the_matching_loss_learn_and_embeddings_do_not(llm):
    kind = LOSSES.config_type("matching")(weight=1.0, projected=True)
    heads = {name: HEADS.config_type(name)(dim=5) for name in ("text_query", "speech_key")}
    settings = LlmConfig(weights=str(llm), prompt=toy_llm.PROMPT, tuning=Tuning(mode="full"))
    parts = dataclasses.replace(toy_llm.config(llm), llm=settings, heads=heads)
    model = toy_llm.build(parts, ("llm", *LOSSES.class_of(kind).heads_of(kind)))
    batch = toy_llm.batch(False)
    outputs = model(batch)
    assert outputs.head("text_query").data.shape == (4, 11, 5)
    assert outputs.head("speech_key").data.shape[2] == 5
    LOSSES.build(kind, eos=2)(outputs, batch).sum().backward()
    for name in heads:
        assert model.heads[name].linear.weight.grad.abs().max() > 0
    assert model.llm.get_input_embeddings().weight.grad is None
    assert model.adapter.out_proj.weight.grad.abs().max() > 0


GRID = [(one, other) for one in ("frozen", "lora", "full") for other in ("frozen", "lora", "full")]


@pytest.mark.parametrize(("encoder", "language"), GRID)
def test_encoder_and_language_model_are_frozen_adapted_or_trained_whole(
    llm, hubert, encoder, language
):
    parts = toy_llm.config(llm, hubert)
    parts = dataclasses.replace(
        parts,
        encoder_tuning=EncoderTuning(mode=encoder, rank=2),
        llm=dataclasses.replace(parts.llm, tuning=Tuning(mode=language, rank=2)),
    )
    model, batch = toy_llm.build(parts).train(), toy_llm.batch(True)
    optim.freeze(AdamWConfig(lr=1e-3), model, 1)
    losses(model, batch).sum().backward()
    for name, value in model.named_parameters():
        part = name.partition(".")[0]
        mode = {"encoder": encoder, "llm": language}.get(part, "full")
        trained = mode == "full" or (mode == "lora" and is_adapter(name))
        assert value.requires_grad == trained, name
        assert (value.grad is not None) == trained, name


def test_lora_starts_as_the_model_without_it(llm, hubert):
    parts = toy_llm.config(llm, hubert)
    language = dataclasses.replace(parts.llm, tuning=Tuning(mode="frozen"))
    frozen = dataclasses.replace(parts, encoder_tuning=EncoderTuning(mode="frozen"), llm=language)
    plain, adapted = toy_llm.build(frozen), toy_llm.build(parts)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            value.data.zero_()
    adapted.adapter.load_state_dict(plain.adapter.state_dict())
    batch = toy_llm.batch(True)
    torch.testing.assert_close(losses(adapted, batch), losses(plain, batch))


def test_lora_may_be_confined_to_some_layers(llm, hubert):
    parts = dataclasses.replace(
        toy_llm.config(llm, hubert), encoder_tuning=EncoderTuning(rank=2, layers=(1, 1))
    )
    names = [
        name for name, _ in toy_llm.build(parts).encoder.named_parameters() if is_adapter(name)
    ]
    assert len(names) == 4 and all("layers.1." in name for name in names)


def test_a_checkpoint_holds_what_is_trained_and_no_pretrained_weights(llm, hubert, tmp_path):
    model, batch = toy_llm.build(toy_llm.config(llm, hubert)), toy_llm.batch(True)
    stored = checkpoint.model_tensors(model)
    parameters = {name for name, _ in model.named_parameters()}
    assert all(
        is_adapter(name) or name.startswith("adapter.") for name in stored if name in parameters
    )
    assert any(name.startswith("llm.") for name in stored) and any(
        name.startswith("encoder.") for name in stored
    )
    checkpoint.save(tmp_path, 1, {checkpoint.MODEL: stored}, {})
    other = toy_llm.build(toy_llm.config(llm, hubert), seed=2)
    before = losses(other, batch)
    checkpoint.load_model(other, tmp_path / "step-00000001")
    torch.testing.assert_close(losses(other, batch), losses(model, batch), atol=0, rtol=0)
    assert not torch.allclose(before, losses(model, batch))
    assert [source["part"] for source in model.sources] == ["encoder", "llm"]
    assert model.sources == other.sources and len(model.sources[0]["fingerprint"]) == 64


def test_adapters_are_saved_in_the_format_of_peft_and_merged(llm, hubert, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from asrtool import tuning

    model = toy_llm.build(toy_llm.config(llm, hubert))
    tuning.save(model.config.llm.tuning, model.llm, tmp_path / "adapters", str(llm), "CAUSAL_LM")
    plain = AutoModelForCausalLM.from_pretrained(str(llm))
    ids = torch.randint(0, 20, (2, 9))
    adapted = PeftModel.from_pretrained(plain, str(tmp_path / "adapters"))
    torch.testing.assert_close(adapted(ids).logits, model.llm(ids).logits, atol=1e-5, rtol=1e-5)
    expected = model.llm(ids).logits
    with tuning.merged(model.llm):
        whole = AutoModelForCausalLM.from_pretrained(str(llm))
        whole.load_state_dict(tuning.plain_tensors(model.llm))
    torch.testing.assert_close(whole(ids).logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.llm(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_bf16_weights_with_adapters_in_float32_train(llm, hubert):
    parts = toy_llm.config(llm, hubert)
    language = dataclasses.replace(parts.llm, precision="bf16", gradient_checkpointing=True)
    parts = dataclasses.replace(parts, llm=language)
    model, batch = toy_llm.build(parts).train(), toy_llm.batch(True)
    types = {name: value.dtype for name, value in model.llm.named_parameters()}
    assert all(
        kind == (torch.float32 if is_adapter(name) else torch.bfloat16)
        for name, kind in types.items()
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses(model, batch).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


ARCHITECTURES = {
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "Mistral": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "sliding_window": 16,
    },
    "Gemma": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    "Gemma3": {  # embeddings are scaled, layers alternate between a window and everything
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "OPT": {
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 256,
    },
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_causal_language_models_do_as_well(tmp_path, name):
    import transformers

    torch.manual_seed(0)
    shape = {
        **ARCHITECTURES[name],
        "vocab_size": 33,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    settings = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")(
        **shape
    )
    kind = getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    kind(settings).eval().save_pretrained(str(tmp_path))
    toy_llm.tokenizer().save_pretrained(str(tmp_path))
    frozen = LlmConfig(weights=str(tmp_path), prompt=toy_llm.PROMPT, tuning=Tuning(mode="frozen"))
    model = toy_llm.build(dataclasses.replace(toy_llm.config(tmp_path), llm=frozen))
    together = losses(model, toy_llm.batch(False))
    alone = torch.cat([losses(model, toy_llm.batch(False, rows=[row])) for row in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    encoded = model.encode(toy_llm.batch(False).inputs)
    config = LlmBeamConfig(beam=3, constraints=LlmConstraintsConfig(max_tokens=8))
    kept, anew = (
        SEARCHERS.build(config, model=model, scorers={"llm": LlmScorer(model, caching)}).search(
            encoded
        )
        for caching in (True, False)
    )
    assert [h.tokens for nbest in kept for h in nbest] == [
        h.tokens for nbest in anew for h in nbest
    ]


def test_a_chat_template_goes_around_the_prompt(tmp_path):
    found = toy_llm.tokenizer()
    found.chat_template = (
        "{{ bos_token }}{% for m in messages %}user: {{ m.content }} {% endfor %}assistant:"
    )
    whole = prompt.encode("{speech} write it", found, chat=True)
    assert (
        found.decode(whole.before) == "<s>user: "
        and found.decode(whole.after) == " write it assistant:"
    )
    plain = prompt.encode("{speech} write it", found, chat=False)
    assert plain.before == (1,) and found.decode(plain.after) == " write it"
    with pytest.raises(ValueError, match="this tokenizer has no chat template"):
        prompt.encode("{speech}", toy_llm.tokenizer(), chat=True)


# -- messages --------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["USER: write it down.", "{speech} and {speech}"])
def test_a_prompt_must_say_once_where_the_speech_is(prompt):
    with pytest.raises(ValueError, match="must contain {speech} exactly once"):
        LlmConfig(weights="x", prompt=prompt)


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(tmp_path):
    folder = toy_llm.save_llm(tmp_path / "llm")
    toy_llm.tokenizer(pad=True).save_pretrained(str(folder))
    with pytest.raises(ValueError, match="34 tokens, but the model has embeddings for 33"):
        toy_llm.build(toy_llm.config(folder))


def test_a_vocabulary_of_another_tokenizer_is_an_error(llm):
    with pytest.raises(
        ValueError,
        match="the vocabulary has 50 tokens.*has 33: make the vocabulary from this tokenizer",
    ):
        MODELS.build(
            toy_llm.config(llm),
            input_dim=20,
            vocab_size=50,
            frame_shift=0.01,
            heads=frozenset({"llm"}),
        )


def test_a_tokenizer_without_an_end_is_an_error(tmp_path):
    folder = toy_llm.save_llm(tmp_path / "llm")
    found = toy_llm.tokenizer()
    found.eos_token = None
    found.save_pretrained(str(folder))
    with pytest.raises(ValueError, match="has no end-of-text token"):
        toy_llm.build(toy_llm.config(folder))


def test_a_missing_padding_token_is_said_and_harmless(llm, caplog):
    with caplog.at_level("INFO", logger="asrtool"):
        toy_llm.build(toy_llm.config(llm))
    assert "has no padding token; training needs none" in caplog.text


def test_text_beyond_the_context_is_named_with_its_utterance(tmp_path):
    folder = toy_llm.save_llm(tmp_path / "llm", context=40)
    model = toy_llm.build(toy_llm.config(folder))
    with pytest.raises(
        ValueError,
        match=r"u0: prompt, speech and transcript take 24 \+ \d+ \+ 30 " r".* reads at most 40",
    ):
        losses(model, toy_llm.batch(False, texts=("a" * 30, "b")))


def test_a_folder_that_is_none_and_a_target_that_is_none_are_named(tmp_path, llm):
    with pytest.raises(
        ValueError, match="llm.weights .* cannot be read .*; expected a folder with config.json"
    ):
        toy_llm.build(toy_llm.config(tmp_path))
    parts = toy_llm.config(llm)
    wrong = dataclasses.replace(parts.llm, tuning=Tuning(targets=("query",)))
    with pytest.raises(
        ValueError, match=r"model\.llm: the LoRA target 'query' matches no module.*" r".*q_proj"
    ):
        toy_llm.build(dataclasses.replace(parts, llm=wrong))


def test_ctc_on_the_adapter_needs_a_token_that_no_text_has(llm):
    model = toy_llm.build(toy_llm.config(llm), ("llm", "ctc"))
    assert model.blank == 0
    batch = toy_llm.batch(False)
    assert model(batch).head("ctc").data.shape[2] == 33
    tokenizer = SimpleNamespace(tokens=[str(token) for token in range(33)], eos=model.eos)
    assert validation_metrics(model, tokenizer).names == ("wer", "cer", "token_error")
    assert toy_llm.build(toy_llm.config(llm)).blank is None


def letters(hubert: Path) -> object:
    """An encoder that finds key frames by letters, on a frozen front end."""
    frontend = ENCODERS.config_type("hubert")(weights=str(hubert), tuning=Tuning(mode="frozen"))
    downsamplers = {0: DOWNSAMPLERS.config_type("linear")(), 1: KeyframeConfig()}
    shape = {"num_layers": 2, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 3}
    return ENCODERS.config_type("conformer")(**shape, frontend=frontend, downsamplers=downsamplers)


def trained_encoder(config: object, path: Path) -> dict[str, torch.Tensor]:
    """The weights that a training with 5 letters leaves: all but those of the frozen front end."""
    torch.manual_seed(3)
    encoder = ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000)
    kept = {
        f"encoder.{key}": value
        for key, value in encoder.state_dict().items()
        if key not in encoder.pretrained
    }
    save_file(kept, path)
    return kept


def test_an_encoder_with_letters_of_its_own_is_taken_over(llm, hubert, tmp_path):
    path = tmp_path / "average-1.safetensors"
    kept = trained_encoder(letters(hubert), path)
    parts = toy_llm.config(
        llm,
        encoder=letters(hubert),
        encoder_weights=str(path),
        encoder_vocab_size=5,
        encoder_tuning=EncoderTuning(mode="frozen"),
        adapter=Conv1dMlpConfig(rate=1, hidden_dim=8),
    )
    model = toy_llm.build(parts)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept.items())
    with torch.inference_mode():
        encoded = model.encode(toy_llm.batch(waveform=True).inputs)
    assert encoded.taps["inter_ctc"].data.shape[2] == 5
    # a checkpoint has neither, and names the origin of both
    assert {key for key, _ in model.encoder.named_parameters(prefix="encoder")} <= model.pretrained
    origins = {source["part"]: source["weights"] for source in model.sources}
    assert origins == {"encoder": str(path), "encoder.frontend": str(hubert), "llm": str(llm)}


def test_weights_of_another_encoder_are_refused(llm, hubert, tmp_path):
    path = tmp_path / "average-1.safetensors"
    trained_encoder(letters(hubert), path)
    parts = toy_llm.config(llm, encoder=letters(hubert), encoder_weights=str(path))
    parts = dataclasses.replace(parts, encoder_tuning=EncoderTuning(mode="frozen"))
    with pytest.raises(ValueError, match="do not fit model.encoder .*downsamplers.1.head"):
        toy_llm.build(parts)  # its key frames are found by 5 letters, not by the tokens of the llm


def test_a_loss_on_the_letters_of_an_encoder_is_refused(llm, hubert):
    parts = toy_llm.config(
        llm,
        encoder=letters(hubert),
        encoder_vocab_size=5,
        encoder_tuning=EncoderTuning(mode="full"),
    )
    with pytest.raises(ValueError, match="'inter_ctc' of the encoder has 5 tokens of its own"):
        toy_llm.build(parts, heads=("llm", "inter_ctc"))
