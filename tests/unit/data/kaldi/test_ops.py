from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.bin import data
from asrtool.data import audio
from asrtool.data.kaldi import datadir, ops
from asrtool.errors import UserError
from asrtool.types import Utterance

SPEAKERS = {"ann": 5, "bob": 3, "cyd": 2}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Ten utterances of three speakers with labels, and Kaldi's further files."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    rows = [
        Utterance(
            id=f"{speaker}-{n}",
            audio=str(tmp_path / "a.wav"),
            duration=1.0 + n / 4,
            text=f"TEXT {n}",
            speaker=speaker,
            labels={"subdialect": "Jiao-Liao"} if n % 2 else {},
        )
        for speaker, count in SPEAKERS.items()
        for n in range(count)
    ]
    folder = tmp_path / "set"
    datadir.write(folder, rows)
    ids = [row.id for row in rows]
    (folder / "feats.scp").write_text(
        "".join(f"{key} gone/f.ark:{n}\n" for n, key in enumerate(ids))
    )
    (folder / "f.ark").touch()
    (folder / "cmvn.scp").write_text(
        "".join(f"{name} c.ark:{n}\n" for n, name in enumerate(SPEAKERS))
    )
    (folder / "spk2gender").write_text("ann f\nbob m\ncyd f\n")
    (folder / "reco2file_and_channel").write_text("".join(f"{key} {key} A\n" for key in ids))
    (folder / "frame_shift").write_text("0.01\n")
    return folder


@pytest.fixture
def segmented(tmp_path: Path) -> Path:
    """Two recordings of four seconds, two segments in each."""
    rows = []
    for name in ("r1", "r2"):
        soundfile.write(
            tmp_path / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, 64000), 16000
        )
        for n in range(2):
            common = {"audio": str(tmp_path / f"{name}.wav"), "recording": name, "text": "A"}
            rows.append(
                Utterance(id=f"s{n}-{name}", speaker=f"s{n}", start=2.0 * n, duration=1.5, **common)
            )
    datadir.write(tmp_path / "talks", rows)
    (tmp_path / "talks" / "reco2dur").write_text("r1 4\nr2 4\n")
    return tmp_path / "talks"


def run(*arguments: object) -> None:
    args = data.parse([str(argument) for argument in arguments])
    args.run(args)


def ids(folder: Path, name: str = "wav.scp") -> list[str]:
    return [line.split()[0] for line in (folder / name).read_text().splitlines()]


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def assert_whole(folder: Path) -> None:
    """Every file has exactly the utterances, speakers and recordings of the data directory."""
    assert not [problem for problem in datadir.check(folder) if problem.kind == "error"]
    utterances = ids(folder, "utt2spk")
    assert ids(folder, "text") == utterances
    speakers = sorted(set((folder / "utt2spk").read_text().split()[1::2]))
    for name in ("spk2utt", "spk2gender", "cmvn.scp"):
        if (folder / name).exists():
            assert ids(folder, name) == speakers


def test_a_copy_has_every_file(made: Path, tmp_path: Path) -> None:
    run("copy", made, tmp_path / "new")
    expected = files(made)
    del expected["f.ark"]
    expected["feats.scp"] = expected["feats.scp"].replace("gone", str(made))  # where it lies
    assert files(tmp_path / "new") == expected


def test_a_copy_with_prefixes_is_renamed_in_every_file(made: Path, tmp_path: Path) -> None:
    run("copy", "--utt-prefix", "x-", "--spk-prefix", "x-", made, tmp_path / "new")
    new = tmp_path / "new"
    assert_whole(new)
    assert files(new)["utt2spk"].splitlines()[0] == "x-ann-0 x-ann"
    assert files(new)["utt2subdialect"].splitlines()[0] == "x-ann-1 Jiao-Liao"
    assert files(new)["spk2gender"] == "x-ann f\nx-bob m\nx-cyd f\n"
    assert files(new)["utt2uniq"].splitlines()[0] == "x-ann-0 ann-0"
    assert ids(new) == ids(new, "feats.scp") == ids(new, "reco2file_and_channel")


def test_recordings_of_segments_keep_their_names_in_a_copy(segmented: Path, tmp_path: Path) -> None:
    run("copy", "--utt-suffix", "-x", segmented, tmp_path / "new")
    assert ids(tmp_path / "new") == ["r1", "r2"] == ids(tmp_path / "new", "reco2dur")
    assert ids(tmp_path / "new", "segments") == ["s0-r1-x", "s0-r2-x", "s1-r1-x", "s1-r2-x"]


