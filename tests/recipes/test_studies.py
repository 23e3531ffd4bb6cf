"""The studies of egs/kespeech: their tools on small inputs; (slow) one study from end to end."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from asrtool.bin import decode
from asrtool.data import audio
from asrtool.data.kaldi import datadir
from tests import toy_experiment, toy_qifusion
from tests.recipes.conftest import ROOT, run_in

STUDIES = ROOT / "egs" / "kespeech" / "studies"
ACCENTS = ROOT / "egs" / "accents" / "studies"


def tool(
    monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object, folder: Path = STUDIES
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")


def write_score(folder: Path, rate: float, accuracy: float) -> None:
    folder.mkdir(parents=True)
    group = {"rate": rate, "interval": [rate - 0.01, rate + 0.01]}
    right = {
        "accuracy": accuracy,
        "interval": [0.1, 0.9],
        "classes": {"Beijing": {"recall": accuracy}},
    }
    (folder / "score.json").write_text(
        json.dumps(
            {
                "total": {"rate": rate},
                "interval": [rate - 0.02, rate + 0.02],
                "groups": {"subdialect": {"Beijing": group}},
                "macro_average": {"subdialect": {"rate": rate}},
                "recognition": {"subdialect": right},
            }
        )
    )


def test_a_table_has_means_over_seeds_and_paired_differences(tmp_path, monkeypatch, capsys):
    for seed, (whole, chunk) in enumerate([(0.10, 0.12), (0.12, 0.13), (0.11, 0.125)]):
        write_score(tmp_path / f"q-s{seed}" / "whole" / "test", whole, 0.5)
        write_score(tmp_path / f"q-s{seed}" / "chunk16" / "test", chunk, 0.4)
    tool(
        monkeypatch,
        "table",
        "--exp",
        tmp_path,
        "--seeds",
        "0 1 2",
        "--against",
        "whole",
        "--by",
        "subdialect",
        "whole={q}/whole",
        "16={q}/chunk16",
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    # 1.5 points in the mean, deviation 0.5: 1.5 +- 4.303 * 0.5 / sqrt(3)
    assert "| 16 | 12.50 | 11.26 to 13.74 | +1.50 (0.3 to 2.7) | +14.0 (" in rows[3]
    assert rows[2].startswith("| whole | 11.00 | 8.52 to 13.48 |  |  | 11.00 | 50.0 |")
    assert "| Beijing | 11.0 (8.5 to 13.5) | 12.5 (11.3 to 13.7) |" in rows


def test_a_table_of_one_seed_has_the_interval_of_the_bootstrap(tmp_path, monkeypatch, capsys):
    for name, rate in (("a", 0.2), ("b", 0.1)):
        write_score(tmp_path / f"{name}-s7" / "whole" / "test", rate, 0.5)
    tool(
        monkeypatch,
        "table",
        "--exp",
        tmp_path,
        "--seeds",
        "7",
        "--against",
        "A",
        "A={a}/whole",
        "B={b}/whole",
    )
    assert "| B | 10.00 | 8.00 to 12.00 | -10.00 | -50.0 |" in capsys.readouterr().out


def test_cosines_are_averaged_by_epoch(tmp_path, monkeypatch, capsys):
    (tmp_path / "q-s0").mkdir()
    records = [
        {
            "event": "gradients",
            "phase": phase,
            "epoch": 1,
            "cosine": value,
            "norm": 1.0,
            "norm_others": 4.0,
        }
        for phase, value in (("train", -0.2), ("train", 0.4), ("longer", 0.3))
    ]
    (tmp_path / "q-s0" / "log.jsonl").write_text(
        "\n".join(map(json.dumps, [{"event": "step"}, *records]))
    )
    tool(monkeypatch, "cosines", "--exp", tmp_path, "--seeds", "0", "q")
    said = capsys.readouterr().out
    assert (
        "| train | 1 | +0.100 | 50 | 0.250 | 2 |\n| longer | 1 | +0.300 | 0 | 0.250 | 1 |"
    ) in said


def test_a_noisy_set_has_the_noise_that_was_asked_for(tmp_path, monkeypatch):
    toy_experiment.write_set(tmp_path / "clean", 3, 0, {"low": 1.0, "high": 1.2})
    tool(
        monkeypatch,
        "noisy_set",
        "--data",
        tmp_path / "clean",
        "--out",
        tmp_path / "noisy",
        "--snr-db",
        "10",
    )
    for clean, noisy in zip(
        *(datadir.read(tmp_path / name) for name in ("clean", "noisy")), strict=True
    ):
        assert (clean.id, clean.text, clean.labels) == (noisy.id, noisy.text, noisy.labels)
        one, other = (audio.read(row.audio) for row in (clean, noisy))
        scale = float(one @ other / (one @ one))
        ratio = 10 * np.log10(np.mean(one**2) / np.mean((other / scale - one) ** 2))
        assert ratio == pytest.approx(10, abs=0.5)


@pytest.mark.slow
def test_overhead_is_measured_for_every_chunk(monkeypatch, capsys):
    tool(
        monkeypatch,
        "overhead",
        "--config",
        ROOT / "egs/fsdd/conf/qifusion/train_qifusion.yaml",
        "--seconds",
        "2",
    )
    rows = [
        line.split("|")[1:-1]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    ][2:]
    assert [row[0].strip() for row in rows] == ["whole", "640", "640", "640", "320", "160", "160"]
    assert all(float(row[4]) > 0 for row in rows)
    assert float(rows[3][6]) < float(rows[1][6])  # less left context, a smaller cache


@pytest.mark.slow
def test_probes_name_the_accent_of_a_toy(tmp_path, monkeypatch, capsys):
    toy = toy_qifusion.make(tmp_path)
    (toy / "exp").rename(toy / "q-s0")
    tool(
        monkeypatch,
        "probes",
        "--exp",
        toy,
        "--seeds",
        "0",
        "--tag",
        "q",
        "--train",
        toy / "dump/train",
        "--test",
        toy / "dump/test",
        "--label",
        "accent",
    )
    rows = [
        line.split("|")[1:-1]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    ][2:]
    assert len(rows) == 3 and all(float(row[1]) > 80 for row in rows)  # two pitches are easy


@pytest.mark.slow
def test_probes_after_each_layer_beside_the_spectrum(tmp_path, monkeypatch, capsys):
    toy = toy_qifusion.make(tmp_path)
    given = ["--exp", toy / "exp", "--config", toy / "decode_rescoring.yaml"]
    places = ["--data", toy / "dump/test", "--out", toy / "exp/greedy/test"]
    decode.main([str(word) for word in (*given, *places)])
    sets = ["--train", toy / "dump/train", "--test", toy / "dump/test"]
    tool(monkeypatch, "accent_probes", "--exp", toy / "exp", *sets, folder=ACCENTS)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rates = {line.split("|")[1].strip(): float(line.split("|")[3]) for line in lines[2:]}
    assert rates["the most frequent accent"] == 50
    # two pitches are easy
    known = {"mean log-mel spectrum", "layer 1", "layer 2", "accent embedding G", "accent head"}
    assert known | {"the most frequent accent", "fused frames M"} == rates.keys()
    assert all(rates[name] > 80 for name in known)


@pytest.mark.slow
def test_a_study_runs_from_end_to_end_at_its_tiniest(tree):
    pytest.importorskip(
        "espeakng_loader", reason="the miniature needs espeak-ng: pip install -e '.[mini]'"
    )
    changes = "trainer.epochs=1 trainer.log_every=1"
    options = f'--size tiny --seeds "0 1" --train-args "{changes}"'
    said = run_in(tree, f"bash egs/kespeech/studies/baseline.sh {options}").stdout
    table = (tree / "egs/kespeech/exp/accents9_skew1/mini_tiny/baseline.md").read_text()
    assert "| Qifusion-Net, 640 ms |" in table and "| epoch | cosine |" in table
    assert "## Character error rate" in said
