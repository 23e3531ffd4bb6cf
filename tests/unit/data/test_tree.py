"""Official trees: what must be there is named, audio and texts are found and joined, circles and
encodings cope.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asrtool.data import tree
from asrtool.errors import UserError


def touch(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def save(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# -- what must be there -------------------------------------------------------


def test_a_missing_file_is_named_with_what_is_there_instead(tmp_path: Path) -> None:
    touch(tmp_path / "Transcript" / "a.txt")
    with pytest.raises(
        UserError, match=r"there is no .*/transcript/a\.txt; '.*' contains " r"Transcript$"
    ):
        tree.need(tmp_path / "transcript" / "a.txt")


def test_an_archive_that_was_not_unpacked_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "test.tar.gz")
    with pytest.raises(
        UserError, match=r"there is no .*/test/wav\.scp; .*/test\.tar\.gz must be unpacked first$"
    ):
        tree.need(tmp_path / "test" / "wav.scp")


def test_the_folder_of_a_corpus_may_be_the_one_above(tmp_path: Path) -> None:
    touch(tmp_path / "data_aishell" / "wav" / "x")
    for folder in (tmp_path, tmp_path / "data_aishell"):
        assert tree.root(folder, "data_aishell", "wav") == tmp_path / "data_aishell"
    with pytest.raises(
        UserError, match=r"there is no .*/data_aishell/audio; '.*/data_aishell' " r"contains wav"
    ):
        tree.root(tmp_path, "data_aishell", "audio")


# -- audio --------------------------------------------------------------------


def test_audio_is_found_by_its_name_whatever_its_extension(tmp_path: Path) -> None:
    paths = [touch(tmp_path / name) for name in ("x/a-1.flac", "x/y/a-2.wav", "a-3.OGG")]
    touch(tmp_path / "notes.txt")
    assert tree.audio_by_id(tmp_path) == {Path(path).stem: path for path in paths}


def test_the_hidden_files_that_macos_adds_are_no_audio(tmp_path: Path) -> None:
    path = touch(tmp_path / "a-1.flac")
    touch(tmp_path / "._a-1.flac")
    assert tree.audio_by_id(tmp_path) == {"a-1": path}


def test_two_audio_files_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a-1.flac")
    touch(tmp_path / "y" / "a-1.wav")
    with pytest.raises(UserError, match=r"two .* 'a-1'; remove one: .*x/a-1\.flac, .*y/a-1\.wav"):
        tree.audio_by_id(tmp_path / "y", tmp_path / "x")


def test_a_list_of_files_runs_no_command(tmp_path: Path) -> None:
    odd = touch(tmp_path / "odd|")
    assert tree.listed(odd) == odd and tree.listed(f"{tmp_path}/gone.wav") == f"{tmp_path}/gone.wav"
    with pytest.raises(
        UserError, match="there is no file .*; commands in a corpus's file lists are not run"
    ):
        tree.listed(f"{tmp_path}/x;touch {tmp_path}/ran|")
    assert not (tmp_path / "ran").exists()


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "s1" / "a-1.wav")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "wav").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "corpus")
    assert tree.audio_by_id(tmp_path / "corpus") == {
        "a-1": str(tmp_path / "corpus" / "wav" / "s1" / "a-1.wav")
    }


# -- texts --------------------------------------------------------------------


def test_byte_order_mark_crlf_tabs_and_blank_lines_do_not_change_a_text(tmp_path: Path) -> None:
    path = save(tmp_path / "text", b"\xef\xbb\xbfa-1 ONE  TWO\r\n\r\na-2\tTHREE\r\na-3\r\n")
    assert tree.Table([path]) == {"a-1": "ONE TWO", "a-2": "THREE", "a-3": ""}


def test_a_second_text_for_an_id_is_refused_and_both_lines_are_named(tmp_path: Path) -> None:
    first, second = save(tmp_path / "1", "a-1 ONE\n"), save(tmp_path / "2", "a-2 TWO\na-1 OTHER\n")
    with pytest.raises(
        UserError, match=f"{second}:2: a-1 already has a text, {first}:1; remove one"
    ):
        tree.Table([first, second])


def test_a_line_that_does_not_begin_with_an_id_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text:2: expected an utterance id .* got 'TWO'"):
        tree.Table([save(tmp_path / "text", "a-1 ONE\nTWO\n")], r"a-\d")


def test_a_text_file_that_is_missing_empty_or_in_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text: expected UTF-8, but byte 4 is not"):
        tree.Table([save(tmp_path / "text", b"a-1 \xe9")])
    with pytest.raises(UserError, match="text: the file has no entry; expected"):
        tree.Table([save(tmp_path / "text", "\n\n")])
    with pytest.raises(UserError, match="there is no .*/gone; "):
        tree.Table([tmp_path / "gone"])


def test_a_table_with_a_header_is_read_by_its_columns(tmp_path: Path) -> None:
    path = save(tmp_path / "INFO.txt", "CHANNEL\tSPEAKER_ID \tREGION,CITY\r\nC0\t G1\tSichuan \r\n")
    assert tree.rows(path) == [{"CHANNEL": "C0", "SPEAKER_ID": "G1", "REGION,CITY": "Sichuan"}]


# -- both ---------------------------------------------------------------------


def test_text_without_audio_and_audio_without_text_are_both_named(tmp_path: Path) -> None:
    path = save(tmp_path / "text", "a-2 TWO\na-1 ONE\n")
    joined = tree.join(tree.Table([path]), {"a-1": "1.wav", "a-3": "3.wav"})
    assert joined.ids == ["a-1"]
    assert joined.left_out == {
        "a-2": f"a-2: has a text, {path}:1, but no audio file",
        "a-3": "a-3: 3.wav has no text",
    }


def test_more_than_a_tenth_without_the_other_is_an_error(tmp_path: Path) -> None:
    ids = [f"a-{n}" for n in range(20)]
    path = save(tmp_path / "text", "".join(f"{key} X\n" for key in ids))
    audio = {key: f"{key}.wav" for key in ids}
    for _ in range(3):
        audio.popitem()
        assert len(tree.join(tree.Table([path]), audio).ids) == len(audio)
    audio.popitem()
    with pytest.raises(
        UserError, match=f"{path}:17: 4 of 20 texts have no audio file; first a-16; unpack"
    ):
        tree.join(tree.Table([path]), audio)
    audio = {key: f"{key}.wav" for key in [*ids, "b-1", "b-2", "b-3", "b-4"]}
    with pytest.raises(
        UserError, match=f"{path}: no text for 4 of 24 audio files; first b-1.wav; is the file"
    ):
        tree.join(tree.Table([path]), audio)


def test_the_order_in_which_the_disk_lists_files_does_not_matter(
    tmp_path: Path, monkeypatch
) -> None:
    for name in ("s2/b-1.wav", "s1/a-2.wav", "s1/a-1.wav"):
        touch(tmp_path / name)
    before, scan = list(tree.audio_by_id(tmp_path).items()), os.scandir

    class Reversed(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(
        os, "scandir", lambda path: Reversed(sorted(scan(path), key=lambda e: e.name, reverse=True))
    )
    assert list(tree.audio_by_id(tmp_path).items()) == before


def test_a_name_that_is_not_utf_8_is_said(tmp_path: Path) -> None:
    """wav.scp could not hold it."""
    (tmp_path / os.fsdecode(b"\xe9.flac")).touch()
    with pytest.raises(UserError, match="the name of the file is not UTF-8, as wav.scp must be"):
        tree.audio_by_id(tmp_path)
