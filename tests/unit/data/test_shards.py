"""Training from shards: the plan, the reading, what is damaged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from asrtool.data import tokenizers
from asrtool.data.config import (
    AugmentConfig,
    BatchConfig,
    DataConfig,
    ShardConfig,
    SpecAugmentConfig,
)
from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset, StepLoader
from asrtool.data.shards import loader as shard_loader
from asrtool.data.shards.index import FILE, ShardIndex
from asrtool.data.shards.loader import ShardLoader, one_ahead, step_loader
from asrtool.errors import UserError
from asrtool.types import Batch
from tests.unit.data.sharded import NUM, make, write_packed, write_source


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return tokenizers.train(["ab"], "char", 0, tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_packed(source, tmp_path_factory.mktemp("packed"))


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
    config = DataConfig(
        batch=batch, workers=workers, shards=ShardConfig(buffer_mb=buffer_mb), **more
    )
    utterances = datadir.read(folder)
    dataset = Dataset(utterances, tokenizer, config, training=True, seed=seed)
    return ShardLoader(
        dataset, ShardIndex(folder, [u.id for u in utterances]), rank=rank, world=world
    )


def epoch(made: StepLoader, number: int = 0) -> list:
    return list(islice(made.steps(number), made.num_steps(number)))


def ids(steps: Iterable) -> list[str]:
    return [name for step in steps for batch in step.batches for name in batch.ids]


def assert_same(left: Iterable, right: Iterable) -> None:
    for a, b in zip(left, right, strict=True):
        assert (a.count, a.epoch, a.index, a.last, a.skipped) == (
            b.count,
            b.epoch,
            b.index,
            b.last,
            b.skipped,
        )
        for one, other in zip(a.batches, b.batches, strict=True):
            assert one.ids == other.ids and torch.equal(one.inputs.data, other.inputs.data)


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
    assert {tuple(step.count for step in steps) for steps in ranks} == {
        tuple(step.count for step in ranks[0])
    }
    assert sum(step.count for step in ranks[0]) == NUM


def test_ranks_share_the_same_global_batches(
    packed: dict[str, Path], tokenizer: tokenizers.Tokenizer
) -> None:
    def global_batches(world: int) -> list[set[str]]:
        ranks = [epoch(loader(packed["features"], tokenizer, rank, world)) for rank in range(world)]
        return [set(ids(steps)) for steps in zip(*ranks, strict=True)]

    assert global_batches(1) == global_batches(2) == global_batches(3)


def test_loader_processes_of_several_ranks_change_nothing(
    packed: dict[str, Path], tokenizer: tokenizers.Tokenizer
) -> None:
    for rank in range(2):
        none, two = (
            epoch(loader(packed["features"], tokenizer, rank, 2, workers=n, buffer_mb=0.02))
            for n in (0, 2)
        )
        assert_same(none, two)


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
    assert_same(
        expected[first + 1 :], islice(loader(packed["features"], tokenizer, **more).steps(1, 1), 3)
    )


def test_the_order_is_a_function_of_seed_and_epoch(
    packed: dict[str, Path], tokenizer: tokenizers.Tokenizer
) -> None:
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
    sizes = dict(
        zip((u.id for u in made.dataset.utterances), made.index.size.tolist(), strict=True)
    )
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


def test_a_batch_can_be_read_without_the_loader(
    packed: dict[str, Path], tokenizer: tokenizers.Tokenizer
) -> None:
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
    assert (
        "skipped 1 of" in caplog.text
        and "u07: " in caplog.text
        and ("its checksum does not match") in caplog.text
    )


def test_archives_that_are_missing_or_torn_are_told_before_the_first_step(
    source: Path, tmp_path: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    folder = make(source, tmp_path / "torn", of="features", size_mb=0.02)
    path = sorted(folder.glob("shard-*.tar"))[1]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError,
        match=r"shard-00001.tar: incomplete, it has \d+ bytes but its last member ends "
        r"at byte \d+; copy",
    ):
        loader(folder, tokenizer)
    path.unlink()
    with pytest.raises(
        UserError, match="shard-00001.tar: no such file or directory; copy the shard there again"
    ):
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


def test_a_set_without_shards_says_what_writes_them(
    source: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    config = DataConfig(batch=BatchConfig(seconds=3), shards=ShardConfig())
    with pytest.raises(
        UserError, match=r"has no utt2shard, which data.shards needs; run stage 1 with this config"
    ):
        step_loader(Dataset(datadir.read(source), tokenizer, config, training=True), source)
    plain = replace(config, shards=None)
    assert (
        type(step_loader(Dataset(datadir.read(source), tokenizer, plain, training=True), source))
        is StepLoader
    )


def test_what_goes_wrong_while_reading_ahead_is_raised_where_it_was_asked_for() -> None:
    def items() -> Iterable[int]:
        yield 1
        raise OSError("the disk is gone")

    made = one_ahead(items())
    assert next(made) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(made)
    assert list(one_ahead(iter([1, 2, 3]))) == [1, 2, 3]
