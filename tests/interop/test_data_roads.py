"""webdataset, Hugging Face datasets and lhotse read what asrtool writes, and asrtool what they do.

WeNet is not on PyPI: tests/unit/data reads its formats, and shards by its rule.
"""

from __future__ import annotations

import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asrtool.data import audio, tokenizers
from asrtool.data.kaldi import datadir
from tests.unit.data.toolkits import forms
from tests.unit.data.toolkits.forms import RATE, Spoken, take
from tests.unit.data.toolkits.test_forms import made

pytestmark = pytest.mark.interop
EXTRA = "pip install -e '.[interop]'"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hf"))


@pytest.fixture
def wds():
    return pytest.importorskip("webdataset", reason=EXTRA)


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason=EXTRA)


@pytest.fixture
def lhotse():
    return pytest.importorskip("lhotse", reason=EXTRA)


@pytest.fixture
def spoken() -> dict[str, Spoken]:
    return forms.corpus()


@pytest.fixture
def shards(spoken: dict[str, Spoken], tmp_path: Path) -> list[str]:
    """The shards that asrtool writes of the corpus."""
    folder = forms.own_shards("webdataset", tmp_path / "own", spoken)[-1]
    found = sorted(map(str, Path(folder).glob("*.tar")))
    assert len(found) > 1
    return found


def samples(data: bytes) -> np.ndarray:
    heard, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == RATE
    return heard


def assert_same(folder: Path, spoken: dict[str, Spoken]) -> None:
    """The data directory holds the corpus, and a training on it goes on where it stopped."""
    rows = datadir.read(folder)
    assert [row.id for row in rows] == list(spoken)
    for row, one in zip(rows, spoken.values(), strict=True):
        assert (row.text, row.speaker, row.labels) == (one.text, one.speaker, one.labels)
        heard = audio.read(row.audio, *row.stretch, RATE)
        np.testing.assert_array_equal(heard * 32768, one.samples)
    vocab = folder.with_name("vocab")
    vocab.mkdir()
    tokenizer = tokenizers.train([one.text for one in spoken.values()], "char", 0, vocab)
    steps = list(islice(made(folder, tokenizer).steps(), 6))
    for left, right in zip(steps[2:], made(folder, tokenizer).steps(0, 2), strict=False):
        for one, other in zip(left.batches, right.batches, strict=True):
            assert one.ids == other.ids and torch.equal(one.inputs.data, other.inputs.data)


# -- from asrtool -----------------------------------------------------------


def test_webdataset_reads_shards(wds, shards, spoken):
    found = {}
    for sample in wds.WebDataset(shards, shardshuffle=False):
        found[json.loads(sample["json"])["id"]] = sample
    assert found.keys() == spoken.keys()
    for key, one in spoken.items():
        facts = json.loads(found[key]["json"])
        assert found[key]["txt"].decode() == one.text
        assert {"speaker": one.speaker, **one.labels}.items() <= facts.items()
        np.testing.assert_array_equal(samples(found[key]["wav"]), one.samples)


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_reads_shards(streaming, datasets, shards, spoken, tmp_path):
    def load(**options):
        files = {"data_files": {"train": shards}, "split": "train"}
        return datasets.load_dataset("webdataset", **files, **options)

    features = load(streaming=True).features
    assert isinstance(features["wav"], datasets.Audio)
    # as bytes: datasets encodes columns of audio with torchcodec, which needs FFmpeg's libraries
    features = datasets.Features({**features, "wav": datasets.Value("binary")})
    data = load(features=features, streaming=streaming, cache_dir=str(tmp_path / "cache"))
    rows = {row["json"]["id"]: row for row in data}
    assert rows.keys() == spoken.keys()
    for key, one in spoken.items():
        assert rows[key]["txt"] == one.text and rows[key]["json"]["speaker"] == one.speaker
        assert rows[key]["json"]["lang"] == one.labels["lang"]
        np.testing.assert_array_equal(samples(rows[key]["wav"]), one.samples)


def test_lhotse_reads_shards_and_asrtool_its_shar_of_them(lhotse, wds, shards, spoken, tmp_path):
    cuts = []
    for sample in wds.WebDataset(shards, shardshuffle=False):
        facts = json.loads(sample["json"])
        recording = lhotse.Recording.from_bytes(sample["wav"], recording_id=facts["id"])
        cut = recording.to_cut()
        cut.supervisions.append(
            lhotse.SupervisionSegment(
                id=facts["id"],
                recording_id=facts["id"],
                start=0,
                duration=recording.duration,
                text=sample["txt"].decode(),
                speaker=facts["speaker"],
                custom={"lang": facts["lang"]},
            )
        )
        np.testing.assert_array_equal(cut.load_audio()[0] * 32768, spoken[facts["id"]].samples)
        cuts.append(cut)
    (tmp_path / "shar").mkdir()
    lhotse.CutSet.from_cuts(cuts).to_shar(
        tmp_path / "shar", fields={"recording": "flac"}, shard_size=5
    )
    folder = take(["--from", "lhotse", str(tmp_path / "shar")], tmp_path / "set")
    assert_same(folder, spoken)


# -- to asrtool -------------------------------------------------------------


def test_archives_of_webdataset(wds, spoken, tmp_path):
    with wds.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=5, verbose=0) as writer:
        for key, one in spoken.items():
            facts = {"text": one.text, "speaker": one.speaker, "id": key, **one.labels}
            content = forms.encoded(one.samples, "flac")
            writer.write({"__key__": key.replace(".", "_"), "flac": content, "json": facts})
    folder = take(["--from", "webdataset", str(tmp_path / "*.tar")], tmp_path / "set")
    assert_same(folder, spoken)


