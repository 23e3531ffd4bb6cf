"""Key frames in front of a language model: the phases of the shipped config on tones, and what is
decoded from them.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from asrtool.bin import decode, train
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from tests import toy_llm

pytestmark = pytest.mark.hf

CONF = Path(__file__).parents[3] / "egs" / "librispeech" / "conf" / "speech_llm"
CHANGES = [
    "data.batch={seconds: 20}",
    "data.augment={noise: {set: noise}, babble: {set: train}}",
    "data.workers=0",
    "optim.schedule={type: constant}",
    "phases.llm.data.augment.non_speech={set: noise, share: 0.2, seconds: [0.5, 2.0]}",
    "trainer={steps: 2, validate_every: 2, parallel: ddp, precision: float32}",
]


def changes(root: Path) -> list[str]:
    frontend = {"type": "hubert", "weights": str(root / "hubert"), "size": "tiny"}
    sizes = {"num_layers": 7, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 3}
    llm = {"weights": str(root / "llm"), "prompt": toy_llm.PROMPT, "precision": "float32"}
    return [
        *CHANGES,
        f"model.encoder={json.dumps({**sizes, 'frontend': frontend})}",
        "model.adapter.hidden_dim=16",
        f"model.llm={json.dumps(llm)}",
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = toy_llm.prepare(tmp_path_factory.mktemp("keyframe_llm"))
    toy_llm.save_hubert(root / "hubert")
    given = toy_llm.arguments(root)
    given[given.index("--config") + 1] = str(CONF / "train_keyframe_llm.yaml")
    train.main([*given, "--set", shlex.join(changes(root))])
    return root


def test_the_phases_train_and_the_last_one_recognises(trained):
    out = trained / "out"
    command = ["--exp", str(trained / "exp"), "--config", str(CONF / "decode_llm.yaml")]
    search = "searcher.beam=2 searcher.constraints.max_tokens=8"
    given = ["--data", str(trained / "data/dev"), "--out", str(out), "--set", search]
    decode.main([*command, *given])
    lines = [json.loads(line) for line in (out / "hyps.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(line["frames"] >= 1 for line in lines)
    events = [json.loads(line) for line in (trained / "exp/log.jsonl").read_text().splitlines()]
    valid = {event["phase"]: event for event in events if event.get("event") == "valid"}
    assert list(valid) == ["base", "keyframe", "llm"]
    assert "valid/ctc" in valid["base"] and "valid/aligned" in valid["keyframe"]
    assert {"valid/lm", "valid/aligned", "valid/inter_ctc"} <= set(valid["llm"])


def test_the_language_model_reads_a_row_for_every_key_frame(trained):
    recognizer = Recognizer.load(trained / "exp")
    model = recognizer.model
    with torch.inference_mode():
        encoded = model.encode(toy_llm.batch(waveform=True).inputs)
    kept = encoded.taps["key_frames"].data.sum(1).long().clamp(min=1)
    assert encoded.frames.lengths.tolist() == kept.tolist()
    with torch.inference_mode():
        rows, mask = model.read(encoded.frames)
    assert mask.sum(1).tolist() == (kept + len(model.prompt)).tolist()
    assert rows.shape[2] == model.dim


def test_the_aligned_head_begins_as_the_ctc_head_and_writes_by_itself(trained):
    experiment = Experiment.open(trained / "exp")
    assert set(experiment.build("base").heads) == {"ctc", "inter_ctc"}
    assert set(experiment.build("llm").heads) == {"aligned", "inter_ctc", "llm"}