def test_what_is_no_table_is_named(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asrtool")
    (made / "notes.md").write_text("mine")
    ops.copy(made, tmp_path / "new")
    assert (
        "not copied, because they are not tables of a data directory: f.ark, notes.md"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--first"], ["ann-0", "ann-1", "ann-2"]),
        (["--last"], ["bob-2", "cyd-0", "cyd-1"]),
        (["--shortest"], ["ann-0", "bob-0", "cyd-0"]),
        ([], ["ann-0", "ann-3", "bob-1"]),
    ],
)
def test_a_subset_by_number(
    made: Path, tmp_path: Path, options: list[str], expected: list[str]
) -> None:
    run("subset", *options, made, 3, tmp_path / "new")
    assert ids(tmp_path / "new") == expected
    assert_whole(tmp_path / "new")


def test_a_subset_of_each_speaker(made: Path, tmp_path: Path) -> None:
    run("subset", "--per-spk", made, 2, tmp_path / "new")
    assert files(tmp_path / "new")["spk2utt"] == (
        "ann ann-0 ann-2\nbob bob-0 bob-1\ncyd cyd-0 cyd-1\n"
    )


def test_a_subset_of_whole_speakers(made: Path, tmp_path: Path) -> None:
    run("subset", "--speakers", made, 4, tmp_path / "new")
    kept = files(tmp_path / "new")["spk2utt"].splitlines()
    assert 4 <= len(ids(tmp_path / "new")) < 10
    assert all(len(line.split()) - 1 == SPEAKERS[line.split()[0]] for line in kept)


