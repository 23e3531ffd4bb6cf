"""`asrtool <command>`: lists the commands without importing them, and ends the way the commands
do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asrtool import bin as commands
from asrtool.__main__ import describe, main
from asrtool.data.shards.index import Member
from asrtool.errors import UserError
from asrtool.registry import Registry


def asrtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asrtool", *arguments], capture_output=True, text=True
    )


def test_every_command_is_listed_with_its_first_docstring_line() -> None:
    assert describe()["doctor"] == (
        "Check this machine: what works, what is missing, and the command that fixes it."
    )
    assert set(describe()) == {
        file.stem for file in Path(commands.__file__).parent.glob("[a-z]*.py")
    }
    assert all(describe().values())


def test_the_list_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from asrtool.__main__ import main; main([]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_misspelt_command_ends_with_2_and_a_suggestion(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["docter"])
    assert ended.value.code == 2
    assert "no command 'docter'; did you mean doctor?" in capsys.readouterr().err


def test_a_reader_that_left_is_no_reason_for_words() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "asrtool"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_ctrl_c_ends_quietly_as_interrupted() -> None:
    code = "import asrtool.bin, os, signal; os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{code}"; echo $?'], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("130\n", "")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "x.yaml"),
            "No such file or directory: x.yaml",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyboardInterrupt(), ""),
        (ZeroDivisionError("a bug"), None),
        (ValueError("raised by somebody else's code"), None),
        (UserError("conf.yaml:3: lr must be above 0"), "conf.yaml:3: lr must be above 0"),
    ],
)
def test_expected_errors_are_one_sentence_and_bugs_are_not_hidden(
    error: BaseException, sentence: str | None
) -> None:
    assert commands.explain(error) == sentence


def test_a_check_of_an_argument_is_a_sentence_and_a_bug_in_a_line_of_asrtool_is_not() -> None:
    with pytest.raises(ValueError) as checked:
        registry = Registry("encoder")
        registry.register("blstm", int)(str)
        registry.register("blstm", int)(str)
    assert "'blstm' is already registered" in (commands.explain(checked.value) or "")
    with pytest.raises(ValueError) as bug:
        Member.parse("shard.tar x")
    assert commands.explain(bug.value) is None
