"""A training that starts from a released model: its vocabulary is kept, extended or replaced, and
what fits is taken bit for bit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from asrtool import experiment, training
from asrtool.bin import make_vocab, pack, push
from asrtool.bin.train import main
from asrtool.data import tokenizers
from asrtool.errors import UserError
from asrtool.model_folder import build_model
from asrtool.trainer import checkpoint
from asrtool.warm_start import WarmStart, extended
from tests import toy_hub
from tests.toy_corpus import CONFIG, LETTERS, arguments, write_corpus

BOTH = CONFIG.replace(
    "losses:\n",
    "  decoder: {type: transformer, num_layers: 1, num_heads: 2, ffn_dim: 16}\n"
    "losses:\n  attention: {type: cross_entropy, weight: 0.5}\n",
)
PHASES = "phases: {first: {}, second: {trainer: {epochs: 1}}}\n"
EXTEND = ("--set", "init.vocab=extend trainer.epochs=1")
ROWS = {  # tensors with a row for each token
    "heads.ctc.weight",
    "heads.ctc.bias",
    "heads.attention.decoder.embedding.weight",
    "heads.attention.decoder.output_bias",
}
NEW = "xyz"


def vocabulary(folder: Path, letters: str) -> Path:
    folder.mkdir()
    tokenizers.train([letters], "char", 0, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Also a longer vocabulary, one of other letters, and one of as many."""
    root = tmp_path_factory.mktemp("data")
    write_corpus(root)
    (root / "config.yaml").write_text(BOTH)
    (root / "phases.yaml").write_text(BOTH + PHASES)
    (root / "text").write_text(f"u1 {LETTERS}{NEW}\nu2 {LETTERS}\n")
    options = ["--text", str(root / "text"), "--extend", str(root / "vocab"), "--labels"]
    make_vocab.main([*options, "--out", str(root / "longer")])
    vocabulary(root / "others", "abcdefgh")
    vocabulary(root / "as_many", "abce")
    return root


@pytest.fixture(scope="module")
def released(data, tmp_path_factory) -> Path:
    """A trained model, packed."""
    root = tmp_path_factory.mktemp("released")
    main(arguments(data, root / "exp"))
    pack.main([str(root / "exp"), "--out", str(root / "model")])
    return root / "model"


def fine_tune(
    data: Path, exp: Path, vocab: str, *options: str, config: str = "config.yaml"
) -> None:
    command = arguments(data, exp, *options, config=config)
    command[command.index("--vocab") + 1] = str(data / vocab)
    main(command)


def started(released: Path, data: Path, vocab: str, how: str) -> tuple[dict, dict, dict]:
    """Tensors of the released model, of a new one, and of that one after it was filled."""
    phase = experiment.load_phases(data / "config.yaml", [f"init.vocab={how}"])["train"]
    tokenizer = tokenizers.load(data / vocab)
    torch.manual_seed(0)
    model = build_model(phase, tokenizer.size)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    WarmStart.open(released).load(model, phase, tokenizer)
    return checkpoint.load(released / "model.safetensors"), fresh, model.state_dict()


def weights(exp: Path) -> dict[str, Tensor]:
    (file,) = exp.glob("*/average-*.safetensors")
    return checkpoint.load(file)


# -- extend ----------------------------------------------------------------------


def test_the_longer_vocabulary_begins_as_the_old_one(data):
    old, new = (tokenizers.load(data / name) for name in ("vocab", "longer"))
    assert new.tokens == [*old.tokens[:-1], *NEW, "<sos/eos>"]
    assert new.encode(LETTERS) == old.encode(LETTERS)
    assert new.decode(new.encode("xay")) == "xay"


def test_old_rows_are_taken_bit_for_bit_and_new_ones_are_the_mean(released, data):
    old, _, filled = started(released, data, "longer", "extend")
    size = tokenizers.load(data / "vocab").size
    for name, value in old.items():
        if name not in ROWS:
            assert filled[name].equal(value), name
            continue
        assert filled[name][: size - 1].equal(value[:-1]) and filled[name][-1].equal(value[-1])
        new = filled[name][size - 1 : -1]
        assert len(new) == len(NEW) and new.equal(value[2:-1].mean(0).expand_as(new))


def test_a_new_token_starts_with_a_middling_logit(released, data):
    _, _, filled = started(released, data, "longer", "extend")
    frames = torch.randn(50, 16)
    logits = frames @ filled["heads.ctc.weight"].T + filled["heads.ctc.bias"]
    ordinary, new = logits[:, 2:6], logits[:, 6:-1]
    assert torch.allclose(new[:, 0], ordinary.mean(1), atol=1e-5)


