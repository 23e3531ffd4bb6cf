"""Every foreign form becomes the same data directory, and is trained from with exact resume."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from asrtool.data import audio, tokenizers
from asrtool.data.config import BatchConfig, DataConfig, ShardConfig
from asrtool.data.fbank import FbankConfig
from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset, StepLoader
from asrtool.data.shards.index import FILE
from asrtool.data.shards.loader import ShardLoader, step_loader
from tests.unit.data.toolkits import forms


@pytest.fixture(params=forms.FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def test_ids_texts_speakers_labels_and_samples_are_the_same(form: str, tmp_path: Path) -> None:
    spoken = forms.corpus()
    folder = forms.take(forms.FORMS[form](tmp_path / "from", spoken), tmp_path / "set")
    assert not [problem for problem in datadir.check(folder) if problem.kind == "error"]
    rows = datadir.read(folder)
    assert [row.id for row in rows] == list(spoken)
    for row, one in zip(rows, spoken.values(), strict=True):
        known = form not in forms.WITHOUT_SPEAKERS
        assert row.text == one.text
        assert row.speaker == (one.speaker if known else row.id)
        assert row.labels == (one.labels if known else {})
        assert row.duration == pytest.approx(len(one.samples) / forms.RATE, abs=1e-6)
        samples = audio.read(row.audio, *row.stretch, forms.RATE)
        np.testing.assert_array_equal(samples * 32768, one.samples)
    assert (folder / FILE).exists() == (form in forms.IN_SHARDS)
    in_archives = {audio.member(row.audio) is not None for row in rows}
    assert in_archives == {form in forms.IN_SHARDS or form == "nemo with parts of a member"}


def test_audio_is_written_to_files_where_asked(form: str, tmp_path: Path) -> None:
    spoken = forms.corpus(4)
    arguments = forms.FORMS[form](tmp_path / "from", spoken)
    folder = forms.take(arguments, tmp_path / "set", "--audio", str(tmp_path / "audio"))
    assert not (folder / FILE).exists() and not (folder / "segments").exists()
    rows = datadir.read(folder)
    assert {Path(row.audio).parent for row in rows} == {tmp_path / "audio"}
    for row, one in zip(rows, spoken.values(), strict=True):
        np.testing.assert_array_equal(audio.read(row.audio, rate=None) * 32768, one.samples)
        assert row.text == one.text


def test_labels_with_the_name_of_another_key_of_the_json_come_back(tmp_path: Path) -> None:
    spoken = forms.corpus(3)
    for one in spoken.values():
        one.labels |= {"id": "x", "speaker": "y"}
    folder = forms.take(forms.own_shards("webdataset", tmp_path / "from", spoken), tmp_path / "set")
    assert [row.labels for row in datadir.read(folder)] == [one.labels for one in spoken.values()]


def made(folder: Path, tokenizer: tokenizers.Tokenizer) -> StepLoader:
    config = DataConfig(
        input="waveform",
        fbank=FbankConfig(rate=forms.RATE),
        batch=BatchConfig(seconds=2),
        workers=0,
        shards=ShardConfig(buffer_mb=0.05) if (folder / FILE).exists() else None,
    )
    dataset = Dataset(datadir.read(folder), tokenizer, config, training=True, seed=0)
    return step_loader(dataset, folder)


def test_a_training_on_it_goes_on_exactly_where_it_stopped(form: str, tmp_path: Path) -> None:
    spoken = forms.corpus()
    folder = forms.take(forms.FORMS[form](tmp_path / "from", spoken), tmp_path / "set")
    (tmp_path / "vocab").mkdir()
    tokenizer = tokenizers.train(
        [one.text for one in spoken.values()], "char", 0, tmp_path / "vocab"
    )
    whole = made(folder, tokenizer)
    assert isinstance(whole, ShardLoader) == (form in forms.IN_SHARDS)
    count = whole.num_steps(0)
    steps = list(islice(whole.steps(), 2 * count))
    heard = {
        key: (row[:length] * 32768, tokenizer.decode(targets[:size].tolist()))
        for step in steps[:count]
        for batch in step.batches
        for key, row, length, targets, size in zip(
            batch.ids, *batch.inputs, *batch.targets, strict=True
        )
    }
    assert heard.keys() == spoken.keys() and count > 2
    for key, (samples, text) in heard.items():
        np.testing.assert_array_equal(samples.numpy(), spoken[key].samples)
        assert text == spoken[key].text
    resumed = made(folder, tokenizer).steps(0, count - 1)
    for left, right in zip(steps[count - 1 :], islice(resumed, count + 1), strict=True):
        for one, other in zip(left.batches, right.batches, strict=True):
            assert one.ids == other.ids and torch.equal(one.inputs.data, other.inputs.data)
