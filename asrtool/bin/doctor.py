"""Check this machine: what works, what is missing, and the command that fixes it.

Exits with status 1 if the core (reading audio, training, decoding and scoring on some device) is
unusable, else with 0; missing optional packages are listed but are no error.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import io
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asrtool import versions
from asrtool.system import processes

OK, NOTE, BAD = "ok", "--", "BAD"  # works; optional, absent; needed, absent or broken
SETUP = "tools/setup.sh"
GIGABYTE = 1e9
# name for pip -> name for import, if they differ
MODULES = {"pyyaml": "yaml", "espeakng-loader": "espeakng_loader"}


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    subject: str
    state: str
    detail: str
    mend: str = ""


def load(package: str, absent: str, mend: str, reason: str = "") -> Finding:
    """Import a package by its name for pip; a broken one is reported like an absent one, with its
    error message.
    """
    try:
        importlib.import_module(MODULES.get(package, package))
        return Finding(package, OK, importlib.metadata.version(package))
    except ModuleNotFoundError as error:
        problem = f"{error.name} is not installed"
    except Exception as error:  # whatever a broken binary raises must not stop the other checks
        problem = f"does not load: {str(error).strip().splitlines()[0]}"
    return Finding(package, absent, f"{problem}; {reason}" if reason else problem, mend)


def check_python() -> Finding:
    here = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < (3, 11):  # noqa: UP036    a checkout may be run by any Python
        return Finding(
            "python",
            BAD,
            f"{here}; 3.11 to 3.13 are supported",
            "install Python 3.11, then " + SETUP,
        )
    if sys.version_info >= (3, 14):
        return Finding("python", NOTE, f"{here}; tested with 3.11 to 3.13")
    return Finding("python", OK, here)


def check_torch() -> Iterator[Finding]:
    """torch, its build, CUDA, bf16, threads."""
    finding = load("torch", BAD, SETUP)
    if finding.state != OK:
        yield finding
        return
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield judge_torch(torch.__version__, build)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("CUDA", OK, f"{len(names)} x {names[0]}")
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Finding(
            "bf16 on the GPU", OK if fast else NOTE, "in hardware" if fast else "not in hardware"
        )
    elif shutil.which("nvidia-smi") and not torch.version.cuda:
        yield Finding(
            "CUDA",
            NOTE,
            "this machine has an NVIDIA driver, but torch is a CPU build",
            f"{SETUP} --torch cuda",
        )
    else:
        yield Finding(
            "CUDA", NOTE, "no NVIDIA GPU that torch can use: training and decoding run on the CPU"
        )
    yield check_cpu_bf16()
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        "cores",
        OK,
        f"{processes.cores()}, {torch.get_num_threads()} threads in a torch process"
        + (f" (OMP_NUM_THREADS={threads})" if threads else ""),
    )


def judge_torch(version: str, build: str) -> Finding:
    """Too old, tested, or not tested."""
    release = versions.release(version)
    if release < versions.OLDEST:
        needed = f"{versions.dotted(versions.OLDEST)} or newer is needed"
        return Finding("torch", BAD, f"{version}, {build}; {needed}", SETUP)
    if release not in versions.TESTED:
        return Finding(
            "torch",
            NOTE,
            f"{version}, {build}; not tested, unlike {versions.dotted(*versions.TESTED)}",
        )
    return Finding("torch", OK, f"{version}, {build}")


def check_cpu_bf16() -> Finding:
    """Whether the CPU multiplies bf16 in hardware: only then is autocast on the CPU faster than
    float32.
    """
    import torch

    from asrtool.trainer.precision import multiplies_bf16

    if multiplies_bf16(torch.device("cpu")):
        return Finding("bf16 on the CPU", OK, "in hardware")
    return Finding("bf16 on the CPU", NOTE, "not in hardware: training on the CPU is float32")


def check_torchaudio() -> Iterator[Finding]:
    """The Python part is needed (resampling, filters), the compiled extension is not."""
    from asrtool import torchaudio_adapter as adapter

    module, problem = adapter.load()
    if module is None:
        yield Finding(
            "torchaudio", BAD, problem, f"pip install --no-deps torchaudio=={versions.TORCHAUDIO}"
        )
        return
    yield Finding("torchaudio", OK, f"{module.__version__}, Python part")
    extension = adapter.unloadable()
    if extension is not None:
        wrong = (
            "does not load beside this torch: outside asrtool `import torchaudio` fails, and "
            "what imports it"
        )
        yield Finding("its extension", NOTE, wrong, f"rm {shlex.quote(str(extension))}")
    else:
        state = "loads" if adapter.extension_available() else "is not there"
        yield Finding("its extension", OK, f"{state}; asrtool does without it")


def check_audio() -> Iterator[Finding]:
    """soundfile, and a round trip through each format: builds of libsndfile differ in codecs."""
    finding = load("soundfile", BAD, SETUP)
    if finding.state != OK:
        yield finding
        return
    import numpy as np
    import soundfile

    yield Finding(
        "soundfile", OK, f"{soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    )
    tone = 0.1 * np.sin(np.arange(3200) / 5.0)
    works, fails = [], []
    for name, container, coding in (
        ("wav", "WAV", None),
        ("flac", "FLAC", None),
        ("ogg", "OGG", "VORBIS"),
        ("opus", "OGG", "OPUS"),
        ("mp3", "MP3", None),
    ):
        memory = io.BytesIO()
        try:
            soundfile.write(memory, tone, 16000, format=container, subtype=coding)
            memory.seek(0)
            soundfile.read(memory)
            works.append(name)
        except (soundfile.LibsndfileError, ValueError):
            fails.append(name)
    core = "wav" in works and "flac" in works
    mend = "pip install --force-reinstall soundfile" if fails else ""
    detail = " ".join(works) + (f"; not readable here: {' '.join(fails)}" if fails else "")
    yield Finding("audio formats", (OK if not fails else NOTE) if core else BAD, detail, mend)


def check_espeak() -> Finding:
    """The synthesiser of the miniature corpora: its library must load and find its voices."""
    mend = 'pip install -e ".[mini]"'
    finding = load("espeakng-loader", NOTE, mend, "--mini true needs it")
    if finding.state != OK:
        return finding
    import espeakng_loader

    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
    except OSError as error:
        return Finding("espeakng-loader", NOTE, f"its library does not load: {error}", mend)
    voices = Path(espeakng_loader.get_data_path()) / "voices"
    if not voices.is_dir():
        return Finding("espeakng-loader", NOTE, f"no voices at {voices}", mend)
    library.espeak_Info.restype = ctypes.c_char_p
    return Finding(
        "espeakng-loader", OK, f"{finding.detail}, espeak-ng {library.espeak_Info(None).decode()}"
    )


def check_disk(folder: Path) -> Iterator[Finding]:
    """Free space and permission to write in the folder of the recipes."""
    free = shutil.disk_usage(folder).free / GIGABYTE
    state = OK if free >= 5 else NOTE if free >= 0.5 else BAD
    yield Finding(
        "disk space",
        state,
        f"{free:.0f} GB free" if free >= 1 else f"{free:.2f} GB free",
        ""
        if state == OK
        else "delete what is not needed; `--corpus` and the recipe's folders may lie on another "
        "disk",
    )
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            yield Finding("writing", OK, f"allowed in {folder}")
    except OSError as error:
        yield Finding("writing", BAD, f"{error.strerror} in {folder}", f"chmod -R u+w {folder}")


def examine(folder: Path) -> Iterator[Finding]:
    """Every check, in the order of the table."""
    yield check_python()
    yield from check_torch()
    for package in ("numpy", "pyyaml", "kaldiio", "sentencepiece", "jiwer", "safetensors", "tqdm"):
        yield load(package, BAD, SETUP)
    yield load(
        "numba", NOTE, SETUP, "search and features run on slower kernels with the same results"
    )
    yield from check_torchaudio()
    yield from check_audio()
    av = 'pip install -e ".[av]"'
    if shutil.which("ffmpeg") is None:
        yield load("av", NOTE, av, "m4a, webm, amr and the like need it, or ffmpeg")
    else:
        yield Finding("ffmpeg", OK, "reads m4a, webm, amr and the like")
    yield load("soxr", NOTE, SETUP, "audio at unusual sampling rates needs it")
    ssl = 'pip install -e ".[ssl]"'
    yield load("transformers", NOTE, ssl, "pre-trained encoders and language models need it")
    yield load("peft", NOTE, ssl, "LoRA needs it")
    hub = 'pip install -e ".[hub]"'
    yield load("huggingface_hub", NOTE, hub, "names with hf: need it")
    yield check_espeak()
    yield load("matplotlib", NOTE, 'pip install -e ".[plot]"', "plots need it")
    yield from check_disk(folder)


def main(argv: list[str] | None = None) -> None:
    """Print each check's line as it finishes; exit with status 1 if the core is unusable."""
    parser = argparse.ArgumentParser(prog="asrtool doctor", description=__doc__.split("\n\n")[0])
    parser.parse_args(argv)
    bad = []
    for finding in examine(Path.cwd()):
        print(f"{finding.state:3}  {finding.subject:16} {finding.detail}", flush=True)
        if finding.mend:
            print(f"{'':22}to mend: {finding.mend}", flush=True)
        if finding.state == BAD:
            bad.append(finding.subject)
    if bad:
        print(f"\nThe core is unusable: {', '.join(bad)}.")
        sys.exit(1)
    print("\nThe core works.")


if __name__ == "__main__":
    main()
