"""Write data/fbank_kaldi.json: features of a synthetic signal by kaldi-native-fbank and
torchaudio.compliance.kaldi.

pip install kaldi-native-fbank; PYTHONPATH=. python tests/golden/make_fbank_kaldi.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

CASES = {
    "default": {"rate": 16000, "num_mel_bins": 80},
    "telephone": {"rate": 8000, "num_mel_bins": 40, "low_hz": 60.0, "high_hz": -200.0},
    # as sherpa-onnx (csrc/features.h) and icefall compute them: `preset: sherpa`
    "sherpa": {
        "rate": 16000,
        "num_mel_bins": 80,
        "high_hz": -400.0,
        "snip_edges": False,
        "sample_scale": 1.0,
    },
}
SECONDS = 0.45


def signal(rate: int) -> np.ndarray:
    """(T,) float32: two sweeping tones, noise, an offset, and a nearly silent middle; the same on
    every machine.
    """
    values, state = [], 12345
    for n in range(int(SECONDS * rate)):
        t = n / rate
        state = (1103515245 * state + 12345) % 2**31  # a linear congruential generator
        noise = state / 2**30 - 1
        loud = 0.003 if 0.25 < t < 0.35 else 1.0
        tones = 0.3 * math.sin(2 * math.pi * (200 + 900 * t) * t) + 0.1 * math.sin(
            2 * math.pi * (3000 - 2000 * t) * t
        )
        values.append(round(32768 * (0.005 + loud * (tones + 0.03 * noise))) / 32768)
    return np.array(values, dtype=np.float32)


def native(case: dict) -> np.ndarray:
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = case["rate"]
    options.mel_opts.num_bins = case["num_mel_bins"]
    options.mel_opts.low_freq = case.get("low_hz", 20.0)
    options.mel_opts.high_freq = case.get("high_hz", 0.0)
    options.frame_opts.snip_edges = case.get("snip_edges", True)
    fbank = kaldi_native_fbank.OnlineFbank(options)
    scale = case.get("sample_scale", 32768)
    fbank.accept_waveform(case["rate"], (signal(case["rate"]) * scale).tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def torchaudio(case: dict) -> np.ndarray:
    import torch

    from asrtool.torchaudio_adapter import require

    samples = torch.from_numpy(signal(case["rate"]))[None] * case.get("sample_scale", 32768)
    return (
        require()
        .compliance.kaldi.fbank(
            samples,
            dither=0.0,
            sample_frequency=case["rate"],
            num_mel_bins=case["num_mel_bins"],
            low_freq=case.get("low_hz", 20.0),
            high_freq=case.get("high_hz", 0.0),
            snip_edges=case.get("snip_edges", True),
        )
        .numpy()
    )


def main() -> None:
    makers = {"kaldi-native-fbank": native, "torchaudio.compliance.kaldi": torchaudio}
    found = {
        case: {
            name: np.round(make(config).astype(float), 6).tolist() for name, make in makers.items()
        }
        for case, config in CASES.items()
    }
    lines = json.dumps(found).replace("], [", "],\n[")
    (Path(__file__).parent / "data" / "fbank_kaldi.json").write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
