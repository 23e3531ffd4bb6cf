"""CPU time and memory of large data directories: at the start of a training, and of their commands.

    PYTHONPATH=. python tools/benchmarks/data_dir.py start --number 1000000 [--ranks 2]
    PYTHONPATH=. python tools/benchmarks/data_dir.py [commands] --number 1000000

Writes a data directory with this number of utterances, 500 per speaker, each with a text of 60
characters. `--work` names the folder to work in.

start: what `asrtool train` does with the data before its first step, twice: when nothing is kept of
the tables, and again. All ranks begin together. MB are those that a rank adds after the imports:
resident (with pages that processes share), its share of them (PSS), what it has for itself, and the
resident peak; then again after 20,000 utterances have been made, as for batches.

commands: check_data; check_data with one wrong line in utt2spk; check_data --fix for that; a subset
of a tenth; a split into 8; describe. Audio files are empty (these commands do not open them).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from itertools import chain, islice
from pathlib import Path

PER_SPEAKER = 500  # utterances
SPEAKER = "@@@@@@"  # stands for the name of a speaker
WORDS = ("the", "time", "of", "day", "and", "a", "word", "or", "two", "in", "which", "we", "say")
# of 60 characters
TEXTS = [" ".join(WORDS[n * step % len(WORDS)] for step in range(1, 30))[:60] for n in range(1, 14)]
SETTLED = 3  # seconds: what has just been written is compared by content
MADE = 20_000  # utterances that are made after the start


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "what", nargs="?", choices=("start", "commands", "rank"), default="commands"
    )
    options.add_argument("--number", type=int, default=1_000_000, help="utterances")
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    args = options.parse_args()
    if args.what == "rank":
        rank(args.work)
        return
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        if args.what == "start":
            make(Path(folder), args.number, has_features=True)
            start(Path(folder), args.number, args.ranks)
        else:
            make(Path(folder), args.number)
            commands(Path(folder), args.number)


def make(root: Path, number: int, has_features: bool = False) -> None:
    """Write <root>/set; with features as after stage 1, otherwise with empty audio files."""
    (root / "set").mkdir()
    names = ["wav.scp", "text", "utt2spk", "utt2dur", "spk2utt"]
    names += ["feats.scp", "utt2num_frames"] if has_features else []
    files = {name: open(root / "set" / name, "w", encoding="utf-8") for name in names}  # noqa: SIM115
    for first in range(0, number, PER_SPEAKER):
        speaker, some = f"C{first // PER_SPEAKER:05}", range(min(PER_SPEAKER, number - first))
        for name, file in files.items():
            file.write(lines(root, name, some).replace(SPEAKER, speaker))
        if not has_features:
            (root / "wav" / speaker).mkdir(parents=True)
        for n in () if has_features else some:
            path = root / "wav" / speaker / f"{speaker}-I{n:04}.wav"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    for file in files.values():
        file.close()


@cache
def lines(root: Path, name: str, numbers: range) -> str:
    """The lines of a file for the utterances of a speaker."""
    value = {
        "wav.scp": lambda n: f"{root}/wav/{SPEAKER}/{SPEAKER}-I{n:04}.wav",
        "text": lambda n: TEXTS[n % len(TEXTS)],
        "utt2spk": lambda n: SPEAKER,
        "utt2dur": lambda n: f"{1 + n % 9}.{n % 83:02}",
        "feats.scp": lambda n: f"{root}/set/feats.{SPEAKER}.ark:{5 + 40_017 * n}",
        "utt2num_frames": lambda n: f"{100 + n % 900}",
    }
    if name == "spk2utt":
        return f"{SPEAKER} {' '.join(f'{SPEAKER}-I{n:04}' for n in numbers)}\n"
    return "".join(f"{SPEAKER}-I{n:04} {value[name](n)}\n" for n in numbers)


# -- the start of a training -----------------------------------------------


def start(root: Path, number: int, ranks: int) -> None:
    size = sum(path.stat().st_size for path in (root / "set").iterdir())
    print(f"{number} utterances, {size / number:.0f} bytes each in the tables, {ranks} ranks")
    time.sleep(SETTLED)
    for name in ("first start", "second start"):
        command = [sys.executable, __file__, "rank", "--work", str(root)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = [subprocess.Popen(command, **pipes) for _ in range(ranks)]
        for _ in ("imported", "started", "measured", "batches made"):
            shown = [json.loads(process.stdout.readline()) for process in started]
            for process in started:
                process.stdin.write("go on\n")
                process.stdin.flush()
            for place, values in enumerate(shown if isinstance(shown[0], dict) else ()):
                print(f"{name}, rank {place}: {show(values)}", flush=True)
        for process in started:
            process.wait()
        cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"all processes so far: {cpu.ru_utime + cpu.ru_stime:.1f} CPU s", flush=True)


def show(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in values.items())


def rank(root: Path) -> None:
    """A rank: answers the parent after each part, and waits for it."""
    from asrtool.data import loader, mixing
    from asrtool.data.config import BatchConfig, DataConfig
    from asrtool.data.lengths import Lengths
    from asrtool.data.tokenizers import CharConfig, CharTokenizer

    tokens = ["<blank>", "<unk>", "<space>", *"abcdefghijklmnopqrstuvwxyz", "<sos/eos>"]
    tokenizer = CharTokenizer(CharConfig(), tokens=tokens, folder=root)
    config = DataConfig(batch=BatchConfig(seconds=400), workers=0)
    answer("ready")
    before, times, last = memory(), {}, time.process_time()

    def took(name: str) -> None:
        nonlocal last
        now = time.process_time()
        times[f"{name}, CPU s"], last = now - last, now

    utterances = mixing.read(root / "set", config)
    took("read")
    durations = getattr(utterances, "durations", None)
    Lengths.of([row.duration for row in utterances] if durations is None else durations)
    kept, _ = loader.select(utterances, config)
    kept = loader.readable(kept, 60.0, "training")
    took("chosen")
    dataset = loader.Dataset(kept, tokenizer, config, training=True)
    took("checked")
    steps = loader.StepLoader(dataset, rank=0, world=1)
    steps.describe()
    took("planned")
    answer("started")
    times["all, CPU s"] = sum(times.values())
    after = memory()
    answer(times | {f"{name} MB": after[name] - before[name] for name in after})
    made = chain.from_iterable(task.utterances for task in steps._tasks(0, 0))
    count = sum(1 for _ in islice(made, MADE))
    took("batches")
    after = memory()
    seconds = {f"{count} utterances made, CPU s": times["batches, CPU s"]}
    answer(seconds | {f"{name} MB": after[name] - before[name] for name in after})


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)
    sys.stdin.readline()


def memory() -> dict[str, float]:
    """Megabytes of this process: resident, its share of shared pages, and its own."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        sizes = {line.split()[0]: int(line.split()[1]) / 1e3 for line in lines if "kB" in line}
    return {
        "resident": sizes["Rss:"],
        "share": sizes["Pss:"],
        "own": sizes["Private_Clean:"] + sizes["Private_Dirty:"],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


# -- commands --------------------------------------------------------------


def commands(root: Path, number: int) -> None:
    broken = root / "broken"
    shutil.copytree(root / "set", broken)
    speakers = (broken / "utt2spk").read_text().splitlines()
    speakers[len(speakers) // 2] = "ZZZ nobody"
    (broken / "utt2spk").write_text("\n".join(speakers) + "\n")
    print(f"{number} utterances{'':18}CPU s   wall s     MB", flush=True)
    measure("check_data", "check_data", root / "set")
    measure("check_data, one wrong line", "check_data", broken, status=1)
    measure("check_data --fix", "check_data", "--fix", broken)
    measure("data subset", "data", "subset", root / "set", number // 10, root / "subset")
    measure("data split 8", "data", "split", root / "set", 8)
    measure("describe, with a second set", "describe", root / "set", root / "subset")


def measure(name: str, *command: object, status: int = 0) -> None:
    """Run a command in its own process; print its time and peak memory."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    arguments = [sys.executable, "-m", f"asrtool.bin.{command[0]}", *map(str, command[1:])]
    script = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], "
        "stdout=subprocess.DEVNULL); "
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    code, peak = map(int, done.stdout.split())
    if code != status:
        sys.exit(f"{name}: exit status {code}, expected {status}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{name:36}{cpu:8.1f} {time.perf_counter() - started:8.1f} {peak / 1024:6.0f}", flush=True
    )


if __name__ == "__main__":
    main()
