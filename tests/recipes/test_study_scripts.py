"""The commands of all studies of egs/kespeech: valid configs, and the decodings of their tables.

Nothing is trained: run.sh and python only record their arguments.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from asrtool.experiment import load_decode, load_phases, split_overrides
from asrtool.model_folder import build_model, chunk_frames
from tests.recipes.conftest import ROOT
from tests.recipes.fake_recipe import NOTE
from tests.recipes.models import on_meta

RECIPE = ROOT / "egs" / "kespeech"


MINIATURE = ("--size", "tiny", "--seeds", "0 3")
CORPUS = ("--corpus", "speech", "--ngpu", "8")


def calls(script: str, folder: Path, *given: str) -> list[list[str]]:
    """The commands of a study, in a copy where they only write themselves down."""
    recipe = folder / "egs" / "kespeech"
    shutil.copytree(RECIPE / "studies", recipe / "studies")
    shutil.copytree(ROOT / "utils", folder / "utils")
    for path in (recipe / "run.sh", folder / "fake" / "python"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{NOTE}")
        path.chmod(0o755)
    (folder / "utils" / "path.sh").write_text(f'export PATH="{folder / "fake"}:$PATH"\n')
    environment = {**os.environ, "CALLS": str(folder / "calls")}
    done = subprocess.run(
        [
            "bash",
            str(recipe / "studies" / script),
            *given,
            "--train-args",
            "trainer.epochs=1",
        ],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in (folder / "calls").read_text().splitlines()]


def options(call: list[str]) -> dict[str, str]:
    return dict(zip(call[1::2], call[2::2], strict=True))


def cases():
    for script in ("accents", "baseline", "chunks", "layers", "probes", "weights"):
        yield pytest.param(f"{script}.sh", MINIATURE, id=script)
        if script != "accents":
            yield pytest.param(f"{script}.sh", CORPUS, id=f"{script} of the corpus")


@pytest.mark.parametrize(("script", "chosen"), cases())
def test_a_study_trains_and_decodes_what_its_tables_need(script, chosen, tmp_path):
    trained, decoded, read = set(), set(), set()
    (tmp_path / "speech").mkdir()
    seeds = (0, 3) if chosen == MINIATURE else (0,)
    for call in calls(script, tmp_path, *chosen):
        if call[0] == "run.sh":
            given = options(call)
            if chosen == MINIATURE:
                assert given["--mini"] == "true" and given["--mini-size"] == "tiny"
            else:
                assert "--mini" not in given and given["--ngpu"] == "8"
                assert given["--corpus"] == str(tmp_path / "speech")
            if given.get("--stop-stage") == "3":
                phases = load_phases(
                    RECIPE / given["--train-config"], split_overrides([given["--train-args"]])
                )
                for phase in phases.values():
                    assert phase.trainer.epochs == 1 and str(phase.seed) == given["--tag"][-1]
                    encoder = on_meta(phase, 50).encoder
                trained.add(given["--tag"])
            elif given.get("--stage") == "4":
                decode = load_decode(
                    RECIPE / given["--decode-config"], split_overrides([given["--decode-args"]])
                )
                chunk_frames(encoder, decode)  # of the last one: all have the same frame rate
                assert given["--tag"] in trained and given["--train-config"].endswith(
                    f"{given['--tag']}/config.yaml"
                )
                decoded.add((given["--tag"], given["--decode-tag"]))
        elif call[1].endswith("table.py"):
            systems = [re.fullmatch(r"(.+)=\{(.+)\}/(\S+)", word) for word in call[2:]]
            names = {match[1] for match in systems if match}
            assert len(names) > 1 and call[call.index("--against") + 1] in names
            read |= {
                (f"{match[2]}-s{seed}", match[3]) for match in systems if match for seed in seeds
            }
        elif call[1].endswith("probes.py"):
            assert f"{call[call.index('--tag') + 1]}-s{seeds[-1]}" in trained
    assert read <= decoded and {tag[-1] for tag in trained} == set(map(str, seeds))
    assert script == "probes.sh" or {tag for tag, _ in read} == trained


def test_the_wider_conformer_has_as_many_parameters_as_qifusion_net():
    width = re.search(r"wider=(\d+)", (RECIPE / "studies" / "common.sh").read_text())[1]
    change = f"model.encoder.ffn_dim={width}"
    wide = load_phases(RECIPE / "conf" / "u2pp" / "train_u2pp_mini.yaml", [change])["train"]
    qifusion = load_phases(RECIPE / "conf" / "qifusion" / "train_qifusion_mini.yaml")["train"]
    sizes = [
        sum(weight.numel() for weight in build_model(phase, 50).parameters())
        for phase in (wide, qifusion)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.005)


def test_a_study_of_the_miniature_says_so(tmp_path):
    with pytest.raises(AssertionError, match="this study needs the miniature"):
        calls("accents.sh", tmp_path, *CORPUS)


def test_options_of_the_miniature_are_refused_with_a_corpus(tmp_path):
    with pytest.raises(AssertionError, match="--size, --accents and --skew need the miniature"):
        calls("baseline.sh", tmp_path, *CORPUS, "--skew", "1")
