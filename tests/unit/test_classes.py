"""Labels that a model recognises, and what training and decoding say where config and data do not
fit.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from asrtool import experiment
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.recognition import classifiers, mean_classes
from asrtool.searchers import CtcGreedyConfig
from asrtool.training import check_labels, count_labels
from asrtool.types import Utterance

EGS = Path(__file__).parents[2] / "egs"
CONFIG = EGS / "fsdd" / "conf" / "qifusion" / "train_qifusion.yaml"


def phase(*overrides: str) -> experiment.TrainConfig:
    return experiment.load_phases(CONFIG, overrides)["train"]


def test_more_values_than_the_model_tells_apart_stop_training_before_it_starts():
    check_labels(phase(), {"accent": ["a", "b", "c", "d"]})
    with pytest.raises(
        UserError, match="label 'accent' has 5 values .*accent.classes is 4; set it to 5"
    ):
        check_labels(phase(), {"accent": list("abcde")})
    check_labels(phase("losses.accent.weight=0"), {"accent": list("abcde")})


def test_more_values_than_experts_stop_training_before_it_starts():
    config = EGS / "accents" / "conf" / "studies" / "train_accents_experts.yaml"
    experts = experiment.load_phases(config)["train"]
    check_labels(experts, {"accent": list("abcde")})
    with pytest.raises(
        UserError, match=r"has 6 values .*downsamplers\.2\.experts is 5; set it to 6"
    ):
        check_labels(experts, {"accent": list("abcdef")})


def test_a_label_that_no_utterance_has_is_said(caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING, "asrtool"):
        check_labels(phase(), {"region": ["north"]})
    assert "no utterance has the label 'accent' (there are: region); the term is 0" in caplog.text


def test_classifiers_are_the_trained_ones_whose_values_are_known(tmp_path):
    assert classifiers(phase(), tmp_path) == ()
    (tmp_path / "labels.json").write_text('{"accent": ["b", "c"]}')
    (found,) = classifiers(phase(), tmp_path)
    assert (found.label, found.tap, found.values) == ("accent", "accent", ("b", "c"))
    assert classifiers(phase("losses.accent.weight=0"), tmp_path) == ()


def test_pieces_of_an_audio_count_by_their_length():
    parts = [(3.0, {"accent": {"a": 1.0, "b": 0.0}}), (1.0, {"accent": {"a": 0.0, "b": 1.0}})]
    assert mean_classes(parts) == {"accent": {"a": 0.75, "b": 0.25}} and mean_classes([]) == {}


@pytest.mark.parametrize(
    "options", [{"left_chunks": 4}, {"chunk_ms": 160, "left_chunks": -2}, {"chunk_ms": 0}]
)
def test_chunks_of_decoding_are_checked(options):
    good = experiment.DecodeConfig(searcher=CtcGreedyConfig(), chunk_ms=160, left_chunks=-1)
    with pytest.raises(ValueError, match="chunk"):
        replace(good, **{"chunk_ms": None, "left_chunks": None, **options})


def test_labels_of_the_training_set_are_counted_in_the_order_of_the_classes():
    rows = [
        Utterance(id=str(i), audio="", duration=1.0, speaker="s", labels={"accent": value})
        for i, value in enumerate("cacax")
    ]
    assert count_labels({"accent": ["a", "b", "c"], "region": ["n"]}, rows) == {
        "accent": [2, 0, 2],
        "region": [0],
    }
