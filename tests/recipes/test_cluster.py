"""Training on several machines, with and without Slurm.

sbatch, srun and scontrol are scripts that record their arguments.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipes.fake_recipe import NOTE
from tests.recipes.test_shell import MINI, Recipe
from tests.recipes.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
NODES = ["--num-nodes", "2", "--ngpu", "4"]
FAKES = {
    "sbatch": 'echo "Submitted batch job 70001"',
    "scontrol": "if [[ $1 == show ]]; then echo 127.0.0.1; fi",
    # runs the command once per task, passes the warning on and waits for all
    "srun": """tasks=$4
while [[ $1 == --* ]]; do case $1 in *=*) shift ;; *) shift 2 ;; esac; done
trap 'kill -USR1 $(jobs -p)' USR1
for (( i = 0; i < tasks; i++ )); do "$@" & done
status=0
for task in $(jobs -p); do
  while kill -0 $task 2> /dev/null; do wait $task || true; done
  wait $task || status=$?
done
exit $status""",
}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    made = Recipe(tmp_path, MINI)
    for name, script in FAKES.items():
        made.write(f"fake/{name}", f"#!/usr/bin/env bash\n{NOTE}{script}\n")
    return made


def in_job(recipe: Recipe, *options: str) -> subprocess.CompletedProcess[str]:
    """The recipe as the job's script runs it."""
    environment = {
        **recipe.environment(),
        "SLURM_JOB_ID": "70001",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    command = [str(recipe.folder / "run.sh"), *options]
    return subprocess.run(
        command, cwd=recipe.folder, env=environment, capture_output=True, text=True
    )


# -- by hand ------------------------------------------------------------------


def test_without_slurm_every_machine_runs_the_same_torchrun(recipe: Recipe) -> None:
    done = recipe.run(*NODES, "--master", "first:29500", "--stage", "3", "--stop-stage", "3")
    assert done.returncode == 0, done.stderr
    start = (
        "--nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint first:29500 "
        "--rdzv-id fake/train_full"
    )
    (call,) = recipe.calls()
    assert " ".join(call).startswith(
        f"python -m asrtool.bin.torchrun {start} -m asrtool.bin.train --config"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--stage", "3", "--stop-stage", "3"],
            "--num-nodes 2 needs --master <host>:<port> of the first machine",
        ),
        (["--master", "first:1", "--stage", "3"], "several machines share stages 3 and 4 only"),
    ],
)
def test_what_several_machines_need_is_one_sentence(
    recipe: Recipe, options: list[str], sentence: str
) -> None:
    done = recipe.run("--num-nodes", "2", *options)
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
    assert recipe.calls() == []


# -- under Slurm --------------------------------------------------------------


def test_in_a_job_srun_starts_torchrun_on_each_machine_for_training_and_decoding_only(
    recipe: Recipe,
) -> None:
    done = in_job(recipe, *NODES, "--stop-stage", "4", "--test-sets", "test")
    assert done.returncode == 0, done.stderr
    calls = [" ".join(call) for call in recipe.calls() if call[0] == "srun"]
    start = (
        "srun --nodes 2 --ntasks 2 --ntasks-per-node 1 --kill-on-bad-exit=1 python -m "
        "asrtool.bin.torchrun --nnodes 2"
        " --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:30001 --rdzv-id 70001 "
        "-m asrtool.bin."
    )
    assert [call[: len(start) + 5] for call in calls] == [start + "train", start + "decod"]
    tasks = [
        call for call in recipe.calls() if call[0] == "python" and "asrtool.bin.torchrun" in call
    ]
    assert len(tasks) == 4  # two commands on two machines
    others = [
        call[2]
        for call in recipe.calls()
        if call[0] == "python" and call[1] == "-m" and call not in tasks
    ]
    assert set(others) == {
        "asrtool.bin.check_data",
        "asrtool.bin.extract_features",
        "asrtool.bin.make_vocab",
    }


def test_a_dry_run_shows_the_line_and_runs_nothing(recipe: Recipe) -> None:
    done = in_job(recipe, *NODES, "--stage", "3", "--stop-stage", "3", "--dry-run", "true")
    assert "srun --nodes 2 --ntasks 2" in done.stdout
    assert [call for call in recipe.calls() if call[0] != "scontrol"] == []


def slurm(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "utils" / "slurm.sh"), *options], capture_output=True, text=True, cwd="/"
    )


