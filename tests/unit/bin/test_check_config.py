from __future__ import annotations

import re
from pathlib import Path

import pytest

from asrtool.bin import check_config
from asrtool.config import ConfigError

EGS = Path(__file__).parents[3] / "egs" / "librispeech" / "conf"
TRAIN, DECODE = (
    ("--train-config", f"{EGS}/train_mini.yaml"),
    ("--decode-config", f"{EGS}/decode_mini.yaml"),
)


def test_the_name_of_the_features_is_printed(capsys: pytest.CaptureFixture) -> None:
    check_config.main([*TRAIN, "--train-args", "data.augment.speeds=[0.9,1.0]"])
    assert capsys.readouterr().out == "fbank80-sp0.9\n"


def test_overrides_of_both_configs_are_read_with_them() -> None:
    with pytest.raises(ConfigError, match="optim.lrr: unknown key"):
        check_config.main([*TRAIN, *DECODE, "--train-args", "optim.lrr=1"])
    with pytest.raises(
        ConfigError, match="searcher.type: unknown searcher 'ctc_gredy'; did you mean 'ctc_greedy'"
    ):
        check_config.main([*TRAIN, *DECODE, "--decode-args", "searcher.type=ctc_gredy"])


def test_a_missing_config_is_an_error_before_any_work() -> None:
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        check_config.main([*TRAIN, "--decode-config", "nothing.yaml"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        # what only a built model knows
        ("model.encoder.dim=510 model.encoder.num_heads=8", "510"),
        ("trainer.best=valid/werr", "'valid/werr' is not measured; did you mean 'valid/wer'"),
        ("optim.groups={nothing.*:{lr_scale: 2}}", "nothing"),
        # numbers that cannot be meant
        (
            "model.encoder.dropout=2",
            "model.encoder.dropout: expected at least 0 and below 1, got 2",
        ),
        ("model.encoder.kernel=0", "model.encoder.kernel: expected at least 1, got 0"),
        ("losses.ctc.weight=-0.3", "losses.ctc: weight is -0.3, which would make the loss grow"),
        ("optim.lr=.inf", "optim.lr: expected a finite number, got inf"),
        ("optim.lr=nan", "optim.lr: expected a finite number, got nan"),
        ("data.workers=-1", "data.workers: expected at least 0, got -1"),
        ("data.min_seconds=9 data.max_seconds=3", "min_seconds is 9 and max_seconds 3"),
        ("data.augment.gain_db=[3,-3]", "gain_db: expected [lowest, highest], got [3.0, -3.0]"),
        (
            "data.augment.spec_augment.time_share=1.5",
            "time_share: expected at least 0 and at most 1",
        ),
        ("data.augment.spec_augment.num_time_masks=-1", "num_time_masks: expected at least 0"),
        ("data.batch.seconds=.inf", "data.batch.seconds: expected a finite number"),
    ],
)
def test_what_stage_3_would_refuse_stops_first(change: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        check_config.main([*TRAIN, "--train-args", change])


def test_no_limit_of_the_gradient_is_a_number_that_may_be_meant() -> None:
    check_config.main([*TRAIN, "--train-args", "optim.clip=.inf"])


def test_a_noise_set_that_no_stage_makes_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    change = "data.features=online data.augment.noise={set: musan}".replace(": ", ":\\ ")
    options = [*TRAIN, "--train-args", change, "--dump", str(tmp_path), "--sets"]
    with pytest.raises(ValueError, match="'musan', which is none of train, dev; add it by --extra"):
        check_config.main([*options, "train dev"])
    check_config.main([*options, "train dev musan"])
    (tmp_path / capsys.readouterr().out.strip() / "musan").mkdir(parents=True)
    (tmp_path / "fbank80-online" / "musan" / "wav.scp").touch()
    check_config.main([*options, "train dev"])


def test_a_model_whose_weights_are_elsewhere_is_left_for_later() -> None:
    config = EGS / "whisper" / "train_whisper_lora.yaml"
    check_config.main(["--train-config", str(config)])


def test_a_config_is_given_as_to_the_other_commands(capsys: pytest.CaptureFixture) -> None:
    for options in ([TRAIN[1]], ["--config", TRAIN[1]], TRAIN):
        check_config.main([*options, "--set", "trainer.average=1"])
    assert capsys.readouterr().out == "fbank80\n" * 3
    for options in ([], [TRAIN[1], *TRAIN]):
        with pytest.raises(SystemExit):
            check_config.main(options)
        assert "give one config" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["phases.train=1.5", "phases.=1.5", "phases.train.lr", "phases.x.a=1"]
)
def test_an_override_of_a_phase_names_a_key(text: str) -> None:
    with pytest.raises(ValueError, match="expected phases.<name>.<key>=value|no such phase"):
        check_config.main([*TRAIN, "--train-args", text])
