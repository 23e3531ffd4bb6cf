from __future__ import annotations

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
