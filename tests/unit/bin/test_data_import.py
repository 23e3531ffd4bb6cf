"""`asrtool data import`: its options, what is up to date, and training on foreign archives."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from asrtool.bin import data, extract_features, train
from asrtool.bin.extract_features import load_config
from asrtool.data import tokenizers
from asrtool.data.kaldi import datadir
from asrtool.data.shards.index import FILE
from asrtool.errors import UserError
from asrtool.trainer import checkpoint
from tests.toy_interruptions import power_failure
from tests.unit.data.toolkits import forms

CONFIG = """
data:
  fbank: {num_mel_bins: 8, rate: 8000}
  features: online
  batch: {seconds: 2}
  workers: 0
  shards: {size_mb: 0.05, buffer_mb: 0.1}
model:
  type: hybrid
  encoder: {type: conformer, num_layers: 1, dim: 16, num_heads: 2, ffn_dim: 16, kernel: 3}
losses:
  ctc: {type: ctc, weight: 1.0}
optim: {lr: 1e-3}
trainer: {epochs: 2, average: 1, best: valid/cer, save_every_seconds: 0}
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "nemo", "--train-set", "x"], "--train-set does not apply to --from nemo"),
        (["--audio", "x"], "--audio does not apply to --from kaldi"),
        (["--from", "wenet", "--fields", "text=x"], "--fields does not apply to --from wenet"),
        (["--from", "lhotse", "--tars", "x"], "--tars does not apply to --from lhotse"),
        (["--from", "nemo", "--fields", "audio=x"], "expected 'WHAT=NAME ...' with id, speaker"),
        (["--from", "nemo", "--fields", "text"], "expected 'WHAT=NAME ...'"),
        (["--from", "speechbrain"], "invalid choice"),
    ],
)
def test_options_of_another_format_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        data.parse(["import", *options, "source", "target"])
    assert message in capsys.readouterr().err


def test_the_help_names_every_format(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        data.parse(["import", "--help"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^{kind} ", shown, re.MULTILINE) for kind in data.KINDS)


def test_fields_name_what_a_manifest_calls_otherwise(tmp_path: Path) -> None:
    forms.write_wavs(tmp_path, spoken := forms.corpus(3))
    rows = [
        {"audio_filepath": f"wav/{key}.wav", "said": one.text, "who": one.speaker, "duration": None}
        for key, one in spoken.items()
    ]
    arguments = ["--from", "nemo", "--fields", "text=said speaker=who"]
    path = forms.write_lines(tmp_path / "m.json", rows)
    found = datadir.read(forms.take([*arguments, str(path)], tmp_path / "set"))
    assert [(row.id, row.text, row.speaker, row.labels) for row in found] == [
        (key, one.text, one.speaker, {}) for key, one in spoken.items()
    ]


def test_what_is_up_to_date_stays(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    arguments = forms.FORMS["nemo with archives"](tmp_path / "from", forms.corpus())
    folder = forms.take(arguments, tmp_path / "set")
    made = (folder / "text").stat().st_mtime_ns
    forms.take(arguments, folder)
    assert (folder / "text").stat().st_mtime_ns == made and "is up to date" in log.text
    arguments = forms.FORMS["nemo with archives"](tmp_path / "from", forms.corpus(6))
    assert len(datadir.read(forms.take(arguments, folder))) == 6


def test_a_folder_that_is_not_of_an_import_is_not_replaced(tmp_path: Path) -> None:
    arguments = forms.FORMS["nemo"](tmp_path / "from", forms.corpus())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="mine exists already; give a new folder"):
        forms.take(arguments, tmp_path / "set", "--audio", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.tex").exists() and not (tmp_path / "set").exists()


def test_datasets_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'asrtool\[datasets\]'"):
        forms.take(["--from", "datasets", str(tmp_path)], tmp_path / "set")


# -- training ---------------------------------------------------------------


@pytest.mark.parametrize("form", ["wenet shards", "lhotse shar", "nemo with offsets"])
def test_a_stopped_training_on_it_ends_with_the_same_weights(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = forms.corpus(16)
    folder = forms.take(forms.FORMS[form](tmp_path / "from", spoken), tmp_path / "set")
    (tmp_path / "vocab").mkdir()
    tokenizers.train([one.text for one in spoken.values()], "char", 0, tmp_path / "vocab")
    (tmp_path / "config.yaml").write_text(CONFIG)
    options = ["--config", tmp_path / "config.yaml", "--data", folder, "--training"]
    args = extract_features.parse([*map(str, options), "--out", str(tmp_path / "dump")])
    extract_features.run(args, *load_config(args.config, []))
    # archives of others are shards already, and no second copy of them is made
    in_shards = form in forms.IN_SHARDS
    assert any((tmp_path / "dump").glob("*.tar")) != in_shards
    if in_shards:
        assert (tmp_path / "dump" / FILE).read_bytes() == (folder / FILE).read_bytes()

    def run(exp: Path) -> dict[str, np.ndarray]:
        sets = ["--train", tmp_path / "dump", "--valid", tmp_path / "dump"]
        files = ["--config", tmp_path / "config.yaml", "--vocab", tmp_path / "vocab"]
        train.main([*map(str, [*files, *sets]), "--exp", str(exp)])
        return checkpoint.load(exp / "train" / "average-1.safetensors")

    whole = run(tmp_path / "whole")
    with power_failure(monkeypatch, 1, 1):
        run(tmp_path / "stopped")
    stopped = run(tmp_path / "stopped")
    assert whole.keys() == stopped.keys()
    assert all((whole[key] == stopped[key]).all() for key in whole)


# -- documents --------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


def test_the_page_has_a_command_for_each_format() -> None:
    """tests/recipes/test_documents.py runs those that need no other package."""
    printed = re.findall(r"^\|[^|]+\| `asrtool (data import [^`]+)`", PAGE.read_text("utf-8"), re.M)
    parsed = [data.parse(shlex.split(command)[1:]) for command in printed]
    assert [args.kind for args in parsed] == list(data.KINDS)
