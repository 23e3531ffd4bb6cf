"""Shards: what is written, the plan over them, and training from them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asrtool.bin import make_shards
from asrtool.data import audio, datadir, features, shard_loader, tokenizers
from asrtool.data.config import AugmentConfig, BatchConfig, DataConfig, ShardConfig, SpecAugmentConfig
from asrtool.data.features import ArkWriter
from asrtool.data.loader import Dataset, StepLoader
from asrtool.data.shard_index import FILE, ShardError, ShardIndex
from asrtool.data.shard_loader import ShardLoader, one_ahead, step_loader
from asrtool.types import Batch, Utterance

NUM, BINS = 60, 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return tokenizers.train(["ab"], "char", 0, tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with audio of 0.2 to 1 seconds in three formats, and features."""
    folder = tmp_path_factory.mktemp("source")
    rng, rows = np.random.default_rng(0), []
    with ArkWriter(folder / "feats.1.ark") as writer:
        for n in range(NUM):
            samples = rng.normal(0, 0.1, int(rng.integers(3200, 16000))).astype(np.float32)
            path = folder / f"{n}.{('wav', 'flac', 'ogg')[n % 3]}"
            soundfile.write(path, samples, 16000)
            matrix = rng.normal(size=(len(samples) // 160, BINS)).astype(np.float32)
            row = Utterance(
                id=f"u{n:02}",
                audio=str(path),
                duration=len(samples) / 16000,
                text="ab",
                speaker=f"s{n % 4}",
                labels={"accent": "north"},
                features=writer.write(f"u{n:02}", matrix),
                num_frames=len(matrix),
            )
            rows.append(row)
    datadir.write(folder / "set", rows)
    return folder / "set"


def make(source: Path, out: Path, *options: object, of: str = "audio", size_mb: float = 0.2) -> Path:
    arguments = ["--data", source, "--out", out, "--of", of, "--size-mb", size_mb, *options]
    make_shards.run(make_shards.parse([str(argument) for argument in arguments]))
    return out


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packed")
    return {
        "audio": make(source, folder / "audio"),
        "features": make(source, folder / "features", of="features", size_mb=0.02),
    }


def loader(
    folder: Path,
    tokenizer: tokenizers.Tokenizer,
    rank: int = 0,
    world: int = 1,
    *,
    workers: int = 0,
    buffer_mb: float = 0.4,
    seed: int = 0,
    **more: object,
) -> ShardLoader:
    batch = BatchConfig(seconds=3, max_seconds_per_device=1.5)
    config = DataConfig(batch=batch, workers=workers, shards=ShardConfig(buffer_mb=buffer_mb), **more)
    utterances = datadir.read(folder)
    dataset = Dataset(utterances, tokenizer, config, training=True, seed=seed)
    return ShardLoader(dataset, ShardIndex(folder, [u.id for u in utterances]), rank=rank, world=world)


def epoch(made: StepLoader, number: int = 0) -> list:
    return list(islice(made.steps(number), made.num_steps(number)))


def ids(steps: Iterable) -> list[str]:
    return [name for step in steps for batch in step.batches for name in batch.ids]


def assert_same(left: Iterable, right: Iterable) -> None:
    for a, b in zip(left, right, strict=True):
        assert (a.count, a.epoch, a.index, a.last, a.skipped) == (b.count, b.epoch, b.index, b.last, b.skipped)
        for one, other in zip(a.batches, b.batches, strict=True):
            assert one.ids == other.ids and torch.equal(one.inputs.data, other.inputs.data)


# -- writing ---------------------------------------------------------------


def test_the_data_directory_in_shards_holds_the_same(source: Path, packed: dict[str, Path]) -> None:
    before, after = datadir.read(source), datadir.read(packed["audio"])
    assert not [problem for problem in datadir.check(packed["audio"]) if problem.kind == "error"]
    for old, new in zip(before, after, strict=True):
        assert replace(new, audio=old.audio, features=old.features) == old
        np.testing.assert_array_equal(audio.read(new.audio), audio.read(old.audio))
    for old, new in zip(before, datadir.read(packed["features"]), strict=True):
        np.testing.assert_array_equal(features.read_features(new.features), features.read_features(old.features))


def test_any_tar_program_can_unpack_shards(packed: dict[str, Path], source: Path) -> None:
    members = {}
    for path in sorted(packed["audio"].glob("shard-*.tar")):
        with tarfile.open(path) as archive:
            members |= {item.name: archive.extractfile(item).read() for item in archive.getmembers()}
    expected = {f"{row.id}{Path(row.audio).suffix}": Path(row.audio).read_bytes() for row in datadir.read(source)}
    assert members == expected


def test_shards_are_as_large_as_asked_for_and_no_larger(packed: dict[str, Path]) -> None:
    sizes = [path.stat().st_size for path in packed["audio"].glob("shard-*.tar")]
    assert len(sizes) > 4 and max(sizes) < 0.2e6 + 2 * tarfile.RECORDSIZE


def test_shards_are_written_once_and_the_same_again(source: Path, tmp_path: Path) -> None:
    first = make(source, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in first.glob("shard-*.tar")}
    made = (first / FILE).stat().st_mtime_ns
    make(source, first)
    assert (first / FILE).stat().st_mtime_ns == made
    make(source, first, "--force")
    assert {path.name: path.read_bytes() for path in first.glob("shard-*.tar")} == before
    make(source, first, "--seed", 1)
    assert {path.name: path.read_bytes() for path in first.glob("shard-*.tar")} != before


def test_segments_and_commands_become_utterances_of_their_own(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 32000).astype(np.int16)
    soundfile.write(tmp_path / "long.wav", samples, 16000)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "wav.scp").write_text(f"long {tmp_path / 'long.wav'}\npiped cat {tmp_path / 'long.wav'} |\n")
    (tmp_path / "set" / "segments").write_text("a long 0.5 1\nb piped 1 2\n")
    (tmp_path / "set" / "text").write_text("a ONE\nb TWO\n")
    (tmp_path / "set" / "reco2dur").write_text("long 2\npiped 2\n")
    make(tmp_path / "set", tmp_path / "out")
    rows = datadir.read(tmp_path / "out")
    assert [(row.id, row.duration, row.text, row.recording) for row in rows] == [
        ("a", 0.5, "ONE", None),
        ("b", 1.0, "TWO", None),
    ]
    np.testing.assert_array_equal(audio.read(rows[0].audio) * 32768, samples[8000:16000])
    assert not (tmp_path / "out" / "segments").exists() and not (tmp_path / "out" / "reco2dur").exists()


def test_what_cannot_be_read_is_left_out_and_named(source: Path, tmp_path: Path) -> None:
    wav = (source / "wav.scp").read_text().splitlines()
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "bad.wav").write_bytes(b"RIFF no audio")
    (folder / "wav.scp").write_text("\n".join([f"u00 {tmp_path / 'bad.wav'}", *wav[1:]]) + "\n")
    make(folder, tmp_path / "out")
    assert [row.id for row in datadir.read(tmp_path / "out")] == [f"u{n:02}" for n in range(1, NUM)]
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("u00 ")


