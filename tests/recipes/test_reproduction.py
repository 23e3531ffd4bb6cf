"""The full-size configs: the table of docs/reproduction.md says what they are, and the cards have
the size and settings of the published runs.
"""

from __future__ import annotations

import re

import pytest

from asrtool.experiment import TrainConfig, load_decode, load_phases
from asrtool.score.results_page import published
from tests.recipes.conftest import ROOT
from tests.recipes.models import on_meta

PAGE = ROOT / "docs" / "reproduction.md"
# of the training set, and entries of the vocabulary
CORPORA = {
    "aishell1": (150.9, 4233),
    "aishell2": (1000.0, 5200),
    "kespeech": (1542.0, 4700),
    "librispeech": (960.9, 5002),
}
CARDS = {
    "aishell1/conf/wenet/train_wenet_conformer.yaml": None,
    "aishell1/conf/ebranchformer/train_ebranchformer.yaml": 47_570_132,
    "aishell1/conf/cr_ctc/train_cr_ctc.yaml": 66_218_471,
    "librispeech/conf/wenet/train_wenet_conformer.yaml": None,
    "aishell2/conf/u2pp/train_u2pp_conformer.yaml": None,
    "kespeech/conf/ebranchformer/train_ebranchformer.yaml": 69_000_000,
}


def phases(name: str) -> dict[str, TrainConfig]:
    return load_phases(ROOT / "egs" / name)


def parameters(name: str, phase: TrainConfig, part: str = "") -> int:
    _, vocabulary = CORPORA[name.split("/")[0]]
    model = on_meta(phase, vocabulary).get_submodule(part)
    return sum(parameter.numel() for parameter in model.parameters())


def passes(phase: TrainConfig) -> int:
    """Over the corpus: an epoch of stored features has a copy at each speed."""
    stored = phase.data.features == "stored"
    return phase.trainer.epochs * (len(phase.data.augment.speeds) if stored else 1)


def steps(phase: TrainConfig, hours: float) -> float:
    """Optimizer steps of a run, padding aside."""
    speeds = phase.data.augment.speeds
    # online: a batch has room for every utterance at the slowest speed
    online = phase.data.features == "online"
    longer = 1 / min(speeds) if online else sum(1 / speed for speed in speeds)
    views = 2 if "consistency" in phase.losses else 1
    return phase.trainer.epochs * views * longer * 3600 * hours / phase.data.batch.seconds


def described(name: str, phase: TrainConfig) -> list[str]:
    """The cells of a row behind its name: parameters in millions, seconds of a batch, passes over
    the corpus, steps in thousands, peak rate, steps of warm-up, checkpoints in the average.
    """
    return [
        f"{parameters(name, phase) / 1e6:.1f}",
        f"{phase.data.batch.seconds:,.0f}",
        str(passes(phase)),
        f"{steps(phase, CORPORA[name.split('/')[0]][0]) / 1000:.0f}",
        f"{phase.optim.lr:.0e}".replace("e-0", "e-"),
        f"{phase.optim.schedule.warmup:,}",
        str(phase.trainer.average),
    ]


def rows() -> dict[tuple[str, str], list[str]]:
    """(Config, phase) -> cells, of the table of budgets."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `egs/([\w/.]+)`(?:, (\w+))? \|(.*)\|$", line):
            config, phase, cells = match.groups()
            found[config, phase or "train"] = [cell.strip() for cell in cells.split("|")]
    return found


@pytest.mark.parametrize(("config", "name"), rows())
def test_the_page_says_what_a_full_size_config_is(config, name):
    assert rows()[config, name] == described(config, phases(config)[name])


def test_the_page_has_every_card_and_every_phase_of_a_config():
    configs = {config for config, _ in rows()}
    assert configs >= set(CARDS)
    assert set(rows()) == {(config, name) for config in configs for name in phases(config)}


@pytest.mark.parametrize(("config", "name"), rows())
def test_the_warm_up_is_over_before_a_third_of_the_training(config, name):
    phase = phases(config)[name]
    assert phase.optim.schedule.warmup < steps(phase, CORPORA[config.split("/")[0]][0]) / 3


@pytest.mark.parametrize("config", [name for name, size in CARDS.items() if size])
def test_a_card_has_the_published_number_of_parameters(config):
    (phase,) = phases(config).values()
    assert parameters(config, phase) == pytest.approx(CARDS[config], rel=0.01)


def test_the_librispeech_card_has_the_published_encoder():
    """34,761,608 in WeNet's table, which has no vocabulary of 5,000 but by the CTC head."""
    name = "librispeech/conf/wenet/train_wenet_conformer.yaml"
    (phase,) = phases(name).values()
    both = parameters(name, phase, "encoder") + parameters(name, phase, "heads.ctc")
    assert both == pytest.approx(34_761_608, rel=0.01)


