"""Every study of egs/kespeech up to its commands: each training and decoding that it asks for
exists, and so does what its tables read. Nothing is trained: run.sh and python only note what they
were called with."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from asrtool.experiment import load_decode, load_phases, split_overrides
from asrtool.model_folder import build_model
from tests.recipes.conftest import ROOT

RECIPE = ROOT / "egs" / "kespeech"
NOTE = '#!/usr/bin/env bash\nprintf "%q " "${0##*/}" "$@" >> "$CALLS"; echo >> "$CALLS"\n'


def calls(script: str, folder: Path) -> list[list[str]]:
    """The commands of a study, in a copy where they only write themselves down."""
    recipe = folder / "egs" / "kespeech"
    shutil.copytree(RECIPE / "studies", recipe / "studies")
    shutil.copytree(ROOT / "utils", folder / "utils")
    for path in (recipe / "run.sh", folder / "fake" / "python"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(NOTE)
        path.chmod(0o755)
    (folder / "utils" / "path.sh").write_text(f'export PATH="{folder / "fake"}:$PATH"\n')
    environment = {**os.environ, "CALLS": str(folder / "calls")}
    done = subprocess.run(
        [
            "bash",
            str(recipe / "studies" / script),
            "--size",
            "tiny",
            "--seeds",
            "0 3",
            "--train-args",
            "trainer.epochs=1",
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in (folder / "calls").read_text().splitlines()]


def options(call: list[str]) -> dict[str, str]:
    return dict(zip(call[1::2], call[2::2], strict=True))


@pytest.mark.parametrize(
    "script", ["accents.sh", "baseline.sh", "chunks.sh", "layers.sh", "probes.sh", "weights.sh"]
)
def test_a_study_asks_for_what_exists(script, tmp_path):
    trained, decoded, read = set(), set(), set()
    for call in calls(script, tmp_path):
        if call[0] == "run.sh":
            given = options(call)
            assert given["--mini"] == "true" and given["--mini-size"] == "tiny"
            if given.get("--stop-stage") == "3":
                phases = load_phases(
                    RECIPE / given["--train-config"], split_overrides([given["--train-args"]])
                )
                for phase in phases.values():
                    assert phase.trainer.epochs == 1 and str(phase.seed) == given["--tag"][-1]
                    build_model(phase, 50)
                trained.add(given["--tag"])
            elif given.get("--stage") == "4":
                load_decode(
                    RECIPE / given["--decode-config"], split_overrides([given["--decode-args"]])
                )
                assert given["--tag"] in trained and given["--train-config"].endswith(
                    f"{given['--tag']}/config.yaml"
                )
                decoded.add((given["--tag"], given["--decode-tag"]))
        elif call[1].endswith("table.py"):
            systems = [re.fullmatch(r"(.+)=\{(.+)\}/(\S+)", word) for word in call[2:]]
            names = {match[1] for match in systems if match}
            assert len(names) > 1 and call[call.index("--against") + 1] in names
            read |= {
                (f"{match[2]}-s{seed}", match[3]) for match in systems if match for seed in (0, 3)
            }
        elif call[1].endswith("probes.py"):
            assert f"{call[call.index('--tag') + 1]}-s3" in trained
    assert read <= decoded and {tag[-1] for tag in trained} == {"0", "3"}
    assert script == "probes.sh" or {tag for tag, _ in read} == trained


def test_the_wider_conformer_has_as_many_parameters_as_qifusion_net():
    change = re.search(
        r"train wide u2pp/train_u2pp_mini (\S+)", (RECIPE / "studies" / "baseline.sh").read_text()
    )[1]
    wide = load_phases(RECIPE / "conf" / "u2pp" / "train_u2pp_mini.yaml", [change])["train"]
    qifusion = load_phases(RECIPE / "conf" / "qifusion" / "train_qifusion_mini.yaml")["train"]
    sizes = [
        sum(weight.numel() for weight in build_model(phase, 50).parameters())
        for phase in (wide, qifusion)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.005)