def test_a_moved_folder_is_read_where_it_lies(source: Path, packed: dict[str, Path], tmp_path: Path) -> None:
    moved = make(source, tmp_path / "first").rename(tmp_path / "second")
    row = datadir.read(moved)[0]
    assert row.audio.startswith(str(moved)) and len(audio.read(row.audio))
    assert all(str(moved) in name for name in ShardIndex(moved, ["u00", "u01"]).archives)


# -- the plan --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["audio", "features"])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("number", [0, 1])
def test_every_utterance_comes_once_in_an_epoch_over_all_ranks(
    kind: str, world: int, number: int, packed: dict[str, Path], tokenizer: tokenizers.Tokenizer
) -> None:
    buffer_mb = {"audio": 0.4, "features": 0.04}[kind]
    more = {"input": "waveform"} if kind == "audio" else {}
    ranks = [
        epoch(loader(packed[kind], tokenizer, rank, world, buffer_mb=buffer_mb, **more), number)
        for rank in range(world)
    ]
    found = [name for steps in ranks for name in ids(steps)]
    assert sorted(found) == [f"u{n:02}" for n in range(NUM)]
    assert {tuple(step.count for step in steps) for steps in ranks} == {tuple(step.count for step in ranks[0])}
    assert sum(step.count for step in ranks[0]) == NUM