# of WeNet's configs and result pages: utterances * epochs / utterances of an optimizer step
PUBLISHED_STEPS = {
    "aishell1/conf/wenet/train_wenet_conformer.yaml": 120_098 * 240 / (18 * 4 * 4),
    "aishell1/conf/ebranchformer/train_ebranchformer.yaml": 120_098 * 240 / (16 * 4),
    "librispeech/conf/wenet/train_wenet_conformer.yaml": 281_241 * 120 / (12 * 8 * 4),
    "aishell2/conf/u2pp/train_u2pp_conformer.yaml": 1_009_223 * 240 / (32 * 8),
}


@pytest.mark.parametrize("config", PUBLISHED_STEPS)
def test_a_card_takes_the_published_number_of_steps(config):
    (phase,) = phases(config).values()
    found = steps(phase, CORPORA[config.split("/")[0]][0])
    assert found == pytest.approx(PUBLISHED_STEPS[config], rel=0.03)


# layers, width, heads, feed-forward, kernel; dropout, of attention; layers of the decoders
PUBLISHED_SHAPES = {
    "aishell1/conf/wenet/train_wenet_conformer.yaml": (12, 256, 4, 2048, 15, 0.1, 0.0, 6, 0),
    "aishell1/conf/ebranchformer/train_ebranchformer.yaml": (17, 256, 8, 1024, 31, 0.1, 0.1, 6, 0),
    "librispeech/conf/wenet/train_wenet_conformer.yaml": (12, 256, 4, 2048, 31, 0.1, 0.0, 6, 0),
    "aishell2/conf/u2pp/train_u2pp_conformer.yaml": (12, 256, 4, 2048, 8, 0.1, 0.0, 3, 3),
}


@pytest.mark.parametrize("config", PUBLISHED_SHAPES)
def test_a_card_has_the_published_shape(config):
    (phase,) = phases(config).values()
    encoder, decoder, reverse = (
        phase.model.encoder,
        phase.model.decoder,
        phase.model.reverse_decoder,
    )
    names = ("num_layers", "dim", "num_heads", "ffn_dim", "kernel", "dropout", "attention_dropout")
    assert (
        *(getattr(encoder, name) for name in names),
        decoder.num_layers,
        reverse.num_layers if reverse else 0,
    ) == PUBLISHED_SHAPES[config]
    assert encoder.downsamplers[0].factor == 4 and encoder.downsamplers[0].channels == 256
    assert (decoder.num_heads, decoder.ffn_dim, decoder.dropout) == (4, 2048, 0.1)
    if encoder.chunk is not None:  # half of the batches whole, the others up to 25 frames
        built = on_meta(phase, CORPORA[config.split("/")[0]][1]).encoder
        assert built.longest_chunk == 25 and built.chunk_sizes is None


@pytest.mark.parametrize(
    ("recipe", "metric", "rate"),
    [
        ("aishell1", "cer", 4.61),
        ("aishell1", "cer", 4.39),
        ("aishell1", "cer", 3.98),
        ("librispeech", "wer", 3.18),
        ("librispeech", "wer", 8.72),
        ("aishell2", "cer", 5.39),
        ("kespeech", "cer", 8.29),
    ],
)
def test_results_show_the_number_of_a_card_beside_a_run_of_it(recipe, metric, rate):
    rates, _ = published(recipe)
    assert [row["rate"] for row in rates if (row["metric"], row["rate"]) == (metric, rate)]
    assert f"{rate} %" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        ("aishell1/conf/wenet/decode_wenet_rescoring.yaml", {"ctc": 0.5, "attention": 1.0}),
        ("librispeech/conf/wenet/decode_wenet_rescoring.yaml", {"ctc": 0.5, "attention": 1.0}),
        (
            "aishell1/conf/ebranchformer/decode_ebranchformer_rescoring.yaml",
            {"ctc": 0.3, "attention": 1.0},
        ),
        (
            "aishell2/conf/u2pp/decode_u2pp_rescoring.yaml",
            {"ctc": 0.1, "attention": 0.6, "reverse": 0.4},
        ),
    ],
)
def test_a_card_is_decoded_with_the_published_weights(config, weights):
    searcher = load_decode(ROOT / "egs" / config).searcher
    assert searcher.weights == weights and searcher.first_pass.beam == 10
