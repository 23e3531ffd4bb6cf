"""A recipe whose commands only record their arguments, for tests of the engine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """\
#!/usr/bin/env bash
# A recipe that only writes down its commands
set -euo pipefail
cd "$(dirname "$0")"
root={root}
recipe=fake

corpus=downloads/corpus    # where the corpus is
train_set=train
valid_set=dev
test_sets="test other"     # sets to score
unit=bpe                   # unit
vocab_size=500             # size
metric=wer
normalize=en
group_by=none
train_config=conf/train_full.yaml      # training config
decode_config=conf/decode_full.yaml    # decoding config
{more}
. $root/utils/stages.sh
"""
MINI = (
    "mini_train_config=conf/train_mini.yaml mini_decode_config=conf/decode_mini.yaml "
    "mini_unit=char mini_vocab_size=0"
)


def noted(file: str, words: str = '"$@"') -> str:
    """Bash code that appends `words` to a file as a line.

    It is a single write, so that lines of concurrent processes do not mix.
    """
    return f'printf "%s\\n" "$(printf "%q " {words})" >> {file}\n'


NOTE = noted('"$CALLS"', '"${0##*/}" "$@"')  # the command too
PATH_SH = 'export PATH="$PWD/fake:$PATH"\n'
FAKE = """\
#!/usr/bin/env bash
if [[ $1 == -c || $1 == - ]]; then exec {python} "$@"; fi
if [[ $* == *check_config* ]]; then echo fbank80; exit; fi
{note}"""


class Recipe:
    """The fake recipe in its own folder, and the commands that it called."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder / "egs" / "fake"
        self.calls_file = folder / "calls"
        for name in ("local", "fake", "downloads/corpus"):
            (self.folder / name).mkdir(parents=True)
        self.write("run.sh", RECIPE.format(root=ROOT, more=more))
        self.write("local/path.sh", PATH_SH)
        self.fake = FAKE.format(note=NOTE, python=shlex.quote(sys.executable))
        self.write("fake/python", self.fake)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def replace_torchrun(self, script: str) -> None:
        start, rest = self.fake.split("\n", 1)
        self.write(
            "fake/python",
            f"{start}\nif [[ $2 == asrtool.bin.torchrun ]]; then {script}; fi\n{rest}",
        )

    def environment(self) -> dict[str, str]:
        return {**os.environ, "CALLS": str(self.calls_file)}

    def run(self, *options: str, at: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "run.sh"), *options]
        return subprocess.run(
            command, cwd=at or self.folder, env=self.environment(), capture_output=True, text=True
        )

    def calls(self) -> list[list[str]]:
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [shlex.split(line) for line in lines]

    def call(self, command: str) -> list[str]:
        """The only call of `command`."""
        calls = [call for call in self.calls() if command in " ".join(call)]
        assert len(calls) == 1, calls
        return calls[0]
