"""Echotune by the commands of the stages, from the recipe's own config: a frozen backbone, its log,
its decoding.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asrtool.bin import decode, plot
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.experiment import load_phases
from asrtool.losses import LOSSES
from asrtool.model_folder import build_model, without_published_weights
from asrtool.trainer.objective import Objective
from asrtool.trainer.step import Stepper
from asrtool.types import Batch, Padded
from tests import toy_experiment, toy_ssl
from tests.toy_training import ToyStep

CONF = Path(__file__).parents[3] / "egs/librispeech/conf/echotune"
NEW = (".echo.", ".gate.", "heads.")
CONFIG = """
extends: train_echotune_10m.yaml
data: {{fbank: {{rate: 8000}}, batch: {{seconds: 60, max_seconds_per_device: null}}, workers: 0}}
model: {{encoder: {{weights: {weights}, size: null, channel_mask_length: 4}}}}
optim:
  schedule: {{type: constant}}
  groups: {{"encoder.model.*": {{freeze_until: 2}}}}
trainer: {{steps: 4, precision: float32, validate_every: 2, average: 1, log_every: 1}}
"""


def configured(root: Path) -> str:
    """The shipped config of 10 minutes with a tiny random model in place of the published one."""
    for path in CONF.glob("train_echotune_*.yaml"):
        shutil.copy(path, root)
    toy_ssl.save(toy_ssl.make("data2vec"), root / "weights")
    return CONFIG.format(weights=root / "weights")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("echotune")
    return toy_experiment.make(root, configured(root))


def steps(trained: Path) -> dict[int, dict[str, torch.Tensor]]:
    found = sorted((trained / "exp/train").glob("step-*"))
    return {int(path.name[5:]): load_file(path / "model.safetensors") for path in found}


def test_the_backbone_stays_bit_for_bit_while_it_is_frozen_and_then_learns(trained):
    published, found = load_file(trained / "weights/model.safetensors"), steps(trained)
    assert sorted(found) == [2, 4]
    for key, value in published.items():
        name = "encoder.model." + key.replace(".attention.", ".attention.full.")
        assert torch.equal(found[2][name], value), key
        frozen = "feature_extractor" in key
        assert torch.equal(found[4][name], value) or not frozen
    moved = [
        key for key in found[4] if not torch.equal(found[4][key], found[2][key]) and "full" in key
    ]
    assert len(moved) > 20


def test_gates_and_windows_of_each_layer_are_logged(trained):
    events = [json.loads(line) for line in (trained / "exp/log.jsonl").read_text().splitlines()]
    told = [event["modules"] for event in events if event["event"] == "observed"]
    assert len(told) == 2
    names = {
        f"encoder.model.encoder.layers.{layer}.attention.{part}"
        for layer in range(3)
        for part in ("gate", "echo.spans")
    }
    assert set(told[0]) == names
    for name, values in told[0].items():
        assert set(values) == {"mean", "deviation", "extreme"}
        assert values["mean"] == pytest.approx(0.88 if "gate" in name else 0.88 * 39 - 7, abs=1.0)


def test_it_decodes(trained, tmp_path):
    decode.main(
        [
            "--exp",
            str(trained / "exp"),
            "--config",
            str(trained / "decode.yaml"),
            "--data",
            str(trained / "dump/test"),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    lines = [json.loads(line) for line in (tmp_path / "out/hyps.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and all(
        line["frames"] == pytest.approx(25 * line["seconds"], abs=2) for line in lines
    )


def test_gates_and_windows_are_drawn_and_measured_over_a_set(trained, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "echo.png"
    plot.main(
        [
            "echo",
            str(trained / "exp"),
            "--data",
            str(trained / "dump/test"),
            "--survey",
            "--out",
            str(out),
        ]
    )
    assert out.stat().st_size > 10_000
    found = json.loads(out.with_suffix(".json").read_text())
    assert len(found["utterances"]) == 12
    durations = {row.id: row.duration for row in datadir.read(trained / "data/test")}
    texts = {row.id: row.text for row in datadir.read(trained / "data/test")}
    for row in found["utterances"]:
        assert row["seconds"] == pytest.approx(durations[row["id"]], abs=0.01)
        assert row["tokens_per_second"] == pytest.approx(
            len(texts[row["id"]]) / row["seconds"], rel=1e-3
        )
        assert 0 < row["gate"] < 1 and -7 <= row["span"] <= 32
    thirds = found["thirds"]["seconds"]
    assert [part["seconds"] for part in thirds] == sorted(
        part["seconds"] for part in thirds
    ) and len(thirds) == 3
    assert -1 <= found["correlations"]["span and tokens_per_second"] <= 1
    assert "correlation of span and tokens_per_second" in capsys.readouterr().out


def test_an_encoder_without_echo_has_nothing_to_draw(toy):
    with pytest.raises(UserError, match="no attention of type echo"):
        plot.main(["echo", str(toy / "exp"), "--data", str(toy / "dump/test")])


def test_what_was_trained_needs_no_published_weights():
    phase = load_phases(CONF / "train_echotune_1h.yaml", ["model.encoder.size=tiny"])["train"]
    model = build_model(without_published_weights(phase), 12)
    assert model.encoder.dim == 32 and hasattr(
        model.encoder.model.encoder.layers[0].attention, "echo"
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"projections": "fresh", "gate": "channel", "gate_input": "outputs"},
        {"mode": "heads", "windows": [4, 16]},
    ],
)
def test_every_new_tensor_has_a_gradient_at_once_and_one_that_is_not_zero_by_the_second_step(
    tmp_path, options
):
    (tmp_path / "train.yaml").write_text(configured(tmp_path))
    given = [f"model.encoder.attention.{key}={value}" for key, value in options.items()]
    phase = load_phases(tmp_path / "train.yaml", given)["train"]
    torch.manual_seed(0)
    model = build_model(phase, 12)
    losses = {key: LOSSES.build(value, eos=11) for key, value in phase.losses.items()}
    for loss in losses.values():
        loss.count([0, *range(1, 12)])
    objective = Objective(losses, {key: value.weight for key, value in phase.losses.items()})
    rows = toy_ssl.waveforms(16000, 9000)
    targets = Padded.stack([torch.tensor([3, 4, 4]), torch.tensor([5])])
    batch = Batch(ids=("a", "b"), inputs=Padded.stack(rows), targets=targets)
    pretrained = {
        key: value.detach().clone()
        for key, value in model.named_parameters()
        if not any(part in f".{key}" for part in NEW)
    }
    cpu = torch.device("cpu")
    stepper = Stepper(
        phase.optim, model, objective, planned=10, precision="float32", device=cpu, seed=0
    )
    seen: list[dict[str, torch.Tensor]] = []
    apply = stepper._apply

    def watched(step: int, finite: bool) -> float:
        seen.append(
            {
                key: value.grad.clone()
                for key, value in model.named_parameters()
                if value.grad is not None
            }
        )
        return apply(step, finite)

    stepper._apply = watched
    for step in (1, 2):
        group = ToyStep(count=2, batches=[batch], epoch=0, index=step - 1, last=False)
        assert stepper.update(group, step).bad is None
    new = {key for key, _ in model.named_parameters()} - pretrained.keys()
    assert set(seen[0]) == new and len(new) > 20
    still = [key for key in new if not seen[0][key].any() and not seen[1][key].any()]
    # which softmax takes out again
    assert [key for key in still if not key.endswith("k_proj.bias")] == []
    for key, value in pretrained.items():
        assert torch.equal(model.get_parameter(key), value), key
