"""Random gain of stored features is that of the waveform."""

from __future__ import annotations

from pathlib import Path

import kaldiio
import numpy as np
import pytest
import torch

from asrtool.data import tokenizers
from asrtool.data.config import AugmentConfig, BatchConfig, DataConfig
from asrtool.data.fbank import Fbank, FbankConfig
from asrtool.data.loader import Dataset
from asrtool.types import Utterance

SAMPLES = np.random.default_rng(0).normal(0, 0.05, 16000).astype(np.float32)
FBANK = Fbank(FbankConfig())


@pytest.fixture(scope="module")
def utterance(tmp_path_factory: pytest.TempPathFactory) -> Utterance:
    folder = tmp_path_factory.mktemp("dump")
    kaldiio.save_ark(
        str(folder / "feats.ark"),
        {"u": FBANK(torch.from_numpy(SAMPLES)).numpy()},
        scp=str(folder / "scp"),
    )
    reference = (folder / "scp").read_text().split(maxsplit=1)[1].strip()
    return Utterance(
        id="u", audio="", duration=1.0, text="a", speaker="s", features=reference, num_frames=98
    )


def inputs(
    utterance: Utterance, folder: Path, gain_db: tuple[float, float], training: bool, epoch: int = 0
) -> np.ndarray:
    config = DataConfig(
        batch=BatchConfig(seconds=10), augment=AugmentConfig(gain_db=gain_db), workers=0
    )
    tokenizer = tokenizers.train(["a"], "char", 0, folder)
    dataset = Dataset([utterance], tokenizer, config, training=training)
    return np.asarray(dataset.example(0, epoch).inputs)


def test_a_gain_of_stored_features_equals_that_of_the_samples(utterance, tmp_path):
    louder = FBANK(torch.from_numpy(SAMPLES * np.float32(10 ** (6 / 20)))).numpy()
    np.testing.assert_allclose(
        inputs(utterance, tmp_path, (6.0, 6.0), training=True), louder, atol=1e-4
    )  # float32 logs


def test_the_gain_is_drawn_anew_in_each_epoch_and_only_in_training(utterance, tmp_path):
    plain = FBANK(torch.from_numpy(SAMPLES)).numpy()
    shifts = [
        float((inputs(utterance, tmp_path, (-20.0, 6.0), True, epoch) - plain).mean())
        for epoch in range(3)
    ]
    assert len(set(shifts)) == 3
    assert all(-20 * np.log(10) / 10 <= shift <= 6 * np.log(10) / 10 for shift in shifts)
    np.testing.assert_allclose(
        inputs(utterance, tmp_path, (-20.0, 6.0), training=False), plain, atol=1e-6
    )
