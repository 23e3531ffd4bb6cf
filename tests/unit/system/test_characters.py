"""Characters that show nothing, and those that a terminal would obey."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from asrtool import log
from asrtool.bin import check_data
from asrtool.system import characters

SEEN = {  # marks of Arabic and others that stand before numbers, and are drawn; Egyptian ligatures
    *range(0x600, 0x606),
    *(0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD),
    *range(0x13430, 0x13460),
}


def test_every_format_character_is_hidden_but_those_that_are_drawn() -> None:
    formats = {n for n in range(0x110000) if unicodedata.category(chr(n)) == "Cf"}
    left = {n for n in formats if characters.visible(f"a{chr(n)}b") != "ab"}
    assert left == formats & SEEN


@pytest.mark.parametrize("one", "\ufe0f\ufe00\U000e0100\u034f\u3164\x00\x1b\x7f\x9b")
def test_selectors_fillers_and_controls_are_hidden(one: str) -> None:
    assert characters.visible(f"a{one}b") == "ab"
    assert characters.hidden(f"a{one}b") == [f"U+{ord(one):04X}"]


@pytest.mark.parametrize("text", ["می\u200cخواهم", "क्\u200dष", "ශ්\u200dරී", "a\tb c\u00a0d", "é 好"])
def test_joiners_where_they_belong_stay(text: str) -> None:
    assert characters.visible(text) == text


@pytest.mark.parametrize("text", ["a\u200cb", "\u200da", "好\u200d", "\U0001f469\u200d"])
def test_joiners_elsewhere_do_not(text: str) -> None:
    assert characters.visible(text) == text.replace("\u200c", "").replace("\u200d", "")


def test_what_steers_a_terminal_is_written_out() -> None:
    name = os.fsdecode(b"a\xff")
    assert log.shown(f"\x1b]0;x\x07 {name} \x9b2J\r好\tb\n") == (
        "\\x1b]0;x\\x07 a\\xff \\x9b2J\\x0d好\tb\n"
    )


def on_a_terminal(*command: str) -> bytes:
    """What a command that asrtool runs sends to a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=follower, stderr=follower
    )
    os.close(follower)
    said = b""
    try:
        while part := os.read(leader, 65536):
            said += part
    except OSError:  # the other side is closed
        pass
    os.close(leader)
    process.wait()
    return said


def test_control_characters_never_reach_a_terminal() -> None:
    code = "import sys; from asrtool import bin, log; log.set_up(); print('a' + sys.argv[1]); "
    code += "log.logger.info('%s', 'b' + sys.argv[1]); "
    code += "bin.end(OSError, OSError(2, 'c' + sys.argv[1]), None)"
    said = on_a_terminal("-c", code, "\x1b[2J")
    assert b"\x1b" not in said
    assert all(letter + b"\\x1b[2J" in said for letter in (b"a", b"b", b"c"))


def test_ids_of_a_data_directory_do_not_steer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wav.scp").write_text("a\x1b]0;x\x07 /nowhere/\x1b[2J\n")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    log.guard()
    with pytest.raises(SystemExit):
        check_data.main([str(tmp_path)])
    said = terminal.getvalue()
    assert "/nowhere/\\x1b[2J" in said and "\x1b" not in said and "\x07" not in said


def test_a_pipe_gets_what_is_there() -> None:
    code = "import asrtool.bin, os; print(chr(27), os.fsdecode(bytes([255])))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True).stdout == b"\x1b \xff\n"
    )