def test_a_subset_by_lists(made: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("bob\ncyd\n")
    run("subset", "--spk-list", tmp_path / "list", made, tmp_path / "new")
    assert ids(tmp_path / "new") == ["bob-0", "bob-1", "bob-2", "cyd-0", "cyd-1"]
    (tmp_path / "list").write_text("cyd-1\nann-3 and what follows does not matter\n")
    run("subset", "--utt-list", tmp_path / "list", made, tmp_path / "new")
    assert ids(tmp_path / "new") == ["ann-3", "cyd-1"]
    (tmp_path / "list").write_text("zoe-1\n")
    with pytest.raises(UserError, match="list: 1 utterance not in .*; first zoe-1"):
        run("subset", "--utt-list", tmp_path / "list", made, tmp_path / "new")
    assert ids(tmp_path / "new") == ["ann-3", "cyd-1"]


def test_a_subset_of_segments_has_their_recordings_alone(segmented: Path, tmp_path: Path) -> None:
    run("subset", "--first", segmented, 1, tmp_path / "new")
    assert ids(tmp_path / "new") == ids(tmp_path / "new", "reco2dur") == ["r1"]


@pytest.mark.parametrize(("options", "folder"), [([], "split3"), (["--per-utt"], "split3utt")])
def test_parts_of_a_split_are_the_whole(made: Path, options: list[str], folder: str) -> None:
    run("split", *options, made, 3)
    parts = [made / folder / str(n) for n in (1, 2, 3)]
    for part in parts:
        assert_whole(part)
    assert [key for part in parts for key in ids(part)] == ids(made)
    sizes = [len(ids(part)) for part in parts]
    assert (
        sizes == (sorted(SPEAKERS.values(), reverse=True) if not options else [3, 4, 3])
        or max(sizes) == 4
    )


def test_a_split_keeps_speakers_or_recordings_whole(made: Path, segmented: Path) -> None:
    run("split", made, 2)
    speakers = [set(ids(made / "split2" / n, "spk2utt")) for n in "12"]
    assert not speakers[0] & speakers[1] and speakers[0] | speakers[1] == set(SPEAKERS)
    run("split", "--per-reco", segmented, 2)
    assert [ids(segmented / "split2reco" / n) for n in "12"] == [["r1"], ["r2"]]
    with pytest.raises(UserError, match="cannot be split into 4 parts.*speakers are not split"):
        run("split", made, 4)
    assert not (made / "split4").exists()


def test_what_was_split_combines_to_the_same_bytes(made: Path, tmp_path: Path) -> None:
    run("copy", made, tmp_path / "new")
    run("split", "--per-utt", tmp_path / "new", 4)
    run("combine", tmp_path / "whole", *(tmp_path / "new" / "split4utt").iterdir())
    assert files(tmp_path / "whole") == files(tmp_path / "new")


def test_combining_makes_up_what_one_source_lacks(
    made: Path, segmented: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (segmented / "text").unlink()
    run("combine", tmp_path / "both", made, segmented)
    both = tmp_path / "both"
    rows = {row.id: row for row in datadir.read(both)}
    assert len(rows) == 14 and rows["s0-r1"].text == "" and rows["ann-1"].text == "TEXT 1"
    assert (rows["ann-1"].start, rows["ann-1"].duration) == (0.0, 1.25)
    assert (rows["s1-r2"].start, rows["s1-r2"].duration) == (2.0, 1.5)
    assert rows["ann-1"].labels == {"subdialect": "Jiao-Liao", "gender": "f"}
    assert (
        not (both / "feats.scp").exists()
        and (f"{both}: no feats.scp, because {segmented} has none") in caplog.text
    )


def test_the_same_utterance_in_two_sources_is_refused(made: Path, tmp_path: Path) -> None:
    run("subset", "--first", made, 3, tmp_path / "part")
    with pytest.raises(
        UserError, match="utterance 'ann-0' is in both .*part and .*set; .* --utt-prefix"
    ):
        run("combine", tmp_path / "both", tmp_path / "part", made)
    assert not (tmp_path / "both").exists()


def test_speed_changes_times_names_and_audio(segmented: Path, tmp_path: Path) -> None:
    run("perturb-speed", 0.8, segmented, tmp_path / "slow")
    slow = tmp_path / "slow"
    assert not [problem for problem in datadir.check(slow) if problem.kind == "error"]
    row = datadir.read(slow)[2]
    assert (row.id, row.speaker, row.recording) == ("sp0.8-s1-r1", "sp0.8-s1", "sp0.8-r1")
    assert (row.start, row.duration) == (2.5, 1.875)
    assert files(slow)["reco2dur"] == "sp0.8-r1 5\nsp0.8-r2 5\n"
    assert row.audio == f"sox {tmp_path / 'r1.wav'} -t wav - speed 0.8 |"
    samples = audio.read(row.audio, row.start, row.duration)
    expected = audio.change_speed(audio.read(str(tmp_path / "r1.wav")), 0.8)[40000:70000]
    np.testing.assert_array_equal(samples, expected)
    assert audio.info(row.audio) == (16000, 1, 80000)


def test_speed_of_a_command_and_of_a_name_with_a_space(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a b.wav", np.full(16000, 0.1), 16000)
    for path in (str(tmp_path / "a b.wav"), f"cat '{tmp_path / 'a b.wav'}' |"):
        assert len(audio.read(audio.speed_command(path, 1.25))) == 12800
        assert len(audio.read(audio.speed_command(audio.speed_command(path, 1.25), 0.8))) == 16000


def test_a_faulty_source_is_refused_and_nothing_is_left(made: Path, tmp_path: Path) -> None:
    with open(made / "text", "a") as stream:
        stream.write("cyd-1 ANOTHER TEXT\n")
    with pytest.raises(UserError, match="text:11: 1 line with a different value for an earlier id"):
        run("copy", made, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="nowhere: expected a data directory"):
        run("copy", tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(UserError, match="source and destination are the same"):
        run("copy", made, made)


def test_other_files_of_the_target_stay(made: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    (new / "recordings").mkdir(parents=True)
    (new / "recordings" / "a.wav").write_text("precious")
    (new / "utt2accent").write_text("old north\n")
    run("copy", made, new)
    assert (new / "recordings" / "a.wav").read_text() == "precious" and not (
        new / "utt2accent"
    ).exists()


def test_even_parts_are_nonempty_and_balanced() -> None:
    groups = [[f"{g}-{n}" for n in range(size)] for g, size in enumerate([1, 1, 1, 50, 1, 1])]
    for number in range(1, 7):
        parts = ops.even_parts(groups, number)
        assert len(parts) == number and all(parts) and sum(parts, []) == sum(groups, [])
    assert ops.even_parts(groups, 7) is None
    assert [len(part) for part in ops.even_parts([["a"]] * 10, 4)] in (
        [3, 2, 3, 2],
        [2, 3, 2, 3],
    )
