"""Columns of data directories: what array operations read is what line by line reading reads."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asrtool.data.kaldi import datadir, reading
from asrtool.data.kaldi.columns import Coded, Columns, Strings
from asrtool.data.kaldi.form import Irregular
from asrtool.data.kaldi.utterances import Utterances
from asrtool.types import Utterance

WORDS = ["ONE", "TWO", "你好", "é", "e\u0301", "\u3000", "x\x1fy", "\U0001f600"]
PATHS = ["/c/a b/{}.wav", "{}.flac", "dir/{}.tar:512", "sox -v 1 /x/{}.wav -t wav - |", "/{}/é.wav"]
COUNT = 40


def write(folder: Path, seed: int) -> None:
    """A random valid data directory; about half of the files that it may have."""
    rng = random.Random(seed)
    ids = sorted({f"{rng.choice('aböß')}{'x' * rng.randint(0, 20)}{n}" for n in range(COUNT)})
    space = lambda: rng.choice([" ", " ", "\t", "  ", " \t "])  # noqa: E731
    end = lambda: rng.choice(["\n", "\n", "\n", " \n", "\t \n"])  # noqa: E731

    def table(name: str, values: dict[str, str]) -> None:
        lines = (f"{key}{space()}{value}{end()}" for key, value in values.items())
        (folder / name).write_text("".join(lines), encoding="utf-8", newline="\n")

    def some(make) -> dict[str, str]:
        return {key: make() for key in ids if rng.random() < 0.7} or {ids[0]: make()}

    folder.mkdir(parents=True)
    path = lambda: rng.choice(PATHS).format(rng.randint(0, 9))  # noqa: E731
    seconds = lambda: rng.choice(["1", "2.5", "1e1", "0.123456789", "7."])  # noqa: E731
    if seed % 3 == 0:
        recordings = sorted({f"rec{rng.randint(0, 9)}" for _ in range(4)})
        table("wav.scp", {key: path() for key in recordings})
        cut = lambda: f"{rng.choice(recordings)}{space()}{rng.random()} {rng.choice(['-1', 4.25])}"  # noqa: E731
        table("segments", {key: cut() for key in ids})
    else:
        table("wav.scp", {key: path() for key in ids})
    text = lambda: " ".join(rng.choices(WORDS, k=rng.randint(0, 4)))  # noqa: E731
    files = {
        "text": {key: text() for key in ids},
        "utt2spk": {key: key[0] for key in ids},
        "utt2dur": {key: seconds() for key in ids},
        "feats.scp": {key: f"f/feats.{rng.randint(1, 3)}.ark:{rng.randint(5, 99)}" for key in ids},
        "utt2num_frames": {key: str(rng.randint(1, 999)) for key in ids},
        "utt2accent": some(lambda: rng.choice(["Scots", "north west"])),
        "utt2uniq": some(lambda: "u"),
        "utt2shard": some(lambda: "a.tar 512 10 0000abcd"),
    }
    for name, values in files.items():
        if rng.random() < 0.6:
            table(name, values)
    if rng.random() < 0.5:
        table("spk2accent", {key[0]: "Welsh" for key in ids if key[0] != "b"})


def damage(folder: Path, seed: int) -> None:
    """Change a byte or a line of a file."""
    rng = random.Random(seed)
    path = rng.choice(sorted(folder.iterdir()))
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    here = rng.randrange(len(content))
    number = rng.randrange(len(lines))
    bytes_ = [
        b"\n",
        b" ",
        b"\t",
        b"\r",
        b"\0",
        b"\xff",
        b"0",
        b"-",
        b"inf",
        b"\xef\xbb\xbf",
        b"\r\n",
    ]
    changed = rng.choice(
        [
            content[:here] + rng.choice(bytes_) + content[here + 1 :],
            content[:here] + rng.choice(bytes_) + content[here:],
            b"".join(lines[:number] + lines[number + 1 :]),
            b"".join(lines[:number] + lines[number : number + 1] + lines[number:]),
            b"".join(rng.sample(lines, len(lines))),
            content[:here],
        ]
    )
    path.write_bytes(changed)


@pytest.mark.parametrize("seed", range(12))
def test_all_lines_at_once_are_what_they_are_one_by_one(tmp_path: Path, seed: int) -> None:
    write(tmp_path / "set", seed)
    found, expected = reading.columns(tmp_path / "set"), datadir._explained(tmp_path / "set")
    assert len(found) == len(expected) > COUNT // 2
    assert same([found[i] for i in range(len(found))], [expected[i] for i in range(len(found))])
    again = Columns.of_arrays(found.arrays())
    assert same([found[i] for i in range(len(found))], [again[i] for i in range(len(found))])


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_wrong_it_reads_as_one_by_one_or_leaves_it_to_that(
    tmp_path: Path, seed: int, monkeypatch
) -> None:
    monkeypatch.setattr("asrtool.data.kaldi.spans.BLOCK", 200)  # lines from several blocks
    refused = 0
    for number in range(40):
        folder = tmp_path / str(number)
        write(folder, 40 * seed + number)
        damage(folder, 40 * seed + number)
        try:
            found = reading.columns(folder)
        except Irregular:
            refused += 1
            continue
        expected = datadir._explained(folder)  # no UserError
        rows = range(len(expected))
        assert same([found[i] for i in rows], [expected[i] for i in rows]), number
    assert 10 < refused < 40


# -- many at once ----------------------------------------------------------


def three() -> list[Utterance]:
    one = Utterance(
        id="a-1",
        audio="x/1.wav",
        duration=1.5,
        text="ÉÉ A",
        speaker="a",
        labels={"accent": "Scots"},
    )
    two = replace(one, id="a-2", text="", labels={}, features="f.ark:5", num_frames=7, start=0.5)
    return [
        one,
        two,
        replace(one, id="b-1", audio="sox 1 |", text="😀 é B", recording="r", speaker="b"),
    ]


def test_utterances_are_given_back_as_they_were_taken() -> None:
    rows = Utterances.of(three())
    assert rows == three() and rows[-1] == three()[2] and rows[1:] == three()[1:]
    assert rows != three()[1:] and Utterances.of(rows) is rows
    assert rows.take(np.array([2, 0])) == [three()[2], three()[0]]
    assert rows.take(rows.durations < 0) == [] and not Utterances.of([])
    with pytest.raises(IndexError):
        rows[3]


def test_groups_are_joined_and_keep_what_was_chosen_of_each() -> None:
    other = [replace(row, id=f"z{row.id}") for row in three()]
    both = Utterances.joined([Utterances.of(three())[1:].with_label("set", "one"), other])
    expected = [replace(row, labels={**row.labels, "set": "one"}) for row in three()[1:]] + other
    assert (
        both == expected
        and both[1:4] == expected[1:4]
        and list(both.ids) == [u.id for u in expected]
    )
    assert both.with_durations(np.arange(5.0)).take(np.array([4]))[0].duration == 4.0
    assert both.label("set", ["none", "one"]).tolist() == [1, 1, -1, -1, -1]
    assert both.label("accent", ["Scots"]).tolist() == [-1, 0, 0, -1, 0]


def test_transcripts_are_counted_without_an_object_for_each() -> None:
    rows = Utterances.of([*three(), *three()[::-1]])[1:5]
    texts = [row.text for row in rows]
    assert rows.characters.tolist() == [len(text) for text in texts]
    assert rows.has_text.tolist() == [bool(text) for text in texts]
    assert rows.alphabet() == set("".join(row.text for row in three()))
    counts, number = rows.occurrences({"É", "😀", "Z"})
    assert counts == Counter({"😀": 2}) and number == 2
    without = Utterances([replace(Columns.of(three()), texts=None)])
    assert [row.text for row in without] == [""] * 3
    assert not without.has_text.any() and without.alphabet() == set()


def test_an_id_of_two_sets_is_found() -> None:
    rows = Utterances.of(three())
    others = Utterances.of(
        [replace(row, id=key) for row, key in zip(three(), ["0", "a-2", "b-1"], strict=True)]
    )
    assert rows.shared_id(others) == "a-2" and rows[:1].shared_id(others) is None


@pytest.mark.parametrize("count", [0, 1, 70_000])
def test_strings_are_cut_where_they_were_joined(count: int) -> None:
    texts = [f"{'é' * (n % 3)}{n}" if n % 1000 == 0 else str(n) for n in range(count)]
    strings = Strings.of(texts)
    assert list(strings) == texts
    assert strings.characters.tolist() == list(map(len, texts))
    assert [key.decode() for key in strings.keys().tolist()] == texts
    assert list(strings.take(np.arange(count)[::-2])) == texts[::-2]
    assert list(Strings.joined([strings, Strings.of(["", "x"])])) == [*texts, "", "x"]
    rows, found = strings.find("é7")
    assert Counter(zip(rows.tolist(), map(chr, found.tolist()), strict=True)) == Counter(
        (row, character)
        for row, text in enumerate(texts)
        for character in text
        if character in "é7"
    )


def test_what_begins_alike_is_stored_once() -> None:
    paths = [f"/a/long/folder/{n % 2}/{n}.wav" for n in range(1000)]
    coded = Coded.of(paths, "/")
    assert [coded[n] for n in range(1000)] == paths
    assert list(coded.values) == ["/a/long/folder/0/", "/a/long/folder/1/"]
    assert [Coded.of([None, "a|b", None])[n] for n in range(3)] == [None, "a|b", None]


def test_an_utterance_of_60_characters_takes_less_than_200_bytes(tmp_path: Path) -> None:
    some = Utterance(
        id="", audio="", duration=1.0, speaker="", labels={"accent": "north"}, num_frames=500
    )
    with datadir.Writer(tmp_path, segmented=False) as writer:
        for n in range(20_000):
            speaker = f"speaker-{n // 500:05}"
            key = f"{speaker}-{n % 500:05}"
            path, features = (
                f"/corpora/read/{speaker}/{key}.flac",
                f"dump/feats.{n // 500}.ark:{n}",
            )
            row = replace(some, id=key, speaker=speaker, audio=path, features=features)
            writer.add(replace(row, text=f"{'A WORD ' * 9}{n % 1000:03}"[-60:]))
    size = sum(array.nbytes for array in reading.columns(tmp_path).arrays().values())
    assert size / 20_000 < 200


def same(found: list[Utterance], expected: list[Utterance]) -> bool:
    """Whether utterances are equal; unknown durations are, too."""
    known = [
        [replace(u, duration=-1.0) if math.isnan(u.duration) else u for u in rows]
        for rows in (found, expected)
    ]
    return known[0] == known[1]