def test_training_on_with_frozen_heads_leaves_the_old_rows_as_they_are(
    released, data, tmp_path, capsys
):
    frozen = "optim.groups={heads.*: {freeze: true}}"
    options = ("--init", str(released), *EXTEND, "--set", f"'{frozen}'")
    fine_tune(data, tmp_path / "exp", "longer", *options)
    old, new = checkpoint.load(released / "model.safetensors"), weights(tmp_path / "exp")
    size = tokenizers.load(data / "vocab").size
    for name in ROWS:
        assert new[name][: size - 1].equal(old[name][:-1]) and new[name][-1].equal(old[name][-1])
    moved = [name for name in old if name not in ROWS and not new[name].equal(old[name])]
    assert moved and all(name.startswith("encoder.") for name in moved)
    said = capsys.readouterr().err
    assert f"{released}: {len(new)} of {len(new)} tensors were copied" in said
    assert f"{released}: 3 new tokens start from the mean of the others: x, y, z" in said


def test_rows_along_another_axis_are_extended_too():
    rows = torch.arange(12.0).view(2, 6)
    longer = extended(rows, 1, 8)
    assert longer[:, :5].equal(rows[:, :5]) and longer[:, -1].equal(rows[:, -1])
    assert longer[:, 5].equal(rows[:, 2:5].mean(1)) and longer[:, 6].equal(longer[:, 5])


def test_pieces_are_extended_and_old_texts_keep_their_pieces(tmp_path):
    lines = ["the harbour and the lantern", "a river under the window"] * 3
    for model in ("unigram", "bpe"):
        for name in ("old", "new"):
            (tmp_path / model / name).mkdir(parents=True)
        old = tokenizers.train(lines, "bpe", 40, tmp_path / model / "old", model)
        new = tokenizers.extend(
            tmp_path / model / "old", ["the häuser", "a 河 here"], tmp_path / model / "new"
        )
        assert new.tokens == [*old.tokens[:-1], "s", "ä", "河", "<sos/eos>"]
        assert [new.encode(line) for line in lines] == [old.encode(line) for line in lines]
        assert new.unk not in new.encode("häuser 河") and new.unk in old.encode("häuser")
        assert new.decode(new.encode("the häuser 河")) == "the häuser 河"


def test_a_text_that_lacks_nothing_extends_nothing(data, tmp_path):
    (tmp_path / "new").mkdir()
    same = tokenizers.extend(data / "vocab", [LETTERS], tmp_path / "new")
    assert same.tokens == tokenizers.load(data / "vocab").tokens


# -- keep and replace --------------------------------------------------------------


def test_with_the_same_vocabulary_all_is_taken(released, data):
    old, _, filled = started(released, data, "vocab", "keep")
    assert old.keys() == filled.keys()
    assert all(filled[name].equal(value) for name, value in old.items())


@pytest.mark.parametrize("vocab", ["vocab", "others", "as_many"])
def test_of_a_vocabulary_that_is_replaced_no_row_is_taken(released, data, vocab):
    old, fresh, filled = started(released, data, vocab, "replace")
    for name in old:
        assert filled[name].equal(fresh[name] if name in ROWS else old[name]), name


def test_a_replaced_vocabulary_is_trained_and_what_is_new_is_said(released, data, tmp_path, capsys):
    options = ("--init", str(released), "--set", "init.vocab=replace trainer.epochs=1")
    fine_tune(data, tmp_path / "exp", "others", *options)
    said = capsys.readouterr().err
    assert f"{len(ROWS)} tensors as initialised: heads." in said
    assert weights(tmp_path / "exp")["heads.ctc.bias"].shape == (11,)


