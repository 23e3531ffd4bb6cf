from __future__ import annotations

import pytest

from asrtool.config import ConfigError
from asrtool.experiment import (
    DecodeConfig,
    check_ngram,
    load_decode,
    load_phases,
    split_overrides,
)
from asrtool.model_folder import Experiment
from asrtool.searchers import CtcGreedyConfig, TransducerBeamConfig, fusion
from asrtool.trainer import averaging

BASE = """
data: {batch: {seconds: 10}}
model:
  type: hybrid
  encoder: {type: conformer, num_layers: 2, dim: 16, num_heads: 2, ffn_dim: 32}
losses:
  ctc: {type: ctc, weight: 1.0}
optim: {lr: 1e-3}
trainer: {epochs: 1}
"""
PHASES = """
phases:
  first: {trainer: {epochs: 3}}
  second: {optim: {lr: 1e-4}}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(BASE + PHASES)
    return path


def test_phases_are_partial_configs_in_order(config):
    phases = load_phases(config)
    assert [(name, phase.trainer.epochs, phase.optim.lr) for name, phase in phases.items()] == [
        ("first", 3, 1e-3),
        ("second", 1, 1e-4),
    ]


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "..", "a b", '"a\\u2028b"'])
def test_a_phase_whose_name_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "train.yaml").write_text(f"phases:\n  {name}: {{}}\n")
    with pytest.raises(
        ConfigError, match=r"train.yaml:2: phases\..*invalid name of a phase; expected " r"letters"
    ):
        load_phases(tmp_path / "train.yaml")


def test_a_file_without_phases_is_the_phase_train(tmp_path):
    (tmp_path / "train.yaml").write_text(BASE)
    assert list(load_phases(tmp_path / "train.yaml")) == ["train"]


def test_an_override_reaches_every_phase_and_comes_last(config):
    assert [phase.optim.lr for phase in load_phases(config, ["optim.lr=5"]).values()] == [5, 5]


def test_an_override_may_address_one_phase(config):
    phases = load_phases(config, ["phases.second.optim.lr=5"])
    assert [phase.optim.lr for phase in phases.values()] == [1e-3, 5]
    with pytest.raises(ValueError, match="no such phase; phases of .*: first, second"):
        load_phases(config, ["phases.third.optim.lr=5"])


def test_one_argument_holds_several_overrides_and_values_with_spaces():
    assert split_overrides(["a.b=1 'c={x: 1, y: 2}'", "d=2"]) == ["a.b=1", "c={x: 1, y: 2}", "d=2"]


def test_a_mistake_in_any_phase_is_found_before_the_first_starts(config):
    config.write_text(BASE + PHASES.replace("epochs", "epoch"))
    with pytest.raises(
        ConfigError,
        match=r"train.yaml:12: trainer.epoch: unknown key for TrainerConfig; did you "
        r"mean 'epochs'",
    ):
        load_phases(config)


def test_a_loss_of_weight_0_reads_no_head(config):
    (phase, _) = load_phases(config, ["losses.aligned={type: axe, weight: 0}"]).values()
    assert phase.heads == {"ctc"}
    (phase, _) = load_phases(
        config, ["losses.aligned={type: axe, weight: 1}", "losses.ctc.weight=0"]
    ).values()
    assert phase.heads == {"aligned"}


@pytest.mark.parametrize(("average", "expected"), [(None, 1), (3, 3)])
def test_decoding_averages_as_many_checkpoints_as_training_unless_told(
    config, monkeypatch, average, expected
):
    phases = load_phases(config, ["trainer.average=1"])
    asked = []
    monkeypatch.setattr(averaging, "average", lambda phase, count: asked.append((phase, count)))
    trained = Experiment(config.parent, phases, packed=False)
    trained.weights(DecodeConfig(searcher=CtcGreedyConfig(), average=average, unfinished=True))
    assert asked == [(config.parent / list(phases)[-1], expected)]


def test_an_average_of_no_checkpoint_is_refused():
    with pytest.raises(ValueError, match="average is 0"):
        DecodeConfig(searcher=CtcGreedyConfig(), average=0)


def test_greedy_search_of_a_transducer_becomes_its_beam_search_with_an_ngram_model(tmp_path):
    (tmp_path / "decode.yaml").write_text("searcher: {type: transducer_greedy, input: rnnt}\n")
    searcher = load_decode(tmp_path / "decode.yaml", ngram=tmp_path / "x.arpa").searcher
    assert isinstance(searcher, TransducerBeamConfig) and searcher.input == "rnnt"
    assert searcher.ngram.path == str(tmp_path / "x.arpa")
    assert searcher.weights == {"transducer": 1.0, "ngram": 0.5}


def test_a_config_may_leave_the_ngram_model_to_the_command_line(tmp_path):
    path = tmp_path / "decode.yaml"
    path.write_text(
        "searcher: {type: ctc_prefix_beam, ngram: {}, lexicon: ngram, word_score: 3,\n"
        "  weights: {ctc: 1.0, ngram: 1.3}}\n"
    )
    open_model = load_decode(path).searcher
    with pytest.raises(ConfigError, match="decode.yaml:1: searcher.ngram: no file is given"):
        check_ngram(path, open_model)
    with pytest.raises(ValueError, match="no file is given; set ngram.path"):
        fusion.load(open_model.ngram, None, ["<blank>", "a"], 0, None)
    searcher = load_decode(path, ["searcher.weights.ngram=2"], tmp_path / "x.arpa").searcher
    check_ngram(path, searcher)
    assert searcher.ngram.path == str(tmp_path / "x.arpa")
    assert (searcher.weights["ngram"], searcher.word_score, searcher.lexicon) == (2, 3, "ngram")