def lhotse_manifests(lhotse, spoken, root):
    wavs = forms.write_wavs(root, spoken)
    recordings = lhotse.RecordingSet.from_recordings(
        lhotse.Recording.from_file(path) for path in wavs.values()
    )
    supervisions = lhotse.SupervisionSet.from_segments(
        lhotse.SupervisionSegment(
            id=key,
            recording_id=key,
            start=0,
            duration=len(one.samples) / RATE,
            text=one.text,
            speaker=one.speaker,
            custom=dict(one.labels),
        )
        for key, one in spoken.items()
    )
    return recordings, supervisions


def test_manifests_of_lhotse(lhotse, spoken, tmp_path):
    recordings, supervisions = lhotse_manifests(lhotse, spoken, tmp_path)
    recordings.to_file(tmp_path / "x_recordings_a.jsonl.gz")
    supervisions.to_file(tmp_path / "x_supervisions_a.jsonl.gz")
    folder = take(["--from", "lhotse", str(tmp_path)], tmp_path / "a" / "set")
    assert_same(folder, spoken)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    folder = take(["--from", "lhotse", str(tmp_path / "cuts.jsonl.gz")], tmp_path / "b" / "set")
    assert_same(folder, spoken)
    (tmp_path / "shar").mkdir()
    cuts.to_shar(tmp_path / "shar", fields={"recording": "wav"}, shard_size=5)
    folder = take(["--from", "lhotse", str(tmp_path / "shar")], tmp_path / "c" / "set")
    assert_same(folder, spoken)


def test_segments_and_speeds_of_lhotse_sound_as_lhotse_loads_them(lhotse, spoken, tmp_path):
    recordings, supervisions = lhotse_manifests(lhotse, spoken, tmp_path)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    every = cuts.perturb_speed(0.9) + cuts.perturb_speed(1.1) + cuts.resample(16000, affix_id=True)
    every.to_file(tmp_path / "cuts.jsonl.gz")
    folder = take(["--from", "lhotse", str(tmp_path / "cuts.jsonl.gz")], tmp_path / "set")
    rows = {row.id: row for row in datadir.read(folder)}
    assert len(rows) == 3 * len(spoken)
    for cut in every:
        row = rows[cut.supervisions[0].id]
        ours, theirs = audio.read(row.audio, *row.stretch, cut.sampling_rate), cut.load_audio()[0]
        assert abs(len(ours) - len(theirs)) <= 2
        count = min(len(ours), len(theirs))
        assert np.corrcoef(ours[:count], theirs[:count])[0, 1] > 0.99


def test_cuts_of_lhotse_without_a_counterpart_are_named(lhotse, spoken, tmp_path):
    recordings, supervisions = lhotse_manifests(lhotse, spoken, tmp_path)
    cuts = list(lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions))
    odd = [cuts[0].pad(duration=2.0), cuts[1].mix(cuts[2], offset_other_by=0.1)]
    lhotse.CutSet.from_cuts(odd + cuts[2:]).to_file(tmp_path / "cuts.jsonl.gz")
    folder = take(["--from", "lhotse", str(tmp_path / "cuts.jsonl.gz")], tmp_path / "set")
    listed = (folder / "skipped.txt").read_text()
    assert listed.count("it is a MixedCut, expected a MonoCut") == 2
    assert len(datadir.read(folder)) == len(spoken) - 2


def hub_rows(datasets, spoken, root, embedded=True):
    wavs = forms.write_wavs(root, spoken)
    columns = {
        "id": list(spoken),
        "audio": [str(path) for path in wavs.values()],
        "text": [one.text for one in spoken.values()],
        "speaker_id": [one.speaker for one in spoken.values()],
        "lang": [one.labels["lang"] for one in spoken.values()],
    }
    if embedded:
        columns["audio"] = [
            {"path": Path(path).name, "bytes": Path(path).read_bytes()} for path in columns["audio"]
        ]
    data = datasets.Dataset.from_dict(columns)
    data = data.cast_column("audio", datasets.Audio(RATE, decode=False))
    return data.cast_column("lang", datasets.ClassLabel(names=["en", "de"]))


@pytest.mark.parametrize("form", ["saved", "split", "parquet", "folder of parquet"])
def test_data_sets_of_datasets(form, datasets, spoken, tmp_path):
    data = hub_rows(datasets, spoken, tmp_path).shuffle(seed=0)  # rows by an index
    source = tmp_path / "data"
    if form == "saved":
        data.save_to_disk(source, num_shards=2)
    elif form == "split":
        datasets.DatasetDict({"train": data, "dev": data.select([0])}).save_to_disk(source)
        source = source / "train"
    else:
        source.mkdir()
        data.to_parquet(source / "0.parquet")
        source = source if form == "folder of parquet" else source / "0.parquet"
    options = ["--audio", str(tmp_path / "audio")]
    folder = take(["--from", "datasets", str(source)], tmp_path / "set", *options)
    assert_same(folder, spoken)


def test_paths_in_datasets_stay_where_they_are(datasets, spoken, tmp_path):
    hub_rows(datasets, spoken, tmp_path, embedded=False).to_parquet(tmp_path / "0.parquet")
    folder = take(["--from", "datasets", str(tmp_path / "0.parquet")], tmp_path / "set")
    assert datadir.read(folder)[0].audio == f"{tmp_path}/wav/u00.a.wav"
    assert_same(folder, spoken)