@pytest.mark.parametrize(
    ("vocab", "sentence"),
    [
        (
            "longer",
            r"has a vocabulary of 7 tokens, which differs from the 10 tokens of --vocab and lacks "
            r"3 of them \(x, y, z\): train with its vocabulary \(--vocab .*/vocab\), extend .*, or "
            r"replace heads.attention.decoder.embedding.weight, .* \(init.vocab: replace\)",
        ),
        ("as_many", "and lacks 1 of them .e.:"),  # the same shapes
    ],
)
def test_another_vocabulary_is_never_taken_for_the_same(released, data, tmp_path, vocab, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        fine_tune(data, tmp_path / "exp", vocab, "--init", str(released))
    assert "\n" not in str(raised.value) and not (tmp_path / "exp").exists()


def test_nor_is_it_of_a_file_inside_an_experiment(data, released, tmp_path):
    exp = released.parent / "exp"
    (file,) = exp.glob("train/average-*.safetensors")
    with pytest.raises(UserError, match="has a vocabulary of 7 tokens"):
        fine_tune(data, tmp_path / "exp", "as_many", "--init", str(file))


# -- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab", "how", "sentence"),
    [
        (
            "as_many",
            "extend",
            "--vocab does not begin with the tokens of its vocabulary: .* make_vocab --extend",
        ),
        ("vocab", "sideways", "init.vocab"),
    ],
)
def test_what_is_no_extension_is_refused(released, data, tmp_path, vocab, how, sentence):
    options = ("--init", str(released), "--set", f"init.vocab={how}")
    with pytest.raises(UserError, match=sentence):
        fine_tune(data, tmp_path / "exp", vocab, *options)


def test_a_vocabulary_of_nothing_is_refused(released, data, tmp_path):
    with pytest.raises(UserError, match="init.vocab: extend needs --init"):
        fine_tune(data, tmp_path / "exp", "longer", *EXTEND)
    file = Path(shutil.copy(released / "model.safetensors", tmp_path / "alone.safetensors"))
    with pytest.raises(UserError, match="init.vocab: extend needs the vocabulary of these weights"):
        fine_tune(data, tmp_path / "exp", "longer", "--init", str(file), *EXTEND)


@pytest.mark.parametrize("config", ["config.yaml", "phases.yaml"])
def test_another_encoder_is_one_sentence(released, data, tmp_path, config):
    options = ("--init", str(released), "--set", "model.encoder.dim=24")
    sentence = r"of a different shape: encoder.*, expected .*"
    if config == "config.yaml":
        sentence += r"the configs differ in model.encoder.dim: 16 there, 24 now$"
    with pytest.raises(UserError, match=sentence) as raised:
        fine_tune(data, tmp_path / "exp", "vocab", *options, config=config)
    assert "\n" not in str(raised.value) and "init.missing" not in str(raised.value)


# -- where it comes from ---------------------------------------------------------------


def test_phases_go_on_from_an_extended_model(released, data, tmp_path):
    options = ("--init", str(released), *EXTEND)
    fine_tune(data, tmp_path / "exp", "longer", *options, config="phases.yaml")
    names = checkpoint.shapes(next(tmp_path.glob("exp/second/average-*.safetensors")))
    assert names["heads.ctc.bias"] == (10,)


def test_it_starts_from_a_model_on_the_hub_and_the_card_says_so(
    released, data, tmp_path, monkeypatch
):
    served = toy_hub.serve(monkeypatch, tmp_path / "cache")
    server = next(served)
    try:
        commit = server.add("them/model", released)
        fine_tune(data, tmp_path / "exp", "longer", "--init", "hf:them/model", *EXTEND)
        card = json.loads((tmp_path / "exp" / "train" / "model.json").read_text())
        assert card["init"] == f"hf:them/model@{commit}"
        out = tmp_path / "out"
        push.main([str(tmp_path / "exp"), "me/tuned", "--license", "mit", "--out", str(out)])
        text = (out / "README.md").read_text()
        assert "base_model:\n- them/model\n" in text and "base_model_relation: finetune" in text
        assert f"| started from | hf:them/model@{commit} |" in text
    finally:
        next(served, None)


def test_a_language_model_starts_from_another(data, tmp_path):
    config = tmp_path / "lm.yaml"
    config.write_text(
        "data: {input: text, batch: {tokens: 60}, workers: 0}\n"
        "model: {type: language_model, num_layers: 1, dim: 16, num_heads: 2, ffn_dim: 16}\n"
        "losses: {lm: {type: cross_entropy, weight: 1.0, input: lm}}\n"
        "optim: {lr: 1e-3}\ntrainer: {epochs: 1, average: 1}\n"
    )
    paths = {"train": data / "train", "valid": data / "valid"}
    first, second = tmp_path / "first", tmp_path / "second"
    assert training.run(config, vocab=data / "vocab", exp=first, **paths) == 0
    changes = {"overrides": ["init.vocab=extend"], "init": first}
    assert training.run(config, vocab=data / "longer", exp=second, **paths, **changes) == 0
    assert weights(second)["output_bias"].shape == (10,)