def test_the_jobs_script_asks_for_what_was_asked() -> None:
    done = slurm(
        *(
            "--dry-run",
            "--num-nodes=2",
            "--ngpu",
            "4",
            "--time",
            "2-00:00:00",
            "--partition",
            "a100",
            "--mem",
            "64G",
        ),
        *("--warn", "300", "--sbatch-args=--exclusive --constraint=x"),
        *("librispeech", "--corpus", "a b", "--stage", "3"),
    )
    assert done.returncode == 0, done.stderr
    asked = set(re.findall(r"^#SBATCH (.*)$", done.stdout, re.M))
    assert {
        *(
            "--job-name=librispeech",
            "--nodes=2",
            "--ntasks-per-node=1",
            "--gpus-per-node=4",
            "--time=2-00:00:00",
        ),
        *(
            "--partition=a100",
            "--mem=64G",
            "--signal=B:USR1@300",
            "--exclusive",
            "--constraint=x",
            "--requeue",
        ),
    } <= asked
    line = next(line for line in done.stdout.splitlines() if "run.sh" in line)
    assert shlex.split(line)[1:-1] == [
        *("librispeech", "--corpus", "a b", "--stage", "3", "--num-nodes", "2", "--ngpu", "4"),
    ]
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "give a recipe"),
        (["librispech"], "no recipe 'librispech'"),
        (["--ngpus", "4", "librispeech"], "did you mean --ngpu?"),
        (["--warn", "soon", "librispeech"], "option --warn must be a whole number, not 'soon'"),
    ],
)
def test_wrong_options_of_the_job_are_one_sentence(options: list[str], sentence: str) -> None:
    done = slurm(*options)
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr


def test_a_job_is_submitted_with_a_script_in_the_recipes_folder(
    tmp_path: Path, recipe: Recipe
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "utils", tree / "utils")
    (tree / "egs" / "mine").mkdir(parents=True)
    (tree / "egs" / "mine" / "run.sh").touch()
    environment = recipe.environment() | {"PATH": f"{recipe.folder / 'fake'}:{os.environ['PATH']}"}
    command = [str(tree / "utils" / "slurm.sh"), "--job-name", "night", "mine"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    script = tree / "egs" / "mine" / "exp" / "slurm" / "night.sh"
    assert recipe.calls() == [["sbatch", str(script)]]
    assert "#SBATCH --job-name=night" in script.read_text()
    assert "Submitted batch job 70001" in done.stdout


def test_without_slurm_the_script_says_where_it_belongs() -> None:
    done = slurm("librispeech")
    assert (done.returncode, "sbatch is not installed" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("ends", "requeued"), [("trap 'exit 138' USR1; sleep 30 & wait", True), ("exit 0", False)]
)
def test_slurms_warning_stops_the_recipe_and_puts_the_job_back(
    tmp_path, recipe: Recipe, ends, requeued
) -> None:
    script = slurm("--dry-run", "librispeech").stdout.replace(
        f"{ROOT}/run.sh", f"{tmp_path}/run.sh"
    )
    (tmp_path / "run.sh").write_text(f"#!/usr/bin/env bash\ntouch {tmp_path}/began\n{ends}\n")
    (tmp_path / "run.sh").chmod(0o755)
    path = f"{recipe.folder / 'fake'}:{os.environ['PATH']}"
    environment = recipe.environment() | {"PATH": path, "SLURM_JOB_ID": "70001"}
    with subprocess.Popen(["bash", "-c", script], env=environment) as job:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        job.send_signal(signal.SIGUSR1)
        job.wait(20)
    assert (["scontrol", "requeue", "70001"] in recipe.calls()) == requeued


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes through /proc")
def test_two_machines_that_are_one_train_and_go_on_after_the_warning(
    tmp_path: Path, recipe: Recipe
) -> None:
    """Real torchrun, twice, over gloo; stopped as Slurm does, then finished; the same as on one
    machine.
    """
    pytest.importorskip("espeakng_loader")
    (tmp_path / "work").mkdir()
    work = Workspace(tmp_path / "work")
    mini = ("--mini", "true", "--mini-size", "tiny", "--test-sets", "test_clean")
    work.run(*mini, "--stop-stage", "3", "--ranks", "2")
    (recipe.folder / "fake" / "python").unlink()
    path = f"{recipe.folder / 'fake'}:{work.environment['PATH']}"
    work.environment |= {"PATH": path, "CALLS": str(recipe.calls_file)}
    work.environment |= {"SLURM_JOB_ID": "70001", "SLURM_JOB_NODELIST": "node[1-2]"}
    job = (*mini, "--stage", "3", "--stop-stage", "4", "--num-nodes", "2", "--tag", "nodes")
    shell = work.start(*job)
    while next(work.recipe.glob("exp/mini_tiny/nodes/train/step-*"), None) is None:
        assert shell.poll() is None, work.said()
        time.sleep(0.01)
    os.kill(shell.pid, signal.SIGUSR1)
    assert shell.wait(60) == 138, work.said()
    assert not work.survivors()
    work.run(*job)
    weights = [
        work.recipe / f"exp/mini_tiny/{tag}/train/average-2.safetensors"
        for tag in ("nodes", "train_toy")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads(
        (work.recipe / "exp/mini_tiny/nodes/decode_mini/test_clean/hyps.jsonl").open().readline()
    )
