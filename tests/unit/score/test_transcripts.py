from __future__ import annotations

import pytest

from asrtool.errors import UserError
from asrtool.score import read_transcripts
from asrtool.score.transcripts import locate, read_recognized


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def test_a_kaldi_text_may_have_empty_texts_tabs_full_width_spaces_crlf_and_byte_order_marks(write):
    path = write("text", "\ufeffu1 a b\r\nu2\r\n\nu3\tc  d \nu4\u3000好 的\n\ufeffu5 e")
    assert read_transcripts(path) == {"u1": "a b", "u2": "", "u3": "c  d", "u4": "好 的", "u5": "e"}


def test_only_line_feeds_end_a_line(write):
    assert read_transcripts(write("text", "u1 a\u2028b\x0cc\x85d\nu2 e\n")) == {
        "u1": "a\u2028b\x0cc\x85d",
        "u2": "e",
    }


@pytest.mark.parametrize("mark", ["\u00a0", "\u2028", "\x85", "\x1c"])
def test_other_white_space_is_part_of_an_id(write, mark):
    assert read_transcripts(write("text", f"u{mark}1 a\n{mark}u2\tb\n")) == {
        f"u{mark}1": "a",
        f"{mark}u2": "b",
    }


def test_ids_that_are_prefixes_of_others_stay_apart(write):
    assert read_transcripts(write("text", "u1 a\nu10 b\nu1-0 c\n")) == {
        "u1": "a",
        "u10": "b",
        "u1-0": "c",
    }


def test_a_trn_line_ends_with_its_id(write):
    path = write("hyp.trn", ";; comment (x)\na (b) c (s-1)\n(s-2)\nd(s-3)\n")
    assert read_transcripts(path) == {"s-1": "a (b) c", "s-2": "", "s-3": "d"}


def test_jsonl_takes_id_and_text_and_leaves_the_rest(write):
    path = write(
        "hyps.jsonl", '{"id": "u1", "text": "a b", "score": -1.5}\n{"text": "", "id": "u2"}\n'
    )
    assert read_transcripts(path) == {"u1": "a b", "u2": ""}


def test_an_empty_file_has_no_utterances(write):
    assert read_transcripts(write("text", "")) == {}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text", "u1 a\nu2 b\nu1 c\n", "text:3: utterance 'u1' occurs twice, first in line 1"),
        ("text", b"u1 a\nu2 \xe9\n", "text:2: not UTF-8 (byte 0xe9); convert the file to UTF-8"),
        (
            "text",
            "u1 a\n".encode("utf-16"),
            "text:1: not UTF-8 (byte 0xff); convert the file to UTF-8",
        ),
        ("ref.trn", "a b (s-1)\na b\n", "ref.trn:2: expected 'text (utterance id)'"),
        ("ref.trn", "a ()\n", "ref.trn:1: expected 'text (utterance id)'"),
        (
            "ref.trn",
            "{a / b} (s-1)\n",
            "ref.trn:1: alternatives such as {a / b} are not supported; write one of them",
        ),
        (
            "ref.trn",
            "a @ (s-1)\n",
            "ref.trn:1: sclite's empty word @ is not supported; leave it out",
        ),
        (
            "h.jsonl",
            '{"id": "u1", "text": "a"\n',
            "h.jsonl:1: not JSON (Expecting ',' delimiter at column 25); ",
        ),
        (
            "h.jsonl",
            '{"id": "u1"}\n',
            'h.jsonl:1: expected an object with the strings "id" and "text"',
        ),
        (
            "h.jsonl",
            '{"id": "u1", "text": null}\n',
            'h.jsonl:1: expected an object with the strings "id" and "text"',
        ),
    ],
)
def test_a_bad_line_is_one_sentence_with_file_and_line(write, name, content, message):
    with pytest.raises(UserError) as error:
        read_transcripts(write(name, content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_means_its_text_else_its_hyps(write, tmp_path):
    hyps = write("hyps.jsonl", "")
    assert locate(tmp_path) == hyps
    text = write("text", "")
    assert locate(tmp_path) == text
    assert locate(hyps) == hyps


def test_a_missing_path_and_a_folder_without_text_say_so(tmp_path):
    with pytest.raises(UserError, match="nothing: no such file or folder; expected"):
        locate(tmp_path / "nothing")
    with pytest.raises(UserError, match="the folder holds neither text nor hyps.jsonl"):
        locate(tmp_path)


def test_recognised_labels_are_those_of_the_lines_that_have_some(write):
    lines = [
        '{"id": "u1", "text": "a", "labels": {"accent": "north"}}',
        '{"id": "u2", "text": "\\"labels\\""}',
        '{"id": "u3", "text": "b", "classes": {"accent": {"north": 0.2, "south": 0.7, "east": '
        "0.1}}}",
    ]
    assert read_recognized(write("hyps.jsonl", "\n".join(lines))) == {
        "accent": {"u1": "north", "u3": "south"}
    }
    assert read_recognized(write("text", "u1 a\n")) == {}


@pytest.mark.parametrize(
    "field",
    ['"labels": {"accent": 3}', '"labels": 3', '"classes": {"accent": {}}', '"classes": [1]'],
)
def test_labels_of_another_form_are_refused(write, field):
    with pytest.raises(
        UserError,
        match=r'h.jsonl:1: expected "labels": {"<label>": ' r'"<value>"} or "classes"',
    ):
        read_recognized(write("h.jsonl", f'{{"id": "u1", "text": "a", {field}}}'))
