from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from asrtool.data import loader, tokenizers
from asrtool.data.config import (
    AugmentConfig,
    BatchConfig,
    DataConfig,
    NoiseConfig,
    SpecAugmentConfig,
    SpecSubConfig,
)
from asrtool.data.examples import Views
from asrtool.data.features import Cmvn
from asrtool.data.loader import Dataset, EvalLoader, StepLoader
from asrtool.errors import UserError
from asrtool.types import Batch, Utterance

BINS = 20
NUM = 40


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return tokenizers.train(["ab c"], "char", 0, tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Utterances of 0.5 to 4 seconds with random features."""
    folder = tmp_path_factory.mktemp("dump")
    rng = np.random.default_rng(0)
    arrays = {
        f"u{i:02}": rng.normal(size=(int(rng.integers(50, 400)), BINS)).astype(np.float32)
        for i in range(NUM)
    }
    kaldiio.save_ark(str(folder / "feats.ark"), arrays, scp=str(folder / "feats.scp"))
    refs = dict(line.split(maxsplit=1) for line in (folder / "feats.scp").read_text().splitlines())
    return [
        Utterance(
            id=name,
            audio="",
            duration=len(array) / 100,
            text="ab c"[: i % 5],
            speaker="s",
            labels={"accent": "north" if i % 2 else "east"} if i % 3 else {},
            features=refs[name],
            num_frames=len(array),
        )
        for i, (name, array) in enumerate(arrays.items())
    ]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Utterances of noise as wav files."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    made = []
    for i in range(8):
        samples = rng.normal(size=int(rng.integers(8000, 24000))).astype(np.float32) / 10
        soundfile.write(folder / f"{i}.wav", samples, 16000)
        made.append(
            Utterance(
                id=f"a{i}",
                audio=str(folder / f"{i}.wav"),
                duration=len(samples) / 16000,
                speaker="s",
            )
        )
    return made


def config(
    seconds: float = 12.0, per_device: float | None = None, workers: int = 0, **more: object
) -> DataConfig:
    return DataConfig(
        batch=BatchConfig(seconds=seconds, max_seconds_per_device=per_device),
        workers=workers,
        **more,
    )


def batches_of(steps: Iterable[loader.StepBatches]) -> list[Batch]:
    return [batch for step in steps for batch in step.batches]


def assert_same(left: Iterable[Batch], right: Iterable[Batch]) -> None:
    for a, b in zip(left, right, strict=True):
        assert (a.ids, a.texts) == (b.ids, b.texts)
        for one, other in ((a.inputs, b.inputs), (a.targets, b.targets)):
            assert torch.equal(one.data, other.data) and torch.equal(one.lengths, other.lengths)


# -- one batch -------------------------------------------------------------


def test_a_batch_holds_normalised_features_targets_labels_and_texts(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    cmvn = Cmvn(mean=np.full(BINS, 2.0, np.float32), std=np.full(BINS, 4.0, np.float32))
    dataset = Dataset(stored, tokenizer, config(), cmvn, {"accent": ["north", "west"]})
    batch, problems = dataset.reader.batch(stored[:6])
    assert problems == {}
    assert batch.ids == ("u00", "u01", "u02", "u03", "u04", "u05")
    assert batch.inputs.lengths.tolist() == [u.num_frames for u in stored[:6]]
    expected = (kaldiio.load_mat(stored[1].features) - 2) / 4
    np.testing.assert_allclose(batch.inputs.unpad()[1].numpy(), expected, atol=1e-6)
    assert batch.inputs.data.dtype == torch.float32
    assert [row.tolist() for row in batch.targets.unpad()] == [
        tokenizer.encode("ab c"[:i]) for i in range(5)
    ] + [[]]
    assert batch.targets.data.dtype == torch.int64
    assert batch.labels["accent"].tolist() == [-1, 0, -1, -1, -1, 0]
    assert batch.texts == ("", "a", "ab", "ab ", "ab c", "")


def test_padding_is_zero(stored: list[Utterance], tokenizer: tokenizers.Tokenizer) -> None:
    batch, _ = Dataset(stored, tokenizer, config()).reader.batch(stored[:6])
    assert not batch.inputs.data[~batch.inputs.mask].any()


def test_a_batch_of_empty_texts_has_no_targets(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    silent = [replace(utterance, text="") for utterance in stored[:3]]
    batch, _ = Dataset(silent, tokenizer, config()).reader.batch(silent)
    assert batch.targets.data.shape == (3, 0) and batch.targets.lengths.tolist() == [0, 0, 0]


def test_masks_are_drawn_in_training_alone_and_anew_in_every_epoch(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    masked = config(augment=AugmentConfig(spec_augment=SpecAugmentConfig()))
    plain = Dataset(stored, tokenizer, masked).example(0).inputs
    training = Dataset(stored, tokenizer, masked, training=True)
    first, second = training.example(0, 0).inputs, training.example(0, 1).inputs
    assert not torch.equal(first, plain) and not torch.equal(first, second)
    assert torch.equal(first, training.example(0, 0).inputs)
    assert torch.equal(first[first != 0], plain[first != 0])


def test_views_lie_side_by_side_and_differ_in_their_masks_alone(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    masked = config(augment=AugmentConfig(spec_augment=SpecAugmentConfig()))
    one = Dataset(stored, tokenizer, masked, training=True)
    two = Dataset(stored, tokenizer, masked, training=True, views=Views(2))
    plain = {u.id: one.reader._inputs(u, 0, None) for u in stored}
    single, double = (next(StepLoader(each).steps()) for each in (one, two))
    assert single.count == len(single.batches[0]) and double.count == len(double.batches[0])
    # so many seconds hold half as many utterances
    assert len(double.batches[0].inputs.data) * double.batches[0].inputs.data.shape[1] <= 12 * 100
    for batch in batches_of(islice(StepLoader(two).steps(), 5)):
        assert batch.views == 2 and batch.ids[::2] == batch.ids[1::2]
        for name, first, second in zip(
            batch.ids[::2], batch.inputs.unpad()[::2], batch.inputs.unpad()[1::2], strict=True
        ):
            assert not torch.equal(first, second)
            for view in (first, second):
                whole = torch.from_numpy(plain[name])
                assert torch.equal(view[view != 0], whole[view != 0])
    assert torch.equal(two.example(3).inputs, one.example(3).inputs)


def test_views_share_the_time_warp(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    warped = SpecAugmentConfig(warp=20, num_frequency_masks=1, num_time_masks=1)
    settings = config(augment=AugmentConfig(spec_augment=warped))
    views = Dataset(stored, tokenizer, settings, training=True, views=Views(2))
    plain = Dataset(stored, tokenizer, settings)
    moved = 0
    for utterance in stored:
        first, second = (one.inputs for one in views.reader.examples(utterance))
        seen = (first != 0) & (second != 0)
        assert torch.equal(first[seen], second[seen])
        whole = plain.reader._inputs(utterance, 0, None)
        moved += not torch.equal(first[seen], torch.from_numpy(whole)[seen])
    assert moved > len(stored) / 2


def test_views_may_have_more_time_masks(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    masks = SpecAugmentConfig(num_frequency_masks=0, time_width=1000, time_share=0.2)
    masked = config(augment=AugmentConfig(spec_augment=masks))
    shares = []
    for times in (1.0, 2.5):
        views = Views(2, times)
        reader = Dataset(stored, tokenizer, masked, training=True, views=views).reader
        made = [example.inputs for u in stored for example in reader.examples(u)]
        shares.append(np.mean([(inputs == 0).all(1).float().mean().item() for inputs in made]))
    assert shares[1] / shares[0] == pytest.approx(2.5, rel=0.25)


def test_features_can_be_computed_from_the_audio(
    spoken: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    example = Dataset(spoken, tokenizer, config(features="online")).example(0)
    assert example.inputs.shape == (1 + (round(spoken[0].duration * 16000) - 400) // 160, 80)


def test_waveforms_come_as_they_are(
    spoken: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    example = Dataset(spoken, tokenizer, config(input="waveform")).example(0)
    np.testing.assert_array_equal(
        example.inputs.numpy(), soundfile.read(spoken[0].audio, dtype="float32")[0]
    )


def test_a_segment_is_cut_out_of_its_recording(
    spoken: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    segment = replace(spoken[0], recording="r", start=0.1, duration=0.25)
    example = Dataset([segment], tokenizer, config(input="waveform")).example(0)
    samples = soundfile.read(segment.audio, dtype="float32")[0]
    np.testing.assert_array_equal(example.inputs.numpy(), samples[1600:5600])


def test_dither_depends_on_utterance_and_epoch_and_leaves_torchs_generator_alone(
    spoken: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    noisy = config(features="online", fbank=replace(config().fbank, dither=1.0))
    dataset = Dataset(spoken, tokenizer, noisy)
    before = torch.get_rng_state()
    first, second = dataset.example(0, 0).inputs, dataset.example(0, 1).inputs
    assert torch.equal(first, dataset.example(0, 0).inputs) and not torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_planned_lengths_have_room_for_the_slowest_speed(
    spoken: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    slow = config(features="online", augment=AugmentConfig(speeds=(0.8, 1.0)))
    training = Dataset(spoken, tokenizer, slow, training=True)
    durations = [utterance.duration for utterance in spoken]
    np.testing.assert_allclose(training.lengths, np.array(durations) / 0.8)
    np.testing.assert_allclose(Dataset(spoken, tokenizer, slow).lengths, durations)


# -- steps -----------------------------------------------------------------


def test_an_epoch_holds_every_utterance_once_and_marks_its_last_step(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    made = StepLoader(Dataset(stored, tokenizer, config(), training=True))
    steps = list(islice(made.steps(), made.num_steps(0)))
    ids = sorted(name for batch in batches_of(steps) for name in batch.ids)
    assert ids == [utterance.id for utterance in stored]
    assert [step.last for step in steps] == [False] * (len(steps) - 1) + [True]
    assert [step.index for step in steps] == list(range(len(steps)))
    assert sum(step.count for step in steps) == NUM


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(
    workers: int, stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    augmented = config(
        per_device=6.0, augment=AugmentConfig(spec_augment=SpecAugmentConfig(warp=5))
    )
    here = StepLoader(Dataset(stored, tokenizer, augmented, training=True, seed=3))
    there = StepLoader(
        Dataset(stored, tokenizer, replace(augmented, workers=workers), training=True, seed=3)
    )
    number = here.num_steps(0) + here.num_steps(1)
    expected, found = list(islice(here.steps(), number)), list(islice(there.steps(), number))
    assert_same(batches_of(expected), batches_of(found))
    assert [(s.epoch, s.index, s.count, s.last) for s in expected] == [
        (s.epoch, s.index, s.count, s.last) for s in found
    ]


def test_a_number_that_nobody_chose_yet_changes_nothing_either(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    """`auto` until the trainer decides, and after it did, in the middle of a run."""
    here = StepLoader(Dataset(stored, tokenizer, config(), training=True, seed=3))
    auto = replace(config(), workers="auto")
    there = StepLoader(Dataset(stored, tokenizer, auto, training=True, seed=3))
    assert (here.workers, there.workers) == (0, None)
    assert there.pace(1, 1) > 0
    for workers in (None, 1):
        there.workers = workers
        assert_same(
            batches_of(list(islice(here.steps(), 3))), batches_of(list(islice(there.steps(), 3)))
        )


def test_a_run_goes_on_where_it_was_interrupted(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    augmented = config(augment=AugmentConfig(spec_augment=SpecAugmentConfig()))
    whole = StepLoader(Dataset(stored, tokenizer, augmented, training=True))
    first = whole.num_steps(0)
    expected = list(islice(whole.steps(), first + 5))
    again = StepLoader(Dataset(stored, tokenizer, augmented, training=True))
    assert_same(batches_of(expected[3:]), batches_of(islice(again.steps(0, 3), first + 2)))
    assert_same(batches_of(expected[first + 2 :]), batches_of(islice(again.steps(1, 2), 3)))


def test_substituted_frames_do_not_depend_on_the_batch(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    augmented = AugmentConfig(spec_sub=SpecSubConfig(time_width=5))
    rows = []
    for seconds in (4.0, 9.0):  # other batches, other padding, the same frames of each utterance
        dataset = Dataset(
            stored, tokenizer, config(per_device=seconds, augment=augmented), training=True
        )
        steps = StepLoader(dataset)
        found = batches_of(islice(steps.steps(), steps.num_steps(0)))
        rows.append(
            {
                name: frames
                for batch in found
                for name, frames in zip(batch.ids, batch.inputs.unpad(), strict=True)
            }
        )
    assert rows[0].keys() == rows[1].keys()
    assert all(torch.equal(rows[0][name], rows[1][name]) for name in rows[0])
    plain = Dataset(stored, tokenizer, config(), training=True)
    one = next(iter(batches_of(islice(StepLoader(plain).steps(), 1))))
    assert not torch.equal(one.inputs.unpad()[0], rows[0][one.ids[0]])


def test_loading_leaves_torchs_generator_alone(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    before = torch.get_rng_state()
    list(
        islice(StepLoader(Dataset(stored, tokenizer, config(workers=1), training=True)).steps(), 2)
    )
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_share_each_global_batch(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    dataset = Dataset(stored, tokenizer, config(per_device=4.0), training=True)
    alone = StepLoader(dataset, rank=0, world=1)
    ranks = [StepLoader(dataset, rank=rank, world=3).steps() for rank in range(3)]
    for step in islice(alone.steps(), alone.num_steps(0)):
        shares = [next(rank) for rank in ranks]
        assert {share.count for share in shares} == {step.count}
        assert sorted(i for b in batches_of(shares) for i in b.ids) == sorted(
            i for b in step.batches for i in b.ids
        )
        for batch in batches_of(shares):
            assert len(batch) == 1 or len(batch) * batch.inputs.lengths.max() <= 400


def test_a_step_smaller_than_the_number_of_ranks_leaves_some_without(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    dataset = Dataset(stored[:2], tokenizer, config(), training=True)
    steps = [next(StepLoader(dataset, rank=rank, world=3).steps()) for rank in range(3)]
    assert [len(step.batches) for step in steps] == [1, 1, 0]
    assert [step.count for step in steps] == [2, 2, 2]


def test_the_longest_batch_can_be_tried_first(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    longest = max(stored, key=lambda utterance: utterance.duration)
    assert (
        longest.id in StepLoader(Dataset(stored, tokenizer, config(), training=True)).longest().ids
    )


def test_an_utterance_longer_than_a_batch_is_named(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    long = replace(stored[0], duration=99.0)
    StepLoader(Dataset([*stored[1:], long], tokenizer, config(), training=True))
    assert (
        "1 utterances are longer than the batch limit; each becomes a batch of its own: u00"
        in caplog.text
    )


# -- bad data --------------------------------------------------------------


@pytest.fixture
def damaged(stored: list[Utterance], tmp_path: Path) -> list[Utterance]:
    """As `stored`, but u05 holds NaN and u07 points nowhere."""
    array = np.ones((100, BINS), np.float32)
    array[3, 4] = np.nan
    kaldiio.save_ark(str(tmp_path / "bad.ark"), {"u05": array}, scp=str(tmp_path / "bad.scp"))
    bad = (tmp_path / "bad.scp").read_text().split()[1]
    changed = {"u05": bad, "u07": str(tmp_path / "nowhere.ark:7")}
    return [
        replace(utterance, features=changed.get(utterance.id, utterance.features))
        for utterance in stored
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_utterances_are_left_out_named_and_still_counted(
    workers: int,
    damaged: list[Utterance],
    tokenizer: tokenizers.Tokenizer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = StepLoader(Dataset(damaged, tokenizer, config(workers=workers), training=True))
    steps = list(islice(made.steps(), made.num_steps(0)))
    ids = {name for batch in batches_of(steps) for name in batch.ids}
    assert ids == {utterance.id for utterance in damaged} - {"u05", "u07"}
    assert (
        sorted(name for step in steps for name in step.skipped)
        == ["u05", "u07"]
        == sorted(made.skipped)
    )
    assert sum(step.count for step in steps) == NUM
    assert "u05: NaN or infinite values" in caplog.text and "nowhere.ark" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_decoding_stops_at_an_unreadable_utterance_with_one_sentence(
    workers: int, damaged: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    with pytest.raises(UserError, match=r"^an utterance cannot be read: u0[57]: [^\n]*$"):
        list(EvalLoader(Dataset(damaged, tokenizer, config(workers=workers))))


def test_training_on_next_to_nothing_stops(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    gone = [replace(utterance, features="/nowhere/feats.ark:5") for utterance in stored]
    with pytest.raises(UserError, match="utterances could not be read; the last reason: u"):
        list(islice(StepLoader(Dataset(gone, tokenizer, config(), training=True)).steps(), 100))


def test_training_without_features_says_what_to_do(
    spoken: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    with pytest.raises(UserError, match="a0: it has no stored features .*data.features: online"):
        Dataset(spoken, tokenizer, config(), training=True).example(0)


def test_decoding_without_features_computes_them(
    spoken: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    stored, online = (
        Dataset(spoken, tokenizer, config(features=kind)) for kind in ("stored", "online")
    )
    assert torch.equal(stored.example(0).inputs, online.example(0).inputs)


@pytest.mark.parametrize("seconds", [0.0, float("nan")])
def test_an_utterance_without_a_duration_is_named(
    seconds: float, stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    with pytest.raises(UserError, match="u03: the duration is .* expected more than 0"):
        Dataset([*stored[:3], replace(stored[3], duration=seconds)], tokenizer, config())


def test_audio_too_short_for_one_frame_is_named(
    tmp_path: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    soundfile.write(tmp_path / "click.wav", np.zeros(100), 16000)
    click = Utterance(
        id="click", audio=str(tmp_path / "click.wav"), duration=100 / 16000, speaker="s"
    )
    with pytest.raises(
        UserError, match="click: 0.00625 seconds of audio are too short for one frame"
    ):
        Dataset([click], tokenizer, config(features="online")).example(0)


def test_a_noise_set_that_was_not_given_is_an_error(
    spoken: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    noisy = config(features="online", augment=AugmentConfig(noise=NoiseConfig(set="musan")))
    with pytest.raises(ValueError, match=r"there is no set 'musan'"):
        Dataset(spoken, tokenizer, noisy, training=True)
    Dataset(spoken, tokenizer, noisy)


def test_characters_without_a_token_are_counted_and_named_at_the_start(
    stored: list[Utterance], tokenizer: tokenizers.Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [replace(stored[0], text="aüxü"), replace(stored[1], text="ü"), stored[2]]
    Dataset(odd, tokenizer, config())
    expected = (
        "2 characters, in 2 of 3 utterances, are not in the vocabulary and become <unk>: "
        "'ü' (3x), 'x' (1x)"
    )
    assert expected in caplog.text


def test_utterances_outside_the_limits_are_left_out_counted_and_named(
    stored: list[Utterance], caplog: pytest.LogCaptureFixture
) -> None:
    some = [
        replace(stored[i], duration=seconds) for i, seconds in enumerate([0.05, 1.0, 31.0, 30.0])
    ]
    some[3] = replace(some[3], text="")
    kept, left_out = loader.select(some, config())
    assert [utterance.id for utterance in kept] == ["u01", "u03"]
    assert [utterance.id for utterance in left_out] == ["u00", "u02"]
    assert (
        "1 of 4 training utterances are shorter than 0.1 seconds and left out: u00" in caplog.text
    )
    assert "1 of 4 training utterances are longer than 30 seconds and left out: u02" in caplog.text
    assert (
        "1 of 4 training utterances have an empty text, which teaches the model to output nothing"
    ) in caplog.text


def test_limits_that_leave_nothing_are_an_error(stored: list[Utterance]) -> None:
    with pytest.raises(
        UserError, match="none of 40 utterances is between 100 and 200 seconds long"
    ):
        loader.select(stored, config(min_seconds=100.0, max_seconds=200.0))


# -- evaluation ------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_reads_every_utterance_once_longest_first(
    world: int, stored: list[Utterance], tokenizer: tokenizers.Tokenizer
) -> None:
    dataset = Dataset(stored, tokenizer, config())
    loaders = [EvalLoader(dataset, 8.0, rank=rank, world=world) for rank in range(world)]
    ids = []
    for made in loaders:
        batches = list(made)
        assert len(batches) == len(made)
        longest = [int(batch.inputs.lengths.max()) for batch in batches]
        assert longest == sorted(longest, reverse=True)
        assert all(len(batch) * batch.inputs.lengths.max() <= 800 for batch in batches)
        ids += [name for batch in batches for name in batch.ids]
    assert sorted(ids) == [utterance.id for utterance in stored]
