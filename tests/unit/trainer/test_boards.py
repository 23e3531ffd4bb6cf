"""The curves go to TensorBoard and to Weights & Biases through one interface."""

from __future__ import annotations

import json
import sys
import types

import pytest

from asrtool.errors import UserError
from tests.toy_training import ToySteps, toy_trainer


def test_a_missing_tensorboard_is_said_once_and_an_installed_one_gets_the_curves(
    tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO", "asrtool")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    toy_trainer(tmp_path / "without").run()
    assert caplog.text.count("TensorBoard is not installed (pip install tensorboard)") == 1

    written = {}

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            written["folder"], written["purge_step"] = folder, purge_step

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.setdefault(name, []).append((step, value))

        def close(self) -> None:
            written["closed"] = True

    stub = types.ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    toy_trainer(tmp_path / "with", log_every=3).run()
    assert (written["folder"], written["purge_step"]) == (
        str(tmp_path / "with" / "tensorboard" / "with"),
        1,
    )
    assert (
        [step for step, _ in written["train/loss"]]
        == [step for step, _ in written["valid/loss"]]
        == [3, 6, 9]
    )
    assert {"train/rate", "train/norm", "seconds/forward", "valid/wer", "closed"} <= set(written)


def test_tensorboard_itself_reads_what_is_written(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    toy_trainer(tmp_path, log_every=3).run()
    events = reading.EventAccumulator(str(tmp_path / "tensorboard" / tmp_path.name))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 9]


# -- Weights & Biases ------------------------------------------------------


class Run:
    def __init__(self, calls: list) -> None:
        self._calls = calls

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self._calls.append(("axis", name, step_metric))

    def log(self, values: dict) -> None:
        self._calls.append(("log", values))

    def finish(self) -> None:
        self._calls.append(("finish",))


@pytest.fixture
def calls(monkeypatch) -> list:
    """What is asked of a module that stands for wandb."""
    found: list = []

    def init(**options: object) -> Run:
        found.append(("init", options))
        return Run(found)

    stub = types.ModuleType("wandb")
    stub.init, stub.Error, stub.Settings = init, type("Error", (Exception,), {}), dict
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return found


def test_a_run_of_weights_and_biases_gets_what_tensorboard_gets(tmp_path, calls):
    exp = tmp_path / "train_toy"
    exp.mkdir()
    (exp / "config.yaml").write_text("phases: {train_toy: {optim: {lr: 0.1}}}")
    toy_trainer(exp, log_every=3, wandb="speech", tensorboard=False).run()
    (_, options), *axes = calls[:3]
    assert (options["project"], options["name"]) == ("speech", "train_toy/train_toy")
    assert options["config"] == {"optim": {"lr": 0.1}} and options["resume"] == "allow"
    assert axes == [("axis", "step", None), ("axis", "*", "step")]
    logged = [values for kind, *values in calls[3:-1] if kind == "log"]
    train = [values["train/loss"] for (values,) in logged if "train/loss" in values]
    valid = {values["step"]: values["valid/loss"] for (values,) in logged if "valid/wer" in values}
    assert len(train) == 3 and list(valid) == [3, 6, 9]
    records = [json.loads(line) for line in (exp / "log.jsonl").read_text().splitlines()]
    assert train == [record["loss"] for record in records if record["event"] == "step"]
    assert any("seconds/forward" in values for (values,) in logged)
    assert calls[-1] == ("finish",)


def test_an_interrupted_training_goes_on_with_its_run(tmp_path, calls):
    def stop(epoch: int, index: int) -> None:
        if (epoch, index) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_trainer(tmp_path / "a", ToySteps(before=stop), wandb="speech").run()
    toy_trainer(tmp_path / "a", wandb="speech").run()
    toy_trainer(tmp_path / "b", wandb="speech").run()
    first, again, other = (call[1]["id"] for call in calls if call[0] == "init")
    assert first == again != other


def test_a_run_that_cannot_be_is_one_sentence(tmp_path, calls, monkeypatch):
    def refuse(**options: object) -> None:
        raise sys.modules["wandb"].Error("api_key not configured (no-tty)")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UserError, match="'speech' can be started .*no-tty.*WANDB_MODE=offline"):
        toy_trainer(tmp_path, wandb="speech").run()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="needs the package wandb, which is not installed"):
        toy_trainer(tmp_path, wandb="speech").run()


def test_wandb_itself_writes_a_run_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    toy_trainer(tmp_path, log_every=3, wandb="speech").run()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert any(file.suffix == ".wandb" and file.stat().st_size for file in run.iterdir())
