"""Ctrl-C and kill -9 in every stage, then the same command again: the results are the same.

The miniature is synthesised, and a model of a few thousand parameters is trained, decoded and
scored. The slow tests interrupt at random moments; the parameter of a test is its seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.recipes.workspace import NOTHING, Workspace

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="finds processes through /proc"
)

MINI = ("--mini", "true", "--mini-size", "tiny", "--test-sets", "dev")
EXP = "exp/mini_tiny/train_toy"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    pytest.importorskip(
        "espeakng_loader",
        reason="the miniature is synthesised by espeak-ng: pip install -e '.[mini]'",
    )
    return Workspace(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def undisturbed(work: Workspace) -> dict[str, str]:
    """What a run gives that nobody disturbs."""
    work.run(*MINI, real=NOTHING)
    return work.result()


@pytest.fixture
def trained(work: Workspace, undisturbed: dict[str, str]) -> Iterator[Workspace]:
    """All stages are done; the experiments that a test adds are removed."""
    if work.result() != undisturbed:
        work.clear()
        work.run(*MINI, real=NOTHING)
    yield work
    for name in ("told", "shared", "ranks"):
        shutil.rmtree(work.recipe / "exp/mini_tiny" / name, ignore_errors=True)


# -- ways to stop a run: the recipe's shell, a command of it, what that command started --


def ctrl_c(work: Workspace, shell: int) -> None:
    os.killpg(shell, signal.SIGINT)


def twice_ctrl_c(work: Workspace, shell: int) -> None:
    os.killpg(shell, signal.SIGINT)
    time.sleep(0.1)
    send(shell, signal.SIGINT)


def terminate(work: Workspace, shell: int) -> None:
    send(shell, signal.SIGTERM)


def kill_shell(work: Workspace, shell: int) -> None:
    send(shell, signal.SIGKILL)


def kill_command(work: Workspace, shell: int) -> None:
    for process in work.children(shell)[:1]:
        send(process, signal.SIGKILL)


def kill_last(work: Workspace, shell: int) -> None:
    for process in work.children(shell)[-1:]:
        send(process, signal.SIGKILL)


def terminate_command(work: Workspace, shell: int) -> None:
    for process in work.children(shell)[:1]:
        send(process, signal.SIGTERM)


def send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.kill(process, number)


WAYS = (ctrl_c, twice_ctrl_c, terminate, kill_shell, kill_command, kill_last)
Way = Callable[[Workspace, int], None]


def disturb(work: Workspace, way: Way, moment: str, command: str, *options: str) -> int:
    """Start the recipe, stop it when a file that matches `moment` is there, which `command` makes;
    the status. No process may be left.
    """
    shell = work.start(*MINI, *options, real=command)
    while next(work.recipe.glob(moment), None) is None:
        assert shell.poll() is None, f"ended before there was {moment}: {work.said()}"
        time.sleep(0.002)
    way(work, shell.pid)
    status = shell.wait(timeout=60)
    assert not work.survivors()
    assert "Traceback" not in work.said()
    return status


# -- the default tests -----------------------------------------------------


@pytest.mark.parametrize(
    "stops",
    [
        (
            (0, "make_mini_corpus.py", "downloads/*/*.partial-*/**/*.flac", kill_shell),
            (0, "bin.extract_features", "dump/*/*/train.tmp", kill_command),
            (1, "bin.train", f"{EXP}/train/step-*", kill_last),
            (2, "bin.score", f"{EXP}/decode_mini/dev/result.txt", kill_shell),
        ),
        pytest.param(
            (
                (0, "prepare_data.py", "data/*/train.tmp", ctrl_c),
                (0, "bin.make_vocab", "data/*/vocab_char.tmp", kill_shell),
                (2, "bin.train", f"{EXP}/train/step-*4", ctrl_c),
                (3, "bin.decode", f"{EXP}/decode_mini/dev.tmp", kill_command),
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_stop_in_each_stage_changes_nothing(
    work: Workspace, undisturbed: dict[str, str], stops: tuple[tuple[int, str, str, Way], ...]
) -> None:
    work.clear()
    for stage, command, moment, way in stops:
        status = disturb(work, way, moment, command, "--stage", str(stage))
        assert status != 0, (moment, way.__name__)
    work.run(*MINI, "--stage", "4", real=NOTHING)
    assert work.result() == undisturbed


def test_a_training_that_was_told_to_stop_is_not_decoded(trained: Workspace) -> None:
    status = disturb(
        trained,
        terminate_command,
        "exp/mini_tiny/told/train/step-*",
        "bin.train",
        "--stage",
        "3",
        "--tag",
        "told",
    )
    assert status == 1
    *_, refusal, end = trained.said().splitlines()
    assert refusal.startswith(
        "decode: the training in exp/mini_tiny/told/train is not finished; continue it (stage"
    )
    assert (
        "stage 4 (decode) failed; after fixing the cause, the same command continues from here"
    ) in end


def test_a_second_run_in_the_same_folder_is_refused_and_harms_nothing(trained: Workspace) -> None:
    options = (*MINI, "--stage", "3", "--stop-stage", "3", "--tag", "shared")
    first = trained.start(*options, real="bin.train")
    while not (trained.recipe / "exp/mini_tiny/shared/train").exists():
        assert first.poll() is None, trained.said()
        time.sleep(0.01)
    (command, *_) = trained.children(first.pid)
    os.kill(command, signal.SIGSTOP)  # so that it is still there when the second one comes
    try:
        refused = trained.refuse(*options, real=NOTHING)
    finally:
        os.kill(command, signal.SIGCONT)
    assert len(refused) == 1
    assert refused[0].startswith(
        f"train: exp/mini_tiny/shared is being written by process {command} on "
    )
    assert first.wait() == 0
    weights = [
        trained.recipe / f"exp/mini_tiny/{tag}/train/average-2.safetensors"
        for tag in ("shared", "train_toy")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_two_ranks_end_with_their_launcher_and_say_an_error_once(trained: Workspace) -> None:
    options = ("--stage", "3", "--ranks", "2", "--tag", "ranks")
    moment = "exp/mini_tiny/ranks/train/step-*"
    assert disturb(trained, kill_command, moment, "bin.torchrun", *options) == 137
    changed = ("--train-args", "optim.lr=2e-3")
    refused = trained.refuse(*MINI, *options, *changed, real=NOTHING)
    assert refused[:2] == [
        "train: exp/mini_tiny/ranks holds a different training; differences:",
        "  optim.lr: 0.001 there, 0.002 now",
    ]
    assert len(refused) == 3


# -- the slow tests --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_stops_at_random_moments_change_nothing(tmp_path: Path, ranks: str) -> None:
    pytest.importorskip("espeakng_loader")
    work, options = Workspace(tmp_path), (*MINI, "--ranks", ranks)
    began = time.monotonic()
    work.run(*options)
    duration, undisturbed = time.monotonic() - began, work.result()
    for seed in range(4):
        work.clear()
        draw, done = random.Random(seed), []
        for _ in range(5):
            shell = work.start(*options)
            way, moment = draw.choice(WAYS), draw.uniform(0, duration)
            end = time.monotonic() + moment
            while shell.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            stage = [line for line in work.said().splitlines() if "] stage" in line][-1:]
            done.append((way.__name__, round(moment, 1), *stage))
            way(work, shell.pid)
            shell.wait(timeout=60)
            assert not work.survivors(), (seed, done)
            assert "Traceback" not in work.said(), (seed, done, work.said())
        work.run(*options)
        print(f"seed {seed}:", *done, sep="\n  ")
        assert work.result() == undisturbed, (seed, done)
        leftovers = [
            path for path in work.recipe.rglob("*") if path.name.endswith((".tmp", ".old", ".lock"))
        ]
        assert not leftovers, (seed, done)