def test_ranks_share_the_same_global_batches(packed: dict[str, Path], tokenizer: tokenizers.Tokenizer) -> None:
    def global_batches(world: int) -> list[set[str]]:
        ranks = [epoch(loader(packed["features"], tokenizer, rank, world)) for rank in range(world)]
        return [set(ids(steps)) for steps in zip(*ranks, strict=True)]

    assert global_batches(1) == global_batches(2) == global_batches(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_where_it_was_interrupted(
    workers: int, packed: dict[str, Path], tokenizer: tokenizers.Tokenizer
) -> None:
    augment = AugmentConfig(spec_augment=SpecAugmentConfig(time_width=5, frequency_width=2))
    more = {"workers": workers, "buffer_mb": 0.02, "augment": augment}
    whole = loader(packed["features"], tokenizer, **more)
    first = whole.num_steps(0)
    expected = list(islice(whole.steps(), first + 4))
    assert whole.plan.num_windows > 2
    for start in (1, first // 2, first - 1):
        again = loader(packed["features"], tokenizer, **more)
        assert_same(expected[start:], islice(again.steps(0, start), first + 4 - start))
    assert_same(expected[first + 1 :], islice(loader(packed["features"], tokenizer, **more).steps(1, 1), 3))


def test_the_order_is_a_function_of_seed_and_epoch(packed: dict[str, Path], tokenizer: tokenizers.Tokenizer) -> None:
    made = loader(packed["features"], tokenizer)
    assert ids(epoch(made)) == ids(epoch(loader(packed["features"], tokenizer)))
    assert ids(epoch(made)) != ids(epoch(made, 1))
    assert ids(epoch(made)) != ids(epoch(loader(packed["features"], tokenizer, seed=1)))


def test_a_plan_over_many_members_mixes_lengths_and_wastes_little() -> None:
    number = 20000
    index = object.__new__(ShardIndex)
    rng = np.random.default_rng(0)
    index.archives = [f"{n}.tar" for n in range(20)]
    index.archive = np.repeat(np.arange(20, dtype=np.int32), number // 20)
    index.size = rng.integers(20_000, 400_000, number)
    index.offset = np.concatenate([np.cumsum(part) for part in np.split(index.size, 20)])
    lengths = index.size / 32_000
    config = BatchConfig(seconds=120)
    plan = shard_loader.ShardPlan(index, lengths, config, 0, buffer_mb=400)
    batches = plan.epoch(3)
    assert sorted(i for batch in batches for i in batch) == list(range(number))
    padded = sum(plan.padded_seconds(batch) for batch in batches)
    assert 1 - lengths.sum() / padded < 0.06
    assert all(plan.padded_seconds(batch) <= 120 * (1 + 1e-6) for batch in batches)
    for window in plan.windows(3):
        assert sum(int(index.size[batch].sum()) for batch in window) < 400e6 + 400_000
    longest = [lengths[batch].max() for batch in batches]
    assert abs(np.mean(longest[: len(longest) // 2]) - np.mean(longest[len(longest) // 2 :])) < 1


# -- reading ---------------------------------------------------------------


class Recorder(shard_loader.Archives):
    """Notes what is read, and how much of it nobody has used yet."""

    reads: list[tuple[int, int]] = []
    held = most = 0

    def read(self, place: int):
        Recorder.reads.append((int(self.index.archive[place]), int(self.index.offset[place])))
        data = super().read(place)
        Recorder.held += len(data)
        Recorder.most = max(Recorder.most, Recorder.held)
        return data


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.reads, Recorder.held, Recorder.most = [], 0, 0
    monkeypatch.setattr(shard_loader, "Archives", Recorder)
    return Recorder


@pytest.mark.parametrize("world", [1, 2])
def test_archives_are_read_from_end_to_end_one_after_the_other(
    world: int, packed: dict[str, Path], tokenizer: tokenizers.Tokenizer, recorder: type[Recorder]
) -> None:
    read: list[tuple[int, int]] = []
    for rank in range(world):
        recorder.reads = []
        made = loader(packed["audio"], tokenizer, rank, world, input="waveform", buffer_mb=0.15)
        steps = made.steps()
        own = ids(islice(steps, made.num_steps(0)))
        steps.close()
        mine = recorder.reads[: len(own)]
        archives = [archive for archive, _ in mine]
        order = list(dict.fromkeys(archives))
        assert archives == sorted(archives, key=order.index)  # none is opened a second time
        assert all(a[0] != b[0] or a[1] < b[1] for a, b in zip(mine, mine[1:], strict=False))
        read += mine
    assert len(set(read)) == len(read) == NUM


def test_no_more_than_two_windows_are_in_memory(
    packed: dict[str, Path], tokenizer: tokenizers.Tokenizer, recorder: type[Recorder]
) -> None:
    made = loader(packed["audio"], tokenizer, input="waveform", buffer_mb=0.1)
    sizes = dict(zip((u.id for u in made.dataset.utterances), made.index.size.tolist(), strict=True))
    for _ in range(2):
        for step in islice(made.steps(), 2 * made.num_steps(0)):
            recorder.held -= sum(sizes[name] for batch in step.batches for name in batch.ids)
        recorder.held = 0
    window, step = 0.1e6 + max(sizes.values()), 3 * 32000
    assert sum(sizes.values()) > 6e5 and 0.1e6 < recorder.most <= 2 * window + step


def test_shards_give_what_single_files_give(
    source: Path, packed: dict[str, Path], tokenizer: tokenizers.Tokenizer
) -> None:
    config = DataConfig(batch=BatchConfig(seconds=3), workers=0, features="online")
    plain = Dataset(datadir.read(source), tokenizer, config, training=True)
    by_id = {u.id: n for n, u in enumerate(plain.utterances)}
    for step in epoch(loader(packed["audio"], tokenizer, features="online")):
        for batch in step.batches:
            for name, row in zip(batch.ids, batch.inputs.unpad(), strict=True):
                assert torch.equal(row, plain.example(by_id[name]).inputs)


def test_a_batch_can_be_read_without_the_loader(packed: dict[str, Path], tokenizer: tokenizers.Tokenizer) -> None:
    assert isinstance(loader(packed["features"], tokenizer).longest(), Batch)


# -- bad shards ------------------------------------------------------------


@pytest.fixture
def damaged(source: Path, tmp_path: Path) -> Path:
    """Shards of features in which the content of u07 was changed by one bit."""
    folder = make(source, tmp_path / "damaged", of="features", size_mb=0.02)
    index = ShardIndex(folder, ["u07"])
    with open(index.archives[0], "r+b") as stream:
        stream.seek(int(index.offset[0]) + 40)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_member_is_named_counted_and_left_out(
    workers: int, damaged: Path, tokenizer: tokenizers.Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    steps = epoch(loader(damaged, tokenizer, workers=workers))
    assert [name for step in steps for name in step.skipped] == ["u07"]
    assert sorted(ids(steps)) == [f"u{n:02}" for n in range(NUM) if n != 7]
    assert sum(step.count for step in steps) == NUM
    assert "skipped 1 of" in caplog.text and "u07: " in caplog.text and "its checksum is another one" in caplog.text


def test_archives_that_are_missing_or_torn_are_told_before_the_first_step(
    source: Path, tmp_path: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    folder = make(source, tmp_path / "torn", of="features", size_mb=0.02)
    path = sorted(folder.glob("shard-*.tar"))[1]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match=r"shard-00001.tar: \d+ bytes, but its last member ends at byte \d+; copy"):
        loader(folder, tokenizer)
    path.unlink()
    with pytest.raises(ShardError, match="shard-00001.tar: no such file or directory; copy the shard there again"):
        loader(folder, tokenizer)


def test_an_archive_that_disappears_in_training_skips_its_members(
    source: Path, tmp_path: Path, tokenizer: tokenizers.Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(source, tmp_path / "torn", of="features", size_mb=0.02)
    made = loader(folder, tokenizer, buffer_mb=0.02)
    gone = next(iter(sorted(folder.glob("shard-*.tar"))))
    rows = [row.split() for row in (folder / FILE).read_text().splitlines()]
    lost = [row[0] for row in rows if row[1] == str(gone)]
    gone.unlink()
    steps = epoch(made)
    assert sorted(name for step in steps for name in step.skipped) == sorted(lost)
    assert "no such file or directory" in caplog.text


def test_a_set_without_shards_says_what_writes_them(source: Path, tokenizer: tokenizers.Tokenizer) -> None:
    config = DataConfig(batch=BatchConfig(seconds=3), shards=ShardConfig())
    with pytest.raises(ShardError, match=r"has no utt2shard, which data.shards needs; stage 1 with this config"):
        step_loader(Dataset(datadir.read(source), tokenizer, config, training=True), source)
    plain = replace(config, shards=None)
    assert type(step_loader(Dataset(datadir.read(source), tokenizer, plain, training=True), source)) is StepLoader


def test_what_goes_wrong_while_reading_ahead_is_raised_where_it_was_asked_for() -> None:
    def items() -> Iterable[int]:
        yield 1
        raise OSError("the disk is gone")

    made = one_ahead(items())
    assert next(made) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(made)
    assert list(one_ahead(iter([1, 2, 3]))) == [1, 2, 3]


def test_a_reference_to_something_else_is_refused(packed: dict[str, Path]) -> None:
    row = datadir.read(packed["audio"])[0]
    archive, offset = audio.member(row.audio)
    with pytest.raises(audio.AudioError, match="no member of the archive starts there"):
        audio.read(f"{archive}:{offset + 7}")
    with pytest.raises(audio.AudioError, match="no such file"):
        audio.read(f"{archive}x.tar:512")
